"""Calibration looks where the part lies: zones of a recipe with a fixture move with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.calibration import calibrate
from calibrate.evaluation import Judge
from calibrate.labelled import LabelledImage
from calibrate.on_part import Placer, on_parts
from calibrate.quantised import compare
from calibrate.scores import GoodMap, Scorer, raw_maps
from models.bundle import Bundle, EngineThresholds
from models.runtimes import open_runtime
from models.untrained import textured_frame, untrained_bundle
from pipeline.config import Recipe, Zone
from pipeline.config.fixture import ThresholdFixture
from pipeline.errors import DataError
from pipeline.judge import Engine
from pipeline.judge import Judge as LineJudge
from pipeline.rules import DecisionRule, Thresholds
from pipeline.types import Label

Frame = NDArray[np.uint8]
HW = (120, 160)
ZONE = Zone(name="part", mode="include", polygon=((40, 40), (80, 40), (80, 64), (40, 64)))
FIXTURE = ThresholdFixture(
    kind="threshold", taught_x=59.5, taught_y=51.5, part_min_area_px=300, max_turn_degrees=20.0
)
RECIPE = Recipe(zones=(ZONE,), fixture=FIXTURE)


def shown(dx: int, dy: int, seed: int = 0) -> Frame:
    """A bright part of 40x24 px, so far from where it was taught."""
    frame = textured_frame(*HW, 1, seed=seed) // 8
    frame[40 + dy : 64 + dy, 40 + dx : 80 + dx] += 180
    return frame


def test_zones_move_with_the_part() -> None:
    placer = Placer()
    (matrix,) = placer.matrices(RECIPE, shown(40, 20), "a")
    assert placer.matrices(Recipe(zones=(ZONE,)), shown(40, 20), "a") == ()
    rule = DecisionRule(Thresholds(0.0, 0.1, 1.0, 0.5), RECIPE, HW)
    assert on_parts(rule, (), "a") is rule
    [moved] = on_parts(rule, [matrix], "a").recipe.zones
    assert np.abs(np.array(moved.polygon) - ZONE.polygon - (40, 20)).max() <= 1
    with pytest.raises(DataError, match="b: no part found"):
        placer.matrices(RECIPE, np.zeros((*HW, 1), np.uint8), "b")
    with pytest.raises(DataError, match="c: the part lies where"):
        on_parts(rule, [matrix + np.array([0, 0, 10_000])], "c")


def two_parts() -> Frame:
    frame = shown(-30, -30)
    frame[80:104, 100:140] += 180
    return frame


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({"max_parts": 2}, [True, True]),
        ({"max_parts": 2, "count_zone": (90, 60, 160, 120)}, [False, True]),
        ({"max_parts": 2, "count_zone": (0, 0, 80, 60)}, [True, False]),
    ],
)
def test_the_parts_are_those_that_the_line_inspects(
    changes: dict[str, object], fails: list[bool], tmp_path: Path
) -> None:
    """Not the one that the fixture likes best."""
    recipe = RECIPE.model_copy(update={"fixture": FIXTURE.model_copy(update=changes)})
    engine = Engine("a", "a", "", Thresholds(0.0, 0.1, 1.0, 0.5), None, {})
    frame, found = two_parts(), []
    for cell in ((5, 7), (23, 30)):
        raw_map = np.zeros((30, 40), np.float32)
        raw_map[cell] = 2.0
        good = GoodMap("a", HW, raw_map, matrices=Placer().matrices(recipe, frame, "a"))
        scorer = Scorer(engine.thresholds, recipe)
        found.append(scorer.image_score(good) > 1)
        assert (scorer.inspected(good).max() > 1) == found[-1]
        memory = tmp_path / f"memory-{cell}"
        line = LineJudge("cam", engine, recipe, HW, logging.getLogger(), memory=memory)
        judged = line.judge(frame, raw_map, 1)
        assert judged.decision is not None
        assert (judged.decision.label is Label.FAIL) == found[-1]
    assert found == fails


def test_an_image_that_the_line_would_not_inspect_is_named() -> None:
    nowhere = FIXTURE.model_copy(update={"count_zone": (0, 100, 160, 120)})
    recipe = RECIPE.model_copy(update={"fixture": nowhere})
    with pytest.raises(DataError, match=r"a: no part counts in this frame.*the line would say"):
        Placer().matrices(recipe, two_parts(), "a")


def test_a_map_is_scored_where_its_part_lies() -> None:
    scorer = Scorer(Thresholds(0.0, 0.1, 1.0, 0.5), RECIPE)
    raw_map = np.zeros((30, 40), np.float32)
    raw_map[20, 28] = 2.0  # pixel (112, 80)
    matrices = Placer().matrices(RECIPE, shown(40, 20), "a")
    assert scorer.image_score(GoodMap("a", HW, raw_map)) == 0
    assert scorer.image_score(GoodMap("a", HW, raw_map, matrices=matrices)) == pytest.approx(2.0)
    assert scorer.image_score(GoodMap("a", HW, raw_map)) == 0


def test_calibrated_and_judged_with_a_fixture(tmp_path: Path) -> None:
    images = [shown(8 * (k % 5), 4 * (k % 3), seed=k) for k in range(12)]
    plain = untrained_bundle(tmp_path / "plain")
    path = calibrate(plain, images, runtimes=["torch"], recipe=RECIPE, out_dir=tmp_path)
    bundle = Bundle.load(path)
    runtime = open_runtime(bundle, "torch", "f32")
    try:
        assert all(len(found.matrices) == 1 for found in raw_maps(runtime, images, 1, RECIPE))
        cv2.imwrite(str(tmp_path / "one.png"), images[3])
        judge = Judge(bundle, runtime, {"": RECIPE}, least_iou=0.33)
        [seen] = judge.judge([LabelledImage(tmp_path / "one.png", False)])
    finally:
        runtime.close()
    assert not seen.judged.failed
    assert not np.allclose(seen.matrices[0], np.eye(2, 3))
    with pytest.raises(DataError, match="still_px found with a recipe that has a fixture"):
        calibrate(plain, images, runtimes=["torch"], recipe=RECIPE, out_dir=tmp_path, still_px=8)


def test_int8_is_compared_where_the_part_lies(tmp_path: Path) -> None:
    """A defect is drawn on the part, and scored there, wherever the image shows it."""
    bundle = Bundle.load(untrained_bundle(tmp_path))
    images = [shown(16 * (k % 5), 8 * (k % 5), seed=k) for k in range(10)]
    known = bundle.calibration
    asked: list[Sequence[GoodMap]] = []

    def choose(maps: Sequence[GoodMap]) -> EngineThresholds:
        asked.append(maps)
        scorer = Scorer(Thresholds(known.q_a, known.q_b, 1.0, 0.5), RECIPE)
        highest = max(float(scorer.inspected(found).max()) for found in maps)
        return EngineThresholds(1.01 * highest, highest, len(maps), 0, 0.1, 0.95, "for a test")

    runtime = open_runtime(bundle, "torch", "f32", calibrating=True)
    try:
        cost = compare(runtime, runtime, images, bundle=bundle, recipes=RECIPE, choose=choose)
        blank = [*images, np.zeros((*HW, 1), np.uint8)]
        with pytest.raises(DataError, match="good image 10: no part found"):
            compare(runtime, runtime, blank, bundle=bundle, recipes=RECIPE, choose=choose)
    finally:
        runtime.close()
    assert (cost.verdicts, cost.flips, cost.refused) == (20, 0, False)
    assert cost.near >= 5
    places = [found.matrices[0][:, 2].round().tolist() for found in asked[0]]
    assert places == [[16 * (k % 5), 8 * (k % 5)] for k in range(10)]
