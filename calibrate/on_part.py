"""Recipes with a fixture: their zones lie on the part, wherever an image shows it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.config.fixture import FixtureConfig
from pipeline.errors import DataError
from pipeline.fixture.count import PartCounter
from pipeline.fixture.find import Fixture
from pipeline.fixture.placing import Matrix
from pipeline.rules import DecisionRule


class Placer:
    """Places zones on images; a fixture's template is read once."""

    def __init__(self) -> None:
        self._fixtures: dict[str, Fixture] = {}

    def matrices(self, recipe: Recipe, pixels: NDArray[np.uint8], name: str) -> tuple[Matrix, ...]:
        """From the taught frame to each part that the line would inspect in an image, alone as it
        is; none for a recipe without a fixture.

        Raises `DataError` where no part counts in it, and `ConfigError` for an unfit template.
        """
        if recipe.fixture is None:
            return ()
        fixture = self._fixture(recipe.fixture)
        counted = PartCounter(recipe.fixture).count(fixture.find(pixels))
        if not counted.poses:
            raise DataError(
                f"{name}: {counted.sentence} (by the recipe's fixture; the line would say "
                "invalid), expected a part: leave the image out, or see with `linewatch fixture "
                "try` what the fixture finds"
            )
        return tuple(fixture.to_frame(pose) for pose in counted.poses)

    def _fixture(self, config: FixtureConfig) -> Fixture:
        key = config.model_dump_json()
        if key not in self._fixtures:
            self._fixtures[key] = Fixture(config)
        return self._fixtures[key]


def on_parts(rule: DecisionRule, matrices: Sequence[Matrix], name: str) -> DecisionRule:
    """The rule with its zones on the parts; as it is without a fixture. Raises `DataError` where
    none of a part's zones is in the frame."""
    if not matrices:
        return rule
    moved = rule.on_parts(matrices)
    if moved is None:
        raise DataError(f"{name}: the part lies where none of the recipe's zones is in the frame")
    return moved
