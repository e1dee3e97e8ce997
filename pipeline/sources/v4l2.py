"""A camera of Video4Linux through OpenCV: USB cameras, and those built in.

What is configured is set, read back and compared: OpenCV sets what it can and says nothing. A
`Reader`'s thread waits for the frames. Video4Linux counts them, and OpenCV does not tell: the index
counts what it gave.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config.sources import TriggerConfig, V4l2Source
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.base import Camera, FrameFormat, Grab, no_pixels
from pipeline.sources.reader import Grabs, Reader
from pipeline.types import Reason

_SELECT_TIMEOUT: Final = "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT"
"""Seconds that OpenCV waits for a frame; read once, by its first V4L2 camera."""
_RATE_TOLERANCE: Final = 0.01


class V4l2Camera(Camera):
    """See the module. Raises `SourceLost` without the device, `ConfigError` for what it refuses."""

    def __init__(self, config: V4l2Source, trigger: TriggerConfig) -> None:
        self._config = config
        self._settings: dict[str, str | int | float | bool] = {}
        self._reader = Reader(config.device, self._grabs)

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(self._config.height, self._config.width, 3 if self._config.color else 1)

    def read(self, wait_ms: float) -> Grab | None:
        return self._reader.take(wait_ms)

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return self._settings

    def close(self) -> None:
        self._reader.close()

    # The reader's thread

    def _grabs(self) -> Grabs:
        device = self._config.device
        if not os.access(device, os.R_OK | os.W_OK):
            why = "no right to read and write it" if os.path.exists(device) else "no such device"
            raise SourceLost(
                f"{device}: {why}; expected a camera: check its cable, `device` (see "
                "/dev/v4l/by-id), and that the line's user is in the group `video`"
            )
        os.environ.setdefault(_SELECT_TIMEOUT, "3")
        capture = cv2.VideoCapture(device, cv2.CAP_V4L2)
        try:
            if not capture.isOpened():
                raise SourceLost(
                    f"{device}: cannot be opened; expected a camera that takes pictures, and "
                    "that no other program holds"
                )
            self._settings = configure(capture, self._config)
            yield None
            index = 0
            while True:
                there, picture = capture.read()
                if not there:
                    raise SourceLost(
                        f"{device}: no frame any more after {index}; check the camera's cable"
                    )
                yield grab_of(index, np.asarray(picture, np.uint8), self._config)
                index += 1
        finally:
            capture.release()


class Properties(Protocol):
    """What is set and read of a `cv2.VideoCapture`."""

    def set(self, name: int, value: float, /) -> bool: ...

    def get(self, name: int, /) -> float: ...


def configure(capture: Properties, config: V4l2Source) -> dict[str, str | int | float | bool]:
    """Set what the configuration says and read it back. Raises `ConfigError` for what differs."""
    # The order matters: a camera's sizes depend on what it sends, and its rates on the size.
    if config.fourcc is not None:
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*config.fourcc))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, config.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, config.height)
    if config.frame_rate is not None:
        capture.set(cv2.CAP_PROP_FPS, config.frame_rate)
    found: dict[str, str | int | float | bool] = {
        "fourcc": int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1"),
        "width": int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        "height": int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        "frame_rate": capture.get(cv2.CAP_PROP_FPS),
    }
    wrong = [
        f"{name}: {found[name]} found, expected {expected}"
        for name, expected in (
            ("fourcc", config.fourcc),
            ("width", config.width),
            ("height", config.height),
        )
        if expected is not None and found[name] != expected
    ]
    rate = config.frame_rate
    if rate is not None and abs(float(found["frame_rate"]) - rate) > _RATE_TOLERANCE * rate:
        wrong.append(f"frame_rate: {found['frame_rate']} found, expected {rate:g}")
    if wrong:
        raise ConfigError(
            f"{config.device}: {'; '.join(wrong)}; choose what the camera has: `v4l2-ctl "
            f"--list-formats-ext -d {config.device}` lists it"
        )
    return found


def grab_of(index: int, picture: NDArray[np.uint8], config: V4l2Source) -> Grab:
    """picture: as OpenCV gives it, BGR (H, W, 3), or grey (H, W)."""
    if picture.shape[:2] != (config.height, config.width):
        detail = (
            f"{config.device}, frame {index}: {picture.shape[1]} x {picture.shape[0]} px found, "
            f"expected {config.width} x {config.height} as it was set"
        )
        return Grab(index, no_pixels, fault=Reason.WRONG_SIZE, detail=detail)

    def write(out: NDArray[np.uint8]) -> None:
        if picture.ndim == 3:
            code = cv2.COLOR_BGR2RGB if config.color else cv2.COLOR_BGR2GRAY
            cv2.cvtColor(picture, code, dst=out if config.color else out[:, :, 0])
        elif config.color:
            cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB, dst=out)
        else:
            out[:, :, 0] = picture

    return Grab(index, write)
