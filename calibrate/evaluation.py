"""A calibrated bundle looks at labelled images, through the engine and the rule that serve.

`judge` yields one `Judged` after the other; maps are used and dropped, so that thousands of
full-size images need no memory. `calibrate.figures` makes the figures of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrate.boxes_eval import matched
from calibrate.labelled import Defect, LabelledImage
from calibrate.metrics import PixelCurves, at_pixels, for_curves
from calibrate.on_part import Placer, on_parts
from calibrate.parts import Thumb, near_duplicates, part_ids, thumb
from calibrate.scores import pixels_of, raw_map_of, recipe_for
from models.bundle import Bundle, EngineThresholds
from models.runtimes import Runtime, engine_of
from pipeline.boxes import finds
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.fixture.placing import Matrix
from pipeline.rules import Decision, DecisionRule, Thresholds
from pipeline.types import Label

Box = tuple[int, int, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Judged:
    """What was said of one image, and what is true."""

    image: LabelledImage
    frame_hw: tuple[int, int]
    failed: bool
    score: float
    """Ranks all images as the rule does: the image fails exactly when it is at or over the
    threshold. Where nothing survived the rule, the inspected peak, kept under both thresholds."""
    raw_peak: float
    threshold: float
    boxes: tuple[Box, ...]
    """As the line publishes them; none of an image that passes."""
    truth: tuple[Defect, ...]
    matches: Mapping[int, int]
    """{true defect: box} at the chosen IoU."""
    found: tuple[bool, ...]
    """Of each true defect: whether a box of the failed image lies on it (`pipeline.boxes.finds`)"""
    milliseconds: float
    """Of engine and rule."""
    located: bool = False
    """Whether its maps count in the pixel curves: good, or it is known where its defects are."""
    part: str | int = ""
    """Images of one part are one witness; "": a part of its own."""

    @property
    def rank(self) -> float:
        """The score over the threshold: from 1 on it fails. Cameras may have different ones."""
        return self.score / self.threshold


@dataclass(frozen=True, slots=True)
class Seen:
    """What the judge saw: for pictures."""

    judged: Judged
    pixels: NDArray[np.uint8]
    """uint8 (H, W, C)"""
    scores: NDArray[np.float32]
    """float32 (ceil(H / 4), ceil(W / 4)), normalised."""
    matrices: tuple[Matrix, ...] = ()
    """From the taught frame to this one, where the recipe has a fixture."""


class Judge:
    """A bundle, its engine and a recipe for each camera."""

    def __init__(
        self,
        bundle: Bundle,
        runtime: Runtime,
        recipes: Mapping[str, Recipe],
        *,
        least_iou: float,
    ) -> None:
        """recipes: by camera; "" is for cameras that have none of their own."""
        self.bundle = bundle
        self.engine = engine_of(runtime.engine_id)
        self.engine_id = runtime.engine_id
        self.thresholds: EngineThresholds = bundle.thresholds(self.engine)
        self.curves = PixelCurves(by_image=True)
        self.thumbs: list[Thumb] = []
        self._tolerance = bundle.tolerance(self.engine)
        self._runtime = runtime
        self._recipes = recipes
        self._least_iou = least_iou
        self._placer = Placer()
        self._rules: dict[tuple[str, tuple[int, int]], DecisionRule] = {}
        self._warm: set[tuple[str, tuple[int, ...]]] = set()

    def recipe(self, camera: str) -> Recipe:
        return recipe_for(self._recipes, camera)

    def rule(self, camera: str, frame_hw: tuple[int, int]) -> DecisionRule:
        """The rule as the line would have it for frames of this size."""
        key = camera, frame_hw
        if key not in self._rules:
            numbers = Thresholds(
                self.bundle.calibration.q_a,
                self.bundle.calibration.q_b,
                self.thresholds.image_threshold,
                self.thresholds.pixel_threshold,
            )
            self._rules[key] = DecisionRule(numbers, self.recipe(camera), frame_hw, self._tolerance)
        return self._rules[key]

    def judge(
        self, images: Sequence[LabelledImage], progress: Progress | None = None
    ) -> Iterator[Seen]:
        """Raises `DataError` for images, masks and boxes that do not fit."""
        for number, image in enumerate(images):
            yield self._judge(image)
            if progress is not None:
                progress(number + 1, len(images))

    def _judge(self, image: LabelledImage) -> Seen:
        pixels = pixels_of(image, self.bundle.in_channels)
        height, width = pixels.shape[:2]
        recipe = self.recipe(image.camera)
        matrices = self._placer.matrices(recipe, pixels, str(image.path))
        rule = on_parts(self.rule(image.camera, (height, width)), matrices, str(image.path))
        if (image.camera, pixels.shape) not in self._warm:  # it compiles for each new size
            self._warm.add((image.camera, pixels.shape))
            raw_map_of(self._runtime, pixels, recipe)
        begun = time.perf_counter()
        raw_map = raw_map_of(self._runtime, pixels, recipe)
        if not np.isfinite(raw_map).all():
            raise DataError(f"{image.path}: a map with NaN or infinity found: the engine failed")
        decision = rule.decide(raw_map)
        milliseconds = (time.perf_counter() - begun) * 1000
        scores = rule.scores(raw_map)
        self.thumbs.append(thumb(pixels))
        ranks = at_pixels(for_curves(scores, rule.factors > 0), height, width)
        truth: tuple[Defect, ...] = ()
        located = not image.defective
        if not image.defective:
            self.curves.add(ranks)
        elif image.located:
            found = image.truth((height, width))
            truth = found.defects
            if found.mask.any():
                self.curves.add(ranks, found.mask)
                located = True
        failed = decision.label is Label.FAIL
        boxes = [defect.box_xyxy for defect in decision.defects] if failed else []
        wanted = [defect.box_xyxy for defect in truth]
        judged = Judged(
            image=image,
            frame_hw=(height, width),
            failed=failed,
            score=_rank(decision, scores, rule),
            raw_peak=decision.raw_peak,
            threshold=decision.image_threshold,
            boxes=tuple(boxes),
            truth=truth,
            matches=matched(boxes, wanted, self._least_iou),
            found=tuple(any(finds(box, true) for box in boxes) for true in wanted),
            milliseconds=milliseconds,
            located=located,
        )
        return Seen(judged, pixels, scores, matrices)


def with_parts(
    judged: Sequence[Judged], thumbs: Sequence[Thumb], pattern: str = ""
) -> list[Judged]:
    """With the part that each image shows: by the pattern in file names, else by likeness."""
    if pattern:
        parts: Sequence[str | int] = part_ids([each.image.path.name for each in judged], pattern)
    else:
        parts = near_duplicates(thumbs)
    return [
        replace(each, part=f"{sorted(each.image.kinds)}{part}")
        for each, part in zip(judged, parts, strict=True)
    ]


def _rank(decision: Decision, scores: NDArray[np.float32], rule: DecisionRule) -> float:
    if decision.image_score > 0:
        return decision.image_score
    least = min(rule.pixel_threshold, rule.image_threshold)
    peak = float(scores.max(where=rule.factors > 0, initial=-np.inf))
    return min(peak, float(np.nextafter(least, -np.inf)))
