"""Preparation before a camera is there: the ring's size, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preparations import field, lens

from pipeline.config import CameraConfig, SyntheticSource, VideoSource
from pipeline.config.prepare import PreparationConfig, WindowConfig
from pipeline.config.sources import RecordedSource
from pipeline.errors import ConfigError
from pipeline.prepare.preparation import Preparation, prepared_shape
from pipeline.sources.base import FrameFormat


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
@pytest.mark.parametrize("roi", [None, (3, 2, 40, 39)])
@pytest.mark.parametrize("color", [False, True])
def test_the_ring_can_be_sized_before_a_camera_is_there(
    rotate: Any, roi: tuple[int, int, int, int] | None, color: bool
) -> None:
    config = PreparationConfig(rotate=rotate, roi_xyxy=roi)
    camera = CameraConfig(source=SyntheticSource(kind="synthetic"), prepare=config)
    shape = prepared_shape(camera, (44, 55, 3 if color else 1))
    source = FrameFormat(44, 55, 1, bits=12, bayer="GB")
    assert shape == Preparation(config, source, color).shape_hwc


@pytest.mark.parametrize(
    ("window", "bits"), [(WindowConfig(white=256), 8), (WindowConfig(black=1023), 10)]
)
def test_a_window_outside_of_the_sources_values(window: WindowConfig, bits: int) -> None:
    with pytest.raises(ConfigError, match=r"prepare.window: black \d+ and white \d+ found"):
        Preparation(PreparationConfig(window=window), FrameFormat(40, 50, bits=bits), False)


@pytest.mark.parametrize(
    ("roi", "text"),
    [
        ((0, 0, 51, 40), r"prepare.roi_xyxy: \[0, 0, 51, 40\] found, .* inside .* 50 x 40 px"),
        ((0, 0, 50, 41), "inside of the source's 50 x 40 px"),
        ((0, 0, 32, 40), "a frame of 32 x 40 px found, expected at least 33 px"),
        ((0, 8, 50, 40), "a frame of 50 x 32 px found, expected at least 33 px"),
    ],
)
def test_regions_that_the_source_does_not_have(roi: Any, text: str) -> None:
    config = PreparationConfig(roi_xyxy=roi)
    with pytest.raises(ConfigError, match=text):
        Preparation(config, FrameFormat(40, 50), False)
    camera = CameraConfig(source=SyntheticSource(kind="synthetic"), prepare=config)
    with pytest.raises(ConfigError, match=text):
        prepared_shape(camera, (40, 50, 1))


@pytest.mark.parametrize(
    "source",
    [
        FrameFormat(40, 51, bits=12),
        FrameFormat(40, 50, bits=10),
        FrameFormat(40, 50, bits=12, bayer="RG"),
        FrameFormat(40, 50, 3, bits=12),
        FrameFormat(40, 50),
    ],
    ids=str,
)
def test_a_flat_field_of_another_format(source: FrameFormat, tmp_path: Path) -> None:
    path = tmp_path / "flat.npz"
    field(FrameFormat(40, 50, bits=12), path)
    with pytest.raises(
        ConfigError, match=r"prepare\.flatfield: made of frames of 50 x 40 px, grey"
    ):
        Preparation(PreparationConfig(flatfield=str(path)), source, False)


def test_files_of_another_size_are_refused_before_the_camera_is_there(tmp_path: Path) -> None:
    field(FrameFormat(40, 50, bits=12), tmp_path / "flat.npz")
    lens(tmp_path / "lens.json", 50, 40)
    source = SyntheticSource(kind="synthetic")
    for name, key in (("flat.npz", "flatfield"), ("lens.json", "lens")):
        prepare = PreparationConfig.model_validate({key: str(tmp_path / name)})
        camera = CameraConfig(source=source, prepare=prepare)
        assert prepared_shape(camera, (40, 50, 1)) == (40, 50, 1)
        with pytest.raises(ConfigError, match=f"prepare.{key}: made of frames of 50 x 40 px"):
            prepared_shape(camera, (50, 40, 1))


def test_recorded_frames_are_not_prepared_twice() -> None:
    source = RecordedSource(kind="recording", path="line.mkv")
    assert CameraConfig(source=source).prepare == PreparationConfig()
    with pytest.raises(ValueError, match="its frames were prepared before they were recorded"):
        CameraConfig(source=source, prepare=PreparationConfig(rotate=90))


def test_a_web_keeps_its_lines() -> None:
    source = VideoSource(kind="video", path="web.mkv")
    for extra in ({"rotate": 90}, {"lens": "lens.json"}):
        with pytest.raises(ValueError, match="a web's lines stay"):
            CameraConfig(
                source=source, continuous=True, prepare=PreparationConfig.model_validate(extra)
            )
    sides = PreparationConfig(roi_xyxy=(10, 0, 100, 64))
    camera = CameraConfig(source=source, continuous=True, prepare=sides)
    assert prepared_shape(camera, (64, 200, 1)) == (64, 90, 1)
    with pytest.raises(ConfigError, match="expected all 128 lines of a block"):
        prepared_shape(camera, (128, 200, 1))
