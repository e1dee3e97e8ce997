"""Choose a bundle's thresholds from good images alone, for each runtime and precision.

1. The engine is opened and held to the reference maps, as on the line.
2. Every good image goes through it at full size.
3. Where parts lie still: a tolerance for each place (`calibrate.places`).
4. The pixel threshold: a high quantile (0.9999) of all inspected good cells, so that components
   are defects and not texture, but never above the image threshold.
5. The image threshold: from the images' scores by the one decision rule (`calibrate.thresholds`).
6. A new bundle with them is written; it names the old one as its parent and keeps the thresholds
   of engines that were not calibrated now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from calibrate.places import Places
from calibrate.scores import Frame, GoodMap, Progress, Scorer, raw_maps
from calibrate.thresholds import LOWEST, Choice, Promise, choose_threshold
from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated
from models.errors import ParityError
from models.runtimes import choose, engine_of, open_runtime
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.rules import Thresholds
from pipeline.tolerance import Tolerance

PIXEL_QUANTILE = 0.9999
SCORING_QUANTILE = 0.99
"""Pixel threshold while images are scored: lower, so that the scores do not hang on the choice."""
_NEVER = 1e30
"""An image threshold that no image reaches, while scores are looked for."""


def calibrate(
    bundle_path: Path,
    good: Sequence[Frame],
    *,
    runtimes: Sequence[str] = ("auto",),
    recipe: Recipe | None = None,
    out_dir: Path,
    promise: Promise | None = None,
    still_px: int = 0,
    pixel_quantile: float = PIXEL_QUANTILE,
    threads: int = 0,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Write a calibrated bundle into `out_dir` and return its directory.

    good: images of good parts, independent of each other and not trained on.
    runtimes: `auto` (the fastest here that gives the reference maps), `openvino`, or with a
        precision, `openvino/bf16`.
    recipe: of the camera that will use it; its zones and minimum area count. Its own thresholds
        do not: they would hide what is to be found.
    still_px: parts lie within so many pixels of one place, and a tolerance for each place is
        learned; 0: they may lie anywhere.
    pixel_quantile: of the inspected cells of all good images; lower makes larger boxes.
    note: called with each sentence that a person should read.

    Raises `DataError` for too few or unfit images, and what `open_runtime` raises.
    """
    bundle = Bundle.load(bundle_path)
    recipe = (recipe or Recipe()).model_copy(
        update={"image_threshold": None, "pixel_threshold": None}
    )
    chosen = [choose(bundle, *_split(name), calibrating=True) for name in runtimes]
    chosen = list(dict.fromkeys(chosen))
    say = note or _say_nothing
    engines = dict(bundle.calibration.engines)
    tolerances = bundle.tolerances()
    for number, (name, precision) in enumerate(chosen):
        fallback = "f32" if "auto" in runtimes and precision != "f32" else None
        try:
            runtime = open_runtime(
                bundle, name, precision, threads=threads, cache_dir=cache_dir, calibrating=True
            )
        except ParityError as error:
            if fallback is None:
                raise
            say(f"{name}/{precision} is refused, {name}/{fallback} is taken instead: {error}")
            runtime = open_runtime(
                bundle, name, fallback, threads=threads, cache_dir=cache_dir, calibrating=True
            )
        try:
            maps = raw_maps(
                runtime, good, bundle.in_channels, recipe, _shifted(progress, number, len(chosen))
            )
        finally:
            runtime.close()
        engine = engine_of(runtime.engine_id)
        tolerances.pop(engine, None)
        if still_px:
            tolerances[engine], maps = place_tolerance(maps, bundle.calibration, recipe, still_px)
        chosen_here, notes = choose_thresholds(
            maps, bundle.calibration, recipe, promise or Promise(), pixel_quantile
        )
        engines[engine] = dataclasses.replace(chosen_here, still_px=still_px)
        for sentence in notes:
            say(f"{engine}: {sentence}")
    calibration = dataclasses.replace(bundle.calibration, engines=engines)
    return recalibrated(bundle, out_dir, calibration, tolerances)


def _say_nothing(sentence: str) -> None:
    """Where nobody reads notes."""


def place_tolerance(
    maps: Sequence[GoodMap], calibration: Calibration, recipe: Recipe, still_px: int
) -> tuple[Tolerance, list[GoodMap]]:
    """The tolerance for each place, and the maps, each with the tolerance of all others."""
    numbers = Thresholds(calibration.q_a, calibration.q_b, _NEVER, 1.0)
    places = Places(maps, Scorer(numbers, recipe), still_px)
    return places.tolerance(), list(places.left_out())


def choose_thresholds(
    maps: Sequence[GoodMap],
    calibration: Calibration,
    recipe: Recipe,
    promise: Promise,
    pixel_quantile: float = PIXEL_QUANTILE,
) -> tuple[EngineThresholds, list[str]]:
    """Thresholds from the raw maps of good images, and the sentences that go with them."""
    if not maps:
        raise DataError("no good images found: give a folder with images of good parts")

    def numbers(pixel_threshold: float) -> Thresholds:
        return Thresholds(calibration.q_a, calibration.q_b, _NEVER, pixel_threshold)

    plain = Scorer(numbers(1.0), recipe)
    cells = [plain.inspected(good) for good in maps]
    everything = np.concatenate(cells)
    low, high = (
        max(float(np.quantile(everything, share, method="higher")), LOWEST)
        for share in (SCORING_QUANTILE, pixel_quantile)
    )
    # By the whole rule, so that with a minimum area a lonely peak does not count. An image in
    # which nothing survives has no score, and its peak stands in as far as it may have counted.
    rule = Scorer(numbers(low), recipe)
    scores = [
        max(rule.image_score(good), min(float(inside.max()), low))
        for good, inside in zip(maps, cells, strict=True)
    ]
    choice = choose_threshold(scores, promise)
    thresholds = EngineThresholds(
        image_threshold=choice.threshold,
        pixel_threshold=min(high, choice.threshold),
        images=choice.images,
        above=choice.above,
        false_reject_bound=choice.bound,
        confidence=promise.confidence,
        chosen=choice.sentence,
    )
    return thresholds, [choice.sentence, *_outliers(maps, scores, choice)]


def _outliers(maps: Sequence[GoodMap], scores: Sequence[float], choice: Choice) -> list[str]:
    """A good image that stands far above the others decides alone: a person should look at it."""
    order = np.argsort(scores)[::-1]
    if choice.kept or len(scores) < 20:
        return []
    first, second, middle = (scores[order[k]] for k in (0, 1, len(scores) // 2))
    if first - second <= 1.0 * (second - middle):
        return []
    return [
        f"{maps[order[0]].name} has a score of {first:.4g}, the next one {second:.4g}: the "
        "threshold rests on this one image; look whether it is good, and leave it out if not"
    ]


def _split(name: str) -> tuple[str, str]:
    runtime, _, precision = name.partition("/")
    return runtime, precision or "auto"


def _shifted(progress: Progress | None, part: int, parts: int) -> Progress | None:
    """One bar over several passes."""
    if progress is None:
        return None
    return lambda done, total: progress(part * total + done, parts * total)
