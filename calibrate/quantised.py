"""What int8 costs a bundle, before a station may use it.

1. The ranges that it is quantised by: the highest outputs of each layer over good images, as they
   are and with drawn defects, so that defects are not clipped.
2. Good images and the same with a weak drawn defect each (`models.defects`) go through the int8
   engine and through float32 of the same runtime. Each has the threshold that its own scores of
   the good images ask for, as its calibration would choose it. Of some defects that are drawn for
   an image the one is taken whose score in float32 comes nearest to a share of the threshold; the
   shares go from half of it to twice it, evenly in their logarithm.
3. Int8 is refused if it costs more than `MOST_AUROC_LOSS` or more than `MOST_FLIPS` of the verdicts
   become others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.labelled import LabelledImage
from calibrate.on_part import Placer
from calibrate.scores import (
    Frame,
    GoodMap,
    Progress,
    Recipes,
    Scorer,
    pixels_of,
    raw_map_of,
    recipe_for,
)
from models.bundle import Bundle, Calibration, EngineThresholds
from models.defects import spoil
from models.runtimes import Runtime, engine_of
from models.tiles import pad_frame
from models.validation import auroc
from models.variants import FRAME_MARGIN_PX, GRID_PX, map_hw
from pipeline.config import Recipe
from pipeline.fixture.placing import Matrix, placed
from pipeline.rules import Thresholds
from pipeline.types import Label
from pipeline.window import inspected_window

MOST_AUROC_LOSS = 0.002
MOST_FLIPS = 0.005
"""Of the verdicts on good images and on those with drawn defects."""
MOST_IMAGES = 100
"""Good images that are compared, each as it is and with a defect."""
RANGE_IMAGES = 48
"""Good images that ranges are measured on, every other one with a defect."""
DRAWN = 6
"""Defects that one is chosen from; scored on the part of the frame where they are."""
PART_PX = 192
"""Side of that part: a defect, and all that it changes in the map."""
SEED = 5

ChooseThresholds = Callable[[Sequence[GoodMap]], EngineThresholds]
"""From the maps of good images, as the calibration at hand does it."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What int8 changed."""

    engine: str
    auroc: float
    """Of drawn defects, by the engine in float32."""
    auroc_quantised: float
    verdicts: int
    flips: int
    near: int
    """Drawn defects whose score is within a factor of 2 of the threshold."""

    @property
    def refused(self) -> bool:
        too_low = self.auroc - self.auroc_quantised > MOST_AUROC_LOSS
        return too_low or self.flips > MOST_FLIPS * self.verdicts

    @property
    def sentence(self) -> str:
        """For a person to read."""
        found = (
            f"int8 beside {self.engine}: AUROC of drawn defects {self.auroc_quantised:.4f} beside "
            f"{self.auroc:.4f}, {self.flips} of {self.verdicts} verdicts are others ({self.near} "
            "defects are near the threshold)"
        )
        if not self.refused:
            return found
        return (
            f"{found}; at most {MOST_AUROC_LOSS:g} less and {MOST_FLIPS:.1%} of the verdicts are "
            "allowed: int8 is refused for this bundle, use openvino/bf16 or openvino/f32"
        )


def with_ranges(
    bundle: Bundle, good: Sequence[Frame], threads: int, progress: Progress | None
) -> Bundle:
    """The bundle, in memory, with the ranges that int8 is quantised by."""
    from models.runtimes.openvino_ import activation_peaks  # openvino, where it is asked for

    chosen = _some(len(good), RANGE_IMAGES)

    def frames() -> Iterator[NDArray[np.uint8]]:
        for done, index in enumerate(chosen):
            pixels = pixels_of(good[index], bundle.in_channels)
            if done % 2:
                pixels = with_defect(pixels, index)
            yield pad_frame(pixels, FRAME_MARGIN_PX)
            if progress is not None:
                progress(done + 1, len(chosen))

    peaks = activation_peaks(bundle.graph(), frames(), threads)
    calibration = dataclasses.replace(bundle.calibration, activation_peaks=peaks)
    return dataclasses.replace(bundle, calibration=calibration)


def compare(
    plain: Runtime,
    quantised: Runtime,
    good: Sequence[Frame],
    *,
    bundle: Bundle,
    recipes: Recipes,
    choose: ChooseThresholds,
    progress: Progress | None = None,
) -> Cost:
    """Good images, and the same with drawn defects, through both engines.

    plain: float32. Raises what the engines raise.
    """
    placer = Placer()
    chosen = [_Scene(good[k], k, bundle, recipes, placer) for k in _some(len(good), MOST_IMAGES)]
    steps = 2 * len(chosen)

    def told(scenes: Iterable[_Scene], before: int) -> Iterator[_Scene]:
        for done, scene in enumerate(scenes, start=before + 1):
            yield scene
            if progress is not None:
                progress(done, steps)

    good_maps = []
    for scene in told(chosen, 0):
        pixels = scene.pixels()
        good_maps.append(scene.map_of(plain, pixels, scene.matrices(pixels)))
    limits = choose(good_maps)
    threshold = bundle.calibration.raw(limits.image_threshold)
    bad_maps: list[GoodMap] = []
    quantised_maps: tuple[list[GoodMap], list[GoodMap]] = ([], [])
    for number, scene in enumerate(told(chosen, len(chosen))):
        share = 2.0 ** (2 * (number + 0.5) / len(chosen) - 1)
        pixels = scene.pixels()
        matrices = scene.matrices(pixels)
        marred = scene.with_score(plain, pixels, matrices, share * threshold)
        bad_maps.append(scene.map_of(plain, marred, matrices))
        for picture, maps in zip((pixels, marred), quantised_maps, strict=True):
            maps.append(scene.map_of(quantised, picture, matrices))
    judged = _judge(good_maps, bad_maps, bundle.calibration, recipes, limits)
    judged_quantised = _judge(
        *quantised_maps, bundle.calibration, recipes, choose(quantised_maps[0])
    )
    return Cost(
        engine=engine_of(plain.engine_id),
        auroc=judged.auroc,
        auroc_quantised=judged_quantised.auroc,
        verdicts=steps,
        flips=int((judged.fails != judged_quantised.fails).sum()),
        near=judged.near,
    )


