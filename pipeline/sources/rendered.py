"""A rendered conveyor that behaves as a camera does, faults included.

Its file `faults`, when there is one, holds a word: `absent` (not to be reached), `freeze` (no more
frames, and no error), `hang` (`read` does not come back), `drop` (frames are counted, and do not
arrive). A program beside the line writes and removes it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import SyntheticSource
from pipeline.config.sources import RenderedSource, TriggerConfig
from pipeline.errors import SourceLost
from pipeline.sources.base import Camera, FrameFormat, Grab
from pipeline.sources.conveyor import Conveyor

_PRERENDERED = 8
_GLANCE_S = 0.01


class RenderedCamera(Camera):
    """Frame i is the conveyor's frame i, with the number i stamped into its pixels."""

    def __init__(self, config: RenderedSource, trigger: TriggerConfig) -> None:
        """Raises `SourceLost` while its fault says so."""
        self._faults = Path(config.faults) if config.faults else None
        self._check()
        self._config = config
        self._conveyor = Conveyor(
            SyntheticSource(
                kind="synthetic",
                width=config.width,
                height=config.height,
                color=config.color,
                seed=config.seed,
                defect_share=config.defect_share,
                prerender=_PRERENDERED,
            )
        )
        self._triggered = trigger.mode in ("software", "encoder")
        self._period_s = 1.0 / config.frame_rate
        self._due: deque[float] = deque() if self._triggered else deque([time.monotonic()])

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(*self._conveyor.shape_hwc)

    def read(self, wait_ms: float) -> Grab | None:
        until = time.monotonic() + wait_ms / 1000
        while True:
            fault = self._check()
            while fault == "hang":
                time.sleep(_GLANCE_S)
            now = time.monotonic()
            if self._due and self._due[0] <= now and fault != "freeze":
                self._advance(now)
                grab = self._conveyor.read()
                assert grab is not None, "a conveyor without a limit does not end"
                if fault != "drop":
                    return grab
            if now >= until:
                return None
            next_s = self._due[0] if self._due and fault != "freeze" else until
            time.sleep(max(0.0, min(_GLANCE_S, until - now, next_s - now)))

    def trigger(self) -> None:
        self._check()
        self._due.append(time.monotonic())

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return {"frame_rate": self._config.frame_rate, "seed": self._config.seed}

    def close(self) -> None:
        self._conveyor.close()

    def _advance(self, now: float) -> None:
        due = self._due.popleft()
        if not self._triggered:
            self._due.append(max(due + self._period_s, now - self._period_s))

    def _check(self) -> str:
        """The fault of this moment. Raises `SourceLost` for `absent`."""
        if self._faults is None:
            return ""
        try:
            fault = self._faults.read_text().strip()
        except FileNotFoundError:
            return ""
        if fault == "absent":
            raise SourceLost(f"the rendered camera is absent, as {self._faults} says")
        return fault
