"""`linewatch teacher train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from models.teacher import TeacherSettings, train_teacher_file
from models.variants import VARIANTS
from pipeline.commands.progress import progress_bar
from pipeline.errors import ConfigError


def command(
    variant: Annotated[str, typer.Option(help=f"{', '.join(VARIANTS)}.")] = "pdn_tiny",
    out: Annotated[
        Path | None, typer.Option(help="The file. Default: teacher_VARIANT.safetensors here.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="More is better, up to a point.")] = (
        TeacherSettings().steps
    ),
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same weights.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a teacher from pictures that linewatch draws itself: no data set, no download.

    The teachers that come with linewatch were made so. A note of how lies beside the file.

    [bold]linewatch teacher train --variant pdn_tiny --out teacher.safetensors[/]
    """
    if variant not in VARIANTS:
        raise ConfigError(f"--variant {variant!r} found, expected one of {', '.join(VARIANTS)}")
    if threads:
        torch.set_num_threads(threads)
    out = out or Path(f"teacher_{variant}.safetensors")
    settings = TeacherSettings(seed=seed, steps=steps)
    with progress_bar(f"Training {variant}", steps, quiet=as_json) as update:
        path = train_teacher_file(variant, out, settings, progress=update)
    note = path.with_suffix(".json")
    if as_json:
        print(json.dumps({"teacher": str(path), **json.loads(note.read_text())}, indent=2))
    else:
        print(f"teacher: {path}, with {note}")
