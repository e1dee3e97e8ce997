"""The answering side of the control socket: a thread of the supervisor's process.

It is the only writer of the line's triggers (`pipeline.triggers`): first the record, then wake-ups
for the captures and decision, then the answer. What is refused is counted, and logged at most once
in ten seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import zmq

from pipeline.config import LineConfig
from pipeline.control import MAX_BYTES, pack, unpack
from pipeline.errors import ControlError
from pipeline.keys import Gate
from pipeline.publish import bind, open_gate
from pipeline.stage import wake
from pipeline.station import Station
from pipeline.triggers import PART_ID_BYTES, RECORDS, TRIGGER_LIMIT, TriggerLog

_TICK_MS: Final = 100
_COMPLAIN_S: Final = 10.0
_MOST_AT_ONCE: Final = 1000
"""Triggers that one leap of an encoder may make: more is a counter that was set anew."""

log = logging.getLogger("control")


@dataclass(slots=True)
class Complaints:
    """Refused requests, told of without flooding the log."""

    count: int = 0
    _told: int = 0
    _last_s: float = field(default=-_COMPLAIN_S)

    def add(self, text: str) -> None:
        self.count += 1
        now = time.monotonic()
        if now - self._last_s >= _COMPLAIN_S:
            log.warning("%d requests refused, last: %s", self.count - self._told, text)
            self._told, self._last_s = self.count, now


class ControlServer:
    """Answers until it is closed. `status` is asked for what it says of the line."""

    def __init__(
        self, station: Station, triggers: TriggerLog, status: Callable[[], Mapping[str, Any]]
    ) -> None:
        """Raises `StationBusy` when the endpoint is taken, `ConfigError` when it is unusable."""
        self._triggers = triggers
        self._status = status
        self._targets = targets_of(station.config)
        self._encoders: dict[str, int] = {}
        self._counts = counts_of(station.config)
        cameras = station.config.cameras.values()
        self._late_ns = round(max(c.trigger.timeout_ms for c in cameras) * 1e6) + 1
        self.complaints = Complaints()
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        self._gate: Gate | None = None
        try:
            self._gate = open_gate(self._context, station.config.security)
            bind(self._socket, station.control, "control.endpoint", self._gate)
            self._outboxes = {name: self._outbox(station, name) for name in station.woken}
        except BaseException:
            if self._gate is not None:
                self._gate.close()
            self._context.destroy(0)
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        if self._gate is not None:
            self._gate.close()
        self._context.destroy(0)

    def _outbox(self, station: Station, name: str) -> zmq.Socket[bytes]:
        outbox = self._context.socket(zmq.PUSH)
        outbox.setsockopt(zmq.SNDHWM, 100)
        outbox.setsockopt(zmq.IMMEDIATE, 1)
        outbox.connect(f"ipc://{station.socket(name)}")
        return outbox

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._socket.poll(_TICK_MS):
                self._serve()

    def _serve(self) -> None:
        parts = self._socket.recv_multipart()
        # Of a REQ socket there is an empty frame between.
        envelope = parts[:2] if len(parts) == 3 and not parts[1] else parts[:1]
        number: object = None
        try:
            if len(parts) != len(envelope) + 1:
                raise ControlError(f"a message of {len(parts) - 1} frames found, expected one")
            request = unpack(parts[-1])
            number = request.get("id")
            if not isinstance(number, int | str | None):
                number = None
                raise ControlError("an id that is no number and no text found")
            answer = {"ok": True, **self._answer(request)}
        except ControlError as error:
            self.complaints.add(str(error))
            answer = {"ok": False, "error": str(error)}
        try:
            self._socket.send_multipart([*envelope, pack({"id": number, **answer})], zmq.DONTWAIT)
        except zmq.ZMQError:  # whoever asked is gone
            self.complaints.add("the answer could not be sent")

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        match request.get("do"):
            case "trigger":
                return self._trigger(request)
            case "encoder":
                return self._encoder(request)
            case "status":
                return {**self._status(), "refused": self.complaints.count}
        raise ControlError(
            f"do: {str(request.get('do'))[:40]!r} found, expected trigger, encoder or status"
        )

    def _trigger(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        target = self._target(request)
        trigger_id, part_id = request.get("trigger_id", 0), request.get("part_id", "")
        if type(trigger_id) is not int or not 0 <= trigger_id < TRIGGER_LIMIT:
            raise ControlError(
                f"trigger_id: {str(trigger_id)[:40]} found, expected a whole number from 0 to "
                f"{TRIGGER_LIMIT - 1}"
            )
        if not isinstance(part_id, str) or len(part_id.encode()) > PART_ID_BYTES:
            raise ControlError(
                f"part_id: {str(part_id)[:40]!r} found, expected a text of at most "
                f"{PART_ID_BYTES} bytes"
            )
        if not self._ready():
            raise ControlError("the line is not ready: no engine, or it is being stopped")
        self._check_room(1)
        self._triggers.add(target, time.monotonic_ns(), trigger_id=trigger_id, part_id=part_id)
        self._wake()
        return {"trigger_id": trigger_id}

    def _encoder(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A trigger for each multiple of `counts` that the encoder has passed since; a picture of
        the last."""
        target = self._target(request)
        count = request.get("count")
        if type(count) is not int or abs(count) >= 2**63:
            raise ControlError(f"count: {str(count)[:40]} found, expected a whole number")
        if target not in self._counts:
            raise ControlError(
                f"target {target!r} has no camera with trigger.mode `encoder`: set it, and `counts`"
            )
        place = count // self._counts[target]
        last = self._encoders.get(target, place)
        passed = range(last + 1, place + 1)
        if place != last - 1:  # a belt that trembles on a multiple has not gone back
            self._encoders[target] = place
        # After the place is known: what passes meanwhile is not to be made up for.
        if not self._ready():
            raise ControlError("the line is not ready: no engine, or it is being stopped")
        if len(passed) > _MOST_AT_ONCE:
            raise ControlError(
                f"count: a leap over {len(passed)} triggers found, expected at most "
                f"{_MOST_AT_ONCE}; the count is taken as a new beginning"
            )
        self._check_room(len(passed))
        now = time.monotonic_ns()
        for number in passed:
            # Of several at once the belt is at the last: the others are too late for a picture.
            t_ns = now if number == place else now - self._late_ns
            self._triggers.add(target, t_ns, trigger_id=number % TRIGGER_LIMIT)
        if passed:
            self._wake()
        return {"triggers": len(passed)}

    def _target(self, request: Mapping[str, Any]) -> str:
        target = request.get("target", "")
        if target == "" and len(self._targets) == 1:
            return self._targets[0]
        if not isinstance(target, str) or target not in self._targets:
            raise ControlError(
                f"target: {str(target)[:60]!r} found, expected one of "
                f"{', '.join(self._targets) or 'none: no camera here takes triggers'}"
            )
        return target

    def _check_room(self, more: int) -> None:
        """A trigger without its part's verdict is never overwritten. Raises `ControlError`."""
        waiting = self._triggers.last - self._triggers.decided
        if waiting + more > RECORDS:
            raise ControlError(
                f"{waiting} triggers without a verdict found, expected at most {RECORDS}: the line "
                "does not keep up"
            )

    def _ready(self) -> bool:
        return bool(self._status().get("ready"))

    def _wake(self) -> None:
        for outbox in self._outboxes.values():
            wake(outbox)


def targets_of(config: LineConfig) -> Sequence[str]:
    """What a trigger may be meant for: parts, and cameras in none, that take triggers."""
    asked = {
        name
        for name, camera in config.cameras.items()
        if camera.trigger.mode in ("software", "hardware", "encoder")
    }
    grouped = {camera for part in config.parts.values() for camera in part.views}
    parts = [name for name, part in config.parts.items() if asked.intersection(part.views)]
    return [*parts, *(name for name in config.cameras if name in asked - grouped)]


def counts_of(config: LineConfig) -> Mapping[str, int]:
    """Target -> encoder counts from one trigger to the next, of those with an encoder."""
    counts = {
        name: camera.trigger.counts
        for name, camera in config.cameras.items()
        if camera.trigger.mode == "encoder"
    }
    parts = {
        name: counts[camera]
        for name, part in config.parts.items()
        for camera in part.views
        if camera in counts
    }
    return {**counts, **parts}
