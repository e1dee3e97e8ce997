"""Replay of recordings through all the processes of a line: the same verdicts, every time.

No deadlines, nothing dropped: capture waits for a slot, so that the machine's speed changes only
how long it takes. A journal of its own in a work folder, results as JSON lines without times.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import (
    CameraConfig,
    FolderSource,
    LineConfig,
    PublishConfig,
    Recipe,
    SourceConfig,
    VideoSource,
    WorkerConfig,
)
from pipeline.config.sources import RecordedSource
from pipeline.errors import ConfigError, LinewatchError, ResourceError, SourceError
from pipeline.journal import read_verdicts
from pipeline.prepare.lens import box_mm
from pipeline.record.recordings import is_recording
from pipeline.sources.recorded import video_rate
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import Defect, Reason, Verdict


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay gave. `captured`: ids taken by all cameras, by the rings' own count."""

    verdicts: list[Verdict]
    captured: int
    wall_s: float
    restarts: int
    fault: LinewatchError | None = None
    """Why the replay is not whole: a recording cut short, frames in it that cannot be read."""


def replay_config(
    sources: Sequence[SourceConfig],
    work_dir: Path,
    *,
    worker: WorkerConfig,
    recipe: Recipe | None = None,
    slots: int = 6,
    station: str = "replay",
    continuous: bool = False,
    deadline_ms: float | None = None,
) -> LineConfig:
    """A line that replays each source as a camera of its own: cam0, cam1, ...

    continuous: the sources are webs in blocks, see `pipeline.web`.
    deadline_ms: replay in real time, at the pace of the recordings: what is not decided by then is
    `invalid/late`, and what finds no slot `invalid/dropped`. None: as fast as it goes, without
    deadlines.
    work_dir: journal, logs and sockets; also tells apart two replays that run at once.
    """
    work_dir = work_dir.absolute()
    return LineConfig(
        station=station,
        run_dir=str(work_dir / "run"),
        state_dir=str(work_dir / "state"),
        cameras={
            f"cam{number}": CameraConfig(
                source=source,
                slots=slots,
                fps=None if deadline_ms is None else frame_rate(source),
                on_full="wait" if deadline_ms is None else "drop",
                deadline_ms=deadline_ms,
                continuous=continuous,
                recipe=recipe or Recipe(),
            )
            for number, source in enumerate(sources)
        },
        worker=worker,
        publish=PublishConfig(endpoint=f"ipc://{work_dir / 'run' / 'verdicts'}", catch_up=False),
    )


def cameras_in(path: Path) -> list[Path]:
    """The recordings of a station's folder, one of each camera; any other path is one itself."""
    if path.is_dir() and not any(path.glob("*.mkv")):
        cameras = sorted({file.parent for file in path.glob("*/*.mkv")})
        if cameras:
            return cameras
    return [path]


def source_of(path: Path, *, realtime: bool = False, color: bool = False) -> SourceConfig:
    """How a recording is read: a line's own one, a folder of images, or any video. color: of
    images in a folder; the others are what they are."""
    text = str(path.absolute())
    if is_recording(path) or (path.is_dir() and any(path.glob("*.mkv"))):
        return RecordedSource(kind="recording", path=text, realtime=realtime)
    if path.is_dir():
        return FolderSource(kind="folder", path=text, color=color)
    return VideoSource(kind="video", path=text)


def frame_rate(source: SourceConfig) -> float | None:
    """Frames per second of a video; None where the frames themselves have times.

    Raises `ConfigError` for images, which have no pace of their own.
    """
    if isinstance(source, VideoSource):
        return video_rate(Path(source.path))
    if isinstance(source, RecordedSource):
        return None
    raise ConfigError(
        f"a {source.kind} source found, expected a video or a recording of a line: images have no "
        "pace of their own"
    )


def replay(
    config: LineConfig,
    *,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> Replay:
    """Run a replaying line to its end; the journal stays.

    A source that failed half-way does not cost what was replayed: see `Replay.fault`. Raises what
    `Line.run` raises before the first frame.
    """
    line = Line(config)
    first_ns = 0
    restarts = 0

    def look(progress: Progress) -> None:
        nonlocal first_ns, restarts
        if progress.captured and not first_ns:
            first_ns = time.monotonic_ns()
        restarts = progress.restarts
        watch(progress)

    fault: LinewatchError | None = None
    try:
        line.run(stop=stop, watch=look)
    except LinewatchError as error:
        if not line.captured:
            raise
        fault = error
    wall_s = (time.monotonic_ns() - first_ns) / 1e9 if first_ns else 0.0
    verdicts = list(read_verdicts(Station.of(config).journal, epoch=line.epoch))
    return Replay(verdicts, line.captured, wall_s, restarts, fault or damaged(verdicts))


def damaged(verdicts: Sequence[Verdict]) -> SourceError | None:
    """What is wrong with a recording whose frames could not all be read."""
    bad = [v for v in verdicts if v.reason in (Reason.BROKEN_FRAME, Reason.WRONG_SIZE)]
    if not bad:
        return None
    counts = Counter(v.reason.value for v in bad)
    found = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return SourceError(
        f"{found} of {len(verdicts)} frames found (first: {bad[0].camera} frame "
        f"{bad[0].frame_id}), expected whole frames of one size; they are `invalid` in the "
        "results, all others are inspected: record again, or take the frames out"
    )


def result_line(verdict: Verdict) -> str:
    """One verdict as a JSON line: all that a second replay must repeat, and no times."""
    return json.dumps(
        {
            "camera": verdict.camera,
            "frame_id": verdict.frame_id,
            "source_pts": verdict.source_pts,
            "label": verdict.label,
            "reason": verdict.reason,
            "image_score": verdict.image_score,
            "image_threshold": verdict.image_threshold,
            "raw_peak": verdict.raw_peak,
            "defects": [
                {
                    "box_xyxy": list(defect.box_xyxy),
                    "area_px": defect.area_px,
                    "peak_score": defect.peak_score,
                    **_in_mm(defect, verdict.mm_per_px),
                }
                for defect in verdict.defects
            ],
            "detail": verdict.detail,
            "part_id": verdict.part_id,
            "trigger_id": verdict.trigger_id,
            "bundle_sha256": verdict.bundle_sha256,
            "recipe_revision": verdict.recipe_revision,
            "engine_id": verdict.engine_id,
        }
    )


def _in_mm(defect: Defect, mm_per_px: float) -> dict[str, list[float]]:
    if not mm_per_px:
        return {}
    return {"box_mm": [round(each, 4) for each in box_mm(defect.box_xyxy, mm_per_px)]}


def write_results(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write JSON lines, by camera and frame id. Raises `ResourceError` when the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(result_line(verdict) + "\n" for verdict in verdicts))
    except OSError as error:
        raise ResourceError(
            f"{path}: {error.strerror}; expected a place that can be written: give another --out"
        ) from error
