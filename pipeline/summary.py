"""Figures of a run, for tables and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.types import Label, Verdict

STAGES = ("capture", "queue", "batch", "infer", "decide", "total")


def summarise(verdicts: Sequence[Verdict], captured: int, wall_s: float) -> dict[str, Any]:
    """Counts, frames/s and latency in ms (p50 and p99 by stage, over inspected frames).

    `missing`: captured frames without a verdict, by camera and frame id; 0 in a sound line.
    """
    labels = Counter(verdict.label for verdict in verdicts)
    distinct = {(v.camera, v.epoch, v.frame_id) for v in verdicts}
    inspected = [v.latency_ms for v in verdicts if v.label is not Label.INVALID]
    return {
        "captured": captured,
        "verdicts": len(verdicts),
        "passed": labels[Label.PASS],
        "failed": labels[Label.FAIL],
        "invalid": labels[Label.INVALID],
        "invalid_reasons": dict(
            Counter(v.reason.value for v in verdicts if v.label is Label.INVALID)
        ),
        "missing": captured - len(distinct),
        "fps": captured / wall_s if wall_s else 0.0,
        "latency_ms": {
            stage: {
                "p50": float(np.percentile([t[stage] for t in inspected], 50)),
                "p99": float(np.percentile([t[stage] for t in inspected], 99)),
            }
            for stage in STAGES
            if inspected
        },
    }


def rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """A summary as name and value, for a table."""
    table = [
        ("frames captured", f"{summary['captured']}"),
        ("verdicts", f"{summary['verdicts']}"),
        ("pass / fail / invalid", "{passed} / {failed} / {invalid}".format(**summary)),
        *((f"  {reason}", str(n)) for reason, n in summary["invalid_reasons"].items()),
        ("missing", f"{summary['missing']}"),
        ("frames/s", f"{summary['fps']:.1f}"),
    ]
    table += [
        (f"{stage} ms, p50 / p99", f"{times['p50']:.1f} / {times['p99']:.1f}")
        for stage, times in summary["latency_ms"].items()
    ]
    return table
