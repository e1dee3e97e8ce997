"""`linewatch fixture try`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.images import list_images, read_image
from pipeline.commands.fixture_drawing import drawn
from pipeline.commands.progress import progress_bar
from pipeline.config import load_recipe
from pipeline.errors import ConfigError, DataError
from pipeline.fixture.count import PartCounter
from pipeline.fixture.find import Fixture
from pipeline.overlay import write_png


def command(
    folder: Annotated[Path, typer.Argument(help="Frames as the line sees them, in their order.")],
    recipe: Annotated[Path, typer.Option(help="The camera's recipe (YAML), with a fixture.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each. Default: none are drawn.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show where the fixture finds parts in a folder of frames, and which of them count.

    A picture has the part's box (blue, yellow where the frame cuts it off), its reference point and
    direction, the recipe's zones where they lie on it, and the zone that counts (yellow).

    [bold]linewatch fixture try recordings/front --recipe recipes/front.yaml --out tried[/]
    """
    loaded = load_recipe(recipe)
    if loaded.fixture is None:
        raise ConfigError(f"{recipe}: no `fixture` found: `linewatch fixture teach` makes one")
    fixture, counter = Fixture(loaded.fixture), PartCounter(loaded.fixture)
    paths = list_images(folder)
    rows: list[dict[str, Any]] = []
    with progress_bar("Finding", len(paths), quiet=as_json) as update:
        for number, path in enumerate(paths, start=1):
            frame = read_image(path, 1)
            begin = time.perf_counter()
            poses = fixture.find(frame)
            took = 1000 * (time.perf_counter() - begin)
            counted = counter.count(poses)
            rows.append(
                {
                    "image": path.name,
                    "parts": [
                        {
                            "x": round(pose.x, 2),
                            "y": round(pose.y, 2),
                            "angle": round(pose.angle, 2),
                            "score": round(pose.score, 3),
                            "cut_off": pose.cut_off,
                            "counts": pose in counted.poses,
                        }
                        for pose in poses
                    ],
                    "because": counted.sentence,
                    "ms": round(took, 2),
                }
            )
            if out is not None:
                _write(out / f"{path.stem}.png", drawn(frame, poses, fixture, loaded.zones))
            update(number, len(paths))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    _print(rows)
    if out is not None:
        print(f"pictures: {out}")


def _write(path: Path, picture: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, picture)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table("image", "x", "y", "angle", "score", "counts")
    for row in rows:
        for part in row["parts"] or [None]:
            if part is None:
                table.add_row(escape(row["image"]), "", "", "", "", row["because"])
                continue
            counts = "yes" if part["counts"] else "no" + (", cut off" if part["cut_off"] else "")
            numbers = (f"{part['x']:.1f}", f"{part['y']:.1f}", f"{part['angle']:.2f}")
            table.add_row(escape(row["image"]), *numbers, f"{part['score']:.3f}", counts)
    Console().print(table)
    found = sum(bool(row["parts"]) for row in rows)
    count = sum(part["counts"] for row in rows for part in row["parts"])
    print(
        f"parts in {found} of {len(rows)} frames, {count} of them count; "
        f"{median(row['ms'] for row in rows):.1f} ms a frame"
    )
