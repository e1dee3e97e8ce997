"""The margin of a padded frame, which shows what lies beyond its border: the frame, reflected."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.types import MARGIN_PX


def fill_margin(padded: NDArray[np.uint8]) -> None:
    """Fill the 32 px margin of a (H + 64, W + 64, C) frame by reflection, in place.

    The edge pixel is not repeated, as in `np.pad(mode="reflect")`; sides over 32 px.
    """
    m = MARGIN_PX
    inner = padded[:, m:-m]
    inner[:m] = inner[2 * m : m : -1]
    inner[-m:] = inner[-m - 2 : -2 * m - 2 : -1]
    fill_sides(padded)


def fill_sides(padded: NDArray[np.uint8]) -> None:
    """Fill the left and right margin of all rows, those of the upper and lower margin too."""
    m = MARGIN_PX
    padded[:, :m] = padded[:, 2 * m : m : -1]
    padded[:, -m:] = padded[:, -m - 2 : -2 * m - 2 : -1]
