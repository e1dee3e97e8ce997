"""A station's recordings on disk: how they are written, found and thrown away.

    FOLDER/STATION/CAMERA/000003-0000000017-20260102T030405Z.mkv           pixels (`matroska`)
    FOLDER/STATION/CAMERA/000003-0000000017-20260102T030405Z.frames.jsonl  ids (`sidecar`)

A name begins with epoch and first frame id, so that the order of names is that of the frames even
when clocks jump, and a frame is found without opening all files.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import VideoSource
from pipeline.errors import SourceError
from pipeline.sources.appendfile import AppendFile
from pipeline.sources.matroska import MatroskaFile
from pipeline.sources.recorded import NOMINAL_FPS, RecordingHead
from pipeline.sources.recording import FrameEncoder
from pipeline.sources.sidecar import (
    SUFFIX,
    RecordedFrame,
    frame_line,
    lost_line,
    read_side,
    side_path,
)
from pipeline.sources.video import VideoRecording

_NAME: Final = re.compile(r"\d+-(?P<first>\d+)-(?P<stamp>\w+)\.mkv")


class RecordingWriter:
    """A recording that is being made: what is written is there, whatever happens next.

    Raises `OSError` where the disk refuses; what was written before stays whole.
    """

    def __init__(
        self,
        path: Path,
        shape_hwc: tuple[int, int, int],
        head: RecordingHead,
        *,
        fps: int = NOMINAL_FPS,
        encoder: FrameEncoder | None = None,
    ) -> None:
        """Make NAME.mkv and its side file. Raises `FileExistsError` where there is one."""
        self.path = path
        self._encoder = encoder or FrameEncoder(shape_hwc)
        self._video = MatroskaFile(
            path,
            codec_id="V_FFV1",
            codec_private=self._encoder.codec_private,
            width=shape_hwc[1],
            height=shape_hwc[0],
            fps=fps,
            tags=head.tags(),
        )
        try:
            self._side = AppendFile(side_path(path))
        except OSError:
            self._video.close()
            path.unlink()
            raise

    @property
    def frames(self) -> int:
        return self._video.frames

    @property
    def size_bytes(self) -> int:
        return self._video.size_bytes + self._side.size_bytes

    def write(self, pixels: NDArray[np.uint8], frame: RecordedFrame) -> int:
        """Append uint8 (H, W, C) pixels of the recording's shape; the frame's number, from 0."""
        index = self._video.write(self._encoder.encode(pixels))
        self._side.append(frame_line(index, frame))
        return index

    def lose(self, frame: RecordedFrame, why: str) -> None:
        """Note a frame that should be here and is not."""
        self._side.append(lost_line(frame, why))

    def sync(self) -> None:
        """To the disk: what was written survives a power cut."""
        self._video.sync()
        self._side.sync()

    def close(self) -> None:
        """End it; a recording without a frame and without a loss leaves no file."""
        try:
            self._video.close()
        finally:
            self._side.close()
        if not self._side.size_bytes and not self.frames:
            side_path(self.path).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)


def recording_path(folder: Path, epoch: int, frame_id: int) -> Path:
    """The name of a new recording that begins with this frame."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return folder / f"{epoch:06d}-{frame_id:010d}-{stamp}.mkv"


def find_evidence(folder: Path, camera: str, epoch: int, frame_id: int) -> tuple[Path, int] | None:
    """File and number in it of a frame in a station's recordings; None where it was not kept.

    folder: the station's, with a folder for each camera.
    """
    candidates = []
    for path in (folder / camera).glob(f"{epoch:06d}-*.mkv"):
        name = _NAME.fullmatch(path.name)
        if name and int(name["first"]) <= frame_id:
            candidates.append((name["stamp"], int(name["first"]), path))
    # One file of the epoch has it: the last that begins before it. But a station whose journal was
    # lost counts its epochs anew: wherever first ids grow on the way back, there was another one.
    later = -1
    for _, first, path in sorted(candidates, reverse=True):
        if first > later:
            for index, frame in read_side(path).frames.items():
                if (frame.camera, frame.epoch, frame.frame_id) == (camera, epoch, frame_id):
                    return path, index
        later = first
    return None


def read_evidence(path: Path, index: int) -> NDArray[np.uint8]:
    """uint8 (H, W, C) pixels of a frame in a recording. Raises `SourceError` where it has none."""
    source = VideoRecording(VideoSource(kind="video", path=str(path)), index)
    try:
        grab = source.read()
        if grab is None or grab.index != index or grab.fault is not None:
            found = "no such frame" if grab is None or grab.fault is None else grab.detail
            raise SourceError(
                f"{path}: frame {index}: {found}; expected a whole one: the file was cut off or "
                "damaged"
            )
        pixels = np.empty(source.shape_hwc, np.uint8)
        grab.write(pixels)
        return pixels
    finally:
        source.close()


@dataclass(frozen=True, slots=True)
class StoredRecording:
    """A recording with its side file. `when_ns`: of its last change, by the disk's clock."""

    path: Path
    size_bytes: int
    when_ns: int


def stored(folder: Path) -> Iterator[StoredRecording]:
    """All recordings of a station, in no order."""
    for path in folder.glob("*/*.mkv"):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            size = about.st_size
            with contextlib.suppress(FileNotFoundError):
                size += side_path(path).stat().st_size
            yield StoredRecording(path, size, about.st_mtime_ns)


def make_room(folder: Path, quota_bytes: int, keep: frozenset[Path] = frozenset()) -> list[Path]:
    """Delete the oldest recordings until all of them fit into `quota_bytes`; what was deleted.

    keep: files that are being written. Raises `OSError` where one cannot be deleted.
    """
    found = sorted(stored(folder), key=lambda one: (one.when_ns, one.path.name))
    total = sum(one.size_bytes for one in found)
    deleted = []
    for one in found:
        if total <= quota_bytes:
            break
        if one.path in keep:
            continue
        # The side file first: pixels without it still are a video, and are found here again.
        side_path(one.path).unlink(missing_ok=True)
        one.path.unlink(missing_ok=True)
        total -= one.size_bytes
        deleted.append(one.path)
    return deleted


def free_bytes(folder: Path) -> int:
    """What is left on the folder's disk for us. Raises `OSError`."""
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def is_recording(path: Path) -> bool:
    """Whether a file or folder is a recording of a line with its side files."""
    if path.is_dir():
        return any(path.glob("*.mkv")) and any(path.glob(f"*{SUFFIX}"))
    return side_path(path).is_file()
