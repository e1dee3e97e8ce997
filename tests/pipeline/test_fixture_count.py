"""Parts on a belt are counted once each, whatever the phase; what a frame without one says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.fixture import ThresholdFixture
from pipeline.fixture.count import PartCounter
from pipeline.fixture.find import Pose


def config(**changes: Any) -> ThresholdFixture:
    plain = {"kind": "threshold", "taught_x": 50.0, "taught_y": 50.0, "max_parts": 32, **changes}
    return ThresholdFixture.model_validate(plain)


def pose(x: float, y: float = 50.0, cut_off: bool = False) -> Pose:
    return Pose(x, y, 0.0, 1.0, (0, 0, 9, 9), cut_off)


BELT: dict[str, Any] = {"count_zone": (300, 0, 440, 100), "travel_px": (100.0, 0.0)}


@settings(max_examples=150, deadline=None)
@given(
    phase=st.floats(0, 400),
    spacing=st.floats(85, 700),
    backwards=st.booleans(),
    jitter=st.lists(st.floats(-19.5, 19.5), min_size=60, max_size=60),
)
def test_each_part_on_a_belt_counts_exactly_once(
    phase: float, spacing: float, backwards: bool, jitter: list[float]
) -> None:
    """On a picture of 800 px, in steps that are never quite the same."""
    sign = -1 if backwards else 1
    counter = PartCounter(
        config(
            count_zone=(300, 0, 440, 100), travel_px=(sign * 100.0, 0.0), travel_tolerance_px=20.0
        )
    )
    parts = 6
    start = [-phase - spacing * k for k in range(parts)]
    counts = [0] * parts
    moved = 0.0
    for shake in jitter:
        moved += 100 + shake
        places = {k: x + moved for k, x in enumerate(start) if 0 <= x + moved < 800}
        shown = [pose(x if sign > 0 else 799.0 - x) for x in places.values()]
        found = counter.count(shown).poses
        for k, each in zip(places, shown, strict=True):
            counts[k] += each in found
    done = [k for k, x in enumerate(start) if x + moved > 800]
    assert all(counts[k] == 1 for k in done)
    assert max(counts) <= 1


@settings(max_examples=100, deadline=None)
@given(phase=st.floats(0, 200), gaps=st.lists(st.integers(1, 3), min_size=30, max_size=30))
def test_dropped_frames_count_none_twice(phase: float, gaps: list[int]) -> None:
    long = config(count_zone=(200, 0, 600, 100), travel_px=(100.0, 0.0), travel_tolerance_px=5.0)
    counter = PartCounter(long)
    counts = [0, 0, 0]
    moved = -phase
    for gap in gaps:
        moved += 101.0 * gap
        shown = [pose(moved - 250 * k) for k in range(3)]
        found = counter.count(shown, gap).poses
        for k, each in enumerate(shown):
            counts[k] += each in found
    assert counts == [1, 1, 1]


def test_a_part_that_is_not_found_for_a_frame_does_not_count_again() -> None:
    counter = PartCounter(
        config(count_zone=(0, 0, 600, 100), travel_px=(100.0, 0.0), travel_tolerance_px=10.0)
    )
    found = [counter.count(shown) for shown in ([pose(20)], [], [pose(222)], [pose(318)])]
    assert [len(each.poses) for each in found] == [1, 0, 0, 0]


def test_without_a_zone_every_frame_is_expected_to_show_a_part() -> None:
    counter = PartCounter(config())
    assert counter.count([pose(10)]).poses == (pose(10),)
    assert counter.count([pose(10)]).poses == (pose(10),)  # the next one, at the same place
    assert counter.count([pose(10), pose(700)]).poses == (pose(10), pose(700))
    nothing = counter.count([])
    assert (nothing.poses, nothing.expected) == ((), True)
    assert "no part found" in nothing.sentence


def test_a_neighbour_outside_of_the_zone_is_no_part_of_this_frame() -> None:
    counter = PartCounter(config(count_zone=(300, 0, 500, 100)))
    assert counter.count([pose(310), pose(510), pose(299.9)]).poses == (pose(310),)
    nobody = counter.count([pose(500)])
    assert (nobody.poses, nobody.expected) == ((), False)
    assert counter.count([pose(310)]).poses == (pose(310),)  # nothing travels: another part


@pytest.mark.parametrize(
    ("rule", "inspected", "expected"),
    [("skip", 0, False), ("inspect", 1, True), ("invalid", 0, True)],
)
def test_a_part_that_the_frame_cuts_off(rule: str, inspected: int, expected: bool) -> None:
    counter = PartCounter(config(count_zone=(0, 0, 100, 100), cut_off=rule))
    found = counter.count([pose(5, cut_off=True)])
    assert (len(found.poses), found.expected) == (inspected, expected)
    assert bool(found.sentence) is not bool(found.poses)
    # Beside the zone it is another frame's matter.
    assert not counter.count([pose(150, cut_off=True)]).expected


def test_cut_off_in_one_frame_and_whole_in_the_next() -> None:
    counter = PartCounter(
        config(
            count_zone=(0, 0, 200, 100), cut_off="skip", travel_px=(80, 0), travel_tolerance_px=5
        )
    )
    shown = ([pose(5, cut_off=True)], [pose(84)], [pose(164)], [pose(244, cut_off=True)])
    assert [len(counter.count(each).poses) for each in shown] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count_zone": (5, 0, 5, 9)}, "x0 < x1"),
        ({"travel_px": (10, 0)}, "a count_zone where parts travel"),
        ({"travel_tolerance_px": 3}, "travel_px that is not"),
        ({**BELT, "travel_tolerance_px": 100}, "smaller than travel_px"),
        ({**BELT, "travel_tolerance_px": 41}, "jump over it"),
        ({**BELT, "travel_px": (0.0, -101.0)}, "jump over it"),
    ],
)
def test_zones_that_would_lose_parts_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**change)
    assert config(**BELT)
