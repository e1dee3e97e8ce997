"""The rendered line as a source: for the demonstration, tests and benchmarks."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from pipeline.config import SyntheticSource
from pipeline.sources.base import Grab
from pipeline.sources.stamp import STAMP_HEIGHT_PX, STAMP_LIMIT, STAMP_WIDTH_PX, write_stamp
from pipeline.sources.synthetic import SyntheticLine


class Conveyor:
    """A `Source` over a `SyntheticLine`: frame i is its `render(i)`, with the number i stamped.

    With `prerender: N` the first N frames are rendered when the source opens, and come round and
    round: reading costs nothing, and writing is one copy and the stamp.
    """

    def __init__(self, config: SyntheticSource, start: int = 0) -> None:
        self._config = config
        self._index = start
        self._line: SyntheticLine | None = line_of(config)
        self._shape = self._line.shape_hwc
        self._ready: list[NDArray[np.uint8]] = []
        if config.prerender:
            self._ready = [self._line.render(index)[0] for index in range(config.prerender)]
            self._line = None  # its planes are not needed any more
        _return_free_memory()

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self._shape

    def read(self) -> Grab | None:
        index = self._index
        if self._config.frames is not None and index >= self._config.frames:
            return None
        self._index += 1
        if self._line is not None:
            frame = self._line.render(index)[0]
        else:
            frame = self._ready[index % len(self._ready)]

        def write(out: NDArray[np.uint8]) -> None:
            out[...] = frame
            if out.shape[0] >= STAMP_HEIGHT_PX and out.shape[1] >= STAMP_WIDTH_PX:
                write_stamp(out, index % STAMP_LIMIT)

        return Grab(index, write)

    def close(self) -> None:
        self._ready = []
        self._line = None


def _return_free_memory() -> None:
    """Drawing the part leaves some 50 MB of free heap, which glibc would keep resident."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def line_of(config: SyntheticSource) -> SyntheticLine:
    """The line that a configuration describes; its `render` knows the true defects."""
    return SyntheticLine(
        width=config.width,
        height=config.height,
        color=config.color,
        seed=config.seed,
        defect_share=config.defect_share,
    )


def probe_conveyor(config: SyntheticSource) -> tuple[int, int, int]:
    """Height, width and channels, without rendering anything."""
    return config.height, config.width, 3 if config.color else 1
