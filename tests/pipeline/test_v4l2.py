"""Video4Linux without a device: what is refused, what is set, and the pixels' way."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import LineConfig
from pipeline.config.sources import TriggerConfig, V4l2Source
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.v4l2 import V4l2Camera, configure, grab_of
from pipeline.types import Reason


def config(**keys: object) -> V4l2Source:
    return V4l2Source.model_validate({"kind": "v4l2", "width": 64, "height": 48} | keys)


def test_a_number_is_a_device() -> None:
    assert config(device=2).device == "/dev/video2"
    assert config().device == "/dev/video0"


@pytest.mark.parametrize("keys", [{"device": -1}, {"device": ""}, {"fourcc": "MJPEG"}])
def test_what_cannot_be_is_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        config(**keys)


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "v4l2", "device": 1},
        {"kind": "watched", "path": "incoming"},
        {"kind": "push", "endpoint": "tcp://127.0.0.1:5610"},
    ],
)
def test_two_cameras_cannot_share_what_gives_the_frames(source: dict[str, object]) -> None:
    camera = {"source": {"width": 64, "height": 48} | source}
    LineConfig.model_validate({"station": "a", "cameras": {"one": camera}})
    with pytest.raises(ValueError, match=r"cameras.two.source.\w+: one of its own"):
        LineConfig.model_validate({"station": "a", "cameras": {"one": camera, "two": camera}})


def test_an_absent_device_is_lost(tmp_path: Path) -> None:
    with pytest.raises(SourceLost, match="no such device"):
        V4l2Camera(config(device=str(tmp_path / "video7")), TriggerConfig())


def test_a_file_that_is_no_camera_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "video7"
    path.write_bytes(b"no camera")
    with pytest.raises(SourceLost, match="cannot be opened"):
        V4l2Camera(config(device=str(path)), TriggerConfig())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_device_without_the_right_to_it_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "video7"
    path.touch(mode=0)
    with pytest.raises(SourceLost, match="no right"):
        V4l2Camera(config(device=str(path)), TriggerConfig())


class Settings:
    """Takes settings as a device does: some of them, and others only nearly."""

    def __init__(self, keeps: dict[int, float]) -> None:
        self._values = {cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV"))}
        self._keeps = keeps

    def set(self, name: int, value: float) -> bool:
        self._values[name] = self._keeps.get(name, value)
        return True

    def get(self, name: int) -> float:
        return self._values.get(name, 0.0)


def test_settings_are_read_back() -> None:
    found = configure(Settings({}), config(fourcc="MJPG", frame_rate=30.0))
    assert found == {"fourcc": "MJPG", "width": 64, "height": 48, "frame_rate": 30.0}
    assert configure(Settings({}), config())["fourcc"] == "YUYV"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (cv2.CAP_PROP_FRAME_WIDTH, 640, "width: 640 found, expected 64"),
        (cv2.CAP_PROP_FPS, 15, "frame_rate: 15 found, expected 30"),
        (cv2.CAP_PROP_FOURCC, float(cv2.VideoWriter.fourcc(*"YUYV")), "fourcc: YUYV found"),
    ],
)
def test_a_setting_that_the_camera_did_not_take(name: int, value: float, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure(Settings({name: value}), config(fourcc="MJPG", frame_rate=30.0))


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels(color: bool, channels: int) -> None:
    shape = (48, 64, 3) if channels == 3 else (48, 64)
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    padded = np.zeros((60, 80, 3 if color else 1), np.uint8)
    out = padded[6:54, 8:72]
    grab_of(5, picture, config(color=color)).write(out)
    if channels == 3:
        code = cv2.COLOR_BGR2RGB if color else cv2.COLOR_BGR2GRAY
        expected = np.asarray(cv2.cvtColor(picture, code)).reshape(out.shape)
    else:
        expected = np.repeat(picture[:, :, None], out.shape[2], axis=2)
    assert np.array_equal(out, expected)


def test_a_picture_of_another_size() -> None:
    grab = grab_of(5, np.zeros((40, 64, 3), np.uint8), config())
    assert (grab.index, grab.fault) == (5, Reason.WRONG_SIZE)
    assert "64 x 40 px found, expected 64 x 48" in grab.detail
