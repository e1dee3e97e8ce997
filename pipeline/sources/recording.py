"""Writes recordings: FFV1 version 3 in Matroska, lossless, every slice with its checksum.

Why so, measured on one core with 1024 x 768 grey frames of texture and noise (0.62 bytes a pixel):
FFV1 with Golomb-Rice codes and the small context decodes 95 frames/s, its defaults (range coder)
31; lossless H.264 167 frames/s at 0.69 bytes a pixel, but a flipped bit goes unnoticed there; raw
video costs 1.0 bytes a pixel and has no checksum either. Every frame is a key frame, so that a
damaged packet costs one frame; four slices let two threads share a frame.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SourceError
from pipeline.sources.pixels import plane_view

RECORDING_TAG: Final = "LINEWATCH_RECORDING"
"""A tag of the container: the frames lie at a constant rate, and their slices have checksums."""

_OPTIONS: Final = {
    "level": "3",
    "slicecrc": "1",
    "slices": "4",
    "coder": "0",
    "context": "0",
    "g": "1",
}
_MIN_SLICED_SIDE_PX: Final = 64


def write_recording(path: Path, frames: Iterable[NDArray[np.uint8]], fps: float = 30.0) -> int:
    """Write `frames`, uint8 (H, W, 1) or RGB (H, W, 3), all of one shape; return their number.

    Bit-exact: `VideoRecording` gives back the same pixels. The file appears under its name when it
    is whole. Raises `SourceError` for no frames, for a frame of another shape or type, and where
    the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    count = 0
    shape: tuple[int, ...] | None = None
    try:
        with av.open(str(partial), "w", format="matroska") as container:
            container.metadata[RECORDING_TAG] = "1"
            stream = None
            for frame in frames:
                if stream is None:
                    shape = _checked_shape(frame)
                    stream = _add_stream(container, shape, fps)
                if frame.shape != shape or frame.dtype != np.uint8:
                    raise SourceError(
                        f"{path}: frame {count} is {frame.dtype} {frame.shape}, the first one "
                        f"uint8 {shape}; a recording has frames of one shape"
                    )
                picture = _picture(frame)
                picture.pts = count
                picture.time_base = stream.codec_context.time_base
                container.mux(stream.encode(picture))
                count += 1
            if stream is None:
                raise SourceError(f"{path}: no frames to write; a recording needs at least one")
            container.mux(stream.encode())
        partial.replace(path)
    except (av.FFmpegError, OSError) as error:
        raise SourceError(f"{path}: cannot be written ({error}); check folder and disk") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


class FrameEncoder:
    """FFV1 packets for a container of one's own, on `threads` threads."""

    def __init__(self, shape_hwc: tuple[int, int, int], threads: int = 1) -> None:
        context = av.CodecContext.create("ffv1", "w")
        context.height, context.width = shape_hwc[:2]
        context.pix_fmt = _pixel_format(shape_hwc)
        context.time_base = Fraction(1, 1000)
        context.options = _options(shape_hwc)
        context.thread_type = "SLICE"
        context.thread_count = threads
        context.open()
        self._context = context
        self.codec_private = bytes(context.extradata or b"")
        """What a decoder must know, the container's to keep."""

    def encode(self, frame: NDArray[np.uint8]) -> bytes:
        """The packet of one frame, uint8 (H, W, 1) or RGB (H, W, 3)."""
        (packet,) = self._context.encode(_picture(frame))
        return bytes(packet)


def _checked_shape(frame: NDArray[np.uint8]) -> tuple[int, ...]:
    if frame.ndim != 3 or frame.shape[2] not in (1, 3) or frame.dtype != np.uint8:
        raise SourceError(
            f"a frame is {frame.dtype} {frame.shape}; expected uint8 (H, W, 1) or RGB (H, W, 3)"
        )
    return frame.shape


def _add_stream(
    container: av.container.OutputContainer, shape: tuple[int, ...], fps: float
) -> av.VideoStream:
    rate = Fraction(fps).limit_denominator(1000)
    stream = container.add_stream("ffv1", rate=rate, options=_options(shape))
    stream.height, stream.width = shape[:2]
    stream.pix_fmt = _pixel_format(shape)
    stream.codec_context.time_base = 1 / rate
    return stream


def _options(shape: tuple[int, ...]) -> dict[str, str]:
    if min(shape[:2]) < _MIN_SLICED_SIDE_PX:
        return _OPTIONS | {"slices": "1"}  # FFV1 cannot slice tiny frames
    return _OPTIONS


def _pixel_format(shape: tuple[int, ...]) -> str:
    return "gray" if shape[2] == 1 else "bgr0"


def _picture(frame: NDArray[np.uint8]) -> av.VideoFrame:
    if frame.shape[2] == 1:
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:, :, 0]), format="gray")
    # RGB with an unused fourth byte: the 8 bit RGB layout that FFV1 takes without loss.
    picture = av.VideoFrame(frame.shape[1], frame.shape[0], "bgr0")
    plane_view(picture, 0, 4)[...] = cv2.cvtColor(frame, cv2.COLOR_RGB2BGRA)
    return picture
