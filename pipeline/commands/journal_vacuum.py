"""`linewatch journal vacuum`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import load
from pipeline.journal_queries import vacuum
from pipeline.lock import hold_station
from pipeline.station import Station


def command(
    config: Annotated[Path, typer.Argument(help="The station's configuration (YAML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print both sizes as JSON.")] = False,
) -> None:
    """Make the journal's file as small as its rows; the line must be down.

    A journal keeps its size by itself (`publish.keep_mb`): this is for when that was made smaller.
    It needs as much room again while it works.

    [bold]linewatch journal vacuum station.yaml[/]
    """
    station = Station.of(load(config))
    with hold_station(station, patience_s=0.0):
        before, after = vacuum(station.journal)
    if as_json:
        print(json.dumps({"before_bytes": before, "after_bytes": after}))
        return
    print(f"{station.journal}: {before / 2**20:.1f} MiB, now {after / 2**20:.1f} MiB")
