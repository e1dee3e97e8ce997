"""Faults on purpose, and what became of the results.

python -m tools.faults delivery     kill, freeze and starve publisher and subscriber
python -m tools.faults plc          kill line and bridge under a simulated PLC with its reject gate

Each takes --json. Exit status: 0; 1 when a promise was broken; 2 for wrong options.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

PARTS = {
    "delivery": ("tools.faults_delivery", "journal, publisher and subscriber"),
    "plc": ("tools.faults_plc", "a whole line, a bridge and a simulated PLC"),
}
"""Subcommand -> a module with `add_options(parser)` and `run(chosen) -> int`, and its summary."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, summary) in PARTS.items():
        import_module(module).add_options(commands.add_parser(name, help=summary))
    chosen = parser.parse_args(arguments)
    return int(import_module(PARTS[chosen.command][0]).run(chosen))


if __name__ == "__main__":
    sys.exit(main())
