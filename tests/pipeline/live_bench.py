"""Capture's loop over a camera, in a thread of the test, with a camera that the test plays.

Rings, board, triggers and sockets are those of a line. The other stages are away: no slot is given
back, and a test takes fewer frames than there are slots.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from pipeline.board import CAMERA_READY, DRAIN, Board
from pipeline.config import LineConfig, SourceConfig, dump_resolved
from pipeline.errors import SourceLost
from pipeline.live import Live
from pipeline.ring import STOPPED, FrameRing
from pipeline.ringfile import create_ring
from pipeline.sources import CAMERAS
from pipeline.sources.base import Camera, FrameFormat, Grab
from pipeline.stage import Stage
from pipeline.station import Station
from pipeline.triggers import TriggerLog

PATIENCE_S = 20.0
SIDE = 64
SLOTS = 200
KIND = "rendered"
"""Of the configured source, which the played camera stands for."""


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.002)


def _open_gate() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


@dataclass
class Script:
    """What the camera does. frames: values of the pixels that `read` gives next."""

    open_s: float = 0.0
    exposure_s: float = 0.0
    gate: threading.Event = field(default_factory=_open_gate)
    """While it is not set, opening does not come to its end."""
    opening: int = 0
    opened: int = 0
    lost: bool = False
    frames: deque[int] = field(default_factory=deque)


class PlayedCamera(Camera):
    """Follows the script. What came before it was opened is gone."""

    script: ClassVar[Script]

    def __init__(self, config: SourceConfig, trigger: object) -> None:
        self._index = 0
        self._due: deque[float] = deque()
        self.script.opening += 1
        time.sleep(self.script.open_s)
        assert self.script.gate.wait(PATIENCE_S)
        self.script.lost = False
        self.script.frames.clear()
        self.script.opened += 1

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(SIDE, SIDE)

    def read(self, wait_ms: float) -> Grab | None:
        end = time.monotonic() + wait_ms / 1000
        while True:
            if self.script.lost:
                raise SourceLost("the cable was pulled")
            now = time.monotonic()
            if self._due and self._due[0] <= now:
                self._due.popleft()
                self.script.frames.append(self._index % 256)
            if self.script.frames:
                self._index += 1
                return _grab(self._index - 1, self.script.frames.popleft())
            if now >= end:
                return None
            time.sleep(0.001)

    def trigger(self) -> None:
        self._due.append(time.monotonic() + self.script.exposure_s)

    def close(self) -> None: ...


def _grab(index: int, value: int) -> Grab:
    return Grab(index, lambda out: out.fill(value))


@dataclass(frozen=True)
class Taken:
    """A frame in the ring. index: of its trigger, 0 for none. value: of its pixels."""

    index: int
    trigger_id: int
    fault: str
    value: int | None


class Bench:
    """Camera `a` of a line; `start` its loop."""

    def __init__(
        self,
        folder: Path,
        mode: str,
        *,
        continuous: bool = False,
        parts: dict[str, Any] | None = None,
        **trigger: Any,
    ) -> None:
        self.script = Script()
        config = LineConfig.model_validate(
            {
                "station": "bench",
                "run_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "shm_dir": str(folder / "shm"),
                "cameras": {
                    "a": {
                        "source": {"kind": KIND, "width": SIDE, "height": SIDE, "retry_s": 0.2},
                        "trigger": {"mode": mode, **trigger},
                        "continuous": continuous,
                    }
                },
                "parts": parts or {},
            }
        )
        self.station = Station.of(config)
        for made in (self.station.run_dir, self.station.shm_dir):
            made.mkdir(parents=True)
        (self.station.run_dir / "line.json").write_text(dump_resolved(config))
        create_ring(self.station.ring("a"), (SIDE, SIDE, 1), SLOTS, 1)
        self.board = Board(self.station.board, self.station.stages, create=True)
        self.triggers = TriggerLog(self.station.triggers, create_epoch=1)
        self.ring = FrameRing(self.station.ring("a"))
        self._ended: int | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._row = CAMERAS[KIND]
        CAMERAS[KIND] = f"{__name__}:{PlayedCamera.__name__}"
        PlayedCamera.script = self.script
        return self

    def __exit__(self, *_: object) -> None:
        self.script.gate.set()
        try:
            self.stop()
        finally:
            CAMERAS[KIND] = self._row
            self.ring.close()
            self.triggers.close()
            self.board.close()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """What came is in the ring then, pixels included."""
        if not self._thread.is_alive():
            return
        self.board.set_order(DRAIN)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self._ended == STOPPED

    def _run(self) -> None:
        stage = Stage(self.station, "capture.a")
        ring = FrameRing(self.station.ring("a"))
        try:
            self._ended = Live(stage, ring, self.station.config.cameras["a"]).run()
        finally:
            ring.close()
            stage.close()

    def ready(self, opened: int = 1) -> None:
        """Wait until a camera that takes triggers was opened so often, and is asked for frames."""
        until(lambda: self.script.opened >= opened, f"it is opened {opened} times")
        until(lambda: self.board.camera("capture.a") == CAMERA_READY, "the camera is there")

    def announce(self, target: str = "a") -> int:
        """Tell the line of a trigger: its index."""
        return self.triggers.add(target, time.monotonic_ns()).index

    def give(self, value: int) -> None:
        """A frame of the camera."""
        self.script.frames.append(value)

    def taken(self) -> list[Taken]:
        """Every frame so far; values are to be believed once the loop has stopped."""
        found = []
        for frame_id in range(1, self.ring.last_id + 1):
            taken = self.ring.taken(frame_id)
            assert taken is not None
            ref = taken.ref
            value = int(self.ring.frame(ref.slot)[5, 5, 0]) if ref.slot >= 0 else None
            found.append(Taken(ref.trigger_index, ref.trigger_id, taken.fault or "", value))
        return found

    def answered(self, index: int) -> None:
        """Wait until a trigger has its frame, or what stands for it."""
        until(lambda: index in [t.index for t in self.taken()], f"trigger {index} is answered")

    def pictures(self) -> list[int]:
        """Indices of the triggers that have a picture."""
        return [taken.index for taken in self.taken() if taken.index and not taken.fault]
