"""`linewatch cameras snap`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from pipeline.config import CameraConfig, load
from pipeline.config.sources import LiveSource
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources import Camera, FrameFormat, open_camera

_PIECE_MS = 200.0


def command(
    file: Annotated[Path, typer.Argument(help="The station's configuration (YAML).")],
    camera: Annotated[str, typer.Argument(help="The camera's name in it.")],
    out: Annotated[Path, typer.Option(help="The picture, a PNG file.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for a frame, at most.")] = 10.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print figures and the camera's settings as JSON.")
    ] = False,
) -> None:
    """Take one picture with a camera of a station, set up as the station would.

    It shows what the camera gives, before any preparation: the mosaic of a Bayer pattern, and
    values of more than 8 bits as they are in a PNG file of 16 bits. The line must not be running: a
    camera has one owner. With a software trigger the camera is triggered; with a hardware trigger
    the picture is that of the next one to come.

    [bold]linewatch cameras snap station.yaml left --out left.png[/]
    """
    config = _camera(file, camera)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out} found, expected the name of a PNG file, as {camera}.png")
    with Console(stderr=True, quiet=as_json).status(f"waiting for a frame of {camera}"):
        opened = open_camera(config)
        try:
            if config.trigger.mode in ("software", "encoder"):
                opened.trigger()
            frame = _frame(opened, camera, wait)
            kind, settings = opened.format, dict(opened.settings())
        finally:
            opened.close()
    _save(frame, out)
    figures = _figures(frame, kind)
    if as_json:
        answer = {"camera": camera, "file": str(out), **figures, "settings": settings}
        print(json.dumps(answer, indent=2))
        return
    pattern = f", the mosaic of Bayer {kind.bayer}" if kind.bayer else ""
    print(f"{out}: {kind.width} x {kind.height} px, {kind.bits} bits{pattern}")
    print(
        f"values {figures['min']} to {figures['max']} of 0 to {2**kind.bits - 1}, mean "
        f"{figures['mean']:.1f}, {100 * figures['saturated']:.2f} % saturated"
    )


def _camera(file: Path, name: str) -> CameraConfig:
    cameras = load(file).cameras
    live = [key for key, one in cameras.items() if isinstance(one.source, LiveSource)]
    if name not in cameras:
        raise ConfigError(
            f"camera {name!r} found, expected one of {file}: {', '.join(live) or 'it has none'}"
        )
    if name not in live:
        raise ConfigError(
            f"camera {name} is a {cameras[name].source.kind} source, expected a camera that takes "
            f"frames now: {', '.join(live) or 'there is none in this file'}"
        )
    return cameras[name]


def _frame(camera: Camera, name: str, wait_s: float) -> NDArray[Any]:
    """The first whole frame, (H, W, C). Raises `SourceLost` when none comes in time."""
    until = time.monotonic() + wait_s
    said = ""
    while True:
        left_ms = 1000 * (until - time.monotonic())
        grab = camera.read(max(0.0, min(_PIECE_MS, left_ms)))
        if grab is not None and grab.fault is None:
            frame = np.empty(camera.format.shape_hwc, camera.format.dtype)
            grab.write(frame)
            return frame
        if grab is not None:
            said = f"; the last one was {grab.fault}: {grab.detail}"
        if left_ms <= 0:
            raise SourceLost(
                f"no whole frame of {name} found within {wait_s:g} s, expected one{said}; check "
                "its trigger, or wait longer with --wait"
            )


def _save(frame: NDArray[Any], out: Path) -> None:
    pixels = frame[:, :, ::-1] if frame.shape[2] == 3 else frame
    _, data = cv2.imencode(".png", pixels)
    try:
        out.write_bytes(data.tobytes())
    except OSError as error:
        raise ConfigError(
            f"--out {out} cannot be written ({error.strerror}); name a file in a folder that exists"
        ) from error


def _figures(frame: NDArray[Any], kind: FrameFormat) -> dict[str, Any]:
    largest = 2**kind.bits - 1
    return {
        "width": kind.width,
        "height": kind.height,
        "channels": kind.channels,
        "bits": kind.bits,
        "bayer": kind.bayer,
        "min": int(frame.min()),
        "max": int(frame.max()),
        "mean": float(frame.mean()),
        "saturated": float((frame >= largest).mean()),
    }
