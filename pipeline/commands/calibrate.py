"""`linewatch calibrate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from calibrate.calibration import PIXEL_QUANTILE, calibrate
from calibrate.labelled import LabelledImage, Labels, unseen
from calibrate.parts import kept_apart, near_duplicates, part_ids, thumb
from calibrate.policies import POLICIES, Policy
from calibrate.thresholds import Promise
from models.bundle import Bundle
from models.images import read_image
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


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle, as `linewatch train` writes it.")],
    good: Good = None,
    bad: Bad = None,
    masks: Masks = None,
    boxes: Boxes = None,
    types: Types = "",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the new bundle. Default: beside the old one.")
    ] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            help="auto, openvino/int8, openvino/bf16, torch/f32; may be given more than once."
        ),
    ] = None,
    recipe: Recipes = None,
    false_rejects: Annotated[
        float, typer.Option(help="The share of good parts that may be rejected.")
    ] = Promise().false_reject,
    confidence: Annotated[
        float, typer.Option(help="How sure of that the threshold shall be.")
    ] = Promise().confidence,
    policy: Annotated[
        str,
        typer.Option(help=f"{', '.join(POLICIES)}: all but the first need defective images."),
    ] = "good",
    beta: Annotated[float, typer.Option(help="Of --policy f: 2 weighs escapes more.")] = 1.0,
    escape_cost: Annotated[
        float, typer.Option(help="Of --policy cost: an escape costs so many false rejects.")
    ] = Policy().escape_cost,
    defect_share: Annotated[
        float, typer.Option(help="Of --policy cost: the share of defective parts on the line.")
    ] = Policy().defect_share,
    min_recall: Annotated[
        float, typer.Option(help="Of --policy recall: the share of defective parts to be found.")
    ] = Policy().recall,
    part: Part = "",
    test_share: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Keep so many of the parts apart, for `evaluate`."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of --test-share.")] = 0,
    pixel_quantile: Annotated[
        float,
        typer.Option(help="Of good cells, for the outlines of defects: lower makes larger boxes."),
    ] = PIXEL_QUANTILE,
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
    station may use. No defect is needed. With defective images (--bad) the share of escapes is
    bounded too, --policy may choose the threshold by them, and masks or boxes set the outlines.

    openvino/int8 is the fastest on a CPU and is taken only when it is named. It is compared with
    openvino/f32 on the good images, as they are and with drawn defects, and refused if that costs
    anything to speak of.

    Images that the bundle was trained on, or that chose its best state, are left out. With
    --test-share 0.3 some parts are kept apart; `linewatch evaluate` with the same folders then
    looks at exactly those.

    If parts always lie at one place and angle, say so with --still-px (16, say): much fainter
    defects are found, since places that look unusual on good parts no longer set the threshold for
    all others. It then fits this camera's frames only. Leave it away for webs and loose parts.

    [bold]linewatch calibrate bundles/NAME --good val/good --runtime openvino/bf16[/]
    """
    loaded = Bundle.load(bundle)
    wanted = Policy(policy, beta, escape_cost, defect_share, min_recall)
    labels = unseen(labels_of(good, bad, masks, boxes, types), loaded, calibrated=False)
    notes = list(labels.notes)
    images: Sequence[LabelledImage] = labels.images
    if test_share:
        apart = _apart(labels, loaded.in_channels, part, test_share, seed, quiet=as_json)
        images = [image for image, kept in zip(images, apart, strict=True) if not kept]
        notes.append(f"{sum(apart)} of {len(apart)} images are kept apart, to be tested on")
    chosen = Labels(tuple(images), ())
    recipes = recipes_of(recipe, chosen)
    if not chosen.good or (policy != "good" and not chosen.bad):
        found = f"{len(chosen.good)} good and {len(chosen.bad)} defective images found"
        raise DataError(
            f"{found}, expected good ones, and defective ones for a policy other than `good`; "
            + ("; ".join(notes) or "nothing was left out")
        )
    with progress_bar("Calibrating", len(images), quiet=as_json) as update:
        path = calibrate(
            bundle,
            chosen.good,
            bad=chosen.bad,
            runtimes=runtime or ["auto"],
            recipe=recipes,
            out_dir=out or bundle.absolute().parent,
            promise=Promise(false_reject=false_rejects, confidence=confidence),
            policy=wanted,
            part_pattern=part,
            still_px=still_px,
            pixel_quantile=pixel_quantile,
            threads=threads,
            progress=update,
            note=notes.append,
        )
    result = Bundle.load(path)
    if as_json:
        engines = {name: asdict(engine) for name, engine in result.calibration.engines.items()}
        print(json.dumps({"bundle": str(path), "notes": notes, "engines": engines}, indent=2))
        return
    table = Table(
        "engine",
        "image threshold",
        "pixel threshold",
        "good parts",
        "over it",
        "defective",
        "under",
    )
    for name, engine in sorted(result.calibration.engines.items()):
        thresholds = (f"{engine.image_threshold:.4f}", f"{engine.pixel_threshold:.4f}")
        counts = (engine.images, engine.above, engine.bad_images, engine.bad_below)
        table.add_row(name, *thresholds, *map(str, counts))
    console = Console()
    console.print(table)
    for sentence in notes:
        console.print(sentence, highlight=False, markup=False)
    print(f"bundle: {path}")


def _apart(
    labels: Labels, channels: int, pattern: str, share: float, seed: int, *, quiet: bool
) -> list[bool]:
    """Which images are kept for a test: alike in kind and camera to the others, part by part."""
    parts: Sequence[str | int]
    if pattern:
        parts = part_ids([image.path.name for image in labels.images], pattern)
    else:
        thumbs = []
        with progress_bar("Comparing", len(labels.images), quiet=quiet) as update:
            for number, image in enumerate(labels.images, start=1):
                thumbs.append(thumb(read_image(image.path, channels)))
                update(number, len(labels.images))
        parts = near_duplicates(thumbs)
    strata = [(image.defective, image.kinds, image.camera) for image in labels.images]
    return kept_apart(strata, parts, share, seed)
