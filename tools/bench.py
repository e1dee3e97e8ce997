"""The benchmark program: every figure in the README comes from here.

python -m tools.bench pipeline              four cameras, no engine: what the line itself costs
python -m tools.bench engines               every runtime and precision here: speed, and map error
python -m tools.bench engines --anomalib DIR    and anomalib's own networks beside ours
python -m tools.bench overhead              what the line takes from an engine
python -m tools.bench start                 from `linewatch run` to ready
python -m tools.bench delivery              from a verdict to a subscriber's hands
python -m tools.bench agree --bundle B --images DIR     do all engines give the same verdicts?
python -m tools.bench accuracy              both image sets, from nothing, over three seeds

Each takes --json. Exit status: 0; 1 when a goal is missed; 2 for wrong options, or when something
that is needed is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

from models.errors import ModelsError
from pipeline.errors import LinewatchError
from tools.bench_machine import machine, today

PARTS = {
    "pipeline": ("tools.bench_pipeline", "the line without an engine"),
    "engines": ("tools.bench_engines", "how fast each runtime and precision is"),
    "overhead": ("tools.bench_line", "what the line takes from an engine"),
    "start": ("tools.bench_start", "from `linewatch run` to ready"),
    "delivery": ("tools.bench_delivery", "from a verdict to a subscriber's hands"),
    "agree": ("tools.bench_agree", "verdicts of all engines on the same images"),
}
"""Subcommand -> a module with `add_options(parser)` and `run(chosen) -> int`, and its summary."""


def _accuracy_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=None, help="parent of the image sets")
    parser.add_argument("--sets", default="deeppcb,magnetic_tile")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variant", default="pdn_tiny")
    parser.add_argument("--steps", type=int, default=0, help="of each network")
    parser.add_argument("--random-teacher", action="store_true", help="the baseline of no teacher")
    parser.add_argument("--device", default="cpu", help="of torch, for the training")
    parser.add_argument("--out", type=Path, default=Path("accuracy-out"))
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def bench_accuracy(chosen: argparse.Namespace) -> int:
    """Train, calibrate and look, set by set and seed by seed; a table in the end."""
    from tools.accuracy import bench
    from tools.accuracy_figures import print_table

    data = chosen.data or Path(os.environ.get("LINEWATCH_DATA", "../shared/data"))
    found = bench(
        data,
        chosen.sets.split(","),
        [int(seed) for seed in chosen.seeds.split(",")],
        variant=chosen.variant,
        steps=chosen.steps,
        random_teacher=chosen.random_teacher,
        device=chosen.device,
        out=chosen.out,
        quiet=chosen.json,
    )
    found |= {"machine": machine(), "when": today()}
    (chosen.out / "accuracy.json").write_text(json.dumps(found, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in PARTS.items():
        part = import_module(module)
        part.add_options(commands.add_parser(name, help=summary))
    _accuracy_parser(commands.add_parser("accuracy", help="what is found, and what is not"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "accuracy":
        return bench_accuracy(chosen)
    try:
        return int(import_module(PARTS[chosen.command][0]).run(chosen))
    except (LinewatchError, ModelsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
