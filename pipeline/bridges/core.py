"""What a PLC sees of the line, whatever protocol it asks in. Pure: no sockets, no threads.

1. The PLC gives a trigger (its own `trigger_id`, 1 to 2^32 - 1). A part verdict is a result only
   when it is of a trigger that this state holds: same id, same part_id where one was given, and
   captured after the trigger. So what a bridge that was killed had triggered is no result of the
   next one, and a trigger id that comes up again finds no old verdict.
2. Up to 8 results wait for the PLC, oldest first. `count` is the number of the newest, `ack` of the
   last one that the PLC has acknowledged, both modulo 2^16; the one to be read is `ack` + 1.
   A result that finds no place is lost: OVERRUN until the PLC resets.
3. A pass stays one for `max_age_ms` from its trigger. After that, and as soon as the line is
   silent for `stale_ms`, what waits is turned into `invalid` and stays that. A trigger without a
   verdict in that time becomes an `invalid` result.
4. `heartbeat` counts while the stream is being read; a bridge that hangs or died stands still.

Words that mean a verdict differ in 16 (pass, fail) or 8 bits from each other and in 8 from 0 and
from 0xFFFF: anything but `PASS` is not a pass.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from pipeline.types import Defect, Label, PartVerdict, Reason

PASS: Final = 0xA5C3
FAIL: Final = 0x5A3C
INVALID: Final = 0x6996
CODES: Final = {Label.PASS: PASS, Label.FAIL: FAIL, Label.INVALID: INVALID}

BUFFER: Final = 8
"""Results that wait for the PLC."""
PENDING: Final = 32
"""Triggers that wait for their verdict."""
WORD: Final = 0x10000
_MAX_TRIGGER_ID: Final = 2**32 - 1
_REMEMBERED: Final = 4096  # trigger ids that are not to be used again yet
_BEAT_NS: Final = 20_000_000


class ErrorCode(IntEnum):
    """What the PLC has to know of the line. With those up to OVERRUN, ERROR is set."""

    NONE = 0
    NO_LINE = 1  # nothing heard of the line since the bridge started
    STALE = 2  # no heartbeat for `stale_ms`
    OVERRUN = 3  # results were lost: their parts are rejects
    NOT_READY = 4  # no engine is loaded: every verdict is invalid
    CAMERA = 5  # a camera of its target is connecting, lost or frozen


class Refusal(IntEnum):
    """What became of the last trigger. Whatever is not `ACCEPTED`: its part has no result."""

    ACCEPTED = 0
    ERROR = 1  # the line is silent
    BAD_ID = 2  # 0, or beyond 32 bits
    USED_ID = 3  # one of the last 4096 triggers had it
    TOO_MANY = 4  # 32 triggers wait for their verdict
    LINE = 5  # the line's control socket refused it, or did not answer


REASON_CODES: Final[Mapping[str, int]] = {
    Reason.OK: 1,
    Reason.DEFECT: 2,
    Reason.DROPPED: 10,
    Reason.TORN: 11,
    Reason.LATE: 12,
    Reason.BROKEN_FRAME: 13,
    Reason.WRONG_SIZE: 14,
    Reason.INFER_FAILED: 15,
    Reason.WORKER_DIED: 16,
    Reason.RULE_FAILED: 17,
    Reason.LINE_DIED: 18,
    Reason.CAMERA_LOST: 19,
    Reason.NO_FRAME: 20,
    Reason.NO_PART: 21,
    Reason.OPTICS: 22,
    Reason.UNKNOWN: 23,
    "no_answer": 30,  # no verdict in max_age_ms: the bridge's own
    "too_old": 31,  # the PLC looked too late
    "stale": 32,  # the line went silent before the PLC looked
}
"""Reasons as numbers; those from 30 on are the bridge's."""


