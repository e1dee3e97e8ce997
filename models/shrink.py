"""Frames at half their size, the same in training and on the line. No OpenCV."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def shrunk(frame: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """(H, W, C) -> (ceil(H / scale), ceil(W / scale), C): averages of squares, half a level up.

    As `models.efficientad.at_scale`, but for the rounding: an odd last pixel stands for itself.
    """
    if scale == 1:
        return frame
    height, width, _ = frame.shape
    spare = ((0, -height % scale), (0, -width % scale), (0, 0))
    even = np.pad(frame, spare, mode="edge") if height % scale or width % scale else frame
    sums = np.full((even.shape[0], even.shape[1] // scale, even.shape[2]), 0, np.uint16)
    for column in range(scale):
        sums += even[:, column::scale]
    totals = np.full((even.shape[0] // scale, *sums.shape[1:]), scale**2 // 2, np.uint16)
    for row in range(scale):
        totals += sums[row::scale]
    totals //= scale**2
    return totals.astype(np.uint8)
