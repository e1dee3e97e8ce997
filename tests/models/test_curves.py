"""Every training has curves, however short and however it went."""

from __future__ import annotations

import numpy as np
import pytest

from models.curves import COLOURS, PANEL, WIDTH, curves
from models.fit import Fit, Point


def fit(steps: int, validations: int) -> Fit:
    losses = (5 * np.exp(-np.arange(steps) / 300) + 0.5).tolist()
    points = [Point(steps * (k + 1) // validations, 0.8 + 0.01 * k) for k in range(validations)]
    return Fit(losses, points, points[-1].step if points else steps)


@pytest.mark.parametrize(("steps", "validations"), [(1, 0), (1, 1), (2, 2), (3000, 5)])
def test_curves_of_one_and_two_scales(steps: int, validations: int) -> None:
    one = curves({1: fit(steps, validations)})
    assert one.shape == (PANEL * (2 if validations else 1), WIDTH, 3)
    both = curves({1: fit(steps, validations), 2: fit(steps, validations)})
    for colour in COLOURS:
        assert (both == colour).all(axis=2).any()


def test_networks_beside_the_students_have_panels_of_their_own() -> None:
    others = {"wide view, scale 1": [3.0, 2.0, 1.0], "global branch": [0.5]}
    whole = curves({1: fit(100, 2)}, others)
    assert whole.shape == (4 * PANEL, WIDTH, 3)
    for panel in (2, 3):
        drawn = whole[panel * PANEL : (panel + 1) * PANEL]
        assert (drawn == COLOURS[0]).all(axis=2).any() == (panel == 2)  # one step is a point


def test_a_loss_of_nothing_is_drawn() -> None:
    assert curves({1: Fit([0.0, 0.0, 0.0], [], 3)}).shape == (PANEL, WIDTH, 3)
