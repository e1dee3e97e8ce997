"""`linewatch flatfield`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from numpy.typing import NDArray

from pipeline.commands.progress import progress_bar
from pipeline.commands.stations import camera_of
from pipeline.config import CameraConfig
from pipeline.errors import DataError
from pipeline.overlay import write_png
from pipeline.prepare.flatfield import described
from pipeline.prepare.flatfield_making import make_flatfield
from pipeline.sources.base import FrameFormat
from pipeline.sources.raw_frames import configured_format, frames_of, frames_of_camera

_FLICKER = 0.02


def command(
    station: Annotated[Path, typer.Argument(help="The station's configuration.")],
    camera: Annotated[str, typer.Argument(help="Name of the camera in it.")],
    dark: Annotated[
        str, typer.Option(help="Frames without light: a folder, a recording, or how many to take.")
    ],
    bright: Annotated[
        str,
        typer.Option(
            help="Frames of an even bright surface: a folder, a recording, or how many to take."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file to write; a picture of it goes beside it.")],
    frames: Annotated[
        int, typer.Option(min=4, max=1024, help="Of a folder or a recording, at most so many.")
    ] = 32,
    yes: Annotated[
        bool, typer.Option("--yes", help="Take the camera's frames without asking first.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Make a camera's pixels answer alike to the same light: dark frame and flat field.

    Cover the lens for the dark frames. For the bright ones fill the view with an evenly lit, plain
    surface at the parts' distance, exposed to about 60 % of the largest value, and move it a little
    between frames: dust on it then falls out. Set exposure, gain and region first, as they will be.

    [bold]linewatch flatfield station.yaml left --dark 32 --bright 32 --out left.npz[/] takes them
    from the camera.

    [bold]linewatch flatfield station.yaml left --dark dark/ --bright bright/ --out left.npz[/]
    takes images, as the camera gave them: unscaled, in full size, Bayer patterns as grey.

    Then name the file in the camera's `prepare: {flatfield: left.npz}`.
    """
    config = camera_of(station, camera)
    if not out.absolute().parent.is_dir():
        raise DataError(f"{out}: no folder {out.parent} found to write into; make it first")
    dark_frames, source = _frames(config, dark, "Dark: cover the lens", frames, yes, as_json)
    bright_frames, other = _frames(
        config, bright, "Bright: show an evenly lit surface", frames, yes, as_json
    )
    if source != other:
        raise DataError(
            f"dark frames of {described(source)} and bright ones of {described(other)} found, "
            "expected frames of one format"
        )
    field, report, picture = make_flatfield(dark_frames, bright_frames, source)
    field.save(out)
    image = out.with_suffix(".png")
    write_png(image, picture)
    if as_json:
        about = {"file": str(out), "picture": str(image), "sha256": field.sha256}
        counts = {"dark_frames": len(dark_frames), "bright_frames": len(bright_frames)}
        print(json.dumps(about | counts | report.plain(), indent=2))
        return
    print(f"{len(dark_frames)} dark and {len(bright_frames)} bright frames of {described(source)}")
    print(f"dark {report.dark_level:.2%}, bright {report.bright_level:.1%} of the largest value")
    print(f"gain {report.gain_range[0]:.3f} to {report.gain_range[1]:.3f}", end="")
    print(f", {report.clamped:.3%} of the pixels at its limits")
    print(
        f"non-uniformity (std/mean) {report.before:.2%} -> {report.after:.2%}, on frames that did"
    )
    print("not make the gain it was measured with")
    if report.flicker > _FLICKER:
        print(f"the light flickers: {report.flicker:.1%} from frame to frame; look at the lamp")
    print(f"{out}: name it in prepare.flatfield of {camera}; {image}: look at it")


def _frames(
    camera: CameraConfig, which: str, title: str, most: int, yes: bool, quiet: bool
) -> tuple[list[NDArray[Any]], FrameFormat]:
    """From the camera where `which` is a number, else from that folder or recording."""
    if not which.isdecimal():
        source = configured_format(camera)
        with progress_bar(title.partition(":")[0], None, quiet=quiet) as update:
            return frames_of(Path(which), source, most, update), source
    if not yes:
        typer.prompt(f"{title}, then press Enter", default="", show_default=False, err=True)
    with progress_bar(title.partition(":")[0], int(which), quiet=quiet) as update:
        return frames_of_camera(camera, int(which), update)
