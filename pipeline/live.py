"""The loop over a camera that may be absent, lost or frozen, and over the triggers meant for it.

1. Open the camera, again and again with longer pauses until it is there. While it is not, every
   trigger is answered with `invalid/camera_lost` at once.
2. Free running: each frame is taken, or each n-th. None for `frozen_ms`: the camera is opened anew.
3. Triggered: one trigger at a time has its frames, and a trigger without its frame after
   `timeout_ms` is `invalid/no_frame`. From then on nobody knows whose the next frame would be: the
   camera is opened anew, so that no frame is ever taken for another part's.
4. Frames that the camera counted and that never arrived are `invalid/no_frame` too.

Opening, reading and closing may hang in a vendor's library: then the supervisor kills this process
and starts another one, which answers the triggers that it left with `invalid/camera_lost`: a second
picture would show another part.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.board import CAMERA_FROZEN, CAMERA_LOST, CAMERA_READY, CONNECTING, READY
from pipeline.config import CameraConfig
from pipeline.config.sources import LiveSource
from pipeline.errors import ConfigError, SourceError, SourceLost
from pipeline.intake import Intake
from pipeline.ring import STOPPED, FrameRing
from pipeline.sources import Camera, Grab, open_camera
from pipeline.sources.base import no_pixels
from pipeline.stage import WAKE_MS, Stage, drain
from pipeline.triggers import TRIGGER_LIMIT, Trigger, TriggerLog
from pipeline.types import Reason

READ_MS = 100.0
"""The longest single wait for a frame: the stage's signs of life come between two."""
OPEN_LIMIT_MS = 15_000.0
"""So long opening or closing a camera may take before this process counts as stuck."""
_FIRST_RETRY_S = 0.2
_SAME_AGAIN_S = 60.0
"""How often the log repeats what keeps a camera away."""

_MOST_MISSING = 1000
"""Frames that one gap in the camera's count may mean: more is a count that began anew."""


class _Frozen(SourceLost):
    """It is there, and gives no frames."""


@dataclass(slots=True)
class _Expected:
    """A trigger whose frames are to come. left: how many. fired: whether the camera was told."""

    trigger: Trigger
    due_ns: int
    left: int
    fired: bool = False


