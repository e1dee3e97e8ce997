"""Changes of a good crop that leave it good, for parts on which they do: none by default.

A mirrored or turned board is still a board, a mirrored print is a defect: only who knows the part
can say, so `Augmentation` stands in the training settings and all of it is off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import DataError

MOST_DEGREES = 15.0


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What may happen to a crop, each time by chance."""

    mirror: bool = False
    """Left and right exchanged, in half of the crops."""
    quarter_turns: bool = False
    """By 0, 90, 180 or 270 degrees."""
    turn_degrees: float = 0.0
    """About the crop's middle, up to so many degrees either way."""
    brightness: float = 0.0
    """Added, up to this share of the full range either way."""
    contrast: float = 0.0
    """Distance from the crop's mean tone, stretched or shrunk by up to this share."""

    @property
    def any(self) -> bool:
        """Whether anything may happen at all."""
        return self != Augmentation()


def check_augmentation(augmentation: Augmentation) -> None:
    """Raise `DataError` for what would not leave a good crop good."""
    most = {"turn_degrees": MOST_DEGREES, "brightness": 0.5, "contrast": 0.5}
    for entry in fields(augmentation):
        value = getattr(augmentation, entry.name)
        if entry.name in most and not 0 <= value <= most[entry.name]:
            raise DataError(
                f"augment.{entry.name}: {value!r} found, expected 0 to {most[entry.name]:g}"
            )


def augmented(
    crop: NDArray[np.uint8],
    inspected: NDArray[np.bool_],
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A crop (4 rows + 29, 4 columns + 29, C) and which of its cells count, changed alike.

    Of such a crop the first and the last cell are equally far from its sides, so that mirrored
    cells are centred where cells of the mirrored crop are. Quarter turns exchange rows and columns.
    """
    if augmentation.turn_degrees:
        degrees = rng.uniform(-augmentation.turn_degrees, augmentation.turn_degrees)
        crop, inspected = _turned(crop, inspected, degrees)
    if augmentation.quarter_turns:
        turns = int(rng.integers(4))
        crop, inspected = np.rot90(crop, turns), np.rot90(inspected, turns)
    if augmentation.mirror and rng.random() < 0.5:
        crop, inspected = crop[:, ::-1], inspected[:, ::-1]
    if augmentation.brightness or augmentation.contrast:
        stretch = 1 + rng.uniform(-augmentation.contrast, augmentation.contrast)
        shift = 255 * rng.uniform(-augmentation.brightness, augmentation.brightness)
        mean = crop.mean(axis=(0, 1))
        lit = np.rint((crop - mean) * stretch + mean + shift)
        crop = np.clip(lit, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(crop), np.ascontiguousarray(inspected)


def _turned(
    crop: NDArray[np.uint8], inspected: NDArray[np.bool_], degrees: float
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Turned about the middle. Corners that come from outside of the crop are not asked about."""
    sides = []
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    for height, width in (crop.shape[:2], inspected.shape):
        y, x = (height - 1) / 2, (width - 1) / 2
        matrix = np.array([[cos, sin, x - cos * x - sin * y], [-sin, cos, y + sin * x - cos * y]])
        sides.append((matrix, (width, height)))
    (matrix, size), (cells_matrix, cells_size) = sides
    pixels = cv2.warpAffine(crop, matrix, size, borderMode=cv2.BORDER_REFLECT_101)
    there = cv2.warpAffine(np.ones(crop.shape[:2], np.uint8), matrix, size)
    seen = cv2.erode(there, np.ones((33, 33), np.uint8), borderValue=1)[16::4, 16::4]
    cells = cv2.warpAffine(inspected.astype(np.uint8), cells_matrix, cells_size, flags=0)
    rows, columns = inspected.shape
    same: NDArray[np.uint8] = np.asarray(pixels, np.uint8).reshape(crop.shape)
    return same, (cells > 0) & (seen[:rows, :columns] > 0)
