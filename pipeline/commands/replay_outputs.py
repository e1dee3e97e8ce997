"""What `linewatch replay` makes of verdicts beside their file: videos, and flips with pictures."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.progress import Update, progress_bar
from pipeline.config import SourceConfig, VideoSource
from pipeline.config.sources import RecordedSource
from pipeline.errors import ConfigError, ResourceError, SourceLost
from pipeline.flips import (
    Comparison,
    Flip,
    Key,
    by_origin,
    by_position,
    compare,
    is_journal,
    read_journal,
    read_results,
)
from pipeline.overlay import annotate, side_by_side, write_png, write_video
from pipeline.sources import open_source
from pipeline.sources.recorded import known_frames, video_rate
from pipeline.sources.sidecar import RecordedFrame
from pipeline.types import Label, Verdict

Image = NDArray[np.uint8]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
_IMAGES_FPS = 10.0


def frames_of(source: SourceConfig) -> Iterator[tuple[int, Image]]:
    """Frame id in a replay and pixels, in order; black where a frame could not be read."""
    opened = open_source(source)
    try:
        # A recording that is cut off was told of by the replay: here it is at its end.
        with contextlib.suppress(SourceLost):
            while (grab := opened.read()) is not None:
                pixels = np.zeros(opened.shape_hwc, np.uint8)
                if grab.fault is None:
                    grab.write(pixels)
                yield grab.index + 1, pixels
    finally:
        opened.close()


# Videos


def video_paths(out: Path, cameras: Sequence[str]) -> list[Path]:
    """Where the video of each camera goes. Raises `ConfigError` for a name that is no video."""
    if out.suffix.lower() not in VIDEO_SUFFIXES:
        raise ConfigError(f"--annotate {out} found, expected a name such as out.mp4")
    if len(cameras) == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{camera}{out.suffix}") for camera in cameras]


def write_videos(
    out: Path,
    sources: Mapping[str, SourceConfig],
    verdicts: Sequence[Verdict],
    quiet: bool,
) -> list[Path]:
    """A video of each camera: frames with boxes, label, score and frame number.

    Raises `ResourceError` where one cannot be written.
    """
    paths = video_paths(out, list(sources))
    for path, (camera, source) in zip(paths, sources.items(), strict=True):
        found = {v.frame_id: v for v in verdicts if v.camera == camera}
        with progress_bar(f"Drawing {path.name}", len(found), quiet=quiet) as update:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, _pictures(source, found, update), _rate(source))
            except (OSError, av.FFmpegError) as error:
                raise ResourceError(
                    f"{path}: {error}; expected a video that can be written: check folder and disk"
                ) from error
    return paths


def _pictures(
    source: SourceConfig, verdicts: Mapping[int, Verdict], update: Update
) -> Iterator[Image]:
    for frame_id, pixels in frames_of(source):
        if (verdict := verdicts.get(frame_id)) is not None:
            yield annotate(pixels, verdict)
        update(frame_id, len(verdicts))


def _rate(source: SourceConfig) -> float:
    """Frames per second at which a replay's video is watched."""
    if isinstance(source, VideoSource):
        return video_rate(Path(source.path))
    if isinstance(source, RecordedSource):
        times = [f.t_capture_utc_ns for f in known_frames(Path(source.path)) if f is not None]
        if len(times) > 1 and times[-1] > times[0]:
            return min(60.0, max(1.0, (len(times) - 1) * 1e9 / (times[-1] - times[0])))
    return _IMAGES_FPS


# Flips


class Earlier:
    """Verdicts that a replay is compared with: those of an earlier replay, or a line's journal."""

    def __init__(self, path: Path, sources: Mapping[str, SourceConfig]) -> None:
        """Raises `DataError` for a file that is neither."""
        self.path = path
        self._sources = sources
        self._results = None if is_journal(path) else read_results(path)

    def compare(self, verdicts: Sequence[Verdict]) -> Comparison:
        """Raises `ConfigError` where the two have no frame in common."""
        if self._results is not None:
            before: Mapping[Key, Verdict] = self._results
            now = by_position(verdicts)
        else:
            now = by_origin(verdicts, {c: _origins(s) for c, s in self._sources.items()})
            before = read_journal(self.path, now)
        comparison = compare(before, now)
        if not comparison.compared and (before or now):
            raise ConfigError(
                f"--against {self.path}: none of its frames is in this recording, expected results "
                "of the same one: give the recordings in the same order, or the line's journal"
            )
        return comparison


