"""Recordings of a line, read back with all that is known of their frames.

1. A recording is a file, or a folder of consecutive ones, in the order of their names. Frames are
   counted through all of them.
2. A frame that the side file knows (`sidecar.py`) has its capture time as `pts`, its trigger and
   its part, so that a replay repeats them. Files without a side file are videos as any other.
3. A frame that the side file names and the file does not hold is a broken frame: it counts.
4. A file that was cut off gives what it has, and the next one follows. Where there is no side file
   to say what is missing, `SourceLost` is raised at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import av

from pipeline.config import VideoSource
from pipeline.config.sources import RecordedSource
from pipeline.errors import SourceError, SourceLost
from pipeline.sources.base import Grab, no_pixels
from pipeline.sources.folder import natural_key
from pipeline.sources.recording import RECORDING_TAG
from pipeline.sources.sidecar import RecordedFrame, SideFile, read_side
from pipeline.sources.video import VideoRecording, open_video, probe_video
from pipeline.types import Reason

LONGEST_PAUSE_S: Final = 1.0
"""Of a replay at the recording's own pace: a recording of rejects has hours between its frames."""
NOMINAL_FPS: Final = 25
"""At which an ordinary player shows a recording; the capture times are in the side file."""
TAG_PREFIX: Final = "LINEWATCH_"


@dataclass(frozen=True, slots=True)
class RecordingHead:
    """What holds for all frames of a file; kept in its tags. Empty where it is not known."""

    station: str = ""
    camera: str = ""
    version: str = ""
    """Of the linewatch that recorded it."""
    preparation: str = ""
    """Hash of what was done to the frames before they were inspected, and recorded."""
    settings: str = "{}"
    """The camera's settings as they were read back, as a JSON object."""

    def tags(self) -> Mapping[str, str]:
        return {
            RECORDING_TAG: "2",
            **{f"{TAG_PREFIX}{name.upper()}": getattr(self, name) for name in self.__slots__},
        }


def read_head(recording: Path) -> RecordingHead:
    """Of a file, or of the first one in a folder. Raises `SourceError` for what is no video."""
    container, _ = open_video(recording_files(recording)[0])
    with container:
        found = container.metadata
    names = RecordingHead.__slots__
    tags = {name: found.get(f"{TAG_PREFIX}{name.upper()}") for name in names}
    return RecordingHead(**{name: text for name, text in tags.items() if text is not None})


def recording_files(path: Path) -> list[Path]:
    """The files of a recording, in order. Raises `SourceError` where there are none."""
    if not path.is_dir():
        return [path]
    files = [f for f in path.glob("*.mkv") if not f.name.startswith(".")]
    if not files:
        raise SourceError(
            f"{path}: no recordings in it; expected .mkv files, as `linewatch record` writes them"
        )
    return sorted(files, key=lambda file: natural_key(file.name))


def video_rate(path: Path) -> float:
    """Frames per second, as the file says; 25 where it does not. Raises `SourceError`."""
    container, stream = open_video(path)
    with container:
        return float(stream.average_rate or NOMINAL_FPS)


def known_frames(path: Path) -> list[RecordedFrame | None]:
    """What is known of each frame of a recording, in the order in which they are read."""
    frames: list[RecordedFrame | None] = []
    for file in recording_files(path):
        side = read_side(file)
        frames += [side.frames.get(index) for index in range(_count(file, side))]
    return frames


def promised_frames(path: Path) -> int:
    """How many frames a recording's side files name; 0 for anything else."""
    if path.is_dir() and not any(path.glob("*.mkv")):
        return 0
    return sum(read_side(file).promised for file in recording_files(path))


