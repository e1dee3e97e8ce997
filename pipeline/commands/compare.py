"""`linewatch compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from calibrate.boxes_eval import RIGHT_IOU
from calibrate.comparison import COMPARED, Comparison, compare
from calibrate.evaluation import Judge, Judged, with_parts
from calibrate.figures import LABELS, figures
from calibrate.labelled import Labels, unseen
from calibrate.parts import part_ids
from models.bundle import Bundle
from models.runtimes import open_runtime
from pipeline.commands.labels import (
    Bad,
    Boxes,
    Good,
    Masks,
    Part,
    Recipes,
    Types,
    labels_of,
    recipes_of,
)
from pipeline.commands.progress import progress_bar
from pipeline.config import Recipe
from pipeline.errors import DataError

NAMED = 20


def command(
    first: Annotated[Path, typer.Argument(help="A calibrated bundle: the one in use, say.")],
    second: Annotated[Path, typer.Argument(help="Another one: the one that may replace it.")],
    good: Good = None,
    bad: Bad = None,
    masks: Masks = None,
    boxes: Boxes = None,
    types: Types = "",
    recipe: Recipes = None,
    runtime: Annotated[
        str, typer.Option(help="For both, as calibrated: auto, openvino/bf16, ...")
    ] = "auto",
    iou: Annotated[
        float, typer.Option(min=0, max=1, help="A box is right at an overlap over this.")
    ] = RIGHT_IOU,
    seen: Annotated[bool, typer.Option(help="Look at images that a bundle knows, too.")] = False,
    part: Part = "",
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Two bundles on the same images, side by side: figures, every verdict that differs, speed.

    The intervals of the differences are paired (the same images are drawn again for both): where
    one does not hold 0, the bundles differ. Images that either of them has seen are left out.

    [bold]linewatch compare bundles/OLD bundles/NEW --good test/good --bad test/bad[/]
    """
    bundles = Bundle.load(first), Bundle.load(second)
    labels = labels_of(good, bad, masks, boxes, types)
    if not seen:
        for bundle in bundles:
            labels = unseen(labels, bundle)
    if not labels.images:
        raise DataError("no image is left that neither bundle has seen: give others, or --seen")
    if part:
        part_ids([image.path.name for image in labels.images], part)  # before anything takes long
    recipes = recipes_of(recipe, labels)
    sides = [
        _judge(bundle, labels, recipes, runtime, iou=iou, part=part, threads=threads, quiet=as_json)
        for bundle in bundles
    ]
    found = compare(*sides)
    if as_json:
        each = [_figures(side) for side in sides]
        names = [bundle.path.name for bundle in bundles]
        print(json.dumps({"bundles": names, "figures": each} | found.plain(), indent=2))
        return
    _print(bundles, sides, found, labels)


def _judge(
    bundle: Bundle,
    labels: Labels,
    recipes: Mapping[str, Recipe],
    runtime: str,
    *,
    iou: float,
    part: str,
    threads: int,
    quiet: bool,
) -> list[Judged]:
    name, _, precision = runtime.partition("/")
    engine = open_runtime(bundle, name, precision or "auto", threads=threads)
    try:
        judge = Judge(bundle, engine, recipes, least_iou=iou)
        with progress_bar(bundle.path.name, len(labels.images), quiet=quiet) as update:
            judged = [each.judged for each in judge.judge(labels.images, update)]
        return with_parts(judged, judge.thumbs, part)
    finally:
        engine.close()


def _figures(judged: list[Judged]) -> dict[str, Any]:
    return {key: figure.plain() for key, figure in figures(judged).items()}


def _print(
    bundles: tuple[Bundle, Bundle],
    sides: list[list[Judged]],
    found: Comparison,
    labels: Labels,
) -> None:
    table = Table(
        "", *(b.path.name for b in bundles), "difference", "95 %", title=f"{len(sides[0])} images"
    )
    each = [figures(side) for side in sides]
    for key in COMPARED:
        difference = found.differences.get(key)
        if difference is None:
            continue
        values = [f"{side[key].value:.4f}" for side in each]
        between = f"{difference.low:+.4f} to {difference.high:+.4f}"
        between = between if math.isfinite(difference.low) else ""
        table.add_row(LABELS[key], *values, f"{difference.value:+.4f}", between)
    one, two = found.milliseconds
    table.add_row(
        "Time for an image (median)", f"{one:.3g} ms", f"{two:.3g} ms", f"{two - one:+.3g} ms", ""
    )
    console = Console()
    console.print(table)
    print(f"{len(found.flipped)} of {len(sides[0])} verdicts differ")
    for a, b in found.flipped[:NAMED]:
        kind = "defective" if a.image.defective else "good"
        words = ["fail" if side.failed else "pass" for side in (a, b)]
        print(f"  {words[0]} -> {words[1]}  {kind}  {a.score:.4g} -> {b.score:.4g}  {a.image.path}")
    if len(found.flipped) > NAMED:
        print(f"  and {len(found.flipped) - NAMED} more: --json has all")
    for sentence in labels.notes:
        console.print(sentence, highlight=False, markup=False)
