"""What a source of frames is. A camera type is one file beside this one and a row in `SOURCES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Reason

PixelWriter = Callable[[NDArray[np.uint8]], None]


@dataclass(frozen=True, slots=True)
class Grab:
    """A frame that the source holds and has not yet copied.

    `write(out)` copies (or converts) the pixels into `out`, uint8 (H, W, C) of the source's
    `shape_hwc`, rows possibly strided: the only copy between decoder and engine. When `fault` is
    set there are no pixels to be had, and `write` is not called.
    """

    index: int
    """Position in the source, from 0: a restarted capture goes on at the next one."""
    write: PixelWriter
    pts: int = -1
    """The source's own time stamp in nanoseconds, -1 where there is none."""
    trigger_id: int = 0
    part_id: str = ""
    fault: Reason | None = None
    """`BROKEN_FRAME` or `WRONG_SIZE`: the frame counts, and its verdict is `invalid`."""
    detail: str = ""
    """What exactly was wrong, for the log."""
    follows: bool = True
    """Of blocks of lines: whether its first line follows on the last one of the block before it, as
    far as the source knows. Indices that are not consecutive, and faults, say so already."""


class Source(Protocol):
    """Frames in order. Used by one thread of one process; opened with `open_source`."""

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        """Height, width and channels (1 or 3, RGB) of every frame."""

    def read(self) -> Grab | None:
        """The next frame, or None at the end of the stream.

        Raises `SourceLost` when a source that should go on does not.
        """

    def close(self) -> None: ...


def no_pixels(out: NDArray[np.uint8]) -> None:
    """The `write` of a faulty grab."""
    raise AssertionError("a faulty grab has no pixels to write")