class RecordedFrames:
    """A `Source` over a recording; `start` is the index of the first frame that it gives."""

    def __init__(self, config: RecordedSource, start: int = 0) -> None:
        """Raises `SourceError` where there is no frame that can be read."""
        self._realtime = config.realtime
        self._files = recording_files(Path(config.path))
        self._shape = probe_recording(config)
        self._grabs = self._read_all(start)
        self._cut: SourceLost | None = None
        self._known: RecordedFrame | None = None
        self._due_s = 0.0
        self._last_ns: int | None = None

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self._shape

    def read(self) -> Grab | None:
        """The next frame; see `Source.read`."""
        grab = next(self._grabs, None)
        if grab is not None and self._realtime:
            self._pace(grab)
        return grab

    def close(self) -> None:
        self._grabs.close()

    def _pace(self, grab: Grab) -> None:
        """Sleep until as much time has passed since the last frame as when they were taken."""
        now = time.monotonic()
        if self._last_ns is None:
            self._due_s = now
        else:
            pause_s = (grab.pts - self._last_ns) / 1e9 if grab.pts >= 0 else 0.0
            self._due_s += min(max(pause_s, 0.0), LONGEST_PAUSE_S)
            # What was late is not made up for by a burst of more than a second.
            self._due_s = max(self._due_s, now - LONGEST_PAUSE_S)
        if grab.pts >= 0:
            self._last_ns = grab.pts
        time.sleep(max(0.0, self._due_s - now))

    def _read_all(self, start: int) -> Generator[Grab]:
        base = 0
        for file in self._files:
            side = read_side(file)
            if start > base and (count := _count(file, side)) <= start - base:
                base += count
                continue
            end = 0
            for grab in self._read_file(file, side, max(0, start - base)):
                end = grab.index + 1
                yield self._told(grab, base, side)
            base += end
        if self._cut is not None:
            raise self._cut

    def _read_file(self, file: Path, side: SideFile, start: int) -> Iterator[Grab]:
        """Grabs with their index in the file, to the last frame that file or side file knows."""
        end = start
        try:
            video = VideoRecording(VideoSource(kind="video", path=str(file)), start)
            try:
                fits = video.shape_hwc == self._shape
                while (grab := video.read()) is not None:
                    end = grab.index + 1
                    yield grab if fits else self._misfit(grab, video.shape_hwc)
            finally:
                video.close()
        except SourceError as error:
            if end >= side.promised:
                if not side.exists:
                    self._cut = self._cut or SourceLost(str(error))
                return
        for index in range(end, side.promised):
            detail = f"{file.name}, frame {index}: the file ends before it"
            yield Grab(index, no_pixels, fault=Reason.BROKEN_FRAME, detail=detail)

    def _misfit(self, grab: Grab, found: tuple[int, int, int]) -> Grab:
        detail = f"it has the shape {found}, the recording's first frame has {self._shape}"
        return replace(grab, write=no_pixels, fault=Reason.WRONG_SIZE, detail=detail)

    def _told(self, grab: Grab, base: int, side: SideFile) -> Grab:
        """The grab with what the side file knows of it, counted through all files."""
        known, before = side.frames.get(grab.index), self._known
        self._known = known
        grab = replace(grab, index=base + grab.index)
        if known is None:
            return grab
        follows = grab.follows
        if before is not None:
            follows = (known.camera, known.epoch, known.frame_id) == (
                before.camera,
                before.epoch,
                before.frame_id + 1,
            )
        return replace(
            grab,
            pts=known.t_capture_utc_ns,
            trigger_id=known.trigger_id,
            part_id=known.part_id,
            follows=follows,
        )


def probe_recording(config: RecordedSource) -> tuple[int, int, int]:
    """Height, width and channels of the first file that can be read."""
    fault: SourceError | None = None
    for file in recording_files(Path(config.path)):
        try:
            return probe_video(VideoSource(kind="video", path=str(file)))
        except SourceError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def _count(file: Path, side: SideFile) -> int:
    """How many frames `_read_file` gives, without decoding them."""
    found = 0
    with contextlib.suppress(av.FFmpegError, SourceError, OSError):
        container, stream = open_video(file)
        with container:
            rate = stream.average_rate if RECORDING_TAG in container.metadata else None
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                found += 1
                if rate and packet.pts is not None:
                    found = round(packet.pts * packet.time_base * rate) + 1
    return max(found, side.promised)