def _origins(source: SourceConfig) -> list[RecordedFrame | None]:
    return known_frames(Path(source.path)) if isinstance(source, RecordedSource) else []


def write_overlays(
    folder: Path, flips: Sequence[Flip], sources: Mapping[str, SourceConfig], quiet: bool
) -> dict[Key, Path]:
    """A PNG of each flipped frame, the earlier verdict left and the one of now right."""
    wanted: dict[str, dict[int, Flip]] = defaultdict(dict)
    for flip in flips:
        wanted[flip.now.camera][flip.now.frame_id] = flip
    paths: dict[Key, Path] = {}
    with progress_bar("Drawing overlays", len(flips), quiet=quiet) as update:
        for camera, by_id in wanted.items():
            for frame_id, pixels in frames_of(sources[camera]):
                if frame_id in by_id:
                    flip = by_id[frame_id]
                    path = (
                        folder / f"{camera}-{frame_id:06d}-{flip.before.label}-{flip.now.label}.png"
                    )
                    try:
                        folder.mkdir(parents=True, exist_ok=True)
                        write_png(path, side_by_side(pixels, flip.before, flip.now))
                    except OSError as error:
                        raise ResourceError(
                            f"{path}: {error.strerror}; expected a folder that can be written: "
                            "give another --overlays"
                        ) from error
                    paths[camera, 0, frame_id] = path
                    update(len(paths), len(flips))
                if frame_id >= max(by_id):
                    break
    return paths


def comparison_json(found: Comparison, allow: int, overlays: Mapping[Key, Path]) -> dict[str, Any]:
    return {
        "compared": found.compared,
        "flipped": len(found.flips),
        "allowed": allow,
        "flips": [
            {
                "camera": flip.now.camera,
                "frame_id": flip.now.frame_id,
                "before": _judged(flip.before),
                "now": _judged(flip.now),
                "overlay": _overlay(flip, overlays),
            }
            for flip in found.flips
        ],
        "only_before": [list(key) for key in found.only_before],
        "only_now": [list(key) for key in found.only_now],
        "changed_scores": found.changed_scores,
        "largest_change": found.largest_change,
    }


def _judged(verdict: Verdict) -> dict[str, Any]:
    return {
        "camera": verdict.camera,
        "epoch": verdict.epoch,
        "frame_id": verdict.frame_id,
        "label": verdict.label,
        "reason": verdict.reason,
        "image_score": verdict.image_score,
        "image_threshold": verdict.image_threshold,
    }


def _overlay(flip: Flip, overlays: Mapping[Key, Path]) -> str | None:
    path = overlays.get((flip.now.camera, 0, flip.now.frame_id))
    return str(path) if path is not None else None


def show_comparison(
    console: Console, found: Comparison, allow: int, overlays: Mapping[Key, Path]
) -> None:
    if found.flips:
        table = Table("frame", "before", "now", title=f"{len(found.flips)} verdicts flipped")
        for flip in found.flips:
            name = f"{flip.now.camera} #{flip.now.frame_id}"
            if (flip.before.camera, flip.before.frame_id) != (flip.now.camera, flip.now.frame_id):
                name += f" ({flip.before.camera} #{flip.before.frame_id})"
            table.add_row(name, _text(flip.before), _text(flip.now))
        console.print(table)
    for title, keys in (
        ("only in the earlier results", found.only_before),
        ("only in these results", found.only_now),
    ):
        if keys:
            names = ", ".join(f"{camera} #{frame_id}" for camera, _, frame_id in keys)
            console.print(f"{len(keys)} frames {title}: {escape(names)}", highlight=False)
    console.print(
        f"{found.compared} frames compared: {len(found.flips)} flipped, {allow} allowed; "
        f"{found.changed_scores} scores changed, by {found.largest_change:.4g} at most",
        highlight=False,
    )
    if overlays:
        folder = next(iter(overlays.values())).parent
        console.print(f"{len(overlays)} overlays in {folder}", highlight=False)


def _text(verdict: Verdict) -> str:
    if verdict.label is Label.INVALID:
        return f"invalid {verdict.reason}"
    return f"{verdict.label} {verdict.image_score:.4f} of {verdict.image_threshold:.4f}"
