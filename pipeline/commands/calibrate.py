"""`linewatch calibrate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrate.calibration import calibrate
from calibrate.thresholds import Promise
from models.bundle import Bundle
from models.images import list_images
from pipeline.commands.progress import progress_bar
from pipeline.config import load_recipe


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle, as `linewatch train` writes it.")],
    good: Annotated[
        Path,
        typer.Option(help="Folder of good images that were not trained on, one for each part."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new bundle. Default: beside the old one.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="auto, openvino, openvino/bf16, torch/f32; may be given more than once."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The camera's recipe (YAML): zones and minimum area count.")
    ] = None,
    false_rejects: Annotated[
        float, typer.Option(help="The share of good parts that may be rejected.")
    ] = Promise().false_reject,
    confidence: Annotated[
        float, typer.Option(help="How sure of that the threshold shall be.")
    ] = Promise().confidence,
    still_px: Annotated[
        int,
        typer.Option(
            min=0,
            help="Parts lie still, up to so many pixels: a tolerance for each place.",
        ),
    ] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Choose a bundle's thresholds from images of good parts; writes a new bundle.

    Thresholds belong to a runtime and precision, since engines differ a little: name each that the
    station may use. No defect is needed, and none looked at.

    If parts always lie at one place and angle, say so with --still-px (16, say): much fainter
    defects are found, since places that look unusual on good parts no longer set the threshold for
    all others. It then fits this camera's frames only. Leave it away for webs and loose parts.

    [bold]linewatch calibrate bundles/NAME --good val/good --runtime openvino/bf16[/]
    """
    paths = list_images(good)
    promise = Promise(false_reject=false_rejects, confidence=confidence)
    notes: list[str] = []
    with progress_bar("Calibrating", len(paths), quiet=as_json) as update:
        path = calibrate(
            bundle,
            paths,
            runtimes=runtime or ["auto"],
            recipe=load_recipe(recipe) if recipe else None,
            out_dir=out or bundle.absolute().parent,
            promise=promise,
            still_px=still_px,
            threads=threads,
            progress=update,
            note=notes.append,
        )
    result = Bundle.load(path)
    if as_json:
        engines = {name: asdict(engine) for name, engine in result.calibration.engines.items()}
        print(json.dumps({"bundle": str(path), "notes": notes, "engines": engines}, indent=2))
        return
    table = Table("engine", "image threshold", "pixel threshold", "good images", "over it")
    for name, engine in sorted(result.calibration.engines.items()):
        thresholds = (f"{engine.image_threshold:.4f}", f"{engine.pixel_threshold:.4f}")
        table.add_row(name, *thresholds, str(engine.images), str(engine.above))
    console = Console()
    console.print(table)
    for sentence in notes:
        console.print(sentence, highlight=False, markup=False)
    print(f"bundle: {path}")
