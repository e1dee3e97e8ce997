"""`linewatch keys list`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.keys import list_keys


def command(
    folder: Annotated[Path, typer.Argument(help="A folder of keys.")] = Path("keys"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the keys as JSON.")] = False,
) -> None:
    """Every key in a folder: its name, its public half, and what is wrong with its file.

    Ends with 0; with 1 when a file is damaged or a secret can be read by others.

    [bold]linewatch keys list keys/allowed[/]
    """
    found = list_keys(folder)
    if as_json:
        print(json.dumps([asdict(key) for key in found], indent=2))
    else:
        table = Table("file", "public key", "fault")
        for key in found:
            table.add_row(escape(key.file), escape(key.public), escape(key.fault))
        Console().print(table)
    if any(key.fault for key in found):
        raise typer.Exit(1)
