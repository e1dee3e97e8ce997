"""`linewatch compile`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from models.bundle import Bundle
from models.errors import RuntimeUnavailable
from models.runtimes import choose, engine_of, open_runtime
from pipeline.config import LineConfig, WorkerConfig, load
from pipeline.errors import ConfigError
from pipeline.station import Station, shared_engines
from pipeline.types import MIN_SIDE_PX
from pipeline.window import inspected_window

MINUTES = ("tensorrt",)
"""Runtimes that compile for minutes."""
KEPT = ("tensorrt", "openvino")
"""Those whose engines are kept."""


@dataclass(frozen=True, slots=True)
class Opened:
    """One frame size, opened once as a station would."""

    height: int
    width: int
    channels: int
    engine_id: str
    seconds: float
    """To open the engine and check it against the bundle's reference maps."""
    compiled: tuple[str, ...]
    """Files of engines that were not there before."""


def command(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle. Default: the one that --config names.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="HEIGHTxWIDTH of the frames in pixels; may be given more than once."),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="tensorrt, or another: openvino takes a blink and is kept too.")
    ] = "tensorrt",
    precision: Annotated[
        str, typer.Option(help="auto, or one of the runtime's: of tensorrt fp16, bf16, f32.")
    ] = "auto",
    config: Annotated[
        Path | None,
        typer.Option(help="The station's configuration: its bundle, its zones, its folder."),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where engines are kept. Default: where the station looks."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile a bundle's engines ahead, so that the station starts in seconds.

    TensorRT compiles for minutes, for one frame size, bundle, precision and GPU: run this on the
    station, as the user that the station runs as, before it starts. An engine that is there already
    is only checked. Stations share one folder of engines, unless their configuration has a
    state_dir: then name it, and also for its zones, which say how much of a frame is looked at.

    [bold]linewatch compile --config station.yaml --shape 2048x2448[/]

    [bold]linewatch compile bundles/NAME --shape 2048x2448 --precision fp16[/]
    """
    line = load(config) if config else None
    path = bundle or (Path(line.worker.bundle) if line and line.worker.bundle else None)
    if path is None:
        raise ConfigError(
            "no bundle found, expected one: name it, or a configuration that does with --config"
        )
    loaded = Bundle.load(path)
    folder = cache_dir or (Station.of(line).engines if line else shared_engines())
    name, _, after = runtime.partition("/")
    if line and precision == "auto" and name in (line.worker.runtime, "auto"):
        precision = line.worker.precision
    wanted = after or precision
    try:
        name, chosen = choose(loaded, name, wanted)  # what the station would take
    except RuntimeUnavailable:
        name, chosen = choose(loaded, name, wanted, calibrating=True)
    sizes = _sizes(shape or [], line)
    console = Console(stderr=True, quiet=as_json)
    opened = []
    for height, width in sizes:
        hint = ", which takes minutes if it is not there yet" if name in MINUTES else ""
        with console.status(f"{name}/{chosen} for {height}x{width}{hint}"):
            size = (height, width, loaded.in_channels)
            batch = (line.worker if line else WorkerConfig()).max_batch
            one = _open(loaded, name, chosen, size, folder, max_batch=batch, say=console.print)
            opened.append(one)
    if as_json:
        answer = {"bundle": str(path), "cache_dir": str(folder)}
        print(json.dumps(answer | {"opened": [asdict(one) for one in opened]}, indent=2))
        return
    _print(opened, name, folder)
    engine = engine_of(opened[0].engine_id)
    if engine not in loaded.calibration.engines:
        print(
            f"The bundle has no thresholds for {engine} yet: linewatch calibrate {path} "
            f"--runtime {engine} --good FOLDER"
        )


def _open(
    bundle: Bundle,
    runtime: str,
    precision: str,
    shape: tuple[int, int, int],
    folder: Path,
    *,
    max_batch: int,
    say: Callable[[str], None],
) -> Opened:
    """Open one engine, as a station would but for its thresholds, and close it."""
    before = _engines(folder)
    start = time.monotonic()
    engine = open_runtime(
        bundle,
        runtime,
        precision,
        shapes=[shape],
        cache_dir=folder,
        calibrating=True,
        max_batch=max_batch,
        say=say,
    )
    seconds = time.monotonic() - start
    engine.close()
    return Opened(
        *shape,
        engine_id=engine.engine_id,
        seconds=round(seconds, 2),
        compiled=tuple(sorted(_engines(folder) - before)),
    )


def _engines(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("[!.]*.sha256")} if folder.is_dir() else set()


def _sizes(texts: Sequence[str], line: LineConfig | None) -> list[tuple[int, int]]:
    """(H, W) of what the engine is given of frames of these sizes, each once."""
    if not texts:
        raise ConfigError("no --shape found, expected HEIGHTxWIDTH of the frames, as 2048x2448")
    sizes: list[tuple[int, int]] = []
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
        if match is None or min(frame := (int(match[1]), int(match[2]))) < MIN_SIDE_PX:
            raise ConfigError(
                f"--shape {text!r} found, expected HEIGHTxWIDTH in pixels of at least "
                f"{MIN_SIDE_PX} each, such as 2048x2448"
            )
        cameras = line.cameras.values() if line else ()
        sizes += [inspected_window(camera.recipe, frame).hw for camera in cameras] or [frame]
    return list(dict.fromkeys(sizes))


def _print(opened: Sequence[Opened], runtime: str, folder: Path) -> None:
    table = Table("frame", "engine", "seconds", "compiled")
    for one in opened:
        files = "\n".join(one.compiled) or ("was there" if runtime in KEPT else "not needed")
        table.add_row(f"{one.height}x{one.width}", one.engine_id, f"{one.seconds:.1f}", files)
    Console().print(table)
    if runtime in KEPT:
        print(f"engines: {folder}")
    else:
        print(f"{runtime} compiles when it is opened: nothing has to be compiled ahead.")
