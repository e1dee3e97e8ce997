"""Small public fakes for the tests: runtimes that a configuration names as `module:name`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtimes.base import EngineOptions
from pipeline.sources.stamp import read_stamp
from pipeline.types import MAP_STRIDE, MARGIN_PX

COMPILE_S = 6.0
"""How long `compiling_stamp` takes."""


class StampRuntime:
    """Puts the id that is stamped into the pixels into the map: `raw_peak` of the verdict is it.

    With it a test knows which pixels a verdict was made of, whatever our own counters say.
    """

    def __init__(self, infer_s: float = 0.0, die_at: int = -1) -> None:
        self.engine_id = "stamp/none/none"
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


class BrokenRuntime(StampRuntime):
    """Raises on everything once it has seen the stamp 7, as a GPU does whose context has died."""

    _broken = False

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        for frame in padded:
            self._broken |= read_stamp(frame[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]) == 7
        if self._broken:
            raise RuntimeError("told to be broken for good")
        return super().infer(padded, out)


def breaking_stamp(bundle: Bundle | None, options: EngineOptions) -> BrokenRuntime:
    return BrokenRuntime()


class CornerRuntime:
    """Puts the grey value of the frame's first pixel into the map: `raw_peak` of the verdict is it.

    For cameras that count in it, as Aravis's fake one does.
    """

    engine_id = "corner/none/none"

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        for frame, raw_map in zip(padded, out, strict=True):
            raw_map.fill(0)
            raw_map[-1, -1] = frame[MARGIN_PX, MARGIN_PX, 0]
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return


def corner(bundle: Bundle | None, options: EngineOptions) -> CornerRuntime:
    return CornerRuntime()


class SeamRuntime:
    """Counts in a frame of lines with the grey values 0, 1, ..., 250, 0, ... those that do not
    follow on the one above: `raw_peak` of the verdict is it, and 64 where a top was reflected.
    """

    engine_id = "seam/none/none"

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        for frame, raw_map in zip(padded, out, strict=True):
            steps = np.diff(frame[:, MARGIN_PX, 0].astype(np.int64))
            raw_map.fill(0)
            raw_map[-1, -1] = np.count_nonzero(steps % 251 != 1)
            time.sleep(0.005)
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return


def seam(bundle: Bundle | None, options: EngineOptions) -> SeamRuntime:
    return SeamRuntime()


class SparkRuntime:
    """Says 1 for each cell of the map with a white pixel (over 240) in its four rows and columns,
    0 for all others: defects are what a test draws in white.
    """

    engine_id = "spark/none/none"

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        for frame, raw_map in zip(padded, out, strict=True):
            white = frame[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX].max(axis=2) > 240
            rows, columns = (np.arange(0, side, MAP_STRIDE) for side in white.shape)
            raw_map[...] = np.logical_or.reduceat(
                np.logical_or.reduceat(white, rows, axis=0), columns, axis=1
            )
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return


def spark(bundle: Bundle | None, options: EngineOptions) -> SparkRuntime:
    return SparkRuntime()


class StarvedRuntime(StampRuntime):
    """Opens, and then finds no memory for a frame, as a GPU may that others use."""

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        raise RuntimeError("told to be out of memory")


def starved_stamp(bundle: Bundle | None, options: EngineOptions) -> StarvedRuntime:
    return StarvedRuntime()


def compiling_stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    """Says that it takes minutes, and takes the seconds that a test can wait, silently."""
    options.say("the test's compiler takes some minutes, once for this bundle")
    time.sleep(COMPILE_S)
    return StampRuntime()


def hanging_stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    """Says nothing, and comes to no end."""
    time.sleep(3600)
    return StampRuntime()


def telling_stamp(bundle: Bundle | None, options: EngineOptions) -> StampRuntime:
    """Its name says what it was told: threads, frames of a batch, and the bytes of each memory."""
    runtime = StampRuntime()
    sizes = "+".join(str(memory.nbytes) for memory in options.memory)
    runtime.engine_id = f"told/none/{options.threads} {options.max_batch} {sizes}"
    return runtime
