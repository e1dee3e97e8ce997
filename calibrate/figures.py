"""Figures of judged images, each with its interval, for all of them, by type and by camera.

Shares of images that each show another part have exact binomial intervals (Clopper and Pearson
1934). For all else parts are drawn again with replacement, with all of their images, good and
defective ones each among their kind (bootstrap, 95 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.boxes_eval import f_score
from calibrate.evaluation import Judged
from calibrate.metrics import PixelCurves, average_precision, image_auroc
from calibrate.thresholds import upper_bound

CONFIDENCE = 0.95
RESAMPLINGS = 400


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and its 95 % interval; NaN where the images say nothing about it."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def plain(self) -> dict[str, float | None]:
        """For JSON, which knows no NaN."""
        return {
            name: None if math.isnan(getattr(self, name)) else getattr(self, name)
            for name in ("value", "low", "high")
        }


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images by what they are and what was said of them."""

    good_passed: int
    good_failed: int
    bad_passed: int
    bad_failed: int

    @classmethod
    def of(cls, judged: Sequence[Judged]) -> Confusion:
        def count(defective: bool, failed: bool) -> int:
            return sum(j.image.defective is defective and j.failed is failed for j in judged)

        return cls(count(False, False), count(False, True), count(True, False), count(True, True))

    def rates(self) -> dict[str, float]:
        """All shares of the table, `fail` of a defective image being what is looked for."""
        tn, fp, fn, tp = self.good_passed, self.good_failed, self.bad_passed, self.bad_failed
        recall, specificity = _share(tp, tp + fn), _share(tn, tn + fp)
        return {
            "accuracy": _share(tp + tn, tp + tn + fp + fn),
            "mean_accuracy": (recall + specificity) / 2,
            "precision": _share(tp, tp + fp),
            "recall": recall,
            "specificity": specificity,
            "f1": _share(2 * tp, 2 * tp + fp + fn),
            "false_rejects": _share(fp, fp + tn),
            "escapes": _share(fn, fn + tp),
        }


LABELS = {
    "image_auroc": "Image AUROC",
    "average_precision": "Average precision",
    "pixel_auroc": "Pixel AUROC",
    "au_pro": "AU-PRO (to 0.3)",
    "accuracy": "Accuracy",
    "mean_accuracy": "Mean accuracy of good and defective",
    "precision": "Precision",
    "recall": "Recall (defective images that fail)",
    "specificity": "Specificity (good images that pass)",
    "f1": "F1",
    "false_rejects": "False rejects (FPR)",
    "escapes": "Escapes (FNR)",
    "defect_recall": "Defects with a box on them",
    "box_precision": "Box precision",
    "box_recall": "Box recall",
    "box_f": "Box F-score",
}
EXACT = ("accuracy", "precision", "recall", "specificity", "false_rejects", "escapes")
Indices = NDArray[np.intp]


def figures(
    judged: Sequence[Judged], curves: PixelCurves | None = None, *, kind: str = ""
) -> dict[str, Figure]:
    """All figures of these images, by the keys of `LABELS`.

    curves: of the same images. kind: only defects of this type are looked for; how many boxes are
    right cannot be told then.
    """
    scores = np.array([j.rank for j in judged], np.float64)
    failed = np.array([j.failed for j in judged], np.bool_)
    defective = np.array([j.image.defective for j in judged], np.bool_)
    counts = np.array([box_counts(j, kind) for j in judged], np.int64).reshape(-1, 4)

    def rates(chosen: Indices) -> dict[str, float]:
        is_bad, fails = defective[chosen], failed[chosen]
        return Confusion(
            int((~is_bad & ~fails).sum()),
            int((~is_bad & fails).sum()),
            int((is_bad & ~fails).sum()),
            int((is_bad & fails).sum()),
        ).rates()

    def ranked(measure: Callable[[Any, Any], float]) -> Callable[[Indices], float]:
        return lambda chosen: measure(
            scores[chosen][~defective[chosen]], scores[chosen][defective[chosen]]
        )

    def boxes(measure: Callable[[int, int, int, int], float]) -> Callable[[Indices], float]:
        return lambda chosen: measure(*counts[chosen].sum(axis=0).tolist())

    def rate(key: str) -> Callable[[Indices], float]:
        return lambda chosen: rates(chosen)[key]

    located = any(j.truth for j in judged)
    statistics: dict[str, Callable[[Indices], float]] = {
        "image_auroc": ranked(image_auroc),
        "average_precision": ranked(average_precision),
        **{key: rate(key) for key in (*EXACT, "mean_accuracy", "f1")},
    }
    if located:
        statistics |= {
            "defect_recall": boxes(lambda right, shown, true, found: _share(found, true)),
            "box_recall": boxes(lambda right, shown, true, found: _share(right, true)),
        }
    if located and not kind:
        statistics |= {
            "box_precision": boxes(lambda right, shown, true, found: _share(right, shown)),
            "box_f": boxes(lambda right, shown, true, found: f_score(right, shown, true)),
        }
    everything = np.arange(len(judged))
    whole = _wholes(Confusion.of(judged))
    independent = len({_part(k, j) for k, j in enumerate(judged)}) == len(judged)
    result: dict[str, Figure] = {}
    again = draws(judged)
    for key in LABELS:
        if key in EXACT and independent:
            result[key] = Figure(statistics[key](everything), *exact_interval(*whole[key]))
        elif key in statistics:
            value = statistics[key](everything)
            drawn = [statistics[key](chosen) for chosen in again]
            result[key] = Figure(value, *middle(drawn))
        elif curves is not None and key in ("pixel_auroc", "au_pro") and located:
            value = curves.auroc() if key == "pixel_auroc" else curves.au_pro()
            parts = [str(_part(k, j)) for k, j in enumerate(judged) if j.located]
            result[key] = Figure(value, *curves.interval(key, RESAMPLINGS, parts))
    return result


