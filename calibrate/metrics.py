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
from dataclasses import dataclass
from typing import Any

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


def average_precision(good: Sequence[float], bad: Sequence[float]) -> float:
    """Mean precision over the recall's steps, defective images being looked for. NaN if one is
    empty.
    """
    if not len(good) or not len(bad):
        return float("nan")
    from sklearn.metrics import average_precision_score

    labels = np.repeat([0, 1], [len(good), len(bad)])
    return float(average_precision_score(labels, np.concatenate([good, bad])))


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
    """Pixel AUROC and AU-PRO of as many maps as there are, in 12 MB.

    by_image: keep a coarse histogram of each image too (some kilobytes), for intervals.
    """

    def __init__(self, *, by_image: bool = False) -> None:
        self._images: list[_Image] | None = [] if by_image else None
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
            self._add(bins.ravel(), bins[:0, 0], [])
            return
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        regions = [bins[labels == region] for region in range(1, count)]
        self._add(bins[~mask], bins[mask], regions)

    def _add(self, good: _Bins, bad: _Bins, regions: Sequence[_Bins]) -> None:
        self._good += np.bincount(good, minlength=BINS)
        self._bad += np.bincount(bad, minlength=BINS)
        for found in regions:
            self._regions += np.bincount(found, minlength=BINS) / found.size
        self._count += len(regions)
        if self._images is not None:
            self._images.append(_Image.of(good, bad, regions))

    def interval(
        self, key: str, resamplings: int, parts: Sequence[str | int] | None = None
    ) -> tuple[float, float]:
        """The middle 95 % of `pixel_auroc` or `au_pro` of parts drawn again (bootstrap), those
        with and without defects each among their kind, from histograms of 64 steps per octave.

        parts: what each image shows, in the order in which they were added; None: each another.
        """
        assert self._images is not None, "by_image was not asked for"
        whose = range(len(self._images)) if parts is None else parts
        sides: tuple[dict[str | int, list[int]], ...] = ({}, {})
        for k, (image, part) in enumerate(zip(self._images, whose, strict=True)):
            sides[bool(image.regions)].setdefault(part, []).append(k)
        if not sides[1]:
            return float("nan"), float("nan")
        used = np.unique(np.concatenate([image.used for image in self._images]))
        tables = np.zeros((3, len(self._images), len(used)))
        for k, image in enumerate(self._images):
            tables[:, k, np.searchsorted(used, image.used)] = image.histograms
        regions = np.array([image.regions for image in self._images], np.float64)
        rng = np.random.default_rng(0)
        values = []
        for _ in range(resamplings):
            weights = np.zeros(len(self._images))
            for members in map(list, map(dict.values, sides)):
                for chosen in rng.integers(0, max(1, len(members)), len(members)):
                    weights[members[chosen]] += 1.0
            of_good, of_bad, of_regions = (weights @ table for table in tables)
            if key == "pixel_auroc":
                values.append(_auroc(of_good, of_bad))
            else:
                values.append(_au_pro(of_good, of_regions, float(weights @ regions), PRO_LIMIT))
        low, high = np.nanpercentile(values, [2.5, 97.5])
        return float(low), float(high)

    def auroc(self) -> float:
        """Area under the ROC curve of all pixels; ties count half. NaN if one kind is missing."""
        return _auroc(self._good, self._bad)

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
        return _au_pro(self._good, self._regions, self._count, limit)


_Bins = NDArray[Any]
_COARSER_BITS = 5


@dataclass(frozen=True, slots=True)
class _Image:
    """One image's histograms of good pixels, defective ones and regions, where they are not 0."""

    used: NDArray[np.intp]
    histograms: NDArray[np.float64]
    """(3, used)"""
    regions: int

    @classmethod
    def of(cls, good: _Bins, bad: _Bins, regions: Sequence[_Bins]) -> _Image:
        table = np.zeros((3, BINS >> _COARSER_BITS))
        for number, bins in enumerate((good, bad, *regions)):
            counts = np.bincount(bins >> _COARSER_BITS, minlength=table.shape[1])
            table[min(number, 2)] += counts if number < 2 else counts / bins.size
        used = np.flatnonzero(table.any(axis=0))
        return cls(used, table[:, used], len(regions))


def _auroc(good: NDArray[Any], bad: NDArray[Any]) -> float:
    """Of histograms over rising scores."""
    goods, bads = float(good.sum()), float(bad.sum())
    if not goods or not bads:
        return float("nan")
    below = np.cumsum(good) - good / 2
    return float((bad * below).sum() / goods / bads)


def _au_pro(good: NDArray[Any], regions: NDArray[Any], count: float, limit: float) -> float:
    total = float(good.sum())
    if not total or not count:
        return float("nan")
    marked = np.concatenate([[0.0], np.cumsum(good[::-1]) / total])
    overlap = np.concatenate([[0.0], np.cumsum(regions[::-1]) / count])
    inside = marked <= limit
    x = np.append(marked[inside], limit)
    y = np.append(overlap[inside], np.interp(limit, marked, overlap))
    return float(np.trapezoid(y, x) / limit)