class Live:
    """One camera's loop."""

    def __init__(self, stage: Stage, ring: FrameRing, config: CameraConfig) -> None:
        assert isinstance(config.source, LiveSource)
        self._stage = stage
        self._ring = ring
        self._config = config
        self._source = config.source
        self._mode = config.trigger.mode
        self._intake = Intake(stage, ring, config)
        self._inbox = stage.listen()
        self._triggers = TriggerLog(stage.station.triggers)
        self._views = views_of(stage, ring.camera)
        self._index = ring.resume()
        self._given = _given(ring)
        self._untold_ns = -(2**62)
        self._limit_ns = round(config.trigger.timeout_ms * 1e6)
        self._expected: deque[_Expected] = deque()
        self._unfired: deque[_Expected] = deque()
        self._said = ""
        self._said_s = 0.0

    def run(self) -> int:
        """Until the line drains (STOPPED). Raises `ConfigError` for settings refused at first."""
        self._forgo(Reason.CAMERA_LOST)
        pause_s = _FIRST_RETRY_S
        while self._intake.goes_on():
            try:
                with self._opened() as camera:
                    pause_s = _FIRST_RETRY_S
                    self._forgo(Reason.CAMERA_LOST)  # what passed while it was being opened
                    self._serve(camera)
            except ConfigError as error:
                if self._stage.board.incarnation(self._stage.name) == 1 and not self._ring.last_id:
                    raise
                self._away(CAMERA_LOST, error)
            except _Frozen as error:
                self._away(CAMERA_FROZEN, error)
                continue
            except SourceError as error:
                self._away(CAMERA_LOST, error)
            self._rest(pause_s)
            pause_s = min(2 * pause_s, self._source.retry_s)
        self._forgo(Reason.NO_FRAME)
        self._triggers.close()
        return STOPPED

    # The camera

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Camera]:
        board, name = self._stage.board, self._stage.name
        board.beat(name)
        board.set_busy_limit_ms(name, OPEN_LIMIT_MS)
        camera = open_camera(self._config)
        try:
            if camera.format.shape_hwc[:2] != (self._source.height, self._source.width):
                raise ConfigError(
                    f"camera {self._ring.camera}: frames of {camera.format.width}x"
                    f"{camera.format.height} found, expected {self._source.width}x"
                    f"{self._source.height} as its source says"
                )
            self._intake.prepare(camera.format, camera.settings())
            board.set_state(name, READY)
            board.set_busy_limit_ms(name, 0)
            yield camera
        finally:
            board.beat(name)
            board.set_busy_limit_ms(name, OPEN_LIMIT_MS)
            camera.close()
            board.beat(name)

    def _away(self, state: int, error: Exception) -> None:
        """The camera is gone: say so, and answer for the frames that will not come."""
        self._stage.board.set_state(self._stage.name, READY)
        self._stage.board.set_camera(self._stage.name, state)
        now = time.monotonic()
        if str(error) != self._said or now - self._said_s > _SAME_AGAIN_S:
            self._said, self._said_s = str(error), now
            self._stage.log.warning("%s", error)
            self._stage.board.set_note(self._stage.name, str(error))
        self._forgo(Reason.CAMERA_LOST)

    def _rest(self, seconds: float) -> None:
        """A pause in which triggers are answered."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._intake.goes_on():
            self._inbox.poll(min(WAKE_MS, max(1, int(1000 * left))))
            drain(self._inbox)
            self._forgo(Reason.CAMERA_LOST)
        self._stage.board.set_camera(self._stage.name, CONNECTING)

    def _serve(self, camera: Camera) -> None:
        """Frames, until the line drains. Raises `SourceLost`."""
        next_index: int | None = None
        count = 0
        last_s = time.monotonic()
        free = not self._views
        if not free or self._source.can_wait:  # it may be quiet for long
            self._there()
        while self._intake.goes_on():
            if not free:
                self._hear(camera)
            grab = camera.read(self._wait_ms(free, last_s))
            now = time.monotonic()
            if grab is None:
                self._check_due()
                if free and 1000 * (now - last_s) > self._source.frozen_ms:
                    raise _Frozen(
                        f"camera {self._ring.camera}: no frame for {now - last_s:.1f} s found, "
                        f"expected one in {self._source.frozen_ms:g} ms; it is opened anew"
                    )
                continue
            if self._mode == "hardware":  # its trigger may have been told while it came
                self._hear(camera)
            self._there()
            last_s = now
            missing = -1 if next_index is None else grab.index - next_index
            if 0 <= missing <= _MOST_MISSING:
                count += self._miss(missing, count)
            else:  # a web's lines do not go on here
                grab = replace(grab, follows=False)
            next_index = grab.index + 1
            self._arrived(grab, count)
            count += 1

    def _there(self) -> None:
        """The camera works."""
        board, name = self._stage.board, self._stage.name
        if board.camera(name) != CAMERA_READY:
            board.set_camera(name, CAMERA_READY)
            board.set_note(name, "")
            self._stage.log.info("camera %s is there", self._ring.camera)
            self._said = ""

    def _wait_ms(self, free: bool, last_s: float) -> float:
        """How long to wait for a frame. Without one to come: for a trigger, and then not at all."""
        if free:
            return READ_MS
        if self._expected:
            left = (self._expected[0].due_ns - time.monotonic_ns()) / 1e6
            return max(0.0, min(READ_MS, left))
        if self._mode == "hardware":  # frames come without a word; a trigger's words come earlier
            return WAKE_MS
        self._inbox.poll(WAKE_MS)
        drain(self._inbox)
        return 0.0

    # Frames

    def _arrived(self, grab: Grab, count: int) -> None:
        now = time.monotonic_ns()
        every = self._config.trigger.every if self._mode == "every" else 1
        if count % every:
            return
        self._check_due()
        trigger = None
        if not self._expected:
            self._untold_ns = now
        else:
            first = self._expected[0]
            trigger = first.trigger
            first.left -= 1
            first.fired = False
        numbered = grab.trigger_id
        if self._mode in ("every", "hardware"):
            numbered = numbered or self._number()
        self._take(grab, now, trigger, numbered)
        if trigger is not None and not self._expected[0].left:
            self._done(self._expected.popleft())

    def _number(self) -> int:
        """Of a frame without an id; 0 in a part: each camera's count of its own joins nothing."""
        parts = self._stage.station.config.parts.values()
        grouped = any(self._ring.camera in part.views for part in parts)
        return 0 if grouped else (self._index + 1) % TRIGGER_LIMIT

    def _miss(self, missing: int, count: int) -> int:
        """Answer for frames that the camera counted and that did not arrive; how many it were."""
        if missing:
            self._stage.log.warning("%d frames of the camera never arrived", missing)
        every = self._config.trigger.every if self._mode == "every" else 1
        for number in range(count, count + missing):
            if number % every:
                continue
            lost = _nothing(Reason.NO_FRAME, "counted by the camera, and never arrived")
            self._arrived(lost, number)
        return missing

    def _take(self, grab: Grab, now_ns: int, trigger: Trigger | None, trigger_id: int) -> None:
        numbered = Grab(
            index=self._index,
            write=grab.write,
            pts=grab.pts,
            trigger_id=trigger_id,
            part_id=grab.part_id,
            fault=grab.fault,
            detail=grab.detail,
            follows=grab.follows,
        )
        self._index += 1
        self._intake.take(numbered, now_ns, trigger)

    # Triggers

    def _new(self) -> Iterator[_Expected]:
        """Triggers that have come since, and are meant for this camera."""
        seen = self._ring.triggered
        if self._expected:
            seen = max(seen, self._expected[-1].trigger.index)
        if self._unfired:
            seen = max(seen, self._unfired[-1].trigger.index)
        for index in range(seen + 1, self._triggers.last + 1):
            trigger = self._triggers.get(index)
            views = self._views.get(trigger.target, 0) if trigger else 0
            views -= self._given.pop(index, 0)
            if trigger and views > 0:
                yield _Expected(trigger, trigger.t_ns + self._limit_ns, views)
            elif not self._expected and not self._unfired:
                self._ring.set_triggered(index)

    def _hear(self, camera: Camera) -> None:
        """Take in new triggers; have the camera take the next frame when it is free for it."""
        self._unfired.extend(self._new())
        if self._mode == "hardware":
            self._announced()
            return
        while not self._expected and self._unfired:
            first = self._unfired.popleft()
            if time.monotonic_ns() > first.due_ns:  # the camera was not told: nothing is to come
                self._fail(first, Reason.NO_FRAME)
            else:
                self._expected.append(first)
        if self._expected and not self._expected[0].fired:
            self._check_due()
            self._expected[0].fired = True
            camera.trigger()

    def _announced(self) -> None:
        """Expect frames of the camera's own pulses. Raises `_Frozen` where nobody knows whose."""
        while self._unfired:
            new = self._unfired.popleft()
            if new.trigger.t_ns - self._untold_ns < self._limit_ns:
                self._fail(new, Reason.NO_FRAME)  # its frame was there before the word
            elif self._expected:
                self._expected.append(new)
                raise _Frozen(
                    f"camera {self._ring.camera}: a trigger before the frame of the one before it "
                    "has come: a pulse was lost, or parts are closer than the camera is quick; it "
                    "is opened anew, lest a frame be taken for another part's"
                )
            else:
                self._expected.append(new)

    def _check_due(self) -> None:
        """Raises `_Frozen` when a trigger's frame did not come in time."""
        now = time.monotonic_ns()
        if not self._expected or now <= self._expected[0].due_ns:
            return
        while self._expected and now > self._expected[0].due_ns:
            self._fail(self._expected.popleft(), Reason.NO_FRAME)
        raise _Frozen(
            f"camera {self._ring.camera}: no frame {self._config.trigger.timeout_ms:g} ms after a "
            "trigger; it is opened anew, lest its next frame be taken for another part's"
        )

    def _forgo(self, reason: Reason) -> None:
        """Answer all triggers that have come for frames that will not."""
        while self._expected:
            self._fail(self._expected.popleft(), reason)
        while self._unfired:
            self._fail(self._unfired.popleft(), reason)
        for expected in self._new():
            self._fail(expected, reason)

    def _fail(self, expected: _Expected, reason: Reason) -> None:
        trigger = expected.trigger
        grab = _nothing(reason, f"trigger {trigger.trigger_id} of {trigger.target}")
        for _ in range(expected.left):
            self._take(grab, time.monotonic_ns(), trigger, 0)
        self._done(expected)

    def _done(self, expected: _Expected) -> None:
        self._ring.set_triggered(expected.trigger.index)


def _given(ring: FrameRing) -> dict[int, int]:
    """Trigger's index -> frames that a killed predecessor took for it before it could say so."""
    given: dict[int, int] = {}
    frame_id = ring.last_id
    while (taken := ring.taken(frame_id)) and taken.ref.trigger_index > ring.triggered:
        given[taken.ref.trigger_index] = given.get(taken.ref.trigger_index, 0) + 1
        frame_id -= 1
    return given


def _nothing(reason: Reason, detail: str) -> Grab:
    return Grab(0, no_pixels, fault=reason, detail=detail)


def views_of(stage: Stage, camera: str) -> dict[str, int]:
    """Target of a trigger -> frames that this camera has to give for it."""
    config = stage.station.config
    parts = {name: p.views[camera] for name, p in config.parts.items() if camera in p.views}
    if config.cameras[camera].trigger.mode in ("free", "every"):
        return {}
    return parts or {camera: 1}