@dataclass(frozen=True, slots=True)
class _Scene:
    """A good image, as the line would look at it."""

    frame: Frame
    number: int
    bundle: Bundle
    recipes: Recipes
    placer: Placer

    @property
    def recipe(self) -> Recipe:
        return recipe_for(self.recipes, self.camera)

    @property
    def camera(self) -> str:
        return self.frame.camera if isinstance(self.frame, LabelledImage) else ""

    def pixels(self) -> NDArray[np.uint8]:
        return pixels_of(self.frame, self.bundle.in_channels)

    def matrices(self, pixels: NDArray[np.uint8]) -> tuple[Matrix, ...]:
        """Where its parts lie. Raises `DataError` where none counts."""
        return self.placer.matrices(self.recipe, pixels, f"good image {self.number}")

    def map_of(
        self, engine: Runtime, pixels: NDArray[np.uint8], matrices: tuple[Matrix, ...]
    ) -> GoodMap:
        """matrices: of the image without a defect."""
        height, width = pixels.shape[:2]
        raw_map = raw_map_of(engine, pixels, self.recipe)
        name = f"good image {self.number}"
        return GoodMap(name, (height, width), raw_map, camera=self.camera, matrices=matrices)

    def with_score(
        self,
        engine: Runtime,
        pixels: NDArray[np.uint8],
        matrices: tuple[Matrix, ...],
        wanted: float,
    ) -> NDArray[np.uint8]:
        """The image with the drawn defect whose raw peak comes nearest to `wanted`."""
        recipe = self.recipe
        if matrices:
            zones = placed(recipe.zones, matrices[0])
            recipe = recipe.model_copy(update={"zones": zones, "fixture": None})
        window = inspected_window(recipe, (pixels.shape[0], pixels.shape[1]))
        best, nearest = pixels, np.inf
        for attempt in range(DRAWN):
            marred = pixels.copy()
            inside = marred[window.top : window.bottom, window.left : window.right]
            inside[...] = with_defect(inside, DRAWN * self.number + attempt)
            changed = (marred != pixels).any(axis=2)
            if not changed.any():
                continue
            peak = _peak_around(engine, marred, changed)
            distance = abs(np.log(max(peak, 1e-12) / wanted))
            if distance < nearest:
                best, nearest = marred, distance
        return best


def _peak_around(engine: Runtime, pixels: NDArray[np.uint8], changed: NDArray[np.bool_]) -> float:
    """The raw map's maximum on the part of the frame around what was changed."""
    place = []
    for axis in (1, 0):
        where = np.flatnonzero(changed.any(axis=axis))
        side = changed.shape[1 - axis]
        begin = int(where[0] + where[-1] + 1 - PART_PX) // 2
        begin = max(0, min(begin, side - PART_PX)) // GRID_PX * GRID_PX
        place.append(slice(begin, begin + PART_PX))
    part = pixels[place[0], place[1]]
    padded = pad_frame(pixels, FRAME_MARGIN_PX)
    both = 2 * FRAME_MARGIN_PX
    rows, columns = (
        slice(s.start, s.start + side + both) for s, side in zip(place, part.shape[:2], strict=True)
    )
    found = np.empty(map_hw(part.shape[0], part.shape[1]), np.float32)
    return engine.infer([padded[rows, columns]], [found])[0]


@dataclass(frozen=True, slots=True)
class _Judged:
    auroc: float
    fails: NDArray[np.bool_]
    near: int


def _judge(
    good: Sequence[GoodMap],
    bad: Sequence[GoodMap],
    calibration: Calibration,
    recipes: Recipes,
    chosen: EngineThresholds,
) -> _Judged:
    limit = chosen.image_threshold
    rule = Scorer(
        Thresholds(calibration.q_a, calibration.q_b, limit, chosen.pixel_threshold), recipes
    )

    def peaks(maps: Sequence[GoodMap]) -> NDArray[np.float64]:
        return np.array([float(rule.inspected(found).max()) for found in maps])

    of_bad = peaks(bad)
    fails = [rule.rule(each).decide(each.raw_map).label is Label.FAIL for each in (*good, *bad)]
    near = int(((of_bad > limit / 2) & (of_bad < 2 * limit)).sum())
    return _Judged(auroc(peaks(good), of_bad), np.array(fails), near)


def with_defect(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """uint8 (H, W, C) with one drawn defect; the same for the same number."""
    scene = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    picture = np.asarray(scene / np.float32(255), np.float32)
    marred, _ = spoil(np.random.default_rng([SEED, number]), picture, 1)
    return np.rint(marred * 255).astype(np.uint8).reshape(pixels.shape)


def _some(total: int, at_most: int) -> list[int]:
    """Evenly spread."""
    count = min(total, at_most)
    return [k * total // count for k in range(count)]
