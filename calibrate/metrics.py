"""How well anomaly maps tell good from bad: by image, by pixel, by region, by defect.

1. By image: `image_auroc` of the images' highest scores.
2. By pixel and by region: `PixelCurves` takes map after map. Up to `EXACT` pixels all scores are
   kept and the figures are exact; beyond, scores are sorted into bins of 1/16384 of their value, so
   that thousands of full-size images need no memory (off by about the square of that).
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
EXACT = 1 << 24
_DROPPED_BITS = 9
"""A positive float32's bits rise with its value: without the last 9, 16384 steps per octave."""
BINS = 1 << (31 - _DROPPED_BITS)
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


def for_curves(scores: Map, inspected: NDArray[np.bool_]) -> Map:
    """Normalised scores of a map as `PixelCurves` takes them: in the same order, none negative.

    A score is negative where the map is below q_a, as nine cells of ten of a good part are: held at
    0 they would all be tied, and the faint half of each defect with them. Whatever is not inspected
    is 0.
    """
    positive = np.where(scores < 0, np.exp(np.minimum(scores, 0)), scores + np.float32(1))
    return np.where(inspected, positive, 0).astype(np.float32, copy=False)


def box_peak(raw_map: Map, box_xyxy: tuple[int, int, int, int]) -> float:
    """The highest map value on or within a cell of a half-open box of pixels."""
    x0, y0, x1, y1 = box_xyxy
    rows = slice(max(0, y0 // STRIDE - 1), y1 // STRIDE + 2)
    columns = slice(max(0, x0 // STRIDE - 1), x1 // STRIDE + 2)
    return float(raw_map[rows, columns].max())


class PixelCurves:
    """Pixel AUROC and AU-PRO of as many maps as there are, in 200 MB at most.

    by_image: keep a coarse histogram of each image too (some kilobytes), for intervals. exact: so
    many pixels are kept as they are, before they are sorted into bins.
    """

    def __init__(self, *, by_image: bool = False, exact: int = EXACT) -> None:
        self._images: list[_Image] | None = [] if by_image else None
        self._exact = exact
        self._kept: list[tuple[_Bits, _Bits, list[_Bits]]] = []
        """Of each image: the bits of good pixels, of defective ones, and of each region."""
        self._binned: _Tables | None = None
        self._count = 0

    def add(self, scores: Map, mask: NDArray[np.bool_] | None = None) -> None:
        """Scores at every pixel (H, W), at least 0, and where it is defective; None: nowhere.

        Raises `DataError` for other shapes and for scores that are negative or not finite.
        """
        if mask is not None and mask.shape != scores.shape:
            raise DataError(f"mask {mask.shape} found, expected {scores.shape} as the scores have")
        if not np.isfinite(scores).all() or scores.min() < 0:
            raise DataError("scores that are negative or not finite found, expected a raw map")
        # Adding 0 makes -0 one, whose sign bit would be the highest of all.
        bits = (np.ascontiguousarray(scores, np.float32) + np.float32(0)).view(np.uint32)
        if mask is None or not mask.any():
            self._add(bits.ravel(), bits[:0, 0], [])
            return
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        regions = [bits[labels == region] for region in range(1, count)]
        self._add(bits[~mask], bits[mask], regions)

    def _add(self, good: _Bits, bad: _Bits, regions: list[_Bits]) -> None:
        self._count += len(regions)
        if self._images is not None:
            self._images.append(_Image.of(good, bad, regions))
        self._exact -= good.size + bad.size
        if self._exact >= 0:
            self._kept.append((good, bad, regions))
            return
        if self._binned is None:
            self._binned = _Tables.empty(BINS)
            for each in self._kept:
                self._binned.add(*each)
            self._kept.clear()
        self._binned.add(good, bad, regions)

    def _tables(self) -> _Tables:
        """Histograms over rising scores: over bins, or over all single values."""
        if self._binned is not None:
            return self._binned
        everything = [bits for good, bad, _ in self._kept for bits in (good, bad)]
        values = np.unique(np.concatenate(everything)) if everything else np.zeros(0, np.uint32)
        tables = _Tables.empty(len(values))
        for good, bad, regions in self._kept:
            tables.add(good, bad, regions, values)
        return tables

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
        tables = self._tables()
        return _auroc(tables.good, tables.bad)

    def best_f_score(self) -> tuple[float, float]:
        """The score with the best F-score over pixels, and that F-score; (0, 0) without defects."""
        tables = self._tables()
        right = np.cumsum(tables.bad[::-1])[::-1]
        marked = right + np.cumsum(tables.good[::-1])[::-1]
        total = int(tables.bad.sum())
        if not total:
            return 0.0, 0.0
        scores = 2 * right / (marked + total)
        best = int(np.argmax(scores))
        lowest = best << _DROPPED_BITS if tables.values is None else int(tables.values[best])
        return float(np.array([lowest], np.uint32).view(np.float32)[0]), float(scores[best])

    def au_pro(self, limit: float = PRO_LIMIT) -> float:
        """Area under the curve of mean region overlap, up to `limit` of good pixels; 0..1."""
        tables = self._tables()
        return _au_pro(tables.good, tables.regions, self._count, limit)


_Bits = NDArray[Any]
_COARSE_BITS = 17
"""Of 32: 64 steps per octave are left."""


@dataclass(slots=True)
class _Tables:
    """Good pixels, defective ones, and shares of regions, over rising scores."""

    good: NDArray[np.int64]
    bad: NDArray[np.int64]
    regions: NDArray[np.float64]
    values: _Bits | None = None
    """The scores' bits, where each has a place of its own."""

    @classmethod
    def empty(cls, size: int) -> _Tables:
        return cls(np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros(size))

    def add(
        self, good: _Bits, bad: _Bits, regions: Sequence[_Bits], values: _Bits | None = None
    ) -> None:
        self.values = values

        def place(bits: _Bits) -> tuple[NDArray[Any], NDArray[Any]]:
            used, counts = np.unique(
                bits if values is not None else bits >> _DROPPED_BITS, return_counts=True
            )
            return used if values is None else np.searchsorted(values, used), counts

        if values is None:  # most of all pixels: counting is faster than sorting
            self.good += np.bincount(good >> _DROPPED_BITS, minlength=BINS)
        else:
            at, counts = place(good)
            self.good[at] += counts
        at, counts = place(bad)
        self.bad[at] += counts
        for region in regions:
            at, counts = place(region)
            self.regions[at] += counts / region.size


@dataclass(frozen=True, slots=True)
class _Image:
    """One image's histograms of good pixels, defective ones and regions, where they are not 0."""

    used: NDArray[np.intp]
    histograms: NDArray[np.float64]
    """(3, used)"""
    regions: int

    @classmethod
    def of(cls, good: _Bits, bad: _Bits, regions: Sequence[_Bits]) -> _Image:
        table = np.zeros((3, 1 << (31 - _COARSE_BITS)))
        for number, bits in enumerate((good, bad, *regions)):
            counts = np.bincount(bits >> _COARSE_BITS, minlength=table.shape[1])
            table[min(number, 2)] += counts if number < 2 else counts / bits.size
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
