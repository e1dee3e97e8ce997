"""The window that an engine looks at gives the map of the whole frame where it is inspected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.references import reference_map
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from pipeline.config import Recipe, Zone
from pipeline.rules import zone_factors
from pipeline.types import MARGIN_PX, MIN_SIDE_PX, map_hw
from pipeline.window import Window, inspected_window

MODEL = untrained_model("pdn_tiny", 1, (1, 2))


def box_zone(x0: int, y0: int, x1: int, y1: int) -> Recipe:
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return Recipe(zones=(Zone(name="part", mode="include", polygon=corners),))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_inspected_cells_are_those_of_the_whole_frame(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(33, 150)), data.draw(st.integers(33, 150))
    xs = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    ys = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    recipe = box_zone(xs[0], ys[0], xs[1], ys[1])
    if data.draw(st.booleans()):
        recipe = Recipe(edge_px=data.draw(st.integers(1, min(height, width) // 2)))
    inspected = zone_factors(recipe, (height, width)) > 0
    window = inspected_window(recipe, (height, width))
    assert min(window.hw) >= MIN_SIDE_PX
    padded = pad_frame(textured_frame(height, width, 1, seed=height), MARGIN_PX)
    found = np.full(map_hw(height, width), np.nan, np.float32)
    window.cells(found)[...] = reference_map(MODEL, window.padded(padded))
    whole = reference_map(MODEL, padded)
    np.testing.assert_allclose(found[inspected], whole[inspected], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hw", [(33, 33), (40, 57), (768, 1024)])
def test_without_zones_it_is_the_frame(hw: tuple[int, int]) -> None:
    assert inspected_window(Recipe(), hw) == Window(0, 0, *hw)


def test_a_part_in_the_middle_saves_what_is_around_it() -> None:
    window = inspected_window(box_zone(200, 160, 600, 400), (600, 800))
    assert (window.top, window.left) == (160, 200)
    assert window.bottom <= 400 + 16
    assert window.right <= 600 + 16


def test_nothing_inspected_is_the_rules_to_refuse() -> None:
    recipe = box_zone(9000, 9000, 9100, 9100)
    assert min(inspected_window(recipe, (100, 100)).hw) >= MIN_SIDE_PX
