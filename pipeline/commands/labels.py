"""Options that name labelled images and recipes, shared by calibrate, evaluate and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from calibrate.labelled import Labels, load_labels
from pipeline.config import Recipe, load_recipe
from pipeline.errors import DataError

Good = Annotated[
    list[str] | None,
    typer.Option("--good", help="Folder of good images, or CAMERA=FOLDER; may be repeated."),
]
Bad = Annotated[
    list[str] | None,
    typer.Option(
        "--bad",
        help="Folder of defective images, perhaps with a folder for each type, or CAMERA=FOLDER; "
        "may be repeated.",
    ),
]
Masks = Annotated[
    Path | None,
    typer.Option(help="Folder of masks, NAME.png or TYPE/NAME.png, white where the defect is."),
]
Boxes = Annotated[
    Path | None,
    typer.Option(help="Folder of boxes, NAME.txt: a line `x1 y1 x2 y2 [type]` for each defect."),
]
Types = Annotated[
    str, typer.Option(help="Other names for types of defects: 1=open,2=short. No spaces.")
]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", help="The camera's recipe (YAML), or CAMERA=FILE; may be repeated."),
]


Part = Annotated[
    str,
    typer.Option(
        help="A pattern that finds a part's id in file names: '_(\\d+)_'. Images of one part are "
        "one witness. Default: images that hardly differ are one part."
    ),
]


def labels_of(
    good: Sequence[str] | None,
    bad: Sequence[str] | None,
    masks: Path | None,
    boxes: Path | None,
    types: str,
) -> Labels:
    """Raises `DataError` for options that do not fit the folders, and when nothing is named."""
    if not good and not bad:
        raise DataError("no images found, expected --good FOLDER, --bad FOLDER, or both")
    if (masks or boxes) and not bad:
        raise DataError("masks or boxes without defective images found: name those with --bad")
    return load_labels(good or (), bad or (), masks=masks, boxes=boxes, types=_pairs(types))


def recipes_of(texts: Sequence[str] | None, labels: Labels) -> dict[str, Recipe]:
    """By camera; "" for the one that all others have. Raises `DataError` unless each camera's
    images have a recipe where any has, and each recipe has images.
    """
    found = {}
    for text in texts or ():
        camera, equals, file = text.partition("=")
        if not equals or "/" in camera:
            camera, file = "", text
        if camera in found:
            raise DataError(f"two recipes for camera {camera!r} found, expected one of each")
        found[camera] = load_recipe(Path(file))
    cameras = {image.camera for image in labels.images}
    without = sorted(cameras - set(found)) if found and "" not in found else []
    beyond = sorted(set(found) - cameras - {""})
    if without or beyond:
        raise DataError(
            f"recipes for {', '.join(map(repr, sorted(found)))} and images of cameras "
            f"{', '.join(map(repr, sorted(cameras)))} found, expected a recipe for each: name "
            "cameras in --good and --bad as in --recipe, CAMERA=..., or give one recipe for all"
        )
    return found


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for pair in filter(None, text.split(",")):
        key, equals, name = pair.partition("=")
        if not (key and equals and name):
            raise DataError(f"--types {text!r} found, expected KEY=NAME,KEY=NAME such as 1=open")
        pairs[key] = name
    return pairs
