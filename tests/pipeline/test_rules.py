"""The decision rule: against its own five steps written out, and case by case."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rule_cases import HW, raw, recipe, rectangle, rule, zone

from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.rules import DecisionRule, Thresholds, part_label, zone_factors
from pipeline.types import Label, Reason, map_hw


def test_an_empty_map_passes() -> None:
    decision = rule().decide(raw())
    assert (decision.label, decision.image_score, decision.defects) == (Label.PASS, 0.0, ())
    assert decision.raw_peak == 0.0
    assert decision.image_threshold == 0.5


def test_a_map_that_is_over_everywhere_is_one_defect() -> None:
    decision = rule().decide(np.full(map_hw(*HW), 3, np.float32))
    assert decision.label is Label.FAIL
    assert decision.defects[0].box_xyxy == (0, 0, 78, 62)
    assert decision.defects[0].area_px == 16 * 20 * 16


@pytest.mark.parametrize(
    ("moved_px", "inspected"), [(0, True), (4, True), (20, False), (60, False), (999, False)]
)
def test_a_part_that_is_not_whole_in_the_frame_is_not_inspected(
    moved_px: int, inspected: bool
) -> None:
    """A zone's rest at the frame's edge must not pass for the whole."""
    still = rule(zones=[zone(rectangle(36, 10, 75, 60), "include")])
    matrix = np.array([[1.0, 0, moved_px], [0, 1.0, 0]])
    assert (still.at(matrix) is not None) == inspected


def test_negative_maps_pass() -> None:
    decision = rule().decide(np.full(map_hw(*HW), -7, np.float32))
    assert decision.label is Label.PASS
    assert decision.raw_peak == -7


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.5, Label.FAIL),
        (np.nextafter(np.float32(0.5), np.float32(0)), Label.PASS),
        (np.nextafter(np.float32(0.5), np.float32(1)), Label.FAIL),
        (3e38, Label.FAIL),
    ],
)
def test_the_threshold_itself_fails(value: float, label: Label) -> None:
    decision = rule().decide(raw(r3c5=value))
    assert decision.label is label
    assert decision.image_score == (pytest.approx(value) if label is Label.FAIL else 0)


def test_a_defect_under_the_image_threshold_passes_and_is_shown() -> None:
    decision = rule(image_threshold=0.9).decide(raw(r3c5=0.7))
    assert decision.label is Label.PASS
    assert decision.image_score == pytest.approx(0.7)
    assert [d.box_xyxy for d in decision.defects] == [(18, 10, 22, 14)]


def test_what_is_too_small_does_not_fail_the_frame() -> None:
    decision = rule(min_area_px=32).decide(raw(r3c5=9, r8c8=0.6, r8c9=0.7))
    assert decision.label is Label.FAIL
    assert decision.image_score == pytest.approx(0.7)
    assert decision.raw_peak == 9
    assert [d.area_px for d in decision.defects] == [32]
    assert rule(min_area_px=48).decide(raw(r3c5=9, r8c8=0.6, r8c9=0.7)).label is Label.PASS


def test_more_defects_than_boxes() -> None:
    values = {f"r{r}c{c}": 1.0 + r + c / 20 for r in (1, 5, 9) for c in (1, 6, 11, 16)}
    decision = rule(max_boxes=5, merge_px=0).decide(raw(**values))
    assert len(decision.defects) == 5
    assert decision.image_score == decision.defects[0].peak_score == pytest.approx(10.8)
    peaks = [d.peak_score for d in decision.defects]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("cell", [(0, 0), (7, 9), (15, 19)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("zones", [[], [zone(rectangle(0, 0, 79, 40))]])
def test_what_is_not_finite_is_never_judged(
    cell: tuple[int, int], value: float, zones: list[dict[str, Any]]
) -> None:
    """Not even where nothing is inspected: the engine is broken."""
    for others in (0.0, 9.0):
        bad = np.full(map_hw(*HW), others, np.float32)
        bad[cell] = value
        with pytest.raises(DataError, match="NaN or infinity"):
            rule(zones=zones).decide(bad)


def test_scores_that_overflow_are_never_judged() -> None:
    """A finite map, and yet no number to compare: no box, no message can be made of it."""
    with pytest.raises(DataError, match="overflow"):
        rule(Thresholds(0.0, 1e-3, 0.5, 0.5), box_fraction=0.0).decide(raw(r3c5=3.4e38))


@pytest.mark.parametrize("shape", [(20, 16), (16, 21), (15, 20), (0, 0), (64, 80), (320,)])
def test_a_map_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="compiled for another size"):
        rule().decide(np.zeros(shape, np.float32))


def reference(
    raw_map: NDArray[np.float32], bundle: Thresholds, made: Recipe, factors: NDArray[np.float32]
) -> tuple[bool, float]:
    """Steps 1 to 5 of the module's docstring, cell by cell, without boxes."""
    a, b = bundle.q_a, bundle.q_b
    pixel = made.pixel_threshold or bundle.pixel_threshold
    image = made.image_threshold or bundle.image_threshold
    left: dict[tuple[int, int], float] = {}
    for cell in itertools.product(*map(range, raw_map.shape)):
        if factors[cell] > 0:
            score = 0.1 * (float(raw_map[cell]) - a) / (b - a) / float(factors[cell])
            if score >= pixel:
                left[cell] = score
    best = 0.0
    while left:
        cells = [left.popitem()]
        for (i, j), _ in cells:
            near = [c for c in left if max(abs(c[0] - i), abs(c[1] - j)) - 1 <= made.merge_px // 4]
            cells += [(c, left.pop(c)) for c in near]
        if len(cells) * 16 >= made.min_area_px:
            best = max(best, *(score for _, score in cells), best)
    return best >= image, best


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    cells=st.lists(
        st.tuples(st.integers(0, 8), st.integers(0, 9), st.integers(-5, 40)), max_size=30
    ),
    quantiles=st.sampled_from([(0.0, 0.1), (-1.5, 2.0), (3.0, 3.5), (0.25, 8.0)]),
    image_threshold=st.sampled_from([0.0501, 0.1001, 0.3003, 1.0007]),
    pixel_threshold=st.sampled_from([0.0502, 0.1003, 0.7001]),
    min_area_px=st.sampled_from([0, 16, 32, 64]),
    merge_px=st.sampled_from([0, 4, 8]),
    zones=st.lists(
        st.sampled_from(
            [
                zone(rectangle(0, 0, 20, 30)),
                zone(rectangle(10, 10, 30, 30), "include", 2.0),
                zone(rectangle(8, 0, 36, 20), "include", 0.5),
                zone([(0, 0), (38, 0), (0, 34)], "include", 1.0),
            ]
        ),
        max_size=3,
    ),
)
def test_equals_the_steps_written_out(
    *,
    cells: list[tuple[int, int, int]],
    quantiles: tuple[float, float],
    image_threshold: float,
    pixel_threshold: float,
    min_area_px: int,
    merge_px: int,
    zones: list[dict[str, Any]],
) -> None:
    hw = (35, 38)
    raw_map = np.full(map_hw(*hw), quantiles[0], np.float32)
    for row, column, tenths in cells:
        raw_map[row, column] = quantiles[0] + (quantiles[1] - quantiles[0]) * tenths / 2
    bundle = Thresholds(*quantiles, image_threshold=99.0, pixel_threshold=98.0)
    made = recipe(
        image_threshold=image_threshold,
        pixel_threshold=pixel_threshold,
        min_area_px=min_area_px,
        merge_px=merge_px,
        zones=zones,
    )
    rule = DecisionRule(bundle, made, hw)
    decision = rule.decide(raw_map)
    failed, score = reference(raw_map, bundle, made, zone_factors(made, hw))
    assert (decision.label is Label.FAIL) == failed
    assert decision.image_score == pytest.approx(score, rel=1e-5)
    assert (decision.label is Label.FAIL) == (decision.image_score >= decision.image_threshold)
    assert decision.raw_peak == raw_map[zone_factors(made, hw) > 0].max()
    # What `explain` shows is what was judged.
    shown = rule.scores(raw_map)
    if decision.image_score:
        assert np.isclose(shown, decision.image_score, rtol=1e-5).any()
    assert shown.dtype == np.float32
    assert shown.shape == raw_map.shape


