"""Image AUROC of a replay of two folders: how well scores tell good images from defective ones.

    linewatch replay test/good test/defect --bundle B --out images.jsonl
    python -m tools.auroc images.jsonl

The first folder (camera cam0) holds the good images, the second (cam1) the defective ones. Ranked
by `raw_peak`, the greatest anomaly in the inspected area, with a bootstrap interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from calibrate.metrics import image_auroc
from pipeline.errors import DataError
from pipeline.types import Label

RESAMPLINGS = 1000


def read_peaks(path: Path) -> tuple[list[float], list[float]]:
    """Raw peaks of good and defective images. Raises `DataError` when a verdict is missing."""
    peaks: dict[str, list[float]] = {"cam0": [], "cam1": []}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["camera"] not in peaks or row["label"] == Label.INVALID:
            raise DataError(
                f"{path}: {row['camera']} #{row['frame_id']} is {row['label']} ({row['reason']}), "
                "expected valid verdicts of cam0 and cam1 alone: see the replay's log"
            )
        peaks[row["camera"]].append(float(row["raw_peak"]))
    return peaks["cam0"], peaks["cam1"]


def interval(good: list[float], bad: list[float]) -> tuple[float, float]:
    """The middle 95 % of AUROCs of resampled images."""
    rng = np.random.default_rng(0)
    values = [
        image_auroc(
            list(rng.choice(good, len(good))),
            list(rng.choice(bad, len(bad))),
        )
        for _ in range(RESAMPLINGS)
    ]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="what `linewatch replay --out` wrote")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--least", type=float, default=0.0, help="end with 1 below this AUROC")
    chosen = parser.parse_args(arguments)
    good, bad = read_peaks(chosen.results)
    value = image_auroc(good, bad)
    low, high = interval(good, bad)
    if chosen.json:
        found = {"auroc": value, "low": low, "high": high, "good": len(good), "bad": len(bad)}
        print(json.dumps(found))
    else:
        print(
            f"image AUROC {value:.4f} (95 % interval {low:.4f} to {high:.4f}), "
            f"{len(good)} good and {len(bad)} defective images"
        )
    return 0 if value >= chosen.least else 1


if __name__ == "__main__":
    sys.exit(main())
