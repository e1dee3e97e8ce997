"""The maps of good images, by the very engine that will serve, and their scores by the one rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.images import read_image
from models.runtimes import Runtime
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX, map_hw
from pipeline.config import Recipe
from pipeline.rules import DecisionRule, Thresholds
from pipeline.tolerance import Tolerance
from pipeline.window import inspected_window

Frame = Path | NDArray[np.uint8]
"""An image file, or uint8 (H, W, C) of the bundle's channels."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, slots=True)
class GoodMap:
    """frame_hw in pixels; raw_map: float32 (ceil(H / 4), ceil(W / 4)); tolerance as in the rule."""

    name: str
    frame_hw: tuple[int, int]
    raw_map: NDArray[np.float32]
    tolerance: Tolerance | None = None


def raw_maps(
    runtime: Runtime,
    frames: Sequence[Frame],
    in_channels: int,
    recipe: Recipe,
    progress: Progress | None = None,
) -> list[GoodMap]:
    """Full-size frames through the engine, one by one: about 1/4 of a grey frame's bytes is kept.

    As on the line, it looks at what the recipe inspects; elsewhere the map is 0.

    Raises `models.errors.DataError` for a file that is no frame of these channels.
    """
    maps = []
    for number, frame in enumerate(frames):
        pixels = read_image(frame, in_channels) if isinstance(frame, Path) else frame
        height, width = pixels.shape[:2]
        raw_map = np.zeros(map_hw(height, width), np.float32)
        window = inspected_window(recipe, (height, width))
        padded = pad_frame(pixels, FRAME_MARGIN_PX)
        runtime.infer([window.padded(padded)], [window.cells(raw_map)])
        name = str(frame) if isinstance(frame, Path) else f"frame {number}"
        maps.append(GoodMap(name, (height, width), raw_map))
        if progress is not None:
            progress(number + 1, len(frames))
    return maps


class Scorer:
    """Scores maps of any size with one recipe; zones are rendered once per frame size."""

    def __init__(self, thresholds: Thresholds, recipe: Recipe) -> None:
        self._thresholds = thresholds
        self._recipe = recipe
        self._rules: dict[tuple[int, int], DecisionRule] = {}

    def rule(self, good: GoodMap) -> DecisionRule:
        """For maps of its size and tolerance. Without a tolerance it is kept for the next."""
        if good.tolerance is not None:
            return DecisionRule(self._thresholds, self._recipe, good.frame_hw, good.tolerance)
        if good.frame_hw not in self._rules:
            self._rules[good.frame_hw] = DecisionRule(self._thresholds, self._recipe, good.frame_hw)
        return self._rules[good.frame_hw]

    def inspected(self, good: GoodMap) -> NDArray[np.float32]:
        """Normalised scores of the inspected cells, float32 (n,)."""
        rule = self.rule(good)
        return rule.scores(good.raw_map)[rule.factors > 0]

    def image_score(self, good: GoodMap) -> float:
        """As the line will give it: 0 where nothing survives the rule."""
        return self.rule(good).decide(good.raw_map).image_score
