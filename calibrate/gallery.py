"""Small pictures for the report: an image with found and true boxes, and its heatmap beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from calibrate.evaluation import Judged, Seen
from calibrate.metrics import at_pixels

SIDE_PX = 240
"""Longest side of each of the two."""
QUALITY = 70
FOUND_COLOR, TRUE_COLOR = (235, 80, 50), (70, 160, 255)
"""RGB; told apart by people who do not see red and green alike."""
GAP_PX = 4
HEAT = 0.6
WIDE = 100.0

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Range:
    """Scores that the heatmap shows, from black to white; the same for the whole report.

    logarithmic: beside a wide view scores go over powers of ten, of which the highest alone would
    be seen. Raises `ValueError` where low is not below high, or a logarithmic one begins at 0.
    """

    low: float
    high: float
    logarithmic: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and self.low < self.high < math.inf):
            raise ValueError(f"a display range {self.low!r} to {self.high!r}, expected low < high")
        if self.logarithmic and self.low <= 0:
            raise ValueError(f"a logarithmic range from {self.low!r}, expected low > 0")

    @classmethod
    def of_scores(cls, low: float, pixel_threshold: float, high: float) -> Range:
        """From low to high; over `WIDE` times the pixel threshold logarithmic, from a tenth of
        that on."""
        if high > WIDE * pixel_threshold:
            return cls(0.1 * pixel_threshold, high, logarithmic=True)
        return cls(low, max(high, low + 1e-6))

    def level(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """0 for black to 1 for white."""
        low, high = np.float32(self.low), np.float32(self.high)
        if self.logarithmic:
            scores, low, high = np.log(np.maximum(scores, low)), np.log(low), np.log(high)
        return np.asarray(np.clip((scores - low) / (high - low), 0, 1), np.float32)


def picture(seen: Seen, shown: Range, side_px: int = SIDE_PX) -> Image:
    """RGB (h, w, 3): left the image with boxes, right its heatmap over it."""
    return np.hstack(_panels(seen, shown, side_px))


def small_picture(seen: Seen, shown: Range) -> bytes:
    """`picture` as WebP."""
    done, data = cv2.imencode(
        ".webp", picture(seen, shown)[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, QUALITY]
    )
    assert done
    return data.tobytes()


def wrongness(judged: Judged) -> float:
    """How far on the wrong side of the threshold: over 0 is wrong, and more is more wrong.

    The logarithm of the score over the threshold, turned round for a defective image.
    """
    ratio = math.log(max(judged.score, 1e-3 * judged.threshold) / judged.threshold)
    return -ratio if judged.image.defective else ratio


def _panels(seen: Seen, shown: Range, side_px: int) -> Sequence[Image]:
    height, width = seen.pixels.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    frame = np.asarray(cv2.resize(seen.pixels, size, interpolation=how), np.uint8)
    frame = frame.reshape(size[1], size[0], -1)
    plain: Image = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame.copy()
    boxed: Image = np.array(plain, order="C")
    for defect in seen.judged.truth:
        _draw(boxed, defect.box_xyxy, TRUE_COLOR, scale, 3)
    for box in seen.judged.boxes:
        _draw(boxed, box, FOUND_COLOR, scale, 1)
    dense = at_pixels(seen.scores, height, width)
    small = cv2.resize(dense, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    levels = np.rint(255 * shown.level(np.asarray(small, np.float32))).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)
    heat: Image = np.rint((1 - HEAT) * plain + HEAT * colours[:, :, ::-1]).astype(np.uint8)
    gap: Image = np.full((size[1], GAP_PX, 3), 255, np.uint8)
    return boxed, gap, heat


def _draw(
    picture: Image,
    box: tuple[int, int, int, int],
    color: tuple[int, int, int],
    scale: float,
    grow: int,
) -> None:
    x0, y0, x1, y1 = (round(side * scale) for side in box)
    cv2.rectangle(picture, (x0 - grow, y0 - grow), (x1 + grow - 1, y1 + grow - 1), color, 1)
