"""Small public fakes for the tests: runtimes that a configuration names as `module:name`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtimes.base import EngineOptions
from pipeline.sources.stamp import read_stamp
from pipeline.types import MARGIN_PX


class StampRuntime:
    """Puts the id that is stamped into the pixels into the map: `raw_peak` of the verdict is it.

    With it a test knows which pixels a verdict was made of, whatever our own counters say.
    """

    engine_id = "stamp/none/none"

    def __init__(self, infer_s: float = 0.0, die_at: int = -1) -> None:
        self._infer_s = infer_s
        self._die_at = die_at

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        peaks = []
        for frame, raw_map in zip(padded, out, strict=True):
            number = read_stamp(frame[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX])
            if number is not None and number == self._die_at:
                raise MemoryError("told to fail on this frame")
            time.sleep(self._infer_s)
            raw_map.fill(0)
            raw_map[-1, -1] = -1 if number is None else number
            peaks.append(float(raw_map.max()))
        return peaks

    def close(self) -> None:
        return


def stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    return StampRuntime()


def slow_stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    """Five milliseconds a frame: long enough to be killed in the middle."""
    return StampRuntime(infer_s=0.005)


def failing_stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    """Raises on the frame with stamp 7."""
    return StampRuntime(die_at=7)


class DeadlyRuntime(StampRuntime):
    """Takes its whole process down on the frame with stamp 7, as a broken driver would."""

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        import os

        for frame in padded:
            if read_stamp(frame[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]) == 7:
                os._exit(99)
        return super().infer(padded, out)


def deadly_stamp(bundle: Bundle | None, options: EngineOptions) -> DeadlyRuntime:
    return DeadlyRuntime()
