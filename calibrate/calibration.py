"""Choose a bundle's thresholds, for each runtime and precision.

1. The engine is opened and held to the reference maps, as on the line; int8 must first show what
   it costs (`calibrate.quantised`).
2. Every image goes through it at full size.
3. Where parts lie still: a tolerance for each place (`calibrate.places`).
4. Images of one part count once (`calibrate.parts`): a part's score is the highest of its images'.
5. The image threshold: from the parts' scores by the one decision rule; by good parts alone
   (`calibrate.thresholds`) or as a policy says (`calibrate.policies`).
6. The pixel threshold, never above the image threshold: where it is known where defects are, what
   draws them best (`calibrate.pixels`), else a high quantile (0.9999) of all inspected good cells.
7. What is usual of lens, lamp and place, for the optics guard (`calibrate.optics`).
8. A new bundle with them is written; it names the old one as its parent, and all images that its
   thresholds rest on. Thresholds of engines that were not calibrated now are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from calibrate.labelled import LabelledImage
from calibrate.optics import OpticsMaterial
from calibrate.parts import near_duplicates, part_ids, part_scores
from calibrate.pixels import pixel_threshold
from calibrate.places import Places
from calibrate.policies import Chosen, Policy, choose
from calibrate.quantised import Cost, compare, with_ranges
from calibrate.scores import (
    Frame,
    GoodMap,
    Lazy,
    Maps,
    Progress,
    Recipes,
    Scorer,
    high_quantiles,
    raw_maps,
)
from calibrate.thresholds import LOWEST, Choice, Promise
from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated
from models.errors import RuntimeUnavailable
from models.runtimes import Runtime, engine_of, open_runtime
from models.runtimes import choose as choose_engine
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.rules import Thresholds
from pipeline.tolerance import Tolerance

PIXEL_QUANTILE = 0.9999
SCORING_QUANTILE = 0.99
"""Pixel threshold while images are scored: lower, so that the scores do not hang on the choice."""
MOST_ROUNDS = 8
NEVER = 1e30
"""An image threshold that no image reaches, while scores are looked for."""


@dataclass(frozen=True, slots=True)
class Material:
    """What thresholds are chosen from. parts: of each map; equal ones are one part."""

    good: Sequence[GoodMap]
    good_parts: Sequence[str | int]
    bad: Sequence[GoodMap] = ()
    bad_parts: Sequence[str | int] = ()
    labels: Sequence[LabelledImage] = ()
    """Of the defective maps."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_good(cls, maps: Sequence[GoodMap]) -> Material:
        """Good maps alone, each of a part of its own."""
        return cls(maps, range(len(maps)))


