"""For tests of the decision rule: recipes, zones and maps in a word."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.rules import DecisionRule, Thresholds
from pipeline.types import map_hw

HW = (64, 80)
PLAIN = Thresholds(q_a=0.0, q_b=0.1, image_threshold=0.5, pixel_threshold=0.5)
"""Raw values are scores."""

Points = list[tuple[int, int]]


def recipe(**values: Any) -> Recipe:
    return Recipe.model_validate_json(json.dumps(values))


def rule(bundle: Thresholds = PLAIN, hw: tuple[int, int] = HW, **values: Any) -> DecisionRule:
    return DecisionRule(bundle, recipe(**values), hw)


def zone(points: Points, mode: str = "exclude", factor: float = 1.0) -> dict[str, Any]:
    return {"polygon": points, "mode": mode, "threshold_factor": factor}


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Points:
    """Its edge belongs to it, (x1, y1) as well."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def raw(hw: tuple[int, int] = HW, **cells: float) -> NDArray[np.float32]:
    """A map of zeros but for `r3c5=0.7`."""
    found = np.zeros(map_hw(*hw), np.float32)
    for name, value in cells.items():
        row, _, column = name[1:].partition("c")
        found[int(row), int(column)] = value
    return found
