"""Frames as a source gives them, before any preparation: from a camera, a folder or a recording.

For those who calibrate a camera (`linewatch flatfield`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import CameraConfig
from pipeline.config.sources import GenicamSource, LiveSource, VideoSource
from pipeline.errors import DataError, SourceError, SourceLost
from pipeline.sources import open_camera, open_source, probe
from pipeline.sources.base import FrameFormat
from pipeline.sources.folder import list_images, read_image
from pipeline.sources.pixel_formats import pixel_format

_WAIT_S: Final = 10.0
"""For a camera's next frame."""

Progress = Callable[[int, int | None], None]


def configured_format(camera: CameraConfig) -> FrameFormat:
    """What the camera's frames will be, by its configuration alone. Raises `SourceError`."""
    height, width, channels = probe(camera.source)
    if isinstance(camera.source, GenicamSource):
        return pixel_format(camera.source.pixel_format).of(height, width)
    return FrameFormat(height, width, channels)


def frames_of(path: Path, source: FrameFormat, most: int, progress: Progress) -> list[NDArray[Any]]:
    """At most `most` frames, (H, W, C) of this format, from a folder or a recording.

    Of a folder's images they are spread over all. Raises `SourceError`, or `DataError` for images
    of another format.
    """
    if path.is_dir():
        paths = list_images(path)
        chosen = (
            [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths
        )
        frames = []
        for number, one in enumerate(chosen, start=1):
            frames.append(read_raw(one, source))
            progress(number, len(chosen))
        return frames
    recording = open_source(VideoSource(kind="video", path=str(path.absolute())))
    frames = []
    try:
        while len(frames) < most and (grab := recording.read()) is not None:
            if grab.fault is None:
                frame = np.empty(recording.shape_hwc, np.uint8)
                grab.write(frame)
                frames.append(_checked(path, frame, source))
                progress(len(frames), most)
    finally:
        recording.close()
    return frames


def frames_of_camera(
    camera: CameraConfig, count: int, progress: Progress
) -> tuple[list[NDArray[Any]], FrameFormat]:
    """`count` whole frames from the camera. Raises `SourceLost` when none comes for 10 seconds."""
    if not isinstance(camera.source, LiveSource):
        raise DataError(
            f"a number of frames for a {camera.source.kind} source found, expected a folder or a "
            "recording: numbers are for cameras"
        )
    opened = open_camera(camera)
    try:
        frames: list[NDArray[Any]] = []
        since = time.monotonic()
        while len(frames) < count:
            if camera.trigger.mode in ("software", "encoder"):
                opened.trigger()
            grab = opened.read(1000)
            if grab is not None and grab.fault is None:
                frame = np.empty(opened.format.shape_hwc, opened.format.dtype)
                grab.write(frame)
                frames.append(frame)
                progress(len(frames), count)
                since = time.monotonic()
            elif time.monotonic() - since > _WAIT_S:
                raise SourceLost(
                    f"no frame for {_WAIT_S:g} seconds found, expected {count} of them; with a "
                    "hardware trigger let the line run, or set trigger.mode to free for this"
                )
        return frames, opened.format
    finally:
        opened.close()


def read_raw(path: Path, source: FrameFormat) -> NDArray[Any]:
    """An image as (H, W, C) of this format. Raises `SourceError`, or `DataError`."""
    return _checked(path, _decoded(path, source), source)


def _decoded(path: Path, source: FrameFormat) -> NDArray[Any]:
    if source.bits == 8:
        return read_image(path, source.channels == 3)
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (OSError, cv2.error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); check the file") from error
    if image is None:
        raise SourceError(f"{path}: not an image that can be read; copy the file anew")
    pixels = np.asarray(image).reshape(*image.shape[:2], -1)
    return pixels[:, :, ::-1] if pixels.shape[2] == 3 else pixels


def _checked(path: Path, frame: NDArray[Any], source: FrameFormat) -> NDArray[Any]:
    if frame.shape != source.shape_hwc or frame.dtype != source.dtype:
        raise DataError(
            f"{path}: {frame.dtype} pixels, {frame.shape[1]} x {frame.shape[0]} of "
            f"{frame.shape[2]} channels found, expected {source.dtype}, {source.width} x "
            f"{source.height} of {source.channels}, as the camera's frames are"
        )
    return frame
