"""From the decoder's buffer into a frame slot: one copy where the pixel format allows it."""

from __future__ import annotations

from typing import Final

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

_PACKED: Final = {
    "bgr24": (cv2.COLOR_BGR2RGB, 3),
    "bgr0": (cv2.COLOR_BGRA2RGB, 4),
    "bgra": (cv2.COLOR_BGRA2RGB, 4),
    "rgb0": (cv2.COLOR_RGBA2RGB, 4),
    "rgba": (cv2.COLOR_RGBA2RGB, 4),
}
"""Pixel formats of one plane: how OpenCV makes RGB of them, and their bytes per pixel."""


def channels_of(pixel_format: str) -> int:
    """1 for grey pixel formats, 3 (RGB) for all others."""
    return 1 if pixel_format.startswith(("gray", "mono")) else 3


def copy_pixels(
    frame: av.VideoFrame, out: NDArray[np.uint8], reformatter: VideoReformatter
) -> None:
    """Copy `frame` into `out`, uint8 (H, W, 1) or RGB (H, W, 3), rows possibly strided.

    8 bit grey and RGB formats go straight from the decoder's buffer into `out`; all others (YUV,
    palettes, more than 8 bit) take one more conversion by libswscale.
    """
    name = frame.format.name
    wanted = "gray" if out.shape[2] == 1 else "rgb24"
    direct = ("gray",) if wanted == "gray" else ("rgb24", "gbrp", *_PACKED)
    if name not in direct:
        frame = reformatter.reformat(frame, format=wanted)
        name = wanted
    if name == "gbrp":
        green, blue, red = (plane_view(frame, number, 1) for number in range(3))
        cv2.merge([red, green, blue], dst=out)
    elif name in _PACKED:
        code, channels = _PACKED[name]
        cv2.cvtColor(plane_view(frame, 0, channels), code, dst=out)
    else:
        out[...] = plane_view(frame, 0, out.shape[2])


def plane_view(frame: av.VideoFrame, number: int, channels: int) -> NDArray[np.uint8]:
    """A view, (H, W, channels), of a plane in the frame's own buffer."""
    plane = frame.planes[number]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    pixels = rows[: frame.height, : frame.width * channels]
    return pixels.reshape(frame.height, frame.width, channels)
