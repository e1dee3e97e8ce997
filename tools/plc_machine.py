"""The program of a small PLC with a belt, a trigger and a reject gate; `tools.plc_sim` runs it.

Parts come along the belt at `rate`. Each is triggered under the camera, and at the gate, `gate_ms`
later, it passes only when all of this holds; everything else is rejected:

1. the bridge took the trigger, in this session of the bridge;
2. a result for this very trigger id came before the gate, and says pass;
3. right now the connection stands, the bridge's heartbeat moved within `watchdog_ms`, and there is
   neither ERROR nor OVERRUN.

It is what docs/plc.md asks of a real one. With a `truth` (is the part of this trigger id good?) it
counts wrong passes: there must never be one.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

Truth = Callable[[int], bool]


class LinkError(Exception):
    """The bridge is not there, or does not answer as it should."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A result as it was read: its number, for the acknowledgement, and whether it says pass."""

    number: int
    trigger_id: int
    passed: bool


@dataclass(frozen=True, slots=True)
class View:
    """One look at the bridge."""

    session: int
    heartbeat: int
    ready: bool
    error: bool
    overrun: bool
    answers: tuple[Answer, ...] = ()
    """New ones; each is there again until it is acknowledged."""


class Link(Protocol):
    """The PLC's end of one protocol. Every method raises `LinkError`."""

    def connect(self) -> None: ...

    def look(self) -> View: ...

    def trigger(self, trigger_id: int, part_id: str) -> bool:
        """Whether the line took it."""

    def acknowledge(self, number: int) -> None: ...

    def reset(self) -> None: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Part:
    """One on the belt. `verdict` is set when its answer came, with the time of that."""

    trigger_id: int
    gate_at: float
    taken_utc_ns: int
    triggered: bool = False
    void: str = ""
    """Why no answer counts any more: another session, an overrun."""
    verdict: bool | None = None
    answered_at: float = 0.0


@dataclass(slots=True)
class Tally:
    """What became of the parts. `why` counts the reasons of rejects."""

    parts: int = 0
    passed: int = 0
    rejected: int = 0
    late: int = 0
    missing: int = 0
    wrong: int = 0
    """Bad parts that passed, as far as the truth is known."""
    good: int = 0
    good_passed: int = 0
    connects: int = 0
    resets: int = 0
    why: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Passage:
    """A part that has been at the gate. Times are UTC; `why` is empty when it passed."""

    trigger_id: int
    taken_utc_ns: int
    gate_utc_ns: int
    why: str


class Plc:
    """The program of the PLC: `run` is its scan cycle, until the last part has passed the gate."""

    def __init__(
        self,
        link: Link,
        *,
        rate: float = 20.0,
        gate_ms: float = 500.0,
        watchdog_ms: float = 250.0,
        cycle_ms: float = 5.0,
        truth: Truth | None = None,
        first_id: int | None = None,
    ) -> None:
        """first_id: of the triggers; None: one at random, so that no earlier run had the same."""
        self.tally = Tally()
        self.history: list[Passage] = []
        self._link = link
        self._period_s = 1 / rate
        self._gate_s = gate_ms / 1000
        self._watchdog_s = watchdog_ms / 1000
        self._cycle_s = cycle_ms / 1000
        self._truth = truth
        self._next_id = secrets.randbelow(2**31) + 1 if first_id is None else first_id
        self._belt: deque[Part] = deque()
        self._view: View | None = None
        self._beat_at = 0.0
        self._connected = False
        self._retry_at = 0.0

    def run(
        self, parts: int, *, stop: Callable[[], bool] = lambda: False, start_s: float = 10.0
    ) -> Tally:
        """Send so many parts along the belt; they begin when the bridge is ready, or after
        `start_s` seconds all the same."""
        begin = time.monotonic()
        while not self.ready and time.monotonic() - begin < start_s and not stop():
            self.scan()
        due = time.monotonic()
        left = parts
        while (left or self._belt) and not stop():
            now = time.monotonic()
            if left and now >= due:
                # A scan that took long (a connection that hangs) leaves a gap on the belt.
                due = max(due + self._period_s, now)
                left -= 1
                self._take()
            self.scan()
        self._link.close()
        return self.tally

    def scan(self) -> None:
        """One cycle: look at the bridge, and let through or reject what is at the gate."""
        start = time.monotonic()
        self._communicate()
        while self._belt and time.monotonic() >= self._belt[0].gate_at:
            self._gate(self._belt.popleft())
        time.sleep(max(0.0, self._cycle_s - (time.monotonic() - start)))

    def _take(self) -> None:
        """A part is under the camera."""
        now = time.monotonic()
        part = Part(self._next_id, now + self._gate_s, time.time_ns())
        self._next_id = self._next_id % (2**32 - 1) + 1
        self._belt.append(part)
        if not self.ready:
            part.void = "not ready"
            return
        try:
            part.triggered = self._link.trigger(part.trigger_id, f"part-{part.trigger_id}")
        except LinkError:
            self._lose()
        if not part.triggered:
            part.void = part.void or "trigger refused"

    def _communicate(self) -> None:
        now = time.monotonic()
        try:
            if not self._connected:
                if now < self._retry_at:
                    return
                self._retry_at = now + 0.1
                self._link.connect()
                self._connected = True
                self.tally.connects += 1
            self._read(self._link.look())
        except LinkError:
            self._lose()

    def _read(self, view: View) -> None:
        now = time.monotonic()
        before, self._view = self._view, view
        if before is None or before.heartbeat != view.heartbeat:
            self._beat_at = now
        if before is not None and before.session != view.session:
            self._void("new session")
        for answer in view.answers:
            for part in self._belt:
                if part.trigger_id == answer.trigger_id and part.verdict is None:
                    part.verdict, part.answered_at = answer.passed, now
            self._link.acknowledge(answer.number)
        if view.overrun:
            self._void("overrun")
            self._link.reset()
            self.tally.resets += 1

    def _lose(self) -> None:
        self._connected = False
        self._link.close()

    def _void(self, why: str) -> None:
        for part in self._belt:
            part.void = part.void or why

    @property
    def ready(self) -> bool:
        """Whether a part may be triggered now."""
        return self.healthy and self._view is not None and self._view.ready

    @property
    def healthy(self) -> bool:
        """Whether a part may pass now, as far as the bridge is concerned."""
        view = self._view
        return (
            self._connected
            and view is not None
            and not view.error
            and not view.overrun
            and time.monotonic() - self._beat_at <= self._watchdog_s
        )

    def _gate(self, part: Part) -> None:
        """The part is at the gate: it is let through, or not."""
        why = part.void
        if not why and part.verdict is None:
            why = "no answer"
            self.tally.missing += 1
        elif not why and part.answered_at > part.gate_at:
            why = "late answer"
            self.tally.late += 1
        elif not why and not part.verdict:
            why = "not a pass"
        elif not why and not self.healthy:
            why = "unhealthy"
        tally = self.tally
        tally.parts += 1
        self.history.append(Passage(part.trigger_id, part.taken_utc_ns, time.time_ns(), why))
        good = self._truth(part.trigger_id) if self._truth else None
        tally.good += good is True
        if why:
            tally.rejected += 1
            tally.why[why] = tally.why.get(why, 0) + 1
        else:
            tally.passed += 1
            tally.good_passed += good is True
            tally.wrong += good is False
