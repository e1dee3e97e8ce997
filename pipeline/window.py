"""The part of a frame that the engine looks at: what the recipe's zones need, and no more.

The map inside the zones is exactly that of the whole frame: the window begins where a row and
column of the coarsest scale's map does, ends a cell of it beyond the last inspected one, and what
lies around it in the padded frame are its real surroundings. Outside of the window the map is 0.

Not so for a bundle with a wide view or a global branch: of what lies more than 32 px outside they
see nothing, so scores near the window's sides are of this window. Calibration looks through the
same one; after zones were moved, calibrate again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.rules import zone_factors
from pipeline.types import MAP_STRIDE, MARGIN_PX, MIN_SIDE_PX, map_hw

GRID_PX = 8
"""Pixels of the frame in a cell of the coarsest scale's map."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows [top, bottom) and columns [left, right) of a frame's pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def hw(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def padded(self, padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Its view of a padded frame, with as much margin."""
        both = 2 * MARGIN_PX
        return padded[self.top : self.bottom + both, self.left : self.right + both]

    def cells(self, raw_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Its view of the frame's map."""
        rows, columns = map_hw(*self.hw)
        top, left = self.top // MAP_STRIDE, self.left // MAP_STRIDE
        return raw_map[top : top + rows, left : left + columns]


def inspected_window(recipe: Recipe, frame_hw: tuple[int, int]) -> Window:
    """What the recipe's zones need of frames of this size; all of it where nothing is inspected,
    and where zones move with the part.
    """
    if recipe.fixture is not None:
        return Window(0, 0, *frame_hw)
    inspected = zone_factors(recipe, frame_hw) > 0
    ends = []
    for axis, side in ((1, frame_hw[0]), (0, frame_hw[1])):
        cells = np.flatnonzero(inspected.any(axis=axis))
        first, last = (int(cells[0]), int(cells[-1])) if cells.size else (0, side)
        begin = first * MAP_STRIDE // GRID_PX * GRID_PX
        end = -(-(last + 1) * MAP_STRIDE // GRID_PX) * GRID_PX + GRID_PX
        # No smaller than a network can look at, and not a pixel or two short of the frame's end.
        end = max(end, begin + MIN_SIDE_PX + GRID_PX)
        end = side if end > side - GRID_PX else end
        begin = min(begin, max(0, (side - MIN_SIDE_PX) // GRID_PX * GRID_PX))
        ends.append((begin, end))
    (top, bottom), (left, right) = ends
    return Window(top, left, bottom, right)
