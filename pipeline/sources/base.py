"""What a source of frames is: a recording, or a camera.

A type of either is one file beside this one and a row in `SOURCES` or `CAMERAS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.types import Reason

PixelWriter = Callable[[NDArray[Any]], None]


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What a source's frames are, before any preparation (`pipeline.prepare.preparation`)."""

    height: int
    width: int
    channels: int = 1
    """1 or 3, RGB. A Bayer pattern has one."""
    bits: int = 8
    """Of a channel: 8 in uint8; 10, 12, 14 or 16, in the low bits of uint16."""
    bayer: str = ""
    """RG, GR, GB or BG: the first two pixels of the first row; empty for all others."""

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def plain(self) -> bool:
        """Whether a slot can take the frames as they are: 8 bits, grey or RGB."""
        return self.bits == 8 and not self.bayer


@dataclass(frozen=True, slots=True)
class Grab:
    """A frame that the source holds and has not yet copied.

    `write(out)` copies (or converts) the pixels into `out`, (H, W, C) of the source's `format`,
    rows possibly strided: of plain 8 bit frames the only copy between decoder and engine. When
    `fault` is set there are no pixels to be had, and `write` is not called.
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
    """A recording's frames in order. Used by one thread of one process; see `open_source`."""

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        """Height, width and channels (1 or 3, RGB) of every frame, uint8."""

    def read(self) -> Grab | None:
        """The next frame, or None at the end of the stream.

        Raises `SourceLost` when a source that should go on does not.
        """

    def close(self) -> None: ...


class Camera(Protocol):
    """What takes frames now, and may be absent, lost or frozen. See `open_camera`.

    1. Opening takes some five seconds at most, and `read` no longer than it is told. What hangs in
       a library all the same is ended by `kill -9`, in a process that has nothing else to lose.
    2. Both raise `SourceLost` when the camera is not there (any more). Capture closes it and opens
       another one, again and again. `ConfigError` is for settings that no retry mends.
    3. A grab's `index` counts the frames that the camera took since it was opened, as far as it
       tells: a gap is frames that never arrived. Frames that arrived damaged have a `fault`.
    4. The host's clock stamps frames when `read` gives them; `pts` is the camera's own stamp.
    """

    @property
    def format(self) -> FrameFormat:
        """What every frame without a fault is."""

    def read(self, wait_ms: float) -> Grab | None:
        """The next frame, None when none came in time. Raises `SourceLost`."""

    def trigger(self) -> None:
        """Make the camera take a frame, which `read` will give. Raises `SourceLost`."""
        raise ConfigError(
            f"trigger.mode `software` with a {type(self).__name__} found, which cannot be "
            "triggered; expected `free`, `every` or `hardware`"
        )

    def settings(self) -> Mapping[str, str | int | float | bool]:
        """The camera's settings as they were read back, for recordings. Empty where it has none."""
        return {}

    def close(self) -> None: ...


def no_pixels(out: NDArray[Any]) -> None:
    """The `write` of a faulty grab."""
    raise AssertionError("a faulty grab has no pixels to write")
