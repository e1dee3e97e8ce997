"""`linewatch prepare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from pipeline.commands.progress import progress_bar
from pipeline.commands.stations import camera_of, images_in
from pipeline.errors import DataError
from pipeline.overlay import write_png
from pipeline.prepare.preparation import Preparation, prepared_shape
from pipeline.sources import probe
from pipeline.sources.raw_frames import configured_format, read_raw


def command(
    station: Annotated[Path, typer.Argument(help="The station's configuration.")],
    camera: Annotated[str, typer.Argument(help="Name of the camera in it.")],
    images: Annotated[
        list[Path], typer.Argument(help="Images as the camera gave them, or folders of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for what the line makes of them, as PNG.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """What the line makes of a camera's images: cut, corrected, in 8 bits, straight and turned.

    With it images that were taken without linewatch (16 bits, Bayer patterns, whole frames) become
    those that train, calibrate and evaluate take: by the same code that prepares live frames.

    [bold]linewatch prepare station.yaml left raw/ --out good/[/]
    """
    config = camera_of(station, camera)
    paths = images_in(images)
    targets = _targets(paths, out)
    source = configured_format(config)
    color = prepared_shape(config, probe(config.source))[2] == 3
    preparation = Preparation(config.prepare, source, color)
    picture = np.empty(preparation.shape_hwc, np.uint8)
    with progress_bar("Preparing", len(paths), quiet=as_json) as update:
        for number, (path, target) in enumerate(zip(paths, targets, strict=True), start=1):
            preparation.apply(read_raw(path, source), picture)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                write_png(target, picture)
            except OSError as error:
                raise DataError(f"{target}: cannot be written ({error}); check the disk") from error
            update(number, len(paths))
    height, width, channels = preparation.shape_hwc
    if as_json:
        about = {"images": len(paths), "shape_hwc": preparation.shape_hwc}
        print(json.dumps(about | {"folder": str(out), "sha256": preparation.sha256}, indent=2))
    else:
        kind = "RGB" if channels == 3 else "grey"
        print(f"{len(paths)} images of {width} x {height} px, {kind}, in {out}")


def _targets(paths: Sequence[Path], out: Path) -> list[Path]:
    targets = [out / f"{path.stem}.png" for path in paths]
    there = [target for target in targets if target.exists()]
    if there or len(set(targets)) < len(targets):
        found = f"{there[0]} is there already" if there else "two images of one name"
        raise DataError(f"{out}: {found}, expected names that are free; choose another folder")
    return targets
