"""Frames of a recording as image files, for those who learn from images."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from pipeline.config import VideoSource
from pipeline.errors import DataError
from pipeline.sources.base import Source
from pipeline.sources.video import VideoRecording


def extract_frames(
    recording: Path,
    into: Path,
    every: int = 1,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Each `every`-th whole frame of a recording as a PNG, in a folder under `into`.

    The folder's name tells recording and step; if it is there, it is taken as it is. Raises
    `SourceError` for what is no recording, `DataError` without a whole frame or without room.
    """
    about = recording.stat()
    key = f"{recording.absolute()}{about.st_size}{about.st_mtime_ns}{every}"
    folder = into / f"{recording.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    try:
        into.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".frames-", dir=into))
    except OSError as error:
        raise DataError(f"{into}: no folder for frames ({error.strerror})") from error
    try:
        source = VideoRecording(VideoSource(kind="video", path=str(recording.absolute())))
        try:
            count = _write(source, work, every, progress)
        finally:
            source.close()
        if not count:
            raise DataError(f"{recording}: no whole frame found, expected at least one")
        work.chmod(0o755)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _write(
    source: Source,
    folder: Path,
    every: int,
    progress: Callable[[int, int | None], None] | None,
) -> int:
    pixels = np.empty(source.shape_hwc, np.uint8)
    count = 0
    while (grab := source.read()) is not None:
        if progress is not None:
            progress(grab.index + 1, None)
        if grab.index % every or grab.fault is not None:
            continue
        grab.write(pixels)
        picture = pixels if pixels.shape[2] == 1 else pixels[..., ::-1]
        target = folder / f"{grab.index:08d}.png"
        if not cv2.imwrite(str(target), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise DataError(f"{target}: cannot be written: is the disk full?")
        count += 1
    return count
