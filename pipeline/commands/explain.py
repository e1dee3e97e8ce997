"""`linewatch explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calibrate.evaluation import Judge
from calibrate.explanation import Explanation, explain
from calibrate.gallery import Range, picture
from calibrate.labelled import LabelledImage
from calibrate.on_part import on_parts
from calibrate.scores import raw_map_of
from models.bundle import Bundle
from models.runtimes import open_runtime
from models.runtimes.base import stages
from pipeline.config import Recipe, load_recipe
from pipeline.errors import DataError
from pipeline.overlay import write_png

SIDE_PX = 900


def command(
    image: Annotated[Path, typer.Argument(help="An image of the camera.")],
    bundle: Annotated[Path, typer.Option(help="A calibrated bundle.")],
    recipe: Annotated[Path | None, typer.Option(help="The camera's recipe (YAML).")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Default: NAME-explained.png here.")
    ] = None,
    runtime: Annotated[str, typer.Option(help="As calibrated: auto, openvino/bf16, ...")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Why an image passes or fails: every step of the rule, and what would turn the verdict round.

    The picture shows the image with the boxes that fail it, and the map from black to white, which
    is where a place fails the image by itself. Where the bundle brings more than a student (the
    wide view, precedents, the global branch), each place's score is told before and after each.

    [bold]linewatch explain part.png --bundle bundles/NAME[/]
    """
    loaded = Bundle.load(bundle)
    name, _, precision = runtime.partition("/")
    engine = open_runtime(loaded, name, precision or "auto", threads=threads)
    try:
        chosen = load_recipe(recipe) if recipe else Recipe()
        judge = Judge(loaded, engine, {"": chosen}, least_iou=0.33)
        (seen,) = judge.judge([LabelledImage(image, False)])
        rule = on_parts(judge.rule("", seen.judged.frame_hw), seen.matrices, str(image))
        stage_scores = [
            (stage, rule.scores(raw_map_of(runtime_, seen.pixels, chosen)))
            for stage, runtime_ in stages(engine)
        ]
    finally:
        engine.close()
    found = explain(seen, rule, judge.engine_id, stage_scores)
    path = out or Path(f"{image.stem}-explained.png")
    try:
        shown = Range.of_scores(0.0, judge.thresholds.pixel_threshold, seen.judged.threshold)
        write_png(path, picture(seen, shown, SIDE_PX))
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}): name another file with --out"
        ) from error
    if as_json:
        print(json.dumps(found.plain() | {"picture": str(path)}, indent=2))
        return
    _print(found)
    print(f"picture: {path}")


def _print(found: Explanation) -> None:
    console = Console()
    console.print(f"[bold]{found.verdict.upper()}[/]  {escape(found.because)}", highlight=False)
    console.print(found.turned, highlight=False)
    steps = Table("step", "what was found")
    for step, result in found.steps:
        steps.add_row(step, result)
    console.print(steps)
    if found.places:
        *before, last = [name for name, _ in found.places[0].grown]
        scores = [*before, f"score with {last}" if before else "score"]
        table = Table("place", *scores, "of threshold", "cells", "zone", "fails by itself")
        for place in found.places:
            box = " ".join(map(str, place.box_xyxy))
            share = f"{place.score / found.threshold:.2f}"
            fails = "yes" if place.fails else "no"
            grown = [f"{score:.4g}" for _, score in place.grown]
            table.add_row(box, *grown, share, str(place.cells), escape(place.zone), fails)
        console.print(table)
