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


def test_a_loss_of_nothing_is_drawn() -> None:
    assert curves({1: Fit([0.0, 0.0, 0.0], [], 3)}).shape == (PANEL, WIDTH, 3)
