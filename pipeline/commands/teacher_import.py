"""`linewatch teacher import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from models.teacher_import import import_teacher


def command(
    file: Annotated[Path, typer.Argument(help="A state dict written by torch.save.")],
    licence: Annotated[
        str, typer.Option(help="Under which licence the weights are; kept in every bundle.")
    ],
    origin: Annotated[str, typer.Option(help="Where they are from: an address, a paper.")],
    out: Annotated[
        Path | None, typer.Option(help="The teacher's file. Default: FILE.safetensors here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Take over a published teacher of pdn_small or pdn_medium.

    Reads the state dict without running any code in it, and writes a teacher's file that
    [bold]linewatch train --teacher[/] takes. Most published teachers were distilled from ImageNet
    pictures: find out whether their terms fit your use.

    [bold]linewatch teacher import teacher_small.pth --licence MIT --origin https://...[/]
    """
    path = import_teacher(
        file, out or Path(file.name).with_suffix(".safetensors"), licence=licence, origin=origin
    )
    note = path.with_suffix(".json")
    if as_json:
        print(json.dumps({"teacher": str(path), **json.loads(note.read_text())}, indent=2))
    else:
        print(f"teacher: {path}, with {note}")
