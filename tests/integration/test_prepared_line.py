"""A whole line whose frames are prepared: the engine sees what preparation made of each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lines import leftovers, line_config, run_line

from pipeline.config import CameraConfig, LineConfig
from pipeline.config.prepare import PreparationConfig
from pipeline.config.sources import FolderSource
from pipeline.errors import ConfigError
from pipeline.prepare.flatfield import FlatField
from pipeline.sources.base import FrameFormat
from pipeline.sources.stamp import write_stamp

FRAMES = 6


def prepared_line(tmp_path: Path, prepare: PreparationConfig) -> LineConfig:
    config = line_config(tmp_path, cameras=1, frames=1)
    camera = CameraConfig(
        source=FolderSource(kind="folder", path=str(tmp_path / "raw")),
        prepare=prepare,
        on_full="wait",
        deadline_ms=None,
    )
    return config.model_copy(update={"cameras": {"cam0": camera}})


def write_raw(folder: Path, rotate: int) -> None:
    """Images in which a stamped frame of 300 x 200 px lies turned, dark and uneven, at (40, 30)."""
    folder.mkdir()
    for number in range(FRAMES):
        inner = np.full((200, 300), 90, np.uint8)
        write_stamp(inner, number)
        turned = np.rot90(inner, rotate // 90)
        raw = np.random.default_rng(number).integers(0, 256, (400, 400), dtype=np.uint8)
        raw[30 : 30 + turned.shape[0], 40 : 40 + turned.shape[1]] = turned
        cv2.imwrite(str(folder / f"{number}.png"), raw)


@pytest.mark.parametrize("rotate", [0, 90, 180, 270])
def test_every_id_is_read_in_the_prepared_frame(tmp_path: Path, rotate: Any) -> None:
    """The stamp is in the corner only of what is cut out and turned upright."""
    write_raw(tmp_path / "raw", rotate)
    width, height = (200, 300) if rotate in (90, 270) else (300, 200)
    even = FrameFormat(400, 400)
    path = tmp_path / "flat.npz"
    gain = np.full(even.shape_hwc, 0.9, np.float32)
    FlatField(even, np.full(even.shape_hwc, 3, np.uint8), gain, "today", 4, 4).save(path)
    prepare = PreparationConfig(
        roi_xyxy=(40, 30, 40 + width, 30 + height), rotate=rotate, flatfield=str(path)
    )
    config = prepared_line(tmp_path, prepare)
    verdicts = run_line(config)
    assert [verdict.raw_peak for verdict in verdicts] == list(range(FRAMES))
    assert not leftovers(config)


def test_a_line_does_not_start_with_a_region_that_is_not_there(tmp_path: Path) -> None:
    write_raw(tmp_path / "raw", 0)
    config = prepared_line(tmp_path, PreparationConfig(roi_xyxy=(0, 0, 500, 100)))
    with pytest.raises(
        ConfigError, match=r"prepare\.roi_xyxy: .* inside of the source's 400 x 400"
    ):
        run_line(config)
    assert not leftovers(config)
