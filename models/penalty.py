"""Pictures of nothing that is inspected: on them the student shall stay silent (equation 4).

So that it does not learn to repeat the teacher on what it never saw. The paper takes ImageNet;
here it is a folder of the user's, or pictures that are drawn (`models.procedural`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.images import read_image
from models.procedural import draw, photograph


class PenaltySource:
    """Draws crops of them. Images smaller than a crop are enlarged."""

    def __init__(self, crop_px: int, channels: int, images: Sequence[Path] = ()) -> None:
        self._crop_px, self._channels, self._images = crop_px, channels, list(images)

    def draw(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The next one, uint8 (crop_px, crop_px, channels). Raises `DataError` if unreadable."""
        side = self._crop_px
        if not self._images:
            picture = photograph(rng, draw(rng, side))
            return np.ascontiguousarray(picture[..., : self._channels])
        image = read_image(self._images[int(rng.integers(len(self._images)))], self._channels)
        height, width = image.shape[:2]
        least = min(height, width)
        if least < side:
            size = (-(-width * side // least), -(-height * side // least))
            larger = np.asarray(cv2.resize(image, size), np.uint8)
            image = larger.reshape(size[1], size[0], self._channels)
            height, width = image.shape[:2]
        top, left = (int(rng.integers(0, room + 1)) for room in (height - side, width - side))
        return np.ascontiguousarray(image[top : top + side, left : left + side])
