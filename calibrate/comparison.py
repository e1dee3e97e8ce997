"""Two bundles on the same images: each one's figures, their differences, verdicts that differ.

Differences have paired intervals: the same images are drawn again for both (bootstrap), which is
much sharper than two intervals side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.boxes_eval import f_score
from calibrate.evaluation import Judged
from calibrate.figures import Figure, box_counts, draws, middle
from calibrate.metrics import image_auroc

COMPARED = ("image_auroc", "recall", "false_rejects", "defect_recall", "box_f")


@dataclass(frozen=True, slots=True)
class Comparison:
    """differences: second less first, by the keys of `COMPARED`, where both have a value."""

    differences: dict[str, Figure]
    flipped: Sequence[tuple[Judged, Judged]]
    """The images with another verdict."""
    milliseconds: tuple[float, float]
    """Medians, of engine and rule."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "differences": {key: figure.plain() for key, figure in self.differences.items()},
            "flipped": [
                {
                    "path": str(first.image.path),
                    "defective": first.image.defective,
                    "failed": [first.failed, second.failed],
                    "score": [first.score, second.score],
                    "threshold": [first.threshold, second.threshold],
                }
                for first, second in self.flipped
            ],
            "milliseconds": list(self.milliseconds),
        }


def compare(first: Sequence[Judged], second: Sequence[Judged]) -> Comparison:
    """Both of the same images, in the same order."""
    assert [a.image.path for a in first] == [b.image.path for b in second]
    chosen = draws(first)
    everything = np.arange(len(first))
    differences = {}
    for key in COMPARED:
        one, two = _measure(key, first), _measure(key, second)
        value = two(everything) - one(everything)
        if math.isfinite(value):
            drawn = [two(indices) - one(indices) for indices in chosen]
            differences[key] = Figure(value, *middle(drawn))
    flipped = [(a, b) for a, b in zip(first, second, strict=True) if a.failed is not b.failed]
    times = [float(np.median([j.milliseconds for j in side])) for side in (first, second)]
    return Comparison(differences, flipped, (times[0], times[1]))


def _measure(key: str, judged: Sequence[Judged]) -> Callable[[Any], float]:
    scores = np.array([j.rank for j in judged])
    defective = np.array([j.image.defective for j in judged], np.bool_)
    failed = np.array([j.failed for j in judged], np.bool_)
    counts = np.array([box_counts(j) for j in judged])

    def mean(of: Any) -> float:
        return float(of.mean()) if of.size else float("nan")

    def measure(chosen: Any) -> float:
        if key == "image_auroc":
            s, d = scores[chosen], defective[chosen]
            return image_auroc(s[~d], s[d])
        if key in ("recall", "false_rejects"):
            wanted = defective[chosen] if key == "recall" else ~defective[chosen]
            return mean(failed[chosen][wanted])
        right, shown, true, found = counts[chosen].sum(axis=0).tolist()
        if not true:
            return float("nan")
        return found / true if key == "defect_recall" else f_score(right, shown, true)

    return measure
