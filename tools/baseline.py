"""The plain detector that ours is compared with: median background minus blurred frame.

    background = the median of some good frames, pixel by pixel
    score      = the greatest | background - blurred frame | in the inspected area

It knows neither shift nor rotation nor grain. If it does well, the line is too easy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

BLUR_SIGMA_PX = 2.0


@dataclass(frozen=True, slots=True)
class BaselineScore:
    """Grey levels, and the pixel (x, y) where they were found."""

    score: float
    peak_xy: tuple[int, int]


def median_background(good_frames: Sequence[Frame]) -> Frame:
    """The median, uint8 (H, W), of good frames uint8 (H, W, C); colours are averaged."""
    if not good_frames:
        raise ValueError("no good frames; the background needs at least one")
    stack = np.stack([_grey(frame) for frame in good_frames])
    background: Frame = np.empty(stack.shape[1:], np.uint8)
    for row in range(stack.shape[1]):  # row by row: np.median of the whole stack takes gigabytes
        background[row] = np.median(stack[:, row], axis=0)
    return background


def baseline_scores(
    background: Frame, frames: Iterable[Frame], inspected: NDArray[np.bool_] | None = None
) -> list[BaselineScore]:
    """The baseline's score of every frame, uint8 (H, W, C); `inspected`: bool (H, W)."""
    scores = []
    mask = None if inspected is None else inspected.astype(np.uint8)
    for frame in frames:
        blurred = cv2.GaussianBlur(_grey(frame), (0, 0), BLUR_SIGMA_PX)
        difference = cv2.absdiff(background, blurred)
        _, peak, _, place = cv2.minMaxLoc(difference, mask=mask)
        scores.append(BaselineScore(float(peak), (int(place[0]), int(place[1]))))
    return scores


def recall_at_false_rejects(
    good: Sequence[float], bad: Sequence[float], share: float = 0.02
) -> float:
    """The share of `bad` scores above the threshold that rejects at most `share` of `good`."""
    if not good or not bad:
        raise ValueError(f"{len(good)} good and {len(bad)} bad scores; expected some of both")
    allowed = int(share * len(good))
    threshold = sorted(good, reverse=True)[allowed]
    return sum(score > threshold for score in bad) / len(bad)


def _grey(frame: Frame) -> Frame:
    if frame.shape[2] == 1:
        return frame[:, :, 0]
    return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