def box_counts(judged: Judged, kind: str = "") -> tuple[int, int, int, int]:
    """Right boxes, boxes, true defects, defects with a box on them; of one type if one is named.

    Nothing where nobody knows where the defects are: a box there may be right.
    """
    if judged.image.defective and not judged.truth:
        return 0, 0, 0, 0
    wanted = [k for k, defect in enumerate(judged.truth) if not kind or defect.kind == kind]
    right = sum(k in judged.matches for k in wanted)
    return right, len(judged.boxes), len(wanted), sum(judged.found[k] for k in wanted)


def by_type(judged: Sequence[Judged]) -> dict[str, dict[str, Figure]]:
    """Figures of each type of defect: the images that show it, with all good ones beside them."""
    names = sorted({name for j in judged for name in j.image.kinds})
    good = [j for j in judged if not j.image.defective]
    return {
        name: figures([*good, *(j for j in judged if name in j.image.kinds)], kind=name)
        for name in names
    }


def by_camera(judged: Sequence[Judged]) -> dict[str, dict[str, Figure]]:
    """Figures of each camera's images; empty when there is one camera only."""
    cameras = sorted({j.image.camera for j in judged})
    if len(cameras) < 2:
        return {}
    return {c: figures([j for j in judged if j.image.camera == c]) for c in cameras}


def exact_interval(count: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson, two-sided; (NaN, NaN) for nothing."""
    if not of:
        return float("nan"), float("nan")
    one_sided = (1 + confidence) / 2
    return 1 - upper_bound(of - count, of, one_sided), upper_bound(count, of, one_sided)


def _wholes(c: Confusion) -> Mapping[str, tuple[int, int]]:
    good, bad = c.good_passed + c.good_failed, c.bad_passed + c.bad_failed
    return {
        "accuracy": (c.good_passed + c.bad_failed, good + bad),
        "precision": (c.bad_failed, c.bad_failed + c.good_failed),
        "recall": (c.bad_failed, bad),
        "specificity": (c.good_passed, good),
        "false_rejects": (c.good_failed, good),
        "escapes": (c.bad_passed, bad),
    }


def draws(judged: Sequence[Judged]) -> list[Indices]:
    """Parts drawn again with replacement, good and defective ones each among their own, so many
    times; the same for the same parts. Indices of all their images.
    """
    sides: tuple[dict[str | int, list[int]], ...] = ({}, {})
    for k, each in enumerate(judged):
        sides[each.image.defective].setdefault(_part(k, each), []).append(k)
    members = [[np.array(part, np.intp) for part in side.values()] for side in sides if side]
    rng = np.random.default_rng(0)
    return [
        np.concatenate(
            [side[at] for side in members for at in rng.integers(0, len(side), len(side))]
        )
        for _ in range(RESAMPLINGS if members else 0)
    ]


def _part(number: int, judged: Judged) -> str | int:
    return number if judged.part == "" else judged.part


def middle(drawn: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the finite values; NaN without any."""
    values = np.array(drawn, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
