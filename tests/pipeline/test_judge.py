"""What decision makes of a frame where fixture, rule and optics guard meet."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.config.fixture import ThresholdFixture
from pipeline.config.optics import OpticsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.judge import Engine, Judge, Judgement
from pipeline.optics.measure import learn, measure
from pipeline.rules import Thresholds
from pipeline.types import Reason, map_hw

Frame = NDArray[np.uint8]
HW = (120, 320)
TRAVEL = 110
LOG = logging.getLogger("test")


def belt(x: float | None, seed: int = 0) -> Frame:
    """A part of 40x30 px there on a dark belt, or none."""
    frame = np.random.default_rng(seed).normal(20, 2, HW)
    if x is not None:
        left, pattern = round(x) - 20, np.full((30, 40), 160.0)
        pattern[8:14, 10:30] = 90
        a, b = max(0, left), min(HW[1], left + 40)
        if a < b:
            frame[45:75, a:b] = pattern[:, a - left : b - left]
    return np.clip(cv2.GaussianBlur(frame, (3, 3), 0), 0, 255).astype(np.uint8)[..., None]


def fixture(**changes: Any) -> ThresholdFixture:
    plain = {"kind": "threshold", "taught_x": 160.0, "taught_y": 60.0, "part_min_area_px": 300}
    zone = {"count_zone": (90, 0, 230, 120), "travel_px": (float(TRAVEL), 0.0)}
    return ThresholdFixture.model_validate({**plain, **zone, "angle_by": "none", **changes})


def engine(**optics: Any) -> Engine:
    return Engine("e", "any/f32", "b", Thresholds(0.0, 0.1, 0.5, 0.4), None, optics)


def usual() -> dict[str, Any]:
    """Limits of a camera whose good images show a part each, wherever it is."""
    return learn([measure(belt(30 + 13 * k, seed=k)) for k in range(20)]).plain()


def judge_of(recipe: Recipe, memory: Path = Path("/dev/null/none"), **optics: Any) -> Judge:
    return Judge("cam", engine(**optics), recipe, HW, LOG, memory=memory)


def nothing() -> NDArray[np.float32]:
    return np.zeros(map_hw(*HW), np.float32)


def travelled(judge: Judge, frames: int, change: float = 1.0, begin: int = 0) -> list[Judgement]:
    """A part in every fourth frame or so, and an empty belt between."""
    found = []
    for k in range(begin, begin + frames):
        x = 40.0 + TRAVEL * (k % 6)
        frame = belt(x if x < 340 else None, seed=1000 + k)
        found.append(judge.judge(np.asarray(frame * change, np.uint8), nothing(), k + 1))
    return found


def test_an_empty_belt_is_no_matter_of_the_optics() -> None:
    """Calibration has seen no picture without a part, and half of the belt's are."""
    judge = judge_of(Recipe(fixture=fixture()), **{"": usual()})
    found = travelled(judge, 120)
    assert {each.reason for each in found} == {Reason.OK, Reason.NO_PART}
    assert sum(each.expected for each in found) == 20


def test_pictures_of_parts_under_a_dying_lamp_are() -> None:
    judge = judge_of(Recipe(fixture=fixture()), **{"": usual()})
    found = travelled(judge, 120, change=0.6)
    late = [each for each in found[60:] if each.expected]
    assert len(late) == 10
    assert {each.reason for each in late} == {Reason.OPTICS}
    assert all(each.detail and each.decision is None for each in late)
    # An empty belt has no part's verdict then either.
    assert {each.reason for each in found[60:] if not each.expected} <= {
        Reason.NO_PART,
        Reason.OPTICS,
    }


def test_a_decision_that_was_killed_goes_on_with_what_it_saw(tmp_path: Path) -> None:
    """No frame passes under the dying lamp, however often a new judge begins."""
    found, memory = [], tmp_path / "cam.judge.json"
    for begin in range(0, 120, 10):
        judge = judge_of(Recipe(fixture=fixture()), memory, **{"": usual()})
        found += travelled(judge, 10, 0.6, begin)
        judge.remember()
    late = [each for each in found[60:] if each.expected]
    assert len(late) == 10
    assert {each.reason for each in late} == {Reason.OPTICS}


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_killed_decision_counts_no_part_twice(tmp_path: Path, step: int) -> None:
    """The zone is so wide that a part is seen in it more than once."""
    wide = Recipe(fixture=fixture(count_zone=(10, 0, 310, 120)))
    found, memory = [], tmp_path / "cam.judge.json"
    for begin in range(0, 60, step):
        judge = judge_of(wide, memory)
        found += travelled(judge, min(step, 60 - begin), begin=begin)
        judge.remember()
    assert sum(each.expected for each in found) == 10


def test_a_picture_that_is_gone_is_none_of_a_part() -> None:
    judge = judge_of(
        Recipe(fixture=fixture(count_zone=None, travel_px=(0.0, 0.0))), **{"": usual()}
    )
    for number, wanted in enumerate([Reason.OK, Reason.NO_PART, Reason.OK], 1):
        frame = belt(160) if wanted is Reason.OK else np.zeros((*HW, 1), np.uint8)
        judgement = judge.judge(frame, nothing(), number)
        assert (judgement.reason, judgement.expected) == (wanted, True)


@pytest.mark.parametrize(
    ("optics", "watch", "reason"),
    [
        ({"": None}, "invalid", Reason.OPTICS),
        ({"cam": None}, "invalid", Reason.OPTICS),
        ({"other": None}, "invalid", Reason.OK),
        ({}, "invalid", Reason.OK),
        ({"": None}, "warn", Reason.OK),
        ({"": None}, "off", Reason.OK),
    ],
)
def test_whose_limits_and_what_they_do(optics: dict[str, Any], watch: str, reason: Reason) -> None:
    recipe = Recipe(optics=OpticsConfig.model_validate({"watch": watch}))
    judge = judge_of(recipe, **{camera: usual() for camera in optics})
    assert judge.judge(belt(100, seed=7), nothing(), 1).reason is Reason.OK
    assert judge.judge(np.zeros((*HW, 1), np.uint8), nothing(), 2).reason is reason


def test_a_map_that_is_none_and_damaged_limits_are_refused() -> None:
    judge = judge_of(Recipe(), **{"": usual()})
    with pytest.raises(DataError, match="NaN"):
        judge.judge(belt(100), np.full(map_hw(*HW), np.nan, np.float32), 1)
    with pytest.raises(ConfigError, match="damaged"):
        judge_of(Recipe(), **{"": usual() | {"px": "x"}})


def test_an_engines_file_with_and_without_optics(tmp_path: Path) -> None:
    plain: dict[str, Any] = {
        "engine_id": "torch/f32/cpu",
        "bundle_sha256": "b",
        "thresholds": {
            "q_a": 0.0,
            "q_b": 0.1,
            "image_threshold": 0.5,
            "pixel_threshold": 0.4,
        },
        "tolerance": None,
    }
    path = tmp_path / "engine.json"
    for more in ({}, {"engine": "torch/f32", "optics": {"": usual()}}):
        path.write_text(json.dumps(plain | more))
        found = Engine.read(path)
        assert (found.engine, dict(found.optics)) == (
            more.get("engine", ""),
            more.get("optics", {}),
        )