def test_the_revision_names_what_was_decided_with() -> None:
    revisions = {
        rule().revision,
        rule(min_area_px=1).revision,
        rule(zones=[zone(rectangle(0, 0, 9, 9))]).revision,
        rule(Thresholds(0.0, 0.1, 0.5, 0.4)).revision,
    }
    assert len(revisions) == 4
    assert rule().revision == rule().revision


# Parts

OK, DEFECT = (Label.PASS, Reason.OK), (Label.FAIL, Reason.DEFECT)
LATE, TORN = (Label.INVALID, Reason.LATE), (Label.INVALID, Reason.TORN)


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        ([], (Label.INVALID, Reason.UNKNOWN)),
        ([OK], OK),
        ([OK, OK], OK),
        ([OK, DEFECT], DEFECT),
        ([LATE, DEFECT], DEFECT),
        ([OK, LATE], LATE),
        ([TORN, OK, LATE], TORN),
        ([LATE], LATE),
    ],
)
def test_part_label(views: list[tuple[Label, Reason]], expected: tuple[Label, Reason]) -> None:
    assert part_label(views) == expected


@given(views=st.lists(st.sampled_from([OK, DEFECT, LATE, TORN])))
def test_a_part_passes_only_when_every_view_does(views: list[tuple[Label, Reason]]) -> None:
    label, _ = part_label(views)
    assert (label is Label.PASS) == (bool(views) and all(view == OK for view in views))
    assert (label is Label.FAIL) == (DEFECT in views)


def test_a_zone_has_its_own_minimum_area_and_the_peak_decides_which_zone() -> None:
    dusty = zone(rectangle(0, 0, 39, 63), "include") | {"min_area_px": 48}
    clean = zone(rectangle(40, 0, 79, 63), "include") | {"min_area_px": 0}
    both = rule(min_area_px=32, zones=[dusty, clean])
    assert both.decide(raw(r3c5=9, r3c6=9)).label is Label.PASS
    assert both.decide(raw(r3c5=9, r3c6=9, r3c7=9)).label is Label.FAIL
    assert both.decide(raw(r3c15=9)).label is Label.FAIL
    # Across the border: cells 9 and 10 lie on either side of it.
    assert both.decide(raw(r3c9=9, r3c10=8)).label is Label.PASS
    assert both.decide(raw(r3c9=8, r3c10=9)).label is Label.FAIL
    one = rule(min_area_px=32, zones=[zone(rectangle(0, 0, 79, 63), "include"), clean])
    assert one.decide(raw(r3c5=9)).label is Label.PASS
    assert one.decide(raw(r3c5=9, r3c6=9)).label is Label.FAIL
    assert one.decide(raw(r3c15=9)).label is Label.FAIL


def test_an_exclude_zone_has_no_minimum_area() -> None:
    with pytest.raises(ValueError, match="in an exclude zone"):
        recipe(zones=[zone(rectangle(0, 0, 9, 9)) | {"min_area_px": 5}])
