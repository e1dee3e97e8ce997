"""What is usual of lens, lamp and place, from calibration's good images: see `pipeline.optics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from calibrate.scores import GoodMap, Recipes, Scorer
from models.bundle import Calibration
from pipeline.errors import ConfigError, DataError
from pipeline.optics.measure import OpticsFigures, OpticsLimits, learn, score_of
from pipeline.rules import Thresholds

NEVER = 1e30
"""Thresholds that no image reaches: its peak alone is looked for."""


class OpticsMaterial:
    """What good images show, gathered engine by engine."""

    def __init__(self) -> None:
        self._figures: dict[str, list[OpticsFigures]] = {}
        self._scores: dict[str, dict[str, list[float]]] = defaultdict(dict)

    def add(
        self, engine: str, maps: Sequence[GoodMap], known: Calibration, recipes: Recipes
    ) -> None:
        """The good images' maps by one engine; figures are the same with each."""
        scorer = Scorer(Thresholds(known.q_a, known.q_b, NEVER, NEVER), recipes)
        figures: dict[str, list[OpticsFigures]] = defaultdict(list)
        for found in maps:
            if found.optics is not None:
                figures[found.camera].append(found.optics)
            peak = scorer.rule(found).decide(found.raw_map).raw_peak
            score = score_of(peak, known.q_a, known.q_b)
            self._scores[found.camera].setdefault(engine, []).append(score)
        self._figures = figures

    def limits(
        self, before: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]
    ) -> dict[str, Mapping[str, Any]]:
        """By camera, as JSON. before: the bundle's, kept where there are none now, and for the
        scores of engines that were not calibrated now.
        """
        found = dict(before)
        for camera, figures in self._figures.items():
            name = f"camera {camera}: " if camera else ""
            try:
                limits = learn(figures, self._scores[camera])
            except DataError as error:
                then = "will be watched as before" if camera in found else "will not be watched"
                say(f"{name}{error}; lens, lamp and place {then}")
                continue
            scores = dict(_scores_of(before.get(camera)))
            scores.update(limits.scores)
            found[camera] = limits.plain() | {"scores": {k: list(v) for k, v in scores.items()}}
        return found


def _scores_of(plain: Mapping[str, Any] | None) -> Mapping[str, tuple[float, float, float]]:
    try:
        return {} if plain is None else OpticsLimits.of_plain(plain).scores
    except ConfigError:
        return {}  # damaged, and written anew
