"""Zones, and what the rule refuses because it would let every frame pass."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rule_cases import HW, Points, raw, recipe, rectangle, rule, zone

from pipeline.errors import ConfigError, DataError
from pipeline.rules import DecisionRule, Thresholds, zone_factors
from pipeline.types import Label, map_hw


def inside(point: tuple[int, int], polygon: Points) -> bool:
    """Even-odd, the edge inside."""
    x, y = point
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if y0 == y1 == y and min(x0, x1) <= x <= max(x0, x1):
            return True
        if y0 != y1 and min(y0, y1) <= y <= max(y0, y1):
            at = x0 + Fraction((x1 - x0) * (y - y0), y1 - y0)
            if at == x:
                return True
            if at > x and y < max(y0, y1):
                odd = not odd
    return odd


coordinates = st.one_of(st.integers(-20, 100), st.sampled_from([-65536, 65536, 0, 79, 63]))


@settings(deadline=None, max_examples=150, derandomize=True)
@given(corners=st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=6))
@example(corners=[(22, 51), (58, 59), (-98, -23), (21, 82)])
@example(corners=[(0, 0), (79, 63), (79, 0), (0, 63)])  # a bow
def test_a_cell_is_in_a_zone_when_its_centre_is(corners: Points) -> None:
    """Wherever the zone reaches: cells at the border it crosses are inspected or not as others."""
    try:
        made = recipe(zones=[zone(corners)])
    except ValueError:
        return  # without an area
    factors = zone_factors(made, HW)
    for i, j in itertools.product(range(factors.shape[0]), range(factors.shape[1])):
        assert (factors[i, j] == 0) == inside((4 * j, 4 * i), corners)


def test_the_edge_of_a_zone_belongs_to_it() -> None:
    factors = zone_factors(recipe(zones=[zone(rectangle(8, 12, 16, 20))]), HW)
    assert (factors == 0).sum() == 9
    assert (factors[3:6, 2:5] == 0).all()
    factors = zone_factors(recipe(zones=[zone(rectangle(9, 13, 15, 19))]), HW)
    assert (factors == 0).sum() == 1


def test_excluded_defects_do_not_count() -> None:
    zones = [zone(rectangle(0, 0, 39, 63))]
    decision = rule(zones=zones).decide(raw(r3c5=9))
    assert (decision.label, decision.defects, decision.raw_peak) == (Label.PASS, (), 0.0)
    decision = rule(zones=zones).decide(raw(r3c5=9, r3c12=0.6))
    assert decision.label is Label.FAIL
    assert decision.raw_peak == pytest.approx(0.6)
    assert decision.image_score == pytest.approx(0.6)


def test_only_what_is_included_counts() -> None:
    zones = [zone(rectangle(40, 0, 79, 63), "include")]
    assert rule(zones=zones).decide(raw(r3c5=9)).label is Label.PASS
    assert rule(zones=zones).decide(raw(r3c12=9)).label is Label.FAIL


@pytest.mark.parametrize(
    ("value", "label"), [(0.99, Label.PASS), (1.0, Label.FAIL), (1.2, Label.FAIL)]
)
def test_a_factor_raises_the_threshold(value: float, label: Label) -> None:
    zones = [zone(rectangle(0, 0, 79, 63), "include"), zone(rectangle(0, 0, 39, 63), "include", 2)]
    decision = rule(zones=zones).decide(raw(r3c5=value))
    assert decision.label is label
    assert decision.image_score == (pytest.approx(value / 2) if label is Label.FAIL else 0)
    assert rule(zones=zones).decide(raw(r3c12=0.5)).label is Label.FAIL


def test_later_zones_win() -> None:
    whole, left = rectangle(0, 0, 79, 63), rectangle(0, 0, 39, 63)
    assert rule(zones=[zone(whole, "include"), zone(left)]).factors[3, 5] == 0
    assert rule(zones=[zone(left), zone(whole, "include", 3)]).factors[3, 5] == 3


def test_zones_outside_the_frame_change_nothing() -> None:
    zones = [zone(rectangle(-500, -500, -1, -1)), zone(rectangle(80, 0, 65536, 65536))]
    assert (zone_factors(recipe(zones=zones), HW) == 1).all()


@pytest.mark.parametrize("hw", [(64, 80), (63, 77), (33, 34)])
@pytest.mark.parametrize("edge_px", [0, 1, 4, 10, 16])
def test_along_the_sides_nothing_is_inspected(hw: tuple[int, int], edge_px: int) -> None:
    factors = zone_factors(recipe(edge_px=edge_px), hw)
    for i, j in itertools.product(range(factors.shape[0]), range(factors.shape[1])):
        within = (edge_px <= 4 * i < hw[0] - edge_px) and (edge_px <= 4 * j < hw[1] - edge_px)
        assert (factors[i, j] > 0) == within


def test_the_sides_are_left_out_of_zones_too() -> None:
    made = rule(edge_px=8, zones=[zone(rectangle(0, 0, 39, 63), "include", 3)])
    assert made.factors[3, 5] == 3
    assert not made.factors[:, :2].any()
    assert not made.factors[:, 10:].any()
    assert made.decide(raw(r0c5=9)).label is Label.PASS
    assert made.decide(raw(r3c5=9)).label is Label.FAIL


# What would let every frame pass is refused


def passes_anything(made: DecisionRule) -> bool:
    """Whether a map of the highest values there are is called good."""
    try:
        return made.decide(np.full(map_hw(*HW), 3.4e38, np.float32)).label is not Label.FAIL
    except DataError:
        return False


@pytest.mark.parametrize(
    "zones",
    [
        [zone(rectangle(0, 0, 79, 63))],
        [zone(rectangle(-100, -100, 500, 500))],
        [zone(rectangle(100, 100, 200, 200), "include")],
        [zone(rectangle(0, 0, 79, 63), "include"), zone(rectangle(0, 0, 79, 63))],
        [zone(rectangle(1, 1, 3, 3), "include")],  # between the centres of the cells
    ],
)
def test_nothing_left_to_inspect(zones: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="leave nothing to inspect"):
        rule(zones=zones)


def test_sides_that_leave_nothing() -> None:
    with pytest.raises(ConfigError, match="edge_px 32 of the recipe leave nothing to inspect"):
        rule(edge_px=32)
    assert rule(edge_px=31).decide(raw(r8c10=9)).label is Label.FAIL


@pytest.mark.parametrize(
    ("q_a", "q_b"),
    [
        (0.1, 0.1),
        (0.2, 0.1),
        (np.nan, 0.1),
        (0.0, np.nan),
        (0.0, np.inf),
        (-np.inf, 0.0),
        (-1e308, 1e308),
        (0.0, 1e50),  # no float32 map could get there
        (1e39, 1e40),
        (0.0, 1e-320),
        (1e9, 1e9 + 1e-3),  # one float32 has both
    ],
)
def test_quantiles_that_cannot_normalise(q_a: float, q_b: float) -> None:
    with pytest.raises(ConfigError, match="cannot normalise"):
        rule(Thresholds(q_a, q_b, 0.5, 0.5))


@pytest.mark.parametrize("value", [0.0, -0.5, np.nan, np.inf, 1e39])
@pytest.mark.parametrize("which", ["image_threshold", "pixel_threshold"])
def test_thresholds_that_fail_nothing_or_everything(which: str, value: float) -> None:
    values = {"image_threshold": 0.5, "pixel_threshold": 0.5, which: value}
    with pytest.raises(ConfigError, match=f"{which} .* found.*calibrate the bundle"):
        rule(Thresholds(0.0, 0.1, **values))
    if value == 1e39:
        with pytest.raises(ConfigError):
            rule(**{which: value})


@pytest.mark.parametrize("factor", [1e-46, 1e-300, 1e39, 1e300])
def test_factors_that_no_map_can_hold(factor: float) -> None:
    """In float32 they would be 0, which is "not inspected", or infinity."""
    with pytest.raises(ConfigError, match="threshold_factor"):
        rule(zones=[zone(rectangle(0, 0, 79, 63), "include", factor)])


any_number = st.one_of(
    st.floats(),
    st.builds(lambda digits, e: digits * 10.0**e, st.floats(1, 10), st.integers(-60, 60)),
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    q_a=st.one_of(st.just(0.0), any_number),
    q_b=any_number,
    image_threshold=any_number,
    pixel_threshold=any_number,
    factor=any_number.filter(lambda x: 0 < x < np.inf),
)
def test_no_rule_lets_everything_pass(
    q_a: float, q_b: float, image_threshold: float, pixel_threshold: float, factor: float
) -> None:
    bundle = Thresholds(q_a, q_b, image_threshold, pixel_threshold)
    for zones in ([], [zone(rectangle(0, 0, 79, 63), "include", factor)]):
        try:
            made = rule(bundle, zones=zones)
        except ConfigError:
            continue
        assert not passes_anything(made)
