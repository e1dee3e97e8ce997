"""The one decision rule: raw map + recipe -> label, score, boxes; frames -> part.

Line, calibration and explain all call `DecisionRule.decide`, in these steps:

1. A raw map value m becomes the score 0.1 (m - q_a) / (q_b - q_a), with the bundle's quantiles
   (EfficientAD, section 3.4); in a zone with factor f the score is divided by f, and where the
   bundle learned a tolerance t for the place (`calibrate.places`), by t / 255.
2. Cells outside the inspected zones do not count.
3. Cells at or over `pixel_threshold` form defects; those of at least `min_area_px` survive, a
   zone's own where the peak lies in such a zone.
4. `image_score` is the highest score that survives, 0 where nothing does.
5. The frame fails if and only if `image_score >= image_threshold`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.boxes import find_defects
from pipeline.config import Recipe
from pipeline.errors import ConfigError, DataError
from pipeline.fixture.placing import Matrix, placed, placed_cells
from pipeline.tolerance import MOST_TOLERANT, Tolerance, check_tolerance
from pipeline.types import MAP_STRIDE, Defect, Label, Reason, map_hw

_LEAST_LEFT = 0.9
"""Of the zones' cells: a part with fewer in the frame cannot be inspected."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a bundle says for one runtime and precision. q_a < q_b, raw; thresholds normalised."""

    q_a: float
    q_b: float
    image_threshold: float
    pixel_threshold: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the rule says of one map.

    raw_peak: the inspected cells' raw maximum, which ranks frames under the thresholds too. Where
    there is a tolerance for each place, a value counts as what it would be where most is tolerated.
    """

    label: Label
    image_score: float
    image_threshold: float
    raw_peak: float
    defects: tuple[Defect, ...]


class DecisionRule:
    """The rule for one camera's frame size, with zones rendered once at map resolution."""

    def __init__(
        self,
        bundle: Thresholds,
        recipe: Recipe,
        frame_hw: tuple[int, int],
        tolerance: Tolerance | None = None,
    ) -> None:
        """Raises `ConfigError` for thresholds or zones that could never fail a frame, and for a
        tolerance of another frame size.
        """
        self.frame_hw = frame_hw
        self.recipe = recipe
        self.image_threshold = recipe.image_threshold or bundle.image_threshold
        self.pixel_threshold = recipe.pixel_threshold or bundle.pixel_threshold
        self._offset, self._scale = _normalisation(bundle)
        self.factors = zone_factors(recipe, frame_hw)
        self._share: NDArray[np.float32] | None = None
        if tolerance is not None:
            check_tolerance(tolerance, frame_hw)
            share = np.asarray(tolerance / np.float32(MOST_TOLERANT), np.float32)
            self.factors *= share
            self._share = share
        inspected = self.factors > 0
        if not inspected.any():
            raise ConfigError(
                f"the zones and edge_px {recipe.edge_px} of the recipe leave nothing to inspect of "
                f"a {frame_hw[1]}x{frame_hw[0]} frame: check them"
            )
        self.min_areas = zone_min_areas(recipe, frame_hw)
        self._inspected = None if inspected.all() else inspected
        self._uniform = bool((self.factors[inspected] == 1.0).all())
        self._raw_thresholds = self._raw(self.pixel_threshold)
        for name, raw in (
            ("pixel_threshold", self._raw_thresholds),
            ("image_threshold", self._raw(self.image_threshold)),
        ):
            # Not so for a threshold of zero, NaN, infinity, or one that drowns in the offset.
            if not (~inspected | ((self._offset < raw) & (raw < np.inf))).all():
                raise ConfigError(
                    f"{name} {getattr(self, name):g} found (quantiles {bundle.q_a:g} and "
                    f"{bundle.q_b:g}), expected a positive number that a map can reach in every "
                    "zone: calibrate the bundle, or correct the recipe"
                )
        places = b"" if tolerance is None else tolerance.tobytes()
        text = f"{recipe.model_dump_json()}|{bundle!r}|{hashlib.sha256(places).hexdigest()}"
        self.revision = hashlib.sha256(text.encode()).hexdigest()[:12]

    def at(self, matrix: Matrix) -> DecisionRule | None:
        """The rule with its zones on a part: from the taught frame's pixels to those of this one.

        None where none of them is in the frame.
        """
        moved = copy.copy(self)
        zones = placed(self.recipe.zones, matrix)
        moved.recipe = self.recipe.model_copy(update={"zones": zones})
        includes = any(zone.mode == "include" for zone in self.recipe.zones)
        moved.factors = placed_cells(self.factors, matrix, 0.0 if includes else 1.0)
        if self._share is not None:
            moved._share = placed_cells(self._share, matrix, 1.0)
        if self.min_areas is not None:
            areas = self.min_areas.astype(np.float32)
            moved.min_areas = placed_cells(areas, matrix, float(self.recipe.min_area_px)).astype(
                np.int64
            )
        inspected = moved.factors > 0
        least = _LEAST_LEFT * np.count_nonzero(self.factors > 0)
        if includes and np.count_nonzero(inspected) < max(1.0, least):
            return None
        moved._inspected = None if inspected.all() else inspected
        moved._uniform = bool((moved.factors[inspected] == 1.0).all())
        moved._raw_thresholds = moved._raw(moved.pixel_threshold)
        return moved

    def on_parts(self, matrices: Sequence[Matrix]) -> DecisionRule | None:
        """The rule for all parts of a frame, each with zones of its own (see `at`), at least one.

        None where one of them has none in the frame.
        """
        rules = [moved for matrix in matrices if (moved := self.at(matrix)) is not None]
        if len(rules) < len(matrices):
            return None
        return rules[0] if len(rules) == 1 else _Several(rules)

    def _raw(self, threshold: float) -> NDArray[np.float32]:
        """The raw map values at which scores reach a threshold: float32 (h, w), or () for all."""
        factors = np.ones((), np.float32) if self._uniform else self.factors
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self._offset + np.float32(threshold) * factors / self._scale)

    def _peak(self, raw_map: NDArray[np.float32]) -> float:
        if self._share is not None:
            raw_map = (raw_map - self._offset) / self._share + self._offset
        if self._inspected is None:
            return float(raw_map.max())
        return float(raw_map.max(where=self._inspected, initial=-np.inf))

    def scores(self, raw_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised scores of a whole map, float32 (h, w); 0 where nothing is inspected."""
        score = (raw_map - self._offset) * self._scale
        factors = np.where(self.factors > 0, self.factors, 1)
        scaled: NDArray[np.float32] = np.where(self.factors > 0, score / factors, 0)
        return scaled.astype(np.float32, copy=False)

    def decide(self, raw_map: NDArray[np.float32]) -> Decision:
        """raw_map: float32 (ceil(H / 4), ceil(W / 4)). Raises `DataError` when it is not finite."""
        if raw_map.shape != map_hw(*self.frame_hw):
            raise DataError(
                f"a map of {raw_map.shape} found, expected {map_hw(*self.frame_hw)} for a frame of "
                f"{self.frame_hw}: the engine was compiled for another size"
            )
        if not np.isfinite(raw_map).all():
            raise DataError("the anomaly map holds NaN or infinity: the engine failed")
        over = raw_map >= self._raw_thresholds
        if self._inspected is not None:
            over &= self._inspected
        raw_peak = self._peak(raw_map)
        if not over.any():
            return Decision(Label.PASS, 0.0, self.image_threshold, raw_peak, ())
        with np.errstate(over="ignore"):
            score = (raw_map[over] - self._offset) * self._scale
            if not self._uniform:
                score /= self.factors[over]
        if not np.isfinite(score).all():
            raise DataError("the anomaly map's scores overflow: the engine failed")
        defects = find_defects(
            over.view(np.uint8),
            score,
            frame_hw=self.frame_hw,
            min_area_px=self.recipe.min_area_px if self.min_areas is None else self.min_areas[over],
            merge_px=self.recipe.merge_px,
            box_fraction=self.recipe.box_fraction,
            spread_px=self.recipe.spread_px,
            margin_px=self.recipe.box_margin_px,
        )
        image_score = defects[0].peak_score if defects else 0.0
        failed = image_score >= self.image_threshold
        return Decision(
            Label.FAIL if failed else Label.PASS,
            image_score,
            self.image_threshold,
            raw_peak,
            tuple(defects[: self.recipe.max_boxes]),
        )


class _Several(DecisionRule):
    """One rule for each of a frame's parts; any of them fails the frame."""

    def __init__(self, rules: Sequence[DecisionRule]) -> None:
        vars(self).update(vars(rules[0]))
        self._rules = rules
        zones = tuple(zone for rule in rules for zone in rule.recipe.zones)
        self.recipe = self.recipe.model_copy(update={"zones": zones})
        self.factors = np.maximum.reduce([rule.factors for rule in rules])
        areas = [rule.min_areas for rule in rules if rule.min_areas is not None]
        self.min_areas = np.minimum.reduce(areas) if areas else None

    def scores(self, raw_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `DecisionRule.scores`; where parts share a cell, the higher one."""
        every = np.stack([rule.scores(raw_map) for rule in self._rules])
        inspected = np.stack([rule.factors > 0 for rule in self._rules])
        highest = every.max(axis=0, where=inspected, initial=-np.inf)
        return np.where(inspected.any(axis=0), highest, 0).astype(np.float32, copy=False)

    def decide(self, raw_map: NDArray[np.float32]) -> Decision:
        """See `merged`."""
        decisions = [rule.decide(raw_map) for rule in self._rules]
        return merged(decisions, self.recipe.max_boxes)


def zone_factors(recipe: Recipe, frame_hw: tuple[int, int]) -> NDArray[np.float32]:
    """float32 (h, w) at map resolution: 0 where nothing is inspected, else the zone's factor.

    A cell belongs to a zone when its centre pixel does (a polygon's edge belongs to it). Without
    include zones the whole frame is inspected; later zones win over earlier ones. Within `edge_px`
    of the frame's sides nothing is.
    """
    everything = not any(zone.mode == "include" for zone in recipe.zones)
    factors = np.full(map_hw(*frame_hw), 1.0 if everything else 0.0, np.float32)
    for zone in recipe.zones:
        with np.errstate(over="ignore"):
            factor = np.float32(zone.threshold_factor if zone.mode == "include" else 0.0)
        if zone.mode == "include" and not 0 < factor < np.inf:
            raise ConfigError(
                f"zone {zone.name!r}: threshold_factor {zone.threshold_factor:g} found, expected "
                "one that a 32 bit number can hold, such as 0.5 or 2"
            )
        factors[_centres_inside(zone.polygon, frame_hw)] = factor
    for axis, side in enumerate(frame_hw):
        centres = np.arange(factors.shape[axis]) * MAP_STRIDE
        edge = (centres < recipe.edge_px) | (centres >= side - recipe.edge_px)
        factors[(slice(None),) * axis + (edge,)] = 0
    return factors


def zone_min_areas(recipe: Recipe, frame_hw: tuple[int, int]) -> NDArray[np.int64] | None:
    """int64 (h, w): the minimum area of a defect whose peak is there; None: the same everywhere."""
    if all(zone.min_area_px is None for zone in recipe.zones):
        return None
    areas = np.full(map_hw(*frame_hw), recipe.min_area_px, np.int64)
    for zone in recipe.zones:
        least = recipe.min_area_px if zone.min_area_px is None else zone.min_area_px
        areas[_centres_inside(zone.polygon, frame_hw)] = least
    return areas


def inspected_pixels(recipe: Recipe, frame_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """bool (H, W): the pixels of the inspected cells."""
    cells = zone_factors(recipe, frame_hw) > 0
    mask: NDArray[np.bool_] = cells.repeat(MAP_STRIDE, axis=0).repeat(MAP_STRIDE, axis=1)
    return mask[: frame_hw[0], : frame_hw[1]]


def _centres_inside(
    polygon: Sequence[tuple[int, int]], frame_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """bool (h, w): which cells' centres lie in a polygon or on its edge.

    By the even-odd rule in whole numbers: `cv2.fillPoly` takes in part of a border of the frame
    that a polygon crosses.
    """
    rows, columns = map_hw(*frame_hw)
    y = np.arange(rows, dtype=np.int64)[:, None] * MAP_STRIDE
    x = np.arange(columns, dtype=np.int64)[None, :] * MAP_STRIDE
    inside = np.zeros((rows, columns), np.bool_)
    edge = np.zeros((rows, columns), np.bool_)
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0]), strict=True):
        side = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        left = side > 0 if y1 > y0 else side < 0
        inside ^= ((y0 > y) != (y1 > y)) & left
        along = (min(x0, x1) <= x) & (x <= max(x0, x1)) & (min(y0, y1) <= y) & (y <= max(y0, y1))
        edge |= (side == 0) & along
    return inside | edge


def _normalisation(bundle: Thresholds) -> tuple[np.float32, np.float32]:
    """Offset and scale that make scores of raw values. Raises `ConfigError`."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        offset, top = np.float32(bundle.q_a), np.float32(bundle.q_b)
        scale = np.float32(np.float64(0.1) / (np.float64(bundle.q_b) - np.float64(bundle.q_a)))
    if not (-np.inf < offset < top < np.inf and 0 < scale < np.inf):
        raise ConfigError(
            f"map quantiles {bundle.q_a:g} and {bundle.q_b:g} found, expected q_a < q_b as 32 bit "
            "numbers: the bundle cannot normalise a map; train it again"
        )
    return offset, scale


def merged(decisions: Sequence[Decision], max_boxes: int) -> Decision:
    """Of several parts in one frame: any that fails, fails the frame; all of their defects."""
    if len(decisions) == 1:
        return decisions[0]
    worst = max(decisions, key=lambda each: each.image_score)
    defects = {defect for each in decisions for defect in each.defects}
    first = sorted(defects, key=lambda each: (-each.peak_score, each.box_xyxy))
    return Decision(
        worst.label,
        worst.image_score,
        worst.image_threshold,
        max(each.raw_peak for each in decisions),
        tuple(first[:max_boxes]),
    )


def part_label(views: Sequence[tuple[Label, Reason]]) -> tuple[Label, Reason]:
    """A part fails if any view fails, else is invalid if any view is or none came, else passes."""
    for wanted in (Label.FAIL, Label.INVALID):
        for label, reason in views:
            if label is wanted:
                return label, reason
    return (Label.PASS, Reason.OK) if views else (Label.INVALID, Reason.UNKNOWN)
