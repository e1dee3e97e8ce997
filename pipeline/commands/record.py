"""`linewatch record`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.progress import line_progress
from pipeline.commands.run import stop_on_signal
from pipeline.config import LineConfig, PublishConfig, WorkerConfig, load
from pipeline.config.record import RecordingConfig
from pipeline.config.sources import LiveSource
from pipeline.errors import ConfigError, ResourceError
from pipeline.journal import read_verdicts
from pipeline.record.recordings import StoredRecording, stored
from pipeline.sources.sidecar import RecordedFrame, read_side
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import Reason

WITHOUT_PIXELS = (
    Reason.BROKEN_FRAME,
    Reason.WRONG_SIZE,
    Reason.CAMERA_LOST,
    Reason.NO_FRAME,
)
PACE_FPS = 10.0
"""Of recorded and rendered sources without `fps`: they would be faster than any disk."""


def command(
    station: Annotated[Path, typer.Argument(help="A configuration, such as station.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder: STATION/CAMERA/*.mkv are made in it.")],
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so long; 0: never.")] = 0,
    frames: Annotated[
        int, typer.Option(min=0, help="Stop after so many frames of all cameras; 0: never.")
    ] = 0,
    camera: Annotated[
        list[str] | None, typer.Option(help="Only this camera; may be given more than once.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=0, help="That compress; 0: one for each core, up to four.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Record a station's cameras without inspecting, lossless and prepared as for inspection.

    Frames keep their ids, capture times, triggers and parts. The station itself must not run:
    cameras have one reader. Until Ctrl-C, where neither --seconds nor --frames is given. Replay a
    camera's folder, or one of its files.

    Ends with 1 when frames were lost: the disk or the CPU did not follow.

    [bold]linewatch record station.yaml --seconds 60 --out recordings/[/]

    [bold]linewatch replay recordings/line-1/left --bundle bundles/NAME[/]
    """
    config = load(station)
    with tempfile.TemporaryDirectory(prefix="linewatch-") as work:
        config = recording_line(config, Path(work), out, camera or [], threads)
        began: list[float] = []

        def enough(progress: Progress) -> bool:
            if progress.captured and not began:
                began.append(time.monotonic())
            late = bool(began) and 0 < seconds <= time.monotonic() - began[0]
            return late or 0 < frames <= progress.captured

        known = frozenset(one.path for one in stored(Station.of(config).recordings))
        line = Line(config)
        with (
            line_progress("Recording", frames or None, quiet=as_json) as watch,
            stop_on_signal() as stopped,
        ):
            line.run(stop=lambda: stopped.is_set() or enough(line.progress()), watch=watch)
        wall_s = time.monotonic() - began[0] if began else 0.0
        summary = summarise(config, known, line.captured, wall_s)
        log = Station.of(config).log("recorder")
        complaints = _complaints(log)
    _show(summary, complaints, as_json)
    if summary["lost"]:
        raise typer.Exit(1)


def recording_line(
    config: LineConfig, work_dir: Path, out: Path, cameras: list[str], threads: int
) -> LineConfig:
    """The station's line as it records alone: no engine, and verdicts that nobody hears.

    It holds the station's own run directory, so that it never takes cameras from a line that runs.
    Raises `ConfigError` for a camera that the station lacks, `ResourceError` for a folder that
    cannot be made.
    """
    for name in cameras:
        if name not in config.cameras:
            known = ", ".join(config.cameras)
            raise ConfigError(f"--camera {name} found, expected one of the station's: {known}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"--out {out}: {error.strerror}; expected a folder that can be made and written"
        ) from error
    chosen = {name: one for name, one in config.cameras.items() if not cameras or name in cameras}
    paced = {
        name: one
        if isinstance(one.source, LiveSource)
        else one.model_copy(update={"fps": one.fps or PACE_FPS})
        for name, one in chosen.items()
    }
    found = config.recording or RecordingConfig()
    recording = found.model_copy(
        update={
            "folder": str(out.absolute()),
            "record": "all",
            "compress_threads": threads,
            "endpoint": None,
        }
    )
    return config.model_copy(
        update={
            "cameras": paced,
            "parts": {
                name: part
                for name, part in config.parts.items()
                if part.views.keys() <= chosen.keys()
            },
            "worker": WorkerConfig(runtime="null"),
            "state_dir": str(work_dir / "state"),
            "publish": PublishConfig(endpoint=f"ipc://{work_dir / 'verdicts'}", catch_up=False),
            "recording": recording,
            "bridges": {},
        }
    )


def summarise(
    config: LineConfig, known: frozenset[Path], captured: int, wall_s: float
) -> dict[str, Any]:
    """What lies in the files that were made since `known`, and what should and does not."""
    station = Station.of(config)
    new = [one for one in stored(station.recordings) if one.path not in known]
    frames = {camera: _frames(new, camera) for camera in config.cameras}
    recorded = sum(len(found) for found in frames.values())
    without = sum(v.reason in WITHOUT_PIXELS for v in read_verdicts(station.journal))
    return {
        "folder": str(station.recordings),
        "captured": captured,
        "recorded": recorded,
        "without_pixels": without,
        "lost": captured - recorded - without,
        "bytes": sum(one.size_bytes for one in new),
        "wall_s": wall_s,
        "cameras": {
            camera: {"recorded": len(found), "fps": _rate(found)}
            for camera, found in frames.items()
        },
    }


def _frames(recordings: list[StoredRecording], camera: str) -> list[RecordedFrame]:
    sides = [read_side(one.path) for one in recordings if one.path.parent.name == camera]
    return [frame for side in sides for frame in side.frames.values()]


def _rate(frames: list[RecordedFrame]) -> float:
    """Frames per second, by their capture times."""
    times = [frame.t_capture_utc_ns for frame in frames]
    span_ns = max(times) - min(times) if times else 0
    return (len(times) - 1) * 1e9 / span_ns if span_ns else 0.0


def _complaints(log: Path) -> list[str]:
    """What the recorder warned of."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if " WARNING " in line or " ERROR " in line]


def _show(summary: dict[str, Any], complaints: list[str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    table = Table("camera", "frames", "frames/s", title="Recorded")
    for column in table.columns[1:]:
        column.justify = "right"
    for camera, row in summary["cameras"].items():
        table.add_row(camera, str(row["recorded"]), f"{row['fps']:.1f}")
    console = Console()
    console.print(table)
    console.print(
        f"{summary['recorded']} of {summary['captured']} frames, {summary['bytes'] / 1e6:.1f} MB, "
        f"in {summary['folder']}",
        highlight=False,
    )
    console.print(
        f"{summary['lost']} frames lost, {summary['without_pixels']} had no pixels", highlight=False
    )
    for line in complaints:
        console.print(line, highlight=False, markup=False)
