"""Which pixels of a frame are the object, and which the background that tells nothing.

Otsu's threshold (1979) on grey values, for each image or one for the whole set, or a given one;
what prevails along the frame's sides is the background. Then an opening with a square of 3, which
takes specks away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.images import read_image

MASKS = ("none", "otsu", "otsu_set", "threshold")
MOST_IMAGES = 64
"""Looked at for a set's threshold."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FindObject:
    """uint8 (H, W, C) -> bool (H, W)."""

    level: float | None
    """Grey value between background and object; None: each image has its own."""

    def __call__(self, frame: NDArray[np.uint8]) -> Mask:
        level = otsu(histogram(frame)) if self.level is None else self.level
        return object_mask(frame, level)


def object_finder(how: str, threshold: float, paths: Sequence[Path]) -> FindObject | None:
    """How objects are found in these images; None for `none`: everything is object.

    threshold: for `threshold`, in 0..1. Raises `DataError` for another name.
    """
    if how not in MASKS:
        raise DataError(f"mask {how!r} found, expected one of {', '.join(MASKS)}")
    if how == "none":
        return None
    if how == "otsu":
        return FindObject(None)
    level = 255 * threshold
    if how == "otsu_set":
        step = max(1, -(-len(paths) // MOST_IMAGES))
        total = np.zeros(256, np.int64)
        for path in paths[::step]:
            total += histogram(read_image(path))
        level = otsu(total)
    return FindObject(level)


def object_mask(frame: NDArray[np.uint8], level: float) -> Mask:
    """Pixels on the other side of a grey value than most of the frame's own sides."""
    bright = grey(frame) > level
    sides = np.concatenate([bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]])
    is_object = (~bright if sides.mean() > 0.5 else bright).astype(np.uint8)
    opened = cv2.morphologyEx(is_object, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return np.asarray(opened, np.bool_)


def otsu(counts: NDArray[np.int64]) -> float:
    """The grey value that splits a histogram [256] into two of the least variance within.

    Between two values at which nothing lies, their middle.
    """
    values = np.arange(256, dtype=np.float64)
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    sums = np.cumsum(counts * values)[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        apart = (counts * values).sum() - sums
        between = np.nan_to_num(below * above * (sums / below - apart / above) ** 2)
    best = np.flatnonzero(between == between.max())
    return float(best.mean())


def histogram(frame: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bincount(grey(frame).ravel(), minlength=256).astype(np.int64)


def grey(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, C) -> (H, W)."""
    if frame.shape[2] == 1:
        return frame[..., 0]
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
