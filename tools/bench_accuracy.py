"""`python -m tools.bench accuracy`: train, calibrate and look, set by set and seed by seed.

Exit status: 1 when a goal is missed (none is asked of the baseline, nor of fewer steps than
planned), 2 for what is not there.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from tools.bench_machine import Goal, exit_code, machine, today, wide_console

GOALS = {
    "deeppcb": {"image_auroc": 0.995, "recall_at_1": 0.90, "box_f": 0.85},
    "magnetic_tile": {"image_auroc": 0.90, "blowhole": 0.95, "break": 0.95, "crack": 0.95},
}
"""By set: of a figure, or of a kind of defect its image AUROC."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=None, help="parent of the image sets")
    parser.add_argument("--sets", default="deeppcb,magnetic_tile")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variant", default="pdn_tiny")
    parser.add_argument("--steps", type=int, default=0, help="of each network")
    parser.add_argument("--random-teacher", action="store_true", help="the baseline of no teacher")
    parser.add_argument("--device", default="cpu", help="of torch, for the training")
    parser.add_argument("--out", type=Path, default=Path("accuracy-out"))
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    """Raises `DataError` for sets, seeds or images that are not there."""
    from tools.accuracy import PLANS, bench  # torch, which other benchmarks do without
    from tools.accuracy_figures import print_table

    names = chosen.sets.split(",")
    if unknown := [name for name in names if name not in PLANS]:
        raise DataError(f"--sets {unknown[0]} found, expected some of {', '.join(PLANS)}")
    try:
        seeds = [int(seed) for seed in chosen.seeds.split(",")]
    except ValueError as error:
        raise DataError(f"--seeds {chosen.seeds} found, expected such as 0,1,2") from error
    data = chosen.data or Path(os.environ.get("LINEWATCH_DATA", "../shared/data"))
    found = bench(
        data,
        names,
        seeds,
        variant=chosen.variant,
        steps=chosen.steps,
        random_teacher=chosen.random_teacher,
        device=chosen.device,
        out=chosen.out,
        quiet=chosen.json,
    )
    planned = not chosen.steps and not chosen.random_teacher
    goals = goals_of(found["sets"]) if planned else []
    found |= {"machine": machine(), "when": today(), "goals": [goal.plain() for goal in goals]}
    (chosen.out / "accuracy.json").write_text(json.dumps(found, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(found, indent=2))
        return exit_code(goals)
    print_table(found)
    for goal in goals:
        wide_console().print(str(goal), highlight=False)
    return exit_code(goals)


def goals_of(sets: dict[str, Any]) -> list[Goal]:
    """The goals of the sets that were looked at, by the means over the seeds."""
    goals = []
    for name, figures in sets.items():
        for what, wanted in GOALS[name].items():
            kind = figures["kinds"].get(what)
            (found, *_), label = (
                (figures[what], what) if kind is None else (kind["image_auroc"], f"{what} AUROC")
            )
            goals.append(Goal(f"{name}: {label}", found, wanted))
    return goals
