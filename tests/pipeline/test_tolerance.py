"""A tolerance for each place: what the rule makes of it, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.config import Recipe, Zone
from pipeline.errors import ConfigError
from pipeline.rules import DecisionRule, Thresholds
from pipeline.tolerance import Tolerance, from_text, to_text
from pipeline.types import Label

HW = (40, 60)
PLAIN = Thresholds(q_a=0.2, q_b=0.3, image_threshold=0.5, pixel_threshold=0.5)
EVERYWHERE: Tolerance = np.full((10, 15), 255, np.uint8)


def raw(cell: tuple[int, int], score: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    found = np.full((10, 15), 0.2, np.float32)
    found[cell] += np.float32(score)  # with these quantiles a score is a raw value less q_a
    return found


def test_less_is_enough_where_less_is_tolerated() -> None:
    tolerance = EVERYWHERE.copy()
    tolerance[:, 10:] = 51  # a fifth
    rule = DecisionRule(PLAIN, Recipe(), HW, tolerance)
    assert rule.decide(raw((4, 4), 0.4)).label is Label.PASS
    strict = rule.decide(raw((4, 12), 0.4))
    assert strict.label is Label.FAIL
    assert strict.image_score == pytest.approx(2.0)
    assert strict.raw_peak == pytest.approx(0.2 + 2.0)
    assert rule.decide(raw((4, 12), 0.09)).label is Label.PASS
    assert rule.scores(raw((4, 12), 0.4))[4, 12] == pytest.approx(2.0)


def test_full_tolerance_is_no_tolerance() -> None:
    found = raw((3, 3), 0.7)
    with_it = DecisionRule(PLAIN, Recipe(), HW, EVERYWHERE).decide(found)
    without = DecisionRule(PLAIN, Recipe(), HW).decide(found)
    assert with_it.image_score == pytest.approx(without.image_score)
    assert with_it.defects[0].box_xyxy == without.defects[0].box_xyxy


def test_zones_count_beside_it() -> None:
    zone = Zone(
        name="rim",
        mode="include",
        polygon=((0, 0), (60, 0), (60, 20), (0, 20)),
        threshold_factor=2.0,
    )
    tolerance = np.full((10, 15), 51, np.uint8)
    rule = DecisionRule(PLAIN, Recipe(zones=(zone,)), HW, tolerance)
    assert rule.decide(raw((2, 2), 0.4)).image_score == pytest.approx(1.0)
    assert rule.decide(raw((9, 2), 9.0)).label is Label.PASS


def test_another_tolerance_is_another_revision() -> None:
    other = EVERYWHERE.copy()
    other[0, 0] = 254
    revisions = {
        DecisionRule(PLAIN, Recipe(), HW, tolerance).revision
        for tolerance in (None, EVERYWHERE, other)
    }
    assert len(revisions) == 3


@pytest.mark.parametrize("shape", [(10, 16), (1, 1)])
def test_of_another_frame_size(shape: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="expected 15x10 for frames of 60x40"):
        DecisionRule(PLAIN, Recipe(), HW, np.full(shape, 255, np.uint8))


def test_zero_would_never_fail_or_always() -> None:
    tolerance = EVERYWHERE.copy()
    tolerance[5, 5] = 0
    with pytest.raises(ConfigError, match="tolerance"):
        DecisionRule(PLAIN, Recipe(), HW, tolerance)


def test_travels_as_json() -> None:
    tolerance = np.arange(1, 151, dtype=np.uint8).reshape(10, 15)
    found = from_text(json.loads(json.dumps(to_text(tolerance))))
    assert found is not None
    assert np.array_equal(found, tolerance)
    assert from_text(json.loads(json.dumps(to_text(None)))) is None
