"""An endless web in blocks of lines: each block's frame holds its real surroundings, not mirrors.

A camera with `continuous: true` delivers blocks of H consecutive lines, and a slot's padded frame
is the last 64 lines of the block before and then the H new ones:

    padded rows   0 .. 31    margin: lines that the frame before has inspected
                 32 .. H+31  the frame: the last 32 lines of the block before, H - 32 new ones
               H+32 .. H+63  margin: 32 new lines, which the next frame inspects

1. A block is written once, into rows 64 .. H+63 of its slot, and can be inspected at once.
2. Capture keeps a copy of each block's last 64 lines (the tail): also of a block that found no
   slot, so that the next frame's margin is real all the same.
3. Left and right are filled by reflection, as in any frame.
4. Where the lines before are not known, the block's own first lines are reflected. That is the
   first block of an epoch, of a restarted capture and of a video's next lap, and one after a block
   that could not be read. Such frames are logged and counted.

Boxes are in pixels of the frame, as always: pixel row y of a frame lies in line

    web_row = (frame_id - 1) * H - 32 + y

of the epoch's web, since every block takes an id, whatever becomes of it. (Lines that a live source
lost without a word, and blocks of another size, upset the count.) In a frame whose top was
reflected, rows under 32 are mirror images: a defect in its first 32 lines is found twice.

Thus every line is inspected once, with three limits:

- The last 32 lines before the end of a web, or before lines that are lost, are only ever a margin.
- A defect across the seam of two frames has its part in the verdict of each: `min_area_px` and
  `merge_px` see the parts alone.
- The frames' maps, one below the other, are the web's map for a detector of scale 1. One that looks
  at scale 2 interpolates, and has for the last row of a frame's map (4 px) only what is above it,
  as at the lower end of any frame.

A side file of true boxes, for a replay, has to give them in the frames' rows too.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.margin import fill_sides
from pipeline.sources.base import Grab
from pipeline.types import MAP_STRIDE, MARGIN_PX

TAIL_PX = 2 * MARGIN_PX
"""Lines of a block that the next frame needs: one margin, and what that margin hid."""
_STEP_PX = 2 * MAP_STRIDE
"""Frames begin where a cell of the coarsest scale's map does."""


class Web:
    """Where the blocks of one camera are joined. Kept by capture, in its own memory."""

    def __init__(self, camera: str, shape_hwc: tuple[int, int, int]) -> None:
        """shape_hwc: of a block. Raises `ConfigError` for blocks that cannot be joined."""
        height, width, channels = shape_hwc
        if height < TAIL_PX or height % _STEP_PX:
            raise ConfigError(
                f"camera {camera}: blocks of {height} lines found, expected at least {TAIL_PX} "
                f"lines and a multiple of {_STEP_PX} for `continuous: true`: set the camera, or "
                "cut the recording, to such blocks"
            )
        self._shape = shape_hwc
        self._tail = np.empty((TAIL_PX, width, channels), np.uint8)
        self._tail_of: int | None = None
        self._aside: NDArray[np.uint8] | None = None
        above = np.arange(TAIL_PX, 0, -1)
        # A block of 64 lines has no line 64: reflected once more, as `np.pad` does.
        lines = np.minimum(above, 2 * (height - 1) - above)
        self._mirror = TAIL_PX + lines
        self.breaks = 0
        """Blocks so far whose top was reflected, the first one included."""

    def joins(self, grab: Grab) -> bool:
        """Whether the lines before this block's first one are known."""
        return grab.follows and self._tail_of is not None and grab.index == self._tail_of + 1

    def room(self, padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (H, W, C): where a block's lines go in a padded frame (H + 64, W + 64, C)."""
        return padded[TAIL_PX:, MARGIN_PX:-MARGIN_PX]

    def fill(self, padded: NDArray[np.uint8], grab: Grab) -> None:
        """Put surroundings around a block that was written into its `room`; keep its tail."""
        inner = padded[:, MARGIN_PX:-MARGIN_PX]
        if self.joins(grab):
            inner[:TAIL_PX] = self._tail
        else:
            inner[:TAIL_PX] = inner[self._mirror]
            self.breaks += 1
        fill_sides(padded)
        self._keep(inner, grab)

    def skip(self, grab: Grab) -> None:
        """Keep the tail of a block that finds no slot. Raises what the grab's `write` raises."""
        if self._aside is None:
            self._aside = np.empty(self._shape, np.uint8)
        grab.write(self._aside)
        self._keep(self._aside, grab)

    def _keep(self, block: NDArray[np.uint8], grab: Grab) -> None:
        self._tail[...] = block[-TAIL_PX:]
        self._tail_of = grab.index
