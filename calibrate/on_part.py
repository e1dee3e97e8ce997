"""Recipes with a fixture: their zones lie on the part, wherever an image shows it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.config.fixture import FixtureConfig
from pipeline.errors import DataError
from pipeline.fixture.find import Fixture
from pipeline.fixture.placing import Matrix
from pipeline.rules import DecisionRule


class Placer:
    """Places zones on images; a fixture's template is read once."""

    def __init__(self) -> None:
        self._fixtures: dict[str, Fixture] = {}

    def matrix(self, recipe: Recipe, pixels: NDArray[np.uint8], name: str) -> Matrix | None:
        """From the taught frame to an image; None for a recipe without a fixture.

        Raises `DataError` where no part is found in it, and `ConfigError` for an unfit template.
        """
        if recipe.fixture is None:
            return None
        poses = self._fixture(recipe.fixture).find(pixels)
        if not poses:
            raise DataError(
                f"{name}: no part found by the recipe's fixture, expected one: leave the image "
                "out, or see with `linewatch fixture try` what the fixture finds"
            )
        return self._fixture(recipe.fixture).to_frame(poses[0])

    def _fixture(self, config: FixtureConfig) -> Fixture:
        key = config.model_dump_json()
        if key not in self._fixtures:
            self._fixtures[key] = Fixture(config)
        return self._fixtures[key]


def on_part(rule: DecisionRule, matrix: Matrix | None, name: str) -> DecisionRule:
    """The rule with its zones on the part. Raises `DataError` where none is in the frame."""
    if matrix is None:
        return rule
    moved = rule.at(matrix)
    if moved is None:
        raise DataError(f"{name}: the part lies where none of the recipe's zones is in the frame")
    return moved
