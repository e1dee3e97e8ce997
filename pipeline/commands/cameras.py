"""`linewatch cameras`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.sources.discover import FAMILIES, as_yaml, discover


def command(
    context: typer.Context,
    yaml: Annotated[
        bool, typer.Option("--yaml", help="Print them as entries of a configuration.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """The cameras that are connected: model, serial number, address and pixel formats.

    Each is opened for a moment, to ask it for its formats and its size; one that another program
    has is listed too, and says so. Put what [bold]--yaml[/] prints into a station's configuration,
    and look at a picture:

    [bold](echo 'station: line-1'; linewatch cameras --yaml) > station.yaml[/]

    [bold]linewatch cameras snap station.yaml NAME --out picture.png[/]
    """
    if context.invoked_subcommand is not None:
        return
    with Console(stderr=True, quiet=yaml or as_json).status("looking for cameras"):
        found, notes = discover()
    if as_json:
        print(json.dumps({"cameras": [asdict(one) for one in found], "notes": notes}, indent=2))
        return
    if yaml:
        print(as_yaml(found))
        for kind, note in notes.items():
            print(f"# {kind}: {' '.join(note.split())}")
        return
    table = Table("kind", "model", "serial", "address", "size", "formats")
    for one in found:
        size = f"{one.source['width']}x{one.source['height']}" if "width" in one.source else ""
        told = ", ".join(one.formats) + (" " if one.formats and one.note else "") + one.note
        row = (one.kind, one.model, one.serial, one.address, size, told)
        table.add_row(*(escape(cell) for cell in row))
    if found:
        Console().print(table)
    else:
        print(f"no camera found; looked for {', '.join(set(FAMILIES) - set(notes)) or 'none'}")
    for kind, note in notes.items():
        print(f"{kind}: not looked for: {note}")
