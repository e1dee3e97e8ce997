"""`linewatch train`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from models.images import guess_channels, list_images, read_image
from models.references import save_detector
from models.student import TrainingSettings
from models.teacher import load_teacher
from models.training import train
from models.variants import ALLOWED_SCALES, VARIANTS
from pipeline.commands.progress import progress_bar
from pipeline.config import load_recipe
from pipeline.errors import ConfigError
from pipeline.rules import inspected_pixels

REFERENCE_FRAMES = 2


def command(
    good: Annotated[Path, typer.Argument(help="Folder of images of good parts.")],
    out: Annotated[Path, typer.Option(help="Folder in which the bundle is made.")] = Path(
        "bundles"
    ),
    variant: Annotated[
        str, typer.Option(help=f"{', '.join(VARIANTS)}: larger is better and slower.")
    ] = "pdn_tiny",
    color: Annotated[
        bool | None,
        typer.Option("--color/--grey", help="Default: colour if the images have any."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The camera's recipe (YAML): only its zones are learnt.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="A teacher's file. Default: the built-in one.")
    ] = None,
    scales: Annotated[
        str,
        typer.Option(help="1, 2 (half the size: 4 times as fast) or 1,2: faint wide defects too."),
    ] = ",".join(map(str, TrainingSettings().scales)),
    steps: Annotated[
        int, typer.Option(min=1, help="At each scale. More is better, up to a point.")
    ] = TrainingSettings().steps,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same bundle.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for tiles that do not fit into memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Learn a part from images of good ones; writes a bundle.

    No defect is shown to it. Give full-size frames as the camera takes them, a hundred or more,
    with all that is normal in them: every product, light and position. Then choose the thresholds
    with [bold]linewatch calibrate[/], on images that were not learnt from.

    [bold]linewatch train good/ --out bundles[/]
    """
    begun = time.monotonic()
    if variant not in VARIANTS:
        raise ConfigError(f"--variant {variant!r} found, expected one of {', '.join(VARIANTS)}")
    try:
        wanted = tuple(int(scale) for scale in scales.split(","))
    except ValueError:
        wanted = ()
    if wanted not in ALLOWED_SCALES:
        raise ConfigError(f"--scales {scales!r} found, expected 1, 2 or 1,2")
    if threads:
        torch.set_num_threads(threads)
    paths = list_images(good)
    channels = guess_channels(paths) if color is None else (3 if color else 1)
    with progress_bar("Training", None, quiet=as_json) as update:
        detector = train(
            paths,
            variant,
            channels=channels,
            settings=TrainingSettings(scales=wanted, steps=steps, seed=seed),
            teacher=load_teacher(teacher, channels) if teacher else None,
            inspected=_inspected(recipe, paths[0]) if recipe else None,
            cache_dir=cache,
            progress=lambda what, done, total: update(done, total, what),
        )
    frames = [read_image(path, channels) for path in detector.held_out[:REFERENCE_FRAMES]]
    bundle = save_detector(
        out,
        detector.model,
        q_a=detector.q_a,
        q_b=detector.q_b,
        provenance=detector.provenance,
        precedents=detector.precedents,
        frames=frames,
    )
    learnt, held_out = detector.provenance["images"], detector.provenance["held_out"]
    if as_json:
        figures = {"images": learnt, "held_out": held_out, "seconds": time.monotonic() - begun}
        print(json.dumps({"bundle": str(bundle), **figures}, indent=2))
        return
    Console().print(
        f"{variant} learnt from {learnt} images, {held_out} held out, "
        f"in {time.monotonic() - begun:.0f} s. Next: choose its thresholds,\n"
        f"  linewatch calibrate {bundle} --good FOLDER",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print(f"bundle: {bundle}")


def _inspected(recipe: Path, first: Path) -> NDArray[np.bool_]:
    """The recipe's zones as a mask of frame pixels, bool (H, W) of the first image's size."""
    height, width = read_image(first).shape[:2]
    return inspected_pixels(load_recipe(recipe), (height, width))
