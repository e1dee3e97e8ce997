"""All that was found of one bundle on labelled images: for the report, the terminal and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from calibrate.evaluation import Judged
from calibrate.figures import Confusion, Figure, by_camera, by_type, figures
from calibrate.gallery import Range
from calibrate.metrics import PixelCurves
from models.bundle import Bundle, EngineThresholds

VERDICTS = {
    "false_reject": "good, failed",
    "escape": "defective, passed",
    "found": "defective, failed",
    "passed": "good, passed",
}


@dataclass(frozen=True)
class Evaluation:
    """All that the report and the JSON say of one bundle on labelled images."""

    bundle: Bundle
    engine_id: str
    thresholds: EngineThresholds
    judged: Sequence[Judged]
    curves: PixelCurves
    least_iou: float
    notes: Sequence[str] = ()
    pictures: Sequence[bytes] = ()
    """WebP of each judged image, or none at all."""
    shown: Range = field(default_factory=lambda: Range(0.0, 1.0))
    title: str = "Inspection report"

    @cached_property
    def tables(self) -> dict[str, Any]:
        """Figures of all images, by type of defect and by camera."""
        return {
            "all": figures(self.judged, self.curves),
            "types": by_type(self.judged),
            "cameras": by_camera(self.judged),
        }

    def plain(self) -> dict[str, Any]:
        """For JSON: figures with intervals, and each image's verdict."""
        tables = self.tables
        confusion = Confusion.of(self.judged)
        times = sorted(judged.milliseconds for judged in self.judged)
        return {
            "bundle": self.bundle.path.name,
            "sha256": self.bundle.sha256,
            "engine": self.engine_id,
            "image_threshold": self.thresholds.image_threshold,
            "pixel_threshold": self.thresholds.pixel_threshold,
            "least_iou": self.least_iou,
            "notes": list(self.notes),
            "confusion": {name: getattr(confusion, name) for name in Confusion.__slots__},
            "figures": _plain(tables["all"]),
            "types": {name: _plain(found) for name, found in tables["types"].items()},
            "cameras": {name: _plain(found) for name, found in tables["cameras"].items()},
            "milliseconds": {"median": quantile(times, 0.5), "p99": quantile(times, 0.99)},
            "images": [
                {
                    "path": str(judged.image.path),
                    "camera": judged.image.camera,
                    "defective": judged.image.defective,
                    "types": sorted(judged.image.kinds),
                    "failed": judged.failed,
                    "score": judged.score,
                    "threshold": judged.threshold,
                    "boxes": [list(box) for box in judged.boxes],
                }
                for judged in self.judged
            ],
        }


def verdict_of(judged: Judged) -> str:
    """One of `VERDICTS`."""
    if judged.image.defective:
        return "found" if judged.failed else "escape"
    return "false_reject" if judged.failed else "passed"


def _plain(found: dict[str, Figure]) -> dict[str, Any]:
    return {key: figure.plain() for key, figure in found.items()}


def quantile(ranked: Sequence[float], share: float) -> float:
    """Of rising values; NaN without any."""
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")
