"""Why the rule said what it said of one image: its steps, the places, and how far it is from the
other verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.evaluation import Box, Seen
from pipeline.boxes import CELL_AREA_PX, find_defects
from pipeline.config import Recipe
from pipeline.rules import DecisionRule, zone_factors
from pipeline.types import MAP_STRIDE, Defect

MOST_PLACES = 10


@dataclass(frozen=True, slots=True)
class Place:
    """A group of cells over the pixel threshold."""

    box_xyxy: Box
    score: float
    cells: int
    zone: str
    least_px: int
    """The minimum area there."""
    survives: bool
    """Whether it is large enough."""
    fails: bool
    """Whether it fails the image by itself."""
    grown: Sequence[tuple[str, float]]
    """(stage, score of its highest cell) of the engine's stages, one after the other."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """verdict: `pass` or `fail`; all scores are normalised."""

    engine: str
    verdict: str
    because: str
    turned: str
    """What would turn the verdict round."""
    score: float
    threshold: float
    pixel_threshold: float
    revision: str
    """Of recipe and thresholds, as it stands in verdicts."""
    steps: Sequence[tuple[str, str]]
    places: Sequence[Place]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def explain(
    seen: Seen,
    rule: DecisionRule,
    engine: str,
    stages: Sequence[tuple[str, NDArray[np.float32]]],
) -> Explanation:
    """The rule's steps on what was seen.

    stages: name and scores of each of the engine's stages, like `seen.scores`, which are the last
    one's.
    """
    judged, recipe = seen.judged, rule.recipe
    inspected = rule.factors > 0
    peak = float(seen.scores.max(where=inspected, initial=-np.inf))
    everywhere = inspected.all()
    over = inspected & (seen.scores >= rule.pixel_threshold)
    # All groups, also those that are too small.
    groups = find_defects(
        over.astype(np.uint8),
        seen.scores[over],
        frame_hw=judged.frame_hw,
        min_area_px=0,
        merge_px=recipe.merge_px,
        box_fraction=recipe.box_fraction,
        spread_px=recipe.spread_px,
        margin_px=recipe.box_margin_px,
    )
    places = []
    for group in groups:
        cell = _peak_cell(seen.scores, over, group)
        least = recipe.min_area_px if rule.min_areas is None else int(rule.min_areas[cell])
        survives = group.area_px >= least
        places.append(
            Place(
                box_xyxy=group.box_xyxy,
                score=group.peak_score,
                cells=group.area_px // CELL_AREA_PX,
                zone=_zone_at(recipe, judged.frame_hw, cell),
                least_px=least,
                survives=survives,
                fails=survives and group.peak_score >= rule.image_threshold,
                grown=[(name, float(scores[cell])) for name, scores in stages],
            )
        )
    surviving = [place for place in places if place.survives]
    steps = [
        ("map", f"raw peak {judged.raw_peak:.4g} by {engine}"),
        (
            "zones",
            "the whole frame is inspected"
            if everywhere
            else f"{inspected.mean():.1%} of the frame is inspected",
        ),
        ("score", f"highest {peak:.4g}, zones and places considered"),
        (
            "pixel threshold",
            f"{int(over.sum())} cells at or over {rule.pixel_threshold:.4g}, "
            f"in {len(groups)} place(s)",
        ),
        ("minimum area", f"{len(surviving)} place(s) are large enough"),
        (
            "image threshold",
            f"{sum(place.fails for place in places)} place(s) at or over "
            f"{rule.image_threshold:.4g}",
        ),
    ]
    return Explanation(
        engine=engine,
        verdict="fail" if judged.failed else "pass",
        because=_because(places, surviving, rule, peak),
        turned=_turned(judged.failed, surviving, places, rule, peak),
        score=max((place.score for place in surviving), default=0.0),
        threshold=rule.image_threshold,
        pixel_threshold=rule.pixel_threshold,
        revision=rule.revision,
        steps=steps,
        places=places[:MOST_PLACES],
    )


def _because(
    places: Sequence[Place], surviving: Sequence[Place], rule: DecisionRule, peak: float
) -> str:
    if not places:
        return f"decided at the pixel threshold: the highest score {peak:.4g} stays under it"
    if not surviving:
        return (
            f"decided at the minimum area: the highest of {len(places)} place(s) has "
            f"{places[0].cells * CELL_AREA_PX} px of the {places[0].least_px} that count there"
        )
    best = surviving[0]
    share = best.score / rule.image_threshold
    where = f" in zone {best.zone!r}" if best.zone else ""
    return f"decided at the image threshold: the highest place{where} reaches {share:.2f} of it"


def _turned(
    failed: bool,
    surviving: Sequence[Place],
    places: Sequence[Place],
    rule: DecisionRule,
    peak: float,
) -> str:
    if failed and surviving:
        return f"it would pass with an image threshold over {surviving[0].score:.4g}"
    if surviving:
        return f"it would fail with an image threshold of {surviving[0].score:.4g} or less"
    if places:
        return (
            "it would fail with a smaller minimum area"
            if any(place.score >= rule.image_threshold for place in places)
            else "it would fail with a smaller minimum area and a lower image threshold"
        )
    return f"it would fail with pixel and image thresholds of {peak:.4g} or less"


def _peak_cell(
    scores: NDArray[np.float32], over: NDArray[np.bool_], group: Defect
) -> tuple[int, int]:
    """The cell with the group's peak score; of several the one that is nearest to its box."""
    cells = np.argwhere(over & (scores == np.float32(group.peak_score)))
    x0, y0, x1, y1 = group.box_xyxy
    middle = np.array([(y0 + y1) / 2, (x0 + x1) / 2]) / MAP_STRIDE
    row, column = cells[np.argmin(((cells - middle) ** 2).sum(axis=1))]
    return int(row), int(column)


def _zone_at(recipe: Recipe, frame_hw: tuple[int, int], cell: tuple[int, int]) -> str:
    """The last zone that holds the cell: later ones win."""
    name = ""
    for number, zone in enumerate(recipe.zones, start=1):
        alone = Recipe(zones=(zone.model_copy(update={"mode": "include"}),))
        if zone_factors(alone, frame_hw)[cell] > 0:
            name = zone.name or f"zone {number}"
    return name
