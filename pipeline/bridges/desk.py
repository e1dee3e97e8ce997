"""The core with its sockets: the line's stream comes in, triggers go out, servers look.

`Desk` may be used from several threads. The stream is read by `listening` in a thread of its own,
or by whoever calls `step`; the control socket belongs to one worker thread, so that a line that
does not answer holds up nobody who looks.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pipeline.bridges.core import WORD, BridgeState, Fields, Refusal, Result
from pipeline.config import LineConfig
from pipeline.config.bridges import Bridge
from pipeline.control import Control
from pipeline.errors import ControlError, WireError
from pipeline.keys import ClientKeys, read_secret
from pipeline.rarely import Rarely
from pipeline.station import Station
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import PartVerdict
from pipeline.wire import Heartbeat

TRIGGER_MS: Final = 200
"""From the PLC's wish to the line's answer; a trigger that waited longer is not given any more: the
belt has moved on."""
POLL_MS: Final = 20

log = logging.getLogger("bridge")


class Desk:
    """One bridge's state, its stream and its triggers."""

    def __init__(self, bridge: Bridge, station: Station, name: str) -> None:
        """Raises `ConfigError` for keys of the line that cannot be read."""
        self.changed: Callable[[], None] = lambda: None
        """Called in any thread whenever a look may show something new."""
        self.bad_messages = 0
        self._rarely = Rarely()
        self._target = bridge.target
        self._cameras = _cameras_of(station.config, bridge.target)
        self._station = station
        self._name = name
        self._keys = _line_keys(station)
        self._control: Control | None = None
        self._lock = threading.Lock()
        self._state = BridgeState(
            bridge.stale_ms,
            bridge.max_age_ms,
            triggered=bridge.results == "triggered",
            now_ns=time.monotonic_ns(),
        )
        self._given: int | None = None
        self._worker = ThreadPoolExecutor(1, "trigger")
        self._beat: Heartbeat | None = None

    # The line's side

    def subscribe(self, *, durable: bool = False) -> Subscriber:
        """The line's parts. durable: with a cursor in the state folder, for records; results for
        the PLC come live or not at all."""
        publish = self._station.config.publish
        if not durable:
            return Subscriber(publish.endpoint, ["part/"], keys=self._keys)
        self._station.state_dir.mkdir(parents=True, exist_ok=True)
        cursor = self._station.state_dir / f"bridge.{self._name}.cursor"
        return Subscriber(
            publish.endpoint, ["part/"], cursor=cursor, replay=publish.replay, keys=self._keys
        )

    def step(self, stream: Subscriber) -> None:
        """Take the next event, or wait `POLL_MS` for one."""
        event = None
        try:
            event = stream.receive(timeout_ms=POLL_MS)
        except WireError as error:
            self.bad_messages += 1
            if self._rarely.due("bad message"):
                log.warning("%s (%d of these)", error, self.bad_messages)
        with self._lock:
            now_ns, utc_ns = time.monotonic_ns(), time.time_ns()
            beat = stream.heartbeat
            if beat is not None and beat is not self._beat:
                self._beat = beat
                cameras = {one: how for one, how in beat.cameras.items() if one in self._cameras}
                self._state.hear_heartbeat(beat.t_utc_ns, beat.ready, cameras, now_ns, utc_ns)
            if isinstance(event, PartVerdict):
                self._state.hear_part(event, now_ns, utc_ns)
            elif isinstance(event, Missed):
                self._state.hear_missed(now_ns)
            self._state.beat(now_ns)
        self.changed()

    @contextlib.contextmanager
    def listening(self) -> Iterator[Callable[[], bool]]:
        """Read the stream in a thread of its own, as long as the block lasts; gives what tells
        whether it still does."""
        stopping = threading.Event()
        with self.subscribe() as stream:

            def listen() -> None:
                while not stopping.is_set():
                    self.step(stream)

            thread = threading.Thread(target=listen, name="listen", daemon=True)
            thread.start()
            try:
                yield thread.is_alive
            finally:
                stopping.set()
                thread.join()

    # The PLC's side

    def look(self) -> Fields:
        with self._lock:
            return self._state.look(time.monotonic_ns())

    def new_results(self) -> Iterator[tuple[int, Result]]:
        """For protocols that push: number and result of all that were not given here before. The
        newest stays to be looked at; the others are acknowledged."""
        fields = self.look()
        while fields.result is not None:
            number = (fields.ack + 1) % WORD
            if number != self._given:
                self._given = number
                yield number, fields.result
            if number == fields.count:
                return
            self.acknowledge(number)
            fields = self.look()

    def acknowledge(self, number: int) -> bool:
        with self._lock:
            return self._state.acknowledge(number)

    def reset(self) -> None:
        with self._lock:
            self._state.reset(time.monotonic_ns())

    def trigger(self, trigger_id: int, part_id: str) -> Future[Refusal]:
        """Have the line take a part. What became of it is known when the line has answered."""
        asked_ns = time.monotonic_ns()
        with self._lock:
            refusal = self._state.trigger(trigger_id, part_id, asked_ns)
        if refusal is Refusal.ACCEPTED:
            return self._worker.submit(self._ask, trigger_id, part_id, asked_ns)
        answer: Future[Refusal] = Future()
        answer.set_result(refusal)
        return answer

    def _ask(self, trigger_id: int, part_id: str, asked_ns: int) -> Refusal:
        left_ms = TRIGGER_MS - (time.monotonic_ns() - asked_ns) / 1e6
        try:
            if left_ms <= 0:
                raise ControlError("the line has not answered those before it")
            self._control = self._control or Control(self._station.control)
            self._control.trigger(
                self._target, trigger_id=trigger_id, part_id=part_id, timeout_ms=left_ms
            )
        except ControlError as error:
            with self._lock:
                self._state.give_up(trigger_id)
            log.warning("trigger %d: %s", trigger_id, error)
            return Refusal.LINE
        finally:
            self.changed()
        return Refusal.ACCEPTED

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._control is not None:
            self._control.close()


def _cameras_of(config: LineConfig, target: str) -> Collection[str]:
    """Those that a trigger of this target needs."""
    if target in config.parts:
        return config.parts[target].views
    return [target] if target else config.cameras


def _line_keys(station: Station) -> ClientKeys | None:
    """A bridge is one of the line's own processes, and comes with the line's own key."""
    security = station.config.security
    if security is None or security.secret is None:
        return None
    own = read_secret(Path(security.secret))
    return ClientKeys(own, own.public)