@dataclass(frozen=True, slots=True)
class Result:
    """One part's answer. `label` is what may be acted upon, `verdict` what the line has on record
    (None: the line gave none)."""

    trigger_id: int
    part_id: str
    label: Label
    reason: str
    born_ns: int
    """Monotonic time of the trigger, or of the capture where there is none."""
    verdict: PartVerdict | None = None

    @property
    def code(self) -> int:
        return CODES[self.label]

    @property
    def defects(self) -> tuple[Defect, ...]:
        return self.verdict.defects if self.verdict else ()

    def spoiled(self, reason: str) -> Result:
        return replace(self, label=Label.INVALID, reason=reason)


@dataclass(frozen=True, slots=True)
class Fields:
    """One consistent look at the bridge."""

    ready: bool
    busy: bool
    error: bool
    overrun: bool
    error_code: ErrorCode
    heartbeat: int
    session: int
    """Of this bridge's life: another number, and every trigger of before is void."""
    count: int
    ack: int
    result: Result | None
    """Number `ack` + 1, None when all are acknowledged."""
    lost: int
    """Results that found no place, since the start."""


@dataclass(frozen=True, slots=True)
class _Pending:
    part_id: str
    born_ns: int


class BridgeState:
    """The state machine. Times are the caller's, `now_ns` monotonic and never going back."""

    def __init__(self, stale_ms: float, max_age_ms: float, *, triggered: bool, now_ns: int) -> None:
        """triggered: only triggers given here have results; else every part that is captured from
        now on has one."""
        self._stale_ns = round(stale_ms * 1e6)
        self._max_age_ns = round(max_age_ms * 1e6)
        self._triggered = triggered
        self._start_ns = now_ns
        self._session = secrets.randbelow(WORD - 1) + 1
        self._heard_ns: int | None = None
        self._line_ready = False
        self._cameras_ready = False
        self._beat_ns = now_ns
        self._heartbeat = 0
        self._count = 0
        self._ack = 0
        self._waiting: deque[Result] = deque()
        self._pending: OrderedDict[int, _Pending] = OrderedDict()
        self._used: OrderedDict[int, int] = OrderedDict()  # -> monotonic time
        self._overrun = False
        self._lost = 0
        self.strangers = 0
        """Part verdicts that were of no trigger held here."""

    # From the line

    def hear_heartbeat(
        self, sent_utc_ns: int, ready: bool, cameras: Mapping[str, str], now_ns: int, utc_ns: int
    ) -> None:
        """A heartbeat of the line. One that lay somewhere for `stale_ms` is none."""
        if abs(utc_ns - sent_utc_ns) < self._stale_ns:
            self._heard_ns = now_ns
            self._line_ready = ready
            self._cameras_ready = all(state == "ready" for state in cameras.values())
        self.tick(now_ns)

    def hear_part(self, verdict: PartVerdict, now_ns: int, utc_ns: int) -> None:
        """A part's verdict. What is not certainly of a trigger held here is passed over."""
        self.tick(now_ns)
        born_ns = now_ns - (utc_ns - verdict.t_capture_utc_ns)
        if self._triggered:
            pending = self._pending.get(verdict.trigger_id)
            if (
                pending is None
                or not pending.born_ns <= born_ns <= now_ns
                or (pending.part_id and pending.part_id != verdict.part_id)
            ):
                self.strangers += 1
                return
            born_ns = pending.born_ns
        elif not self._start_ns <= born_ns <= now_ns:
            self.strangers += 1
            return
        self._pending.pop(verdict.trigger_id, None)
        result = Result(
            verdict.trigger_id,
            verdict.part_id,
            verdict.label,
            verdict.reason.value,
            born_ns,
            verdict,
        )
        self._put(result, now_ns)

    def hear_missed(self, now_ns: int) -> None:
        """Verdicts went by unheard. Triggers tell whose; without them nobody can."""
        if not self._triggered:
            self._overrun = True
            self._lost += 1
        self.tick(now_ns)

    def beat(self, now_ns: int) -> None:
        """The stream is being read."""
        if now_ns - self._beat_ns >= _BEAT_NS:
            self._beat_ns = now_ns
            self._heartbeat = (self._heartbeat + 1) % WORD
        self.tick(now_ns)

    # From the PLC

    def trigger(self, trigger_id: int, part_id: str, now_ns: int) -> Refusal:
        """A trigger is about to be given to the line. Not when it is refused."""
        self.tick(now_ns)
        if self._silent(now_ns):
            return Refusal.ERROR
        if not 0 < trigger_id <= _MAX_TRIGGER_ID:
            return Refusal.BAD_ID
        if trigger_id in self._used:
            return Refusal.USED_ID
        if len(self._pending) >= PENDING:
            return Refusal.TOO_MANY
        self._used[trigger_id] = now_ns
        if len(self._used) > _REMEMBERED:
            self._used.popitem(last=False)
        self._pending[trigger_id] = _Pending(part_id, now_ns)
        return Refusal.ACCEPTED

    def give_up(self, trigger_id: int) -> None:
        """The line did not take the trigger, or nobody knows: its part has no result."""
        self._pending.pop(trigger_id, None)

    def acknowledge(self, number: int) -> bool:
        """The PLC has the results up to this number. False for one that is not waiting."""
        done = (number - self._ack) % WORD
        if done > len(self._waiting):
            return False
        for _ in range(done):
            self._waiting.popleft()
        self._ack = number % WORD
        return True

    def reset(self, now_ns: int) -> None:
        """All that waits is forgotten, OVERRUN, and which ids were used but those just now."""
        while self._used and next(iter(self._used.values())) < now_ns - self._max_age_ns:
            self._used.popitem(last=False)
        self._waiting.clear()
        self._pending.clear()
        self._ack = self._count
        self._overrun = False

    def look(self, now_ns: int) -> Fields:
        """What the PLC sees now."""
        self.tick(now_ns)
        code = self._code(now_ns)
        return Fields(
            ready=code is ErrorCode.NONE,
            busy=bool(self._pending),
            error=code in (ErrorCode.NO_LINE, ErrorCode.STALE, ErrorCode.OVERRUN),
            overrun=self._overrun,
            error_code=code,
            heartbeat=self._heartbeat,
            session=self._session,
            count=self._count,
            ack=self._ack,
            result=self._waiting[0] if self._waiting else None,
            lost=self._lost,
        )

    def tick(self, now_ns: int) -> None:
        """Time goes by: what has become too old is spoiled, for good."""
        late_ns = now_ns - self._max_age_ns
        while self._pending:
            trigger_id, first = next(iter(self._pending.items()))
            if first.born_ns >= late_ns:
                break
            del self._pending[trigger_id]
            result = Result(trigger_id, first.part_id, Label.INVALID, "no_answer", first.born_ns)
            self._put(result, now_ns)
        silent = self._silent(now_ns)
        for at, result in enumerate(self._waiting):
            if result.label is Label.PASS and (silent or result.born_ns < late_ns):
                self._waiting[at] = result.spoiled("stale" if silent else "too_old")

    def _put(self, result: Result, now_ns: int) -> None:
        if len(self._waiting) >= BUFFER:
            self._overrun = True
            self._lost += 1
            return
        if result.label is Label.PASS and self._silent(now_ns):
            result = result.spoiled("stale")
        elif result.label is Label.PASS and result.born_ns < now_ns - self._max_age_ns:
            result = result.spoiled("too_old")
        self._waiting.append(result)
        self._count = (self._count + 1) % WORD

    def _silent(self, now_ns: int) -> bool:
        return self._heard_ns is None or now_ns - self._heard_ns > self._stale_ns

    def _code(self, now_ns: int) -> ErrorCode:
        if self._heard_ns is None:
            return ErrorCode.NO_LINE
        if self._silent(now_ns):
            return ErrorCode.STALE
        if self._overrun:
            return ErrorCode.OVERRUN
        if not self._line_ready:
            return ErrorCode.NOT_READY
        return ErrorCode.NONE if self._cameras_ready else ErrorCode.CAMERA
