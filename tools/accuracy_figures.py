"""Figures of the accuracy benchmark: from what was seen on the test images to the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibrate.boxes_eval import f_score
from calibrate.metrics import image_auroc, interval, recall_at

ROWS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "au_pro": "AU-PRO (0.3)",
    "recall_at_1": "defect recall at 1 % false rejects",
    "recall_at_5": "defect recall at 5 % false rejects",
    "frozen_recall": "threshold of val: defect recall",
    "frozen_image_recall": "threshold of val: image recall",
    "frozen_false_rejects": "threshold of val: false rejects",
    "box_f": "threshold of val: F-score of boxes, IoU 0.33",
}


@dataclass(slots=True)
class Looked:
    """Raw results of one detector on the test images."""

    good: list[float]
    """Highest score of each good image."""
    bad: list[float]
    bad_kinds: list[list[str]]
    """Of each defective image: what is in it."""
    peaks: list[tuple[int, str, float]]
    """Defective image, kind and highest value of each defect."""
    good_failed: int
    bad_failed: int
    defects_failed: list[bool]
    """Whether each defect lies under a box of the frozen threshold."""
    boxes: int
    found: int
    """Defects that a box overlaps with an IoU of over 0.33; each box finds one."""
    pixel_auroc: float
    au_pro: float


def figures(seeds: Sequence[Looked]) -> dict[str, Any]:
    """[mean over the seeds, low, high]: of what is ranked, 95 % intervals over images drawn again
    (the same ones for all seeds); of pixels and of the frozen threshold, the seeds' extremes.
    """
    kinds = sorted({kind for _, kind, _ in seeds[0].peaks})
    table: dict[str, Any] = {
        "image_auroc": _resampled(seeds, lambda good, bad, _: image_auroc(good, bad)),
        "pixel_auroc": _spread([looked.pixel_auroc for looked in seeds]),
        "au_pro": _spread([looked.au_pro for looked in seeds]),
        "recall_at_1": _resampled(seeds, lambda good, _, peaks: recall_at(good, peaks, 0.01)),
        "recall_at_5": _resampled(seeds, lambda good, _, peaks: recall_at(good, peaks, 0.05)),
        "frozen_false_rejects": _spread([s.good_failed / len(s.good) for s in seeds]),
        "frozen_image_recall": _spread([s.bad_failed / len(s.bad) for s in seeds]),
        "frozen_recall": _spread([float(np.mean(s.defects_failed)) for s in seeds]),
        "box_f": _spread([_f_score(s) for s in seeds]),
        "kinds": {},
    }
    for kind in kinds:
        table["kinds"][kind] = {
            "image_auroc": _resampled(seeds, lambda good, bad, _: image_auroc(good, bad), kind),
            "recall_at_1": _resampled(
                seeds, lambda good, _, peaks: recall_at(good, peaks, 0.01), kind
            ),
            "recall_at_5": _resampled(
                seeds, lambda good, _, peaks: recall_at(good, peaks, 0.05), kind
            ),
        }
    return table


def print_table(found: dict[str, Any]) -> None:
    """One table for each data set, kinds of defects below."""
    for name, figures_ in found["sets"].items():
        whole = [run["minutes"] for run in figures_["runs"] if not run["resumed"]]
        minutes = f"{np.mean(whole):.1f}" if whole else "?"
        table = Table(title=f"{name}: {found['variant']}, {len(found['seeds'])} seed(s)")
        for column in ("", "mean", "low", "high"):
            table.add_column(column, justify="right" if column else "left")
        for key, label in ROWS.items():
            table.add_row(label, *(f"{value:.3f}" for value in figures_[key]))
        for kind, of_kind in figures_["kinds"].items():
            for key, values in of_kind.items():
                table.add_row(f"{kind}: {ROWS[key]}", *(f"{value:.3f}" for value in values))
        table.caption = (
            f"toy: image AUROC {figures_['toy_image_auroc']:.3f}; {minutes} min a training; "
            f"{found['machine']}, {found['when']}"
        )
        Console().print(table)


Statistic = Callable[[list[float], list[float], list[float]], float]
"""Of good images' scores, defective images' scores, defects' peaks."""


def _resampled(seeds: Sequence[Looked], statistic: Statistic, kind: str = "") -> list[float]:
    """[mean over the seeds, lower, upper end of its interval]."""

    def value(good: NDArray[np.intp], bad: NDArray[np.intp]) -> float:
        values = []
        for looked in seeds:
            scores = np.array(looked.good)[good].tolist()
            chosen = [k for k in bad.tolist() if not kind or kind in looked.bad_kinds[k]]
            peaks = [
                peak
                for k in chosen
                for which, peak in _peaks(looked, k)
                if not kind or which == kind
            ]
            values.append(statistic(scores, [looked.bad[k] for k in chosen], peaks))
        return float(np.mean(values))

    goods, bads = len(seeds[0].good), len(seeds[0].bad)
    everything = value(np.arange(goods), np.arange(bads))

    def drawn(indices: NDArray[np.intp]) -> float:
        """Good and defective images are drawn each among their kind."""
        rng = np.random.default_rng(indices[:8].tolist())
        return value(rng.integers(0, goods, goods), rng.integers(0, bads, bads))

    return [everything, *interval(drawn, goods + bads, resamplings=300)]


def _peaks(looked: Looked, image: int) -> list[tuple[str, float]]:
    return [(kind, peak) for number, kind, peak in looked.peaks if number == image]


def _spread(values: Sequence[float]) -> list[float]:
    """[mean, lowest, highest] over the seeds."""
    return [float(np.mean(values)), float(min(values)), float(max(values))]


def _f_score(looked: Looked) -> float:
    return f_score(looked.found, looked.boxes, len(looked.peaks))
