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
import sys
from importlib import import_module

from models.errors import ModelsError
from pipeline.errors import LinewatchError

PARTS = {
    "pipeline": ("tools.bench_pipeline", "the line without an engine"),
    "engines": ("tools.bench_engines", "how fast each runtime and precision is"),
    "overhead": ("tools.bench_line", "what the line takes from an engine"),
    "start": ("tools.bench_start", "from `linewatch run` to ready"),
    "delivery": ("tools.bench_delivery", "from a verdict to a subscriber's hands"),
    "accuracy": ("tools.bench_accuracy", "what is found on two image sets, and what is not"),
    "agree": ("tools.bench_agree", "verdicts of all engines on the same images"),
}
"""Subcommand -> a module with `add_options(parser)` and `run(chosen) -> int`, and its summary."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in PARTS.items():
        part = import_module(module)
        part.add_options(commands.add_parser(name, help=summary))
    chosen = parser.parse_args(arguments)
    try:
        return int(import_module(PARTS[chosen.command][0]).run(chosen))
    except (LinewatchError, ModelsError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
