"""`linewatch status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import load
from pipeline.control import Control
from pipeline.publish import own_keys
from pipeline.station import Station

_COLORS = {"ready": "green", "connecting": "yellow", "lost": "red", "frozen": "red"}


def command(
    config: Annotated[Path, typer.Argument(help="The configuration of a station that runs.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """How a running station is: ready or not, its cameras, what it has captured and decided.

    Ends with 0 when it is ready and all of its cameras are; with 1 when not; with 11 when nobody
    answers.

    [bold]linewatch status station.yaml[/]
    """
    station = Station.of(load(config))
    keys = own_keys(station.config.security)
    with Control(station.control, keys=keys) as control:
        found = control.status()
    cameras: dict[str, str] = found["cameras"]
    if as_json:
        shown = {name: value for name, value in found.items() if name not in ("v", "id", "ok")}
        print(json.dumps(shown, indent=2))
    else:
        table = Table("what", "how", title=str(found["station"]))
        table.add_row("line", "[green]ready[/]" if found["ready"] else "[yellow]not ready[/]")
        for name, state in cameras.items():
            table.add_row(f"camera {name}", f"[{_COLORS.get(state, 'white')}]{state}[/]")
        table.add_row("frames captured / decided", f"{found['captured']} / {found['decided']}")
        table.add_row("restarts of stages", str(found["restarts"]))
        table.add_row("requests refused", str(found["refused"]))
        Console().print(table)
    if not found["ready"] or any(state != "ready" for state in cameras.values()):
        raise typer.Exit(1)
