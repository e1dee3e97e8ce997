"""`linewatch evidence`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from pipeline.config import load
from pipeline.errors import ConfigError, DataError
from pipeline.evidence import Fetched, fetch_picture
from pipeline.journal_queries import find_frame
from pipeline.keys import ClientKeys
from pipeline.overlay import annotate, write_png
from pipeline.record.pictures import make_picture
from pipeline.station import Station
from pipeline.types import Verdict
from pipeline.wire import AskPicture

NOT_KEPT = 1


def command(
    where: Annotated[
        str,
        typer.Argument(
            metavar="STATION", help="Its YAML, or the `recording.endpoint` of a line that runs."
        ),
    ],
    frame: Annotated[
        str, typer.Argument(help="CAMERA/EPOCH/FRAME_ID, as in a verdict or a part's views.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The picture: .png or .jpg. Default: left-3-17.png.")
    ] = None,
    longest_px: Annotated[
        int, typer.Option(min=0, help="Longest side of the picture at most; 0: as inspected.")
    ] = 0,
    boxes: Annotated[
        bool, typer.Option(help="Draw the verdict and its boxes, out of the station's journal.")
    ] = False,
    secret: Annotated[
        Path | None, typer.Option(help="Your NAME.secret, for a line with `security`.")
    ] = None,
    server: Annotated[Path | None, typer.Option(help="The line's NAME.public.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Write the picture of a verdict's frame, as it was inspected, from the line's recordings.

    With a station's YAML it is read from disk, whether the line runs or not; with an endpoint the
    line is asked. Ends with 0, with 1 when the frame was not kept or is deleted.

    [bold]linewatch evidence station.yaml left/3/17 --boxes[/]

    [bold]linewatch evidence tcp://10.0.0.5:5604 left/3/17 --secret me.secret --server a.public[/]
    """
    camera, epoch, frame_id = _parsed(frame)
    target = out or Path(f"{camera}-{epoch}-{frame_id}.png")
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}.get(target.suffix.lower())
    if kind is None:
        raise ConfigError(f"--out {target} found, expected a name that ends in .png or .jpg")
    if (secret is None) != (server is None):
        raise ConfigError("half of the keys found, expected --secret and --server together")
    remote = where.startswith(("tcp://", "ipc://"))
    if boxes and (remote or longest_px or kind != "png"):
        raise ConfigError(
            "--boxes found with an endpoint, --longest-px or another --out than .png; expected a "
            "station's YAML: its journal has the verdict"
        )
    ask = AskPicture(camera, epoch, frame_id, kind, longest_px)
    if remote:
        keys = ClientKeys.read(secret, server) if secret and server else None
        found = fetch_picture(
            where, camera, epoch, frame_id, format=kind, longest_px=longest_px, keys=keys
        )
        verdict = None
    else:
        station = Station.of(load(Path(where)))
        if camera not in station.config.cameras:
            raise ConfigError(
                f"camera {camera!r} found, expected one of {', '.join(station.config.cameras)}"
            )
        about, data = make_picture(station.recordings, ask)
        found = Fetched(about, data) if about.known else None
        verdict = None
        if station.journal.exists():
            verdict = find_frame(station.journal, camera, epoch, frame_id)
    if found is not None:
        _write(target, found.data, verdict if boxes else None)
    if as_json:
        about_it: dict[str, object] = {"known": found is not None, "frame": frame}
        if found is not None:
            about_it |= asdict(found.about) | {"path": str(target)}
        if verdict is not None:
            about_it["verdict"] = asdict(verdict)
        print(json.dumps(about_it, indent=2))
    elif found is not None:
        print(f"{target}: {found.about.width}x{found.about.height}")
    else:
        said = f" It was {verdict.label} ({verdict.reason})." if verdict else ""
        print(
            f"{frame}: no such frame in the recordings.{said} What is kept: `recording` in the "
            "station's configuration; the oldest files are deleted for newer ones"
        )
    if found is None:
        raise typer.Exit(NOT_KEPT)


def _parsed(text: str) -> tuple[str, int, int]:
    camera, _, rest = text.partition("/")
    epoch, _, frame_id = rest.partition("/")
    if not (camera and epoch.isdecimal() and frame_id.isdecimal()):
        raise ConfigError(
            f"frame {text!r} found, expected CAMERA/EPOCH/FRAME_ID such as left/3/17, as "
            "`linewatch journal find` prints them"
        )
    return camera, int(epoch), int(frame_id)


def _write(target: Path, data: bytes, verdict: Verdict | None) -> None:
    """The file, or with a verdict what `annotate` makes of it. Raises `DataError`."""
    try:
        if verdict is None:
            target.write_bytes(data)
            return
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        frame: NDArray[np.uint8] = np.asarray(pixels, np.uint8)
        frame = frame[..., None] if frame.ndim == 2 else np.ascontiguousarray(frame[..., ::-1])
        write_png(target, annotate(frame, verdict))
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror or error})") from error
