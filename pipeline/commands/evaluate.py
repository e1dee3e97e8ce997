"""`linewatch evaluate`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calibrate.boxes_eval import RIGHT_IOU
from calibrate.evaluation import Judge, Judged, with_parts
from calibrate.figures import LABELS, Confusion, Figure
from calibrate.gallery import Range, small_picture
from calibrate.labelled import unseen
from calibrate.parts import part_ids
from calibrate.report import write_report
from calibrate.results import Evaluation
from models.bundle import Bundle, EngineThresholds
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
from pipeline.errors import DataError

HEAT_TOP = 0.7
"""Heatmaps are white from this share of the highest calibrated score on."""


def command(
    bundle: Annotated[Path, typer.Argument(help="A calibrated bundle.")],
    good: Good = None,
    bad: Bad = None,
    masks: Masks = None,
    boxes: Boxes = None,
    types: Types = "",
    recipe: Recipes = None,
    report: Annotated[
        Path | None, typer.Option(help="The HTML report. Default: BUNDLE-report.html beside it.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the report.")] = "Inspection report",
    runtime: Annotated[
        str, typer.Option(help="auto, openvino, openvino/bf16, torch/f32: as calibrated.")
    ] = "auto",
    iou: Annotated[
        float, typer.Option(min=0, max=1, help="A box is right at an overlap over this.")
    ] = RIGHT_IOU,
    display: Annotated[
        str, typer.Option(help="LOW,HIGH scores of the heatmaps. Default: as calibrated.")
    ] = "",
    seen: Annotated[
        bool, typer.Option(help="Look at images that the bundle knows, too: flatters it.")
    ] = False,
    part: Part = "",
    threads: Annotated[int, typer.Option(min=0, help="Of the engine; 0: all cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """How good a calibrated bundle is, on images that it has not seen; writes a report.

    Engine and rule are those of the line. Images that trained the bundle, or that its thresholds
    rest on, are known by their content and left out, so the folders of `calibrate --test-share` can
    be given again. The report is one HTML file: figures with intervals, curves, and every image
    with its heatmap, the most wrong ones first. It can be printed.

    [bold]linewatch evaluate bundles/NAME --good test/good --bad test/bad --masks masks[/]
    """
    loaded = Bundle.load(bundle)
    labels = labels_of(good, bad, masks, boxes, types)
    labels = labels if seen else unseen(labels, loaded)
    if not labels.images:
        raise DataError(
            "no image is left that the bundle has not seen: give others, or look at these all the "
            "same with --seen; " + "; ".join(labels.notes)
        )
    if part:
        part_ids([image.path.name for image in labels.images], part)  # before anything takes long
    notes = [*labels.notes]
    for what, some in (("good", labels.good), ("defective", labels.bad)):
        if not some:
            notes.append(f"no {what} images: figures that need both are left out")
    name, _, precision = runtime.partition("/")
    engine = open_runtime(loaded, name, precision or "auto", threads=threads)
    try:
        judge = Judge(loaded, engine, recipes_of(recipe, labels), least_iou=iou)
        shown = _display(display, judge.thresholds)
        judged: list[Judged] = []
        pictures: list[bytes] = []
        with progress_bar("Looking", len(labels.images), quiet=as_json) as update:
            for each in judge.judge(labels.images, update):
                judged.append(each.judged)
                pictures.append(small_picture(each, shown))
    finally:
        engine.close()
    judged = with_parts(judged, judge.thumbs, part)
    parts = len({each.part for each in judged})
    if parts < len(judged):
        notes.append(f"{len(judged)} images show {parts} parts, which are drawn for intervals")
    evaluation = Evaluation(
        bundle=loaded,
        engine_id=judge.engine_id,
        thresholds=judge.thresholds,
        judged=judged,
        curves=judge.curves,
        least_iou=iou,
        notes=notes,
        pictures=pictures,
        shown=shown,
        title=title,
    )
    path = report or loaded.path.with_name(f"{loaded.path.name}-report.html")
    write_report(path, evaluation)
    if as_json:
        print(json.dumps({"report": str(path)} | evaluation.plain(), indent=2))
        return
    _print(evaluation)
    print(f"report: {path}")


def _display(text: str, thresholds: EngineThresholds) -> Range:
    try:
        if text:
            low, high = (float(word) for word in text.split(","))
            return Range(low, high)
    except ValueError as error:
        raise DataError(f"--display {text!r} found, expected LOW,HIGH with LOW < HIGH") from error
    high = HEAT_TOP * thresholds.highest
    return Range.of_scores(thresholds.lowest, thresholds.pixel_threshold, high)


def _print(evaluation: Evaluation) -> None:
    tables = evaluation.tables
    table = Table("", "value", "95 %", title=f"{len(evaluation.judged)} images")
    for key, figure in tables["all"].items():
        if math.isfinite(figure.value):
            table.add_row(LABELS[key], f"{figure.value:.4f}", interval_text(figure))
    console = Console()
    console.print(table)
    confusion = Confusion.of(evaluation.judged)
    seen = Table("", "passed", "failed")
    seen.add_row("good", str(confusion.good_passed), str(confusion.good_failed))
    seen.add_row("defective", str(confusion.bad_passed), str(confusion.bad_failed))
    console.print(seen)
    if len(tables["types"]) > 1:
        by_type = Table("type", "image AUROC", "recall", "defects boxed")
        for name, found in tables["types"].items():
            keys = ("image_auroc", "recall", "defect_recall")
            by_type.add_row(escape(name), *(_short(found.get(key)) for key in keys))
        console.print(by_type)
    for sentence in evaluation.notes:
        console.print(sentence, highlight=False, markup=False)


def interval_text(figure: Figure) -> str:
    return f"{figure.low:.4f} to {figure.high:.4f}" if math.isfinite(figure.low) else ""


def _short(figure: Figure | None) -> str:
    return f"{figure.value:.3f}" if figure and math.isfinite(figure.value) else ""
