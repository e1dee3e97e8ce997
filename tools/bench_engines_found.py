"""What `python -m tools.bench engines` finds: rows, peaks, and what is asked of a GPU."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from tools.bench_machine import Goal

GPU_RUNTIMES = ("cuda", "tensorrt")
GPU_GOAL_OF, GPU_GOAL = ("pdn_small", 1280, 1024), 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """What one engine did with one variant and size."""

    variant: str
    width: int
    height: int
    engine: str
    median_ms: float
    p99_ms: float
    runs: int
    frames_per_s: float
    gflop: float
    """Of one frame."""
    gflop_per_s: float
    map_error: float
    """Largest difference from the plain networks' map over its largest value."""
    error_frame: str
    """WIDTHxHEIGHT of the frame on which that was found."""


@dataclass(slots=True)
class Found:
    """All rows, what was left out and why, and each engine's peak in GFLOP/s."""

    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)

    def peak(self, engine: str) -> float | None:
        """GFLOP/s of the engine's precision; of a GPU's 16 bits those of bf16, as in the goal."""
        runtime, _, precision = engine.partition("/")
        if runtime in GPU_RUNTIMES and precision == "fp16":
            return self.peaks.get(f"{runtime}/bf16")
        return self.peaks.get(engine)

    def share(self, row: Row) -> float | None:
        """Of that peak."""
        peak = self.peak(row.engine)
        return row.gflop_per_s / peak if peak else None

    def floor_ms(self, row: Row) -> float | None:
        """What its arithmetic would take at that peak."""
        peak = self.peak(row.engine)
        return 1e3 * row.gflop / peak if peak else None

    def goals(self) -> list[Goal]:
        """What is asked of a GPU, from the frame in page-locked memory to the map."""
        wanted = [
            row
            for row in self.rows
            if (row.variant, row.width, row.height) == GPU_GOAL_OF
            and row.engine in [f"{runtime}/fp16" for runtime in GPU_RUNTIMES]
        ]
        return [
            Goal(
                f"{row.engine}, {row.variant} at {row.width}x{row.height}: share of the bf16 peak",
                self.share(row) or math.nan,
                GPU_GOAL,
            )
            for row in wanted
        ]

    def plain(self) -> dict[str, Any]:
        rows = [
            asdict(row) | {"share_of_peak": self.share(row), "floor_ms": self.floor_ms(row)}
            for row in self.rows
        ]
        return {"rows": rows, "left_out": self.left_out, "peak_gflop_per_s": self.peaks}
