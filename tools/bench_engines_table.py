"""The tables of `python -m tools.bench engines`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench_engines_found import Found
from tools.bench_machine import Goal, wide_console

COLUMNS = (
    *("engine", "runs", "median ms", "p99 ms", "frames/s", "GFLOP", "GFLOP/s", "of peak"),
    "floor ms",
    "map error",
)


def print_tables(found: Found, figures: Mapping[str, Any], goals: Sequence[Goal]) -> None:
    """figures: all that `--json` prints."""
    console = wide_console()
    table = Table(title=_title(figures))
    table.add_column("variant, WxH", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "engine" else "right")
    before = ""
    for row in found.rows:
        name = f"{row.variant} {row.width}x{row.height}"
        if before not in ("", name):
            table.add_section()
        share, floor_ms = found.share(row), found.floor_ms(row)
        smaller = "" if row.error_frame == f"{row.width}x{row.height}" else f" ({row.error_frame})"
        table.add_row(
            "" if name == before else name,
            row.engine,
            str(row.runs),
            f"{row.median_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.frames_per_s:.4g}",
            f"{row.gflop:.4g}",
            f"{row.gflop_per_s:.0f}",
            "-" if share is None else f"{share:.0%}",
            "-" if floor_ms is None else f"{floor_ms:.2f}",
            f"{row.map_error:.1e}{smaller}",
        )
        before = name
    peaks = ", ".join(f"{name} {peak:.0f}" for name, peak in found.peaks.items())
    table.caption = f"{figures['machine']}, {figures['when']}; peaks in GFLOP/s: {peaks}"
    console.print(table)
    console.print(
        "GFLOP: 2 x MAC of the fused graph, its margin included, rows that strips compute twice "
        "not. Peak: the quickest of several matrix multiplications in the same precision, by the "
        "same library; on a GPU bf16's for fp16. Floor: the same arithmetic at that peak. Map "
        "error: largest difference from the plain float32 networks over their largest value, in "
        "brackets the smaller frame on which it was found.",
        highlight=False,
    )
    for each in found.left_out:
        what = f"{each['variant']} {each['size']} {each['engine']}"
        console.print(f"left out: {what}: {each['why']}", highlight=False, markup=False)
    for name, why in figures["not_here"].items():
        console.print(
            f"not here: {name}: {why.removeprefix(f'{name}: ')}", highlight=False, markup=False
        )
    if figures["anomalib"] is not None:
        _print_anomalib(console, figures["anomalib"])
    for goal in goals:
        console.print(str(goal), highlight=False)


def _title(figures: Mapping[str, Any]) -> str:
    pixels = "RGB" if figures["channels"] == 3 else "grey"
    threads = figures["threads"] or "all"
    return f"Engines: {pixels} frames one by one, threads of a CPU engine: {threads}"


def _print_anomalib(console: Console, beside: Mapping[str, Any]) -> None:
    if beside.get("why_not"):
        console.print(f"anomalib: left out: {beside['why_not']}", highlight=False, markup=False)
        return
    side = beside["size"]
    title = f"pdn_small beside anomalib's EfficientAD-S, {side}x{side}x3, in one process"
    table = Table(title=title)
    for column in ("network", "median ms", "p99 ms", "whole / this", "student-teacher / this"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in beside["rows"]:
        ratios = (row["whole_over_this"], row["student_teacher_over_this"])
        table.add_row(
            row["name"],
            f"{row['median_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            *(f"{ratio:.2f}" for ratio in ratios),
        )
    table.caption = f"anomalib's networks in OpenVINO's own choice: {beside['precision']}"
    console.print(table)
