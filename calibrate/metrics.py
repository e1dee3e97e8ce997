"""How well anomaly maps tell good from bad: by image, by pixel, by region, by defect.

1. By image: `image_auroc` of the images' highest scores.
2. By pixel and by region: `PixelCurves` takes map after map and keeps histograms, so that thousands
   of full-size images need no memory. Scores are sorted into bins of 1/2048 of their value.
   Pixel AUROC, and AU-PRO: the mean share of each defective region that is found, over the share of
   good pixels that are marked, up to 0.3 of them (Bergmann et al., "The MVTec anomaly detection
   dataset", IJCV 2021, section 5.1), divided by that limit.
3. By defect: `recall_at` counts defects whose peak is over a threshold that a share of the good
   images reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from models.variants import STRIDE
from pipeline.errors import DataError

Map = NDArray[np.float32]
BINS = 1 << 19
_DROPPED_BITS = 12
"""A positive float32's bits rise with its value: without the last 12, 2048 steps per octave."""
PRO_LIMIT = 0.3


def image_auroc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Area under the ROC curve of two sets of scores; ties count half. NaN if one is empty."""
    if not len(good) or not len(bad):
        return float("nan")
    from sklearn.metrics import roc_auc_score

    labels = np.repeat([0, 1], [len(good), len(bad)])
    return float(roc_auc_score(labels, np.concatenate([good, bad])))


def threshold_at(good: Sequence[float], false_rejects: float) -> float:
    """The lowest threshold such that at most this share of good scores is above it."""
    if not len(good):
        raise DataError("no good images found, expected some to set a threshold by")
    return float(np.sort(good)[::-1][int(false_rejects * len(good))])


def recall_at(good: Sequence[float], peaks: Sequence[float], false_rejects: float) -> float:
    """Share of defects whose peak is above `threshold_at`; NaN without defects."""
    if not len(peaks):
        return float("nan")
    return float(np.mean(np.asarray(peaks) > threshold_at(good, false_rejects)))


def interval(
    statistic: Callable[[NDArray[np.intp]], float], count: int, *, resamplings: int = 1000
) -> tuple[float, float]:
    """The middle 95 % of a statistic of `count` images drawn again with replacement (bootstrap).

    statistic: of the indices that were drawn. NaNs (nothing of a kind was drawn) are left out.
    """
    rng = np.random.default_rng(0)
    values = [statistic(rng.integers(0, count, count)) for _ in range(resamplings)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def at_pixels(raw_map: Map, height: int, width: int) -> Map:
    """A map (ceil(H/4), ceil(W/4)) at every pixel (H, W): linear, cell (i, j) at (4i, 4j)."""
    shrink = np.array([[1 / STRIDE, 0, 0], [0, 1 / STRIDE, 0]])
    enlarged = cv2.warpAffine(
        raw_map,
        shrink,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(enlarged, np.float32)


def box_peak(raw_map: Map, box_xyxy: tuple[int, int, int, int]) -> float:
    """The highest map value on or within a cell of a half-open box of pixels."""
    x0, y0, x1, y1 = box_xyxy
    rows = slice(max(0, y0 // STRIDE - 1), y1 // STRIDE + 2)
    columns = slice(max(0, x0 // STRIDE - 1), x1 // STRIDE + 2)
    return float(raw_map[rows, columns].max())


class PixelCurves:
    """Pixel AUROC and AU-PRO of as many maps as there are, in 12 MB."""

    def __init__(self) -> None:
        self._good = np.zeros(BINS, np.int64)
        self._bad = np.zeros(BINS, np.int64)
        self._regions = np.zeros(BINS, np.float64)
        self._count = 0

    def add(self, scores: Map, mask: NDArray[np.bool_] | None = None) -> None:
        """Scores at every pixel (H, W), at least 0, and where it is defective; None: nowhere.

        Raises `DataError` for other shapes and for scores that are negative or not finite.
        """
        if mask is not None and mask.shape != scores.shape:
            raise DataError(f"mask {mask.shape} found, expected {scores.shape} as the scores have")
        if not np.isfinite(scores).all() or scores.min() < 0:
            raise DataError("scores that are negative or not finite found, expected a raw map")
        bins = np.ascontiguousarray(scores, np.float32).view(np.uint32) >> _DROPPED_BITS
        if mask is None or not mask.any():
            self._good += np.bincount(bins.ravel(), minlength=BINS)
            return
        self._good += np.bincount(bins[~mask], minlength=BINS)
        self._bad += np.bincount(bins[mask], minlength=BINS)
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        for region in range(1, count):
            found = bins[labels == region]
            np.add.at(self._regions, found, 1 / found.size)
        self._count += count - 1

    def auroc(self) -> float:
        """Area under the ROC curve of all pixels; ties count half. NaN if one kind is missing."""
        good, bad = int(self._good.sum()), int(self._bad.sum())
        if not good or not bad:
            return float("nan")
        below = np.cumsum(self._good) - self._good / 2
        return float((self._bad * below).sum() / good / bad)

    def best_f_score(self) -> tuple[float, float]:
        """The score with the best F-score over pixels, and that F-score; (0, 0) without defects."""
        right = np.cumsum(self._bad[::-1])[::-1]
        marked = right + np.cumsum(self._good[::-1])[::-1]
        total = int(self._bad.sum())
        if not total:
            return 0.0, 0.0
        scores = 2 * right / (marked + total)
        best = int(np.argmax(scores))
        lower_edge = np.array([best << _DROPPED_BITS], np.uint32).view(np.float32)
        return float(lower_edge[0]), float(scores[best])

    def au_pro(self, limit: float = PRO_LIMIT) -> float:
        """Area under the curve of mean region overlap, up to `limit` of good pixels; 0..1."""
        good = int(self._good.sum())
        if not good or not self._count:
            return float("nan")
        marked = np.concatenate([[0.0], np.cumsum(self._good[::-1]) / good])
        overlap = np.concatenate([[0.0], np.cumsum(self._regions[::-1]) / self._count])
        inside = marked <= limit
        x = np.append(marked[inside], limit)
        y = np.append(overlap[inside], np.interp(limit, marked, overlap))
        return float(np.trapezoid(y, x) / limit)