def calibrate(
    bundle_path: Path,
    good: Sequence[Frame],
    *,
    bad: Sequence[LabelledImage] = (),
    runtimes: Sequence[str] = ("auto",),
    recipe: Recipes | None = None,
    out_dir: Path,
    promise: Promise | None = None,
    policy: Policy | None = None,
    part_pattern: str = "",
    still_px: int = 0,
    pixel_quantile: float = PIXEL_QUANTILE,
    threads: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Write a calibrated bundle into `out_dir` and return its directory.

    good: images of good parts that were not trained on. bad: defective ones, if there are any.
    runtimes: `auto` (the fastest here that gives the reference maps), `openvino`, or with a
        precision, `openvino/bf16`.
    recipe: of the camera that will use it, or by camera; zones and minimum areas count. Its own
        thresholds do not: they would hide what is to be found.
    promise: what is wished of false rejects, and how sure all that is said shall be.
    part_pattern: finds a part's id in the names of images; without, images that hardly differ are
        taken for one part.
    still_px: parts lie within so many pixels of one place, and a tolerance for each place is
        learned; 0: they may lie anywhere.
    pixel_quantile: of the inspected cells of all good images; lower makes larger boxes.
    note: called with each sentence that a person should read.

    Raises `DataError` for too few or unfit images, and what `open_runtime` raises.
    """
    if not 0 < pixel_quantile < 1:
        raise DataError(
            f"pixel_quantile {pixel_quantile:g} found, expected a share between 0 and 1, such as "
            f"{PIXEL_QUANTILE:g}"
        )
    bundle = Bundle.load(bundle_path)
    recipe = _without_thresholds(Recipe() if recipe is None else recipe)
    chosen = [choose_engine(bundle, *_split(name), calibrating=True) for name in runtimes]
    chosen = list(dict.fromkeys(chosen))
    say = note or _say_nothing
    if still_px and any(each.fixture is not None for each in _each(recipe)):
        raise DataError(
            "still_px found with a recipe that has a fixture, expected one of them: a tolerance "
            "for each place is the frame's, and the fixture's parts lie anywhere in it"
        )
    engines = dict(bundle.calibration.engines)
    tolerances = bundle.tolerances()
    frames = [*good, *bad]
    passes = _Passes(progress, sum(3 if precision == "int8" else 1 for _, precision in chosen))
    refused: list[str] = []
    optics = OpticsMaterial()
    for name, precision in chosen:
        if precision == "int8":
            measured = with_ranges(bundle, good, threads, passes.next())
        else:
            measured = bundle
        open_engine = partial(
            open_runtime, measured, threads=threads, cache_dir=cache_dir, calibrating=True
        )
        by_name = precision in ("f32", "int8")
        spare = [f"{name}/f32"] if "auto" in runtimes and not by_name else []
        runtime = open_engine(name, precision, fallback=spare, say=say)
        try:
            if precision == "int8":
                plain = open_engine(name, "f32")
                cost = _cost(plain, runtime, good, bundle=measured, recipe=recipe, passes=passes)
                say(f"{name}/{precision}: {cost.sentence}")
                if cost.refused:
                    refused.append(cost.sentence)
                    engines.pop(f"{name}/{precision}", None)
                    tolerances.pop(f"{name}/{precision}", None)
                    passes.next()
                    continue
                bundle = measured
            maps = raw_maps(runtime, frames, bundle.in_channels, recipe, passes.next())
        finally:
            runtime.close()
        engine = engine_of(runtime.engine_id)
        tolerances.pop(engine, None)
        material = _material(maps, good, bad, part_pattern)
        if still_px:
            tolerances[engine], material = place_tolerance(
                material, bundle.calibration, recipe, still_px
            )
        chosen_here, notes = choose_thresholds(
            material,
            bundle.calibration,
            recipe,
            promise or Promise(),
            policy=policy,
            pixel_quantile=pixel_quantile,
        )
        engines[engine] = dataclasses.replace(chosen_here, still_px=still_px)
        optics.add(engine, material.good, bundle.calibration, recipe)
        for sentence in notes:
            say(f"{engine}: {sentence}")
    if len(refused) == len(chosen):
        raise RuntimeUnavailable(f"{bundle.path.name}: {refused[0]}")
    digests = {*bundle.calibration.images, *(d for frame in frames if (d := _digest(frame)))}
    calibration = dataclasses.replace(
        bundle.calibration,
        engines=engines,
        images=tuple(sorted(digests)),
        optics=optics.limits(bundle.calibration.optics, say),
    )
    return recalibrated(bundle, out_dir, calibration, tolerances)


def _cost(
    plain: Runtime,
    quantised: Runtime,
    good: Sequence[Frame],
    *,
    bundle: Bundle,
    recipe: Recipes,
    passes: _Passes,
) -> Cost:
    """What int8 changes, with thresholds by good parts alone."""

    def thresholds(maps: Sequence[GoodMap]) -> EngineThresholds:
        material = Material.of_good(maps)
        return choose_thresholds(material, bundle.calibration, recipe, Promise())[0]

    try:
        return compare(
            plain,
            quantised,
            good,
            bundle=bundle,
            recipes=recipe,
            choose=thresholds,
            progress=passes.next(),
        )
    finally:
        plain.close()


def _say_nothing(sentence: str) -> None:
    """Where nobody reads notes."""


def _digest(frame: Frame) -> str:
    if isinstance(frame, Path):
        frame = LabelledImage(frame, False)
    return frame.sha256 if isinstance(frame, LabelledImage) else ""


def _material(
    maps: Maps, good: Sequence[Frame], bad: Sequence[LabelledImage], pattern: str
) -> Material:
    """Sorts maps into good and defective ones and finds the parts that they show."""
    notes = []
    parts: list[str | int]
    if pattern:
        parts = list(part_ids([Path(name).name for name in maps.names], pattern))
    else:
        parts = list(near_duplicates(maps.thumbs))
    # Two types of defects are two parts, whatever the names say and however alike they look.
    kinds = [*["" for _ in good], *["|".join(sorted(image.kinds)) for image in bad]]
    parts = [f"{kind}|{part}" for kind, part in zip(kinds, parts, strict=True)]
    for what, some in (("good", parts[: len(good)]), ("defective", parts[len(good) :])):
        if len(set(some)) < len(some):
            how = f"have ids by {pattern!r}" if pattern else "differ from all others"
            notes.append(
                f"{len(some)} {what} images show {len(set(some))} parts (those that {how}), which "
                "count once each"
            )
    return Material(
        maps[: len(good)],
        parts[: len(good)],
        maps[len(good) :],
        parts[len(good) :],
        bad,
        notes,
    )


def place_tolerance(
    material: Material, calibration: Calibration, recipe: Recipes, still_px: int
) -> tuple[Tolerance, Material]:
    """The tolerance for each place, and the maps with it; each good one with that of all others."""
    numbers = Thresholds(calibration.q_a, calibration.q_b, NEVER, 1.0)
    places = Places(material.good, Scorer(numbers, recipe), still_px, material.good_parts)
    tolerance = places.tolerance()
    bad = Lazy(
        len(material.bad), lambda k: dataclasses.replace(material.bad[k], tolerance=tolerance)
    )
    return tolerance, dataclasses.replace(material, good=places.left_out(), bad=bad)


def choose_thresholds(
    material: Material,
    calibration: Calibration,
    recipe: Recipes,
    promise: Promise,
    *,
    policy: Policy | None = None,
    pixel_quantile: float = PIXEL_QUANTILE,
) -> tuple[EngineThresholds, list[str]]:
    """Thresholds from raw maps, and the sentences that go with them."""
    maps = material.good
    if not maps:
        raise DataError("no good images found: give a folder with images of good parts")

    def numbers(threshold: float) -> Thresholds:
        return Thresholds(calibration.q_a, calibration.q_b, NEVER, threshold)

    plain = Scorer(numbers(1.0), recipe)
    (low, high), lowest = high_quantiles(maps, plain, (SCORING_QUANTILE, pixel_quantile))
    low, high = max(low, LOWEST), max(high, LOWEST)
    # By the whole rule, so that with a minimum area a lonely peak does not count. An image in
    # which nothing survives has no score, and its peak stands in as far as it may have counted.
    rule = Scorer(numbers(low), recipe)
    policy = policy or Policy()

    def choice_by(scorer: Scorer, least: float) -> tuple[list[float], list[float], Chosen]:
        def score(found: GoodMap) -> float:
            peak = float(plain.inspected(found).max())
            return max(scorer.image_score(found), min(peak, float(np.nextafter(least, -np.inf))))

        good, bad = ([score(found) for found in side] for side in (maps, material.bad))
        of_good = list(part_scores(good, material.good_parts).values())
        of_bad = list(part_scores(bad, material.bad_parts).values())
        return good, bad, choose(of_good, of_bad, policy, promise)

    good_scores, bad_scores, chosen = choice_by(rule, low)
    drawn, how = pixel_threshold(
        material.bad, material.labels, rule, numbers, recipe, at_most=chosen.good.threshold
    )
    pixel = min(high if drawn is None else drawn, chosen.good.threshold)
    if _smallest_matter(recipe):
        # How large a place is hangs on the pixel threshold: the scores are those that will serve.
        for _ in range(MOST_ROUNDS):
            good_scores, bad_scores, chosen = choice_by(Scorer(numbers(pixel), recipe), pixel)
            if pixel <= chosen.good.threshold:
                break
            pixel = chosen.good.threshold
        else:
            raise DataError(
                f"no pixel threshold under the image threshold found in {MOST_ROUNDS} rounds with "
                "the recipe's minimum area: make it smaller"
            )
    choice = chosen.good
    thresholds = EngineThresholds(
        image_threshold=choice.threshold,
        pixel_threshold=pixel,
        images=choice.images,
        above=choice.above,
        false_reject_bound=choice.bound,
        confidence=promise.confidence,
        chosen=choice.sentence,
        kept=choice.kept,
        wished=promise.false_reject,
        policy=policy.name,
        bad_images=chosen.bad,
        bad_below=chosen.below,
        escape_bound=chosen.escape_bound,
        lowest=lowest,
        highest=max(*good_scores, *bad_scores, lowest + LOWEST),
    )
    notes = [*material.notes, *chosen.notes, *([how] if how else [])]
    if policy.name == "good":
        notes += _outliers(maps, good_scores, choice)
    return thresholds, notes


def _without_thresholds(recipes: Recipes) -> Recipes:
    none = {"image_threshold": None, "pixel_threshold": None}
    if isinstance(recipes, Recipe):
        return recipes.model_copy(update=none)
    return {camera: recipe.model_copy(update=none) for camera, recipe in recipes.items()}


def _each(recipes: Recipes) -> list[Recipe]:
    return [recipes] if isinstance(recipes, Recipe) else list(recipes.values())


def _smallest_matter(recipes: Recipes) -> bool:
    """Whether any recipe asks for a minimum area."""
    some = _each(recipes)
    return any(r.min_area_px or any(zone.min_area_px for zone in r.zones) for r in some)


def _outliers(maps: Sequence[GoodMap], scores: Sequence[float], choice: Choice) -> list[str]:
    """A good image that stands far above the others decides alone: a person should look at it."""
    order = np.argsort(scores)[::-1]
    if choice.kept or len(scores) < 20:
        return []
    first, second, middle = (scores[order[k]] for k in (0, 1, len(scores) // 2))
    if first - second <= 1.0 * (second - middle):
        return []
    return [
        f"{maps[int(order[0])].name} has a score of {first:.4g}, the next one {second:.4g}: the "
        "threshold rests on this one image; look whether it is good, and leave it out if not"
    ]


def _split(name: str) -> tuple[str, str]:
    runtime, _, precision = name.partition("/")
    return runtime, precision or "auto"


class _Passes:
    """One bar over several passes."""

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress, self._count, self._begun = progress, count, 0

    def next(self) -> Progress | None:
        progress, part, parts = self._progress, self._begun, self._count
        self._begun += 1
        if progress is None:
            return None
        return lambda done, total: progress(part * total + done, parts * total)
