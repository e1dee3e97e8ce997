"""A tolerance for each place: high where good parts are, and honest about the image itself."""

from __future__ import annotations

import numpy as np
import pytest

from calibrate.calibration import Material, choose_thresholds, place_tolerance
from calibrate.places import LEAST, MIN_IMAGES, Places
from calibrate.scores import GoodMap, Scorer
from calibrate.thresholds import Promise
from models.bundle import Calibration
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.rules import DecisionRule, Thresholds
from pipeline.types import Label

CALIBRATION = Calibration(0.0, 0.1, {})
"""With these quantiles a raw value is its own score."""
SCORER = Scorer(Thresholds(0.0, 0.1, 1e30, 1.0), Recipe())
HW = (80, 120)
CORNER = (8, 20)
"""A cell where good parts always look unusual."""


def good_maps(count: int, seed: int = 0, shift: int = 1) -> list[GoodMap]:
    rng = np.random.default_rng(seed)
    maps = []
    for number in range(count):
        raw_map = rng.gamma(4.0, 0.02, (20, 30)).astype(np.float32)
        row, column = (at + int(rng.integers(-shift, shift + 1)) for at in CORNER)
        raw_map[row, column] = rng.uniform(3, 4)
        maps.append(GoodMap(f"{number}", HW, raw_map))
    return maps


def test_high_at_the_corner_and_low_elsewhere() -> None:
    tolerance = Places(good_maps(60), SCORER, still_px=8).tolerance()
    assert tolerance.dtype == np.uint8
    assert tolerance[CORNER] == 255
    assert tolerance[0, 0] == tolerance[19, 29] == int(np.ceil(255 * np.float32(LEAST)))


def test_a_defect_is_found_beside_a_corner_that_is_always_higher() -> None:
    maps = good_maps(80)
    tolerance, left_out = place_tolerance(Material.of_good(maps), CALIBRATION, Recipe(), 8)
    numbers, _ = choose_thresholds(left_out, CALIBRATION, Recipe(), Promise())
    thresholds = Thresholds(0.0, 0.1, numbers.image_threshold, numbers.pixel_threshold)
    rule = DecisionRule(thresholds, Recipe(), HW, tolerance)
    fresh = good_maps(200, seed=1)
    assert sum(rule.decide(good.raw_map).label is Label.FAIL for good in fresh) <= 4
    faint = fresh[0].raw_map.copy()
    faint[15, 5:7] = 1.6
    assert rule.decide(faint).label is Label.FAIL
    at_the_corner = fresh[0].raw_map.copy()
    at_the_corner[CORNER] = 3.9
    assert rule.decide(at_the_corner).label is Label.PASS


def test_an_image_does_not_excuse_itself() -> None:
    """One image of many has a mark: with its own tolerance it would look as good as the others."""
    maps = good_maps(40)
    maps[7].raw_map[15, 5] = 2.0
    places = Places(maps, SCORER, still_px=4)
    own = places.tolerance()
    others = list(places.left_out())
    least = int(np.ceil(255 * np.float32(LEAST)))
    assert own[15, 5] > 1.3 * least
    assert others[7].tolerance is not None
    assert others[7].tolerance[15, 5] == least
    assert others[8].tolerance is not None
    assert others[8].tolerance[15, 5] == own[15, 5]
    assert all(
        one.tolerance is not None and (one.tolerance <= own).all() for one in others
    )  # so a new image, judged by `own`, is judged no more strictly


def test_left_out_equals_a_tolerance_of_the_others() -> None:
    maps = good_maps(MIN_IMAGES + 5, seed=3)
    places = Places(maps, SCORER, still_px=12)
    for number, found in enumerate(places.left_out()):
        rest = Places([*maps[:number], *maps[number + 1 :]], SCORER, still_px=12)
        assert found.tolerance is not None
        # `rest` is in units of its own highest.
        scale = float(rest.tolerance().max()) / float(found.tolerance.max())
        least = int(np.ceil(255 * LEAST))
        again = np.clip(found.tolerance * scale, least, 255)
        assert np.abs(again - rest.tolerance()).max() <= 3


def test_flat_maps_have_one_tolerance() -> None:
    maps = [GoodMap(str(k), HW, np.zeros((20, 30), np.float32)) for k in range(MIN_IMAGES)]
    tolerance = Places(maps, SCORER, still_px=8).tolerance()
    assert len(np.unique(tolerance)) == 1
    assert tolerance.min() >= 1


def test_too_few_and_different_sizes() -> None:
    with pytest.raises(DataError, match=f"expected at least {MIN_IMAGES}"):
        Places(good_maps(MIN_IMAGES - 1), SCORER, still_px=8)
    maps = [*good_maps(MIN_IMAGES), GoodMap("x", (80, 80), np.zeros((20, 20), np.float32))]
    with pytest.raises(DataError, match="80x80 and 120x80 found"):
        Places(maps, SCORER, still_px=8)


def test_a_part_does_not_excuse_itself_by_another_photograph() -> None:
    """Every part three times, with a mark of its own: no twin may excuse a photograph."""
    maps, parts = [], []
    for number, good in enumerate(good_maps(30)):
        for _ in range(3):
            raw_map = good.raw_map.copy()
            raw_map[10 + number // 15, number % 15 * 2] = 2.0
            maps.append(GoodMap(f"{number}", HW, raw_map))
            parts.append(number)
    least = int(np.ceil(255 * np.float32(LEAST)))
    left_out = Places(maps, SCORER, 0, parts).left_out()
    for number in (0, 7, 29):
        tolerance = left_out[3 * number].tolerance
        assert tolerance is not None
        assert tolerance[10 + number // 15, number % 15 * 2] == least
    with pytest.raises(DataError, match="10 good parts found, expected at least 20"):
        Places(maps[:30], SCORER, 0, parts[:30])
