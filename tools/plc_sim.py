"""A simulated PLC with a belt and a reject gate, for tests and for who commissions a station.

    python -m tools.plc_sim modbus --host 10.0.0.5 --port 5020 --parts 1000 --rate 20 --json

What it does, and when a part passes its gate, is in `tools.plc_machine`.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict

from tools.plc_links import open_link
from tools.plc_machine import Plc, Truth


def truth_of(text: str) -> Truth:
    """The function that `package.module:function` names."""
    module, _, name = text.partition(":")
    found: Truth = getattr(importlib.import_module(module), name)
    return found


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.plc_sim", description="A simulated PLC with a belt and a reject gate."
    )
    parser.add_argument("protocol", choices=["modbus", "opcua", "mqtt"])
    parser.add_argument("--host", default="127.0.0.1", help="of the bridge; mqtt: of the broker")
    parser.add_argument("--port", type=int, help="default 5020 (modbus), 4840 (opcua), 1883 (mqtt)")
    parser.add_argument("--unit", type=int, default=1, help="modbus: the server's unit")
    parser.add_argument("--station", default="", help="mqtt: the station's name, in the topics")
    parser.add_argument("--prefix", default="linewatch", help="mqtt: what topics begin with")
    parser.add_argument(
        "--certificates", help="opcua: folder of the client's key and certificate, made there"
    )
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--rate", type=float, default=5.0, help="parts per second")
    parser.add_argument("--gate-ms", type=float, default=500.0, help="from camera to gate")
    parser.add_argument("--watchdog-ms", type=float, default=250.0)
    parser.add_argument("--truth", type=truth_of, help="module:function, trigger id -> is it good?")
    parser.add_argument("--json", action="store_true", help="the tally as one JSON object")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when no wrong part passed."""
    options = parse(arguments)
    plc = Plc(
        open_link(options),
        rate=options.rate,
        gate_ms=options.gate_ms,
        watchdog_ms=options.watchdog_ms,
        truth=options.truth,
    )
    try:
        tally = plc.run(options.parts)
    except KeyboardInterrupt:
        tally = plc.tally
    if options.json:
        print(json.dumps(asdict(tally)))
    else:
        print(f"{tally.parts} parts: {tally.passed} passed, {tally.rejected} rejected")
        print(f"{tally.late} late and {tally.missing} missing answers, {tally.connects} connects")
        for why, count in sorted(tally.why.items(), key=lambda row: -row[1]):
            print(f"  {count:6} {why}")
        if options.truth:
            print(f"{tally.wrong} wrong passes; {tally.good_passed} of {tally.good} good passed")
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
