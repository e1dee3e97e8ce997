"""Training: good images in, a detector with its map quantiles out (EfficientAD, section 3).

1. A fifth of the images is held out and trains nothing.
2. At each scale: the teacher's channel statistics over training tiles, in float64; and a student
   that learns to repeat the normalised teacher on crops of the tiles, and to differ from it at
   drawn defects (`models.student`, `models.fit`). On the way it is validated, by default on drawn
   defects on the held-out images (`models.validation`), and its best state is kept.
3. Where asked for, the map's strongest directions are chosen (`models.rotation`).
4. The map quantiles q_a and q_b are those of tiles of the held-out images.
5. Where asked for, the global branch (`models.global_branch`), the wide view (`models.wide_fit`)
   and the images to look suspicions up in (`models.precedents`).

On a CPU, one seed and one number of threads give one result, killed and resumed or not.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from models.checkpoint import training_key
from models.compute import channels_last, compute_type, seeded
from models.efficientad import Detector
from models.errors import DataError
from models.fit import Companions, Fit, fit_student
from models.global_branch import Window, fit_global, set_affine, shrunk_images
from models.images import guess_channels
from models.masks import object_finder
from models.measure import map_quantiles, measure_teacher
from models.pdn import feature_channels
from models.penalty import PenaltySource
from models.precedents import Precedents, choose_images, learn_coarse
from models.rotation import rotate
from models.settings import TrainingSettings, check_settings
from models.student import begin_student
from models.teacher import Teacher, load_builtin_teacher
from models.tiles import TileSet, build_tiles
from models.trained import TrainedDetector, curve_of, other_losses, stretches
from models.validation import (
    MOST_IMAGES,
    Validate,
    ValidationImages,
    check_sizes,
    drawn_crops,
    on_drawn_defects,
    on_images,
)
from models.wide_fit import WideFit, train_wide

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""


def train(
    images: Sequence[Path],
    variant: str = "pdn_tiny",
    *,
    channels: int | None = None,
    settings: TrainingSettings | None = None,
    teacher: Teacher | None = None,
    inspected: NDArray[np.bool_] | None = None,
    window: Window | None = None,
    validation: ValidationImages | None = None,
    penalty_images: Sequence[Path] = (),
    cache_dir: Path | None = None,
    state_dir: Path | None = None,
    resume: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainedDetector:
    """Train a student for a teacher on good images.

    channels: 1, 3, or None for what the images show. teacher: None takes the built-in one of the
    variant. inspected: bool (H, W), when all images have this size and only a part counts.
    window: of the global branch, when the engine is given a part of the frame only.
    validation: images that choose the best state; without, drawn defects do. penalty_images: see
    `models.penalty`. state_dir: where the training's state is kept; `resume` goes on from it, if it
    is one of the same images, settings, teacher and program on such a device. device: of torch.
    Raises `DataError` for images that cannot be used, and when the training diverges.
    """
    settings = settings or TrainingSettings()
    check_settings(settings)
    report = progress or _silent
    if channels is None:
        channels = guess_channels(images)
    teacher = teacher or load_builtin_teacher(variant, channels)
    if settings.map_channels >= (every := feature_channels(teacher.net.variant)):
        raise DataError(
            f"map_channels {settings.map_channels} found, expected fewer than the {every} of "
            f"{teacher.net.variant}, or 0 for all"
        )
    learn, held_out = split(images, settings)
    check_sizes(held_out, inspected)
    find_object = object_finder(settings.mask, settings.mask_threshold, learn)
    with seeded(settings.seed):
        model = Detector(
            teacher.net.variant, channels, settings.scales, global_branch=settings.global_branch
        )
    cut = partial(
        build_tiles,
        learn,
        channels,
        tile=settings.tile,
        stride=settings.stride or None,
        incomplete=settings.incomplete,
        inspected=inspected,
        min_inspected=settings.least_object,
        find_object=find_object,
        cache_dir=cache_dir,
        progress=partial(report, "cut tiles"),
    )
    crops_of = partial(
        drawn_crops,
        held_out,
        channels,
        settings=settings,
        inspected=inspected,
        find_object=find_object,
        cache_dir=cache_dir,
    )
    tiles: list[TileSet] = []
    for scale in settings.scales:
        tiles.append(cut(scale=scale))
        pair = model.pair(scale)
        pair.teacher.load_state_dict(teacher.net.state_dict())
        pair.input_mean.copy_(teacher.input_mean)
        pair.input_std.copy_(teacher.input_std)
        channels_last(pair)
        pair.to(device)
        measure_teacher(pair, tiles[-1], settings.seed, report)
        if settings.begin == "teacher":
            begin_student(pair, settings.seed)
    if settings.epochs:
        shown = settings.batch * settings.accumulate
        steps = math.ceil(settings.epochs * len(tiles[0]) / shown)
        settings = replace(settings, steps=max(1, steps))
    chosen_by = [*validation.good, *validation.bad] if validation is not None else []
    files = [*learn, *held_out, *chosen_by, *penalty_images]
    mask = None if inspected is None else hashlib.sha256(inspected.tobytes()).hexdigest()
    # With another learning rate a training that diverged may go on.
    decides = asdict(settings) | {"learning_rate": None}
    key = training_key(files, [mask, decides, teacher.identity, channels], device)
    validates: list[Validate | None] = [None] * len(settings.scales)
    if settings.validations and validation is not None:
        validates = [
            on_images(validation, scale, inspected, settings.seed) for scale in model.scales
        ]
    elif settings.validations:
        validates = [on_drawn_defects(crops_of(scale)) for scale in model.scales]
    companions = [
        Companions(
            validate=validate,
            state=state_dir / f"training-{key[:16]}-{scale}.state" if state_dir else None,
            key=key,
            resume=resume,
        )
        for scale, validate in zip(model.scales, validates, strict=True)
    ]
    penalties = PenaltySource(settings.crop_px, channels, penalty_images)
    fits = _fit_students(
        model, tiles, settings, companions=companions, penalties=penalties, report=report
    )
    rotations = {}
    for scale in model.scales if settings.map_channels else ():
        report("choose the map's channels", model.scales.index(scale), len(model.scales))
        crops = crops_of(scale)
        rotations[str(scale)] = rotate(
            model.pair(scale), crops, settings.map_channels, on_drawn_defects(crops)
        )
    q_a, q_b = map_quantiles(
        model.eval(), held_out, inspected, settings, report, find_object=find_object
    )
    if not (math.isfinite(q_a) and q_b > q_a):
        raise DataError(
            f"map quantiles {q_a:g} and {q_b:g} of the held-out images found, expected finite and "
            "rising ones: are all good images the same flat picture?"
        )
    global_losses = _fit_global(
        model, learn, held_out, settings, local=(q_a, q_b), window=window, report=report
    )
    model.cpu()
    wide_fits = list[WideFit]()
    states = [each.state for each in companions if each.state is not None]
    if settings.wide_view:
        name = f"training-{key[:16]}-wide"
        wide_states = [state_dir / f"{name}-{k}.state" for k in settings.wide_scales if state_dir]
        states += wide_states
        wide_fits = train_wide(
            lambda at: tiles[settings.scales.index(at)] if at in settings.scales else cut(scale=at),
            channels,
            held_out,
            settings,
            inspected=inspected,
            device=device,
            states=wide_states,
            key=key,
            resume=resume,
            report=report,
        )
    losses = [loss for fit in fits.values() for loss in fit.losses]
    provenance = {
        "trained_by": "models.training",
        "images": len(learn),
        "held_out": len(held_out),
        "tiles": [len(found) for found in tiles],
        "sha256": {path.name: _sha256(path) for path in [*learn, *held_out]},
        "validated_sha256": sorted({_sha256(path) for path in chosen_by}),
        "held_out_names": [path.name for path in held_out],
        "settings": asdict(settings),
        "channels": channels,
        "teacher": teacher.identity,
        "teacher_licence": teacher.licence,
        "compute": str(compute_type(torch.device(device))).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "device": device,
        "last_loss": round(float(np.mean(losses[-100:])), 6),
        "validated_on": _validated_on(validation, validates[0]),
        "global_loss": global_losses[-1] if global_losses else None,
        "wide_loss": [round(float(np.mean(fit.losses[-100:])), 6) for fit in wide_fits],
        "wide_level": [round(fit.view.level, 3) for fit in wide_fits],
        "map_channels": rotations,
        "curves": {str(scale): curve_of(fit) for scale, fit in fits.items()},
        "other_losses": {
            name: {"steps": len(each), "loss": stretches(each)}
            for name, each in other_losses(wide_fits, global_losses).items()
        },
    }
    precedents = None
    if settings.precedents:
        report("describe windows", 0, 1)
        frames = choose_images(learn, channels)
        precedents = Precedents(frames, learn_coarse(frames, settings.seed))
        provenance["precedents"] = len(frames)
    return TrainedDetector(
        model,
        q_a,
        q_b,
        provenance,
        held_out,
        fits,
        precedents=precedents,
        wide_fits=wide_fits,
        global_losses=global_losses,
        states=states,
    )


def _fit_students(
    model: Detector,
    tiles: Sequence[TileSet],
    settings: TrainingSettings,
    *,
    companions: Sequence[Companions],
    penalties: PenaltySource,
    report: Progress,
) -> dict[int, Fit]:
    """Train the scales' students side by side.

    The crops are small: two threads do not make a step twice as fast (1.4 times, measured), so the
    CPU's threads are shared out among the students. Not so several processes: they have to
    average their gradients in one order.
    """
    total = torch.get_num_threads()
    together = 1 if distributed.is_initialized() else min(total, len(settings.scales))
    each = max(1, total // together)
    done = dict.fromkeys(settings.scales, 0)
    before = dict[int, int]()
    """Steps of an earlier run."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    crops = settings.batch * settings.accumulate * processes
    begun = time.monotonic()
    stop = threading.Event()

    def fit(scale: int, found: TileSet, companion: Companions) -> Fit:
        def count(step: int, loss: float, auroc: float) -> None:
            if stop.is_set():
                raise CancelledError
            before.setdefault(scale, step - 1)
            done[scale] = step
            rate = crops * (sum(done.values()) - sum(before.values())) / (time.monotonic() - begun)
            note = f"loss {loss:.2f}" + ("" if math.isnan(auroc) else f", AUROC {auroc:.3f}")
            note += f", {rate:.0f} tiles/s"
            report(f"train student, {note}", sum(done.values()), settings.steps * len(done))

        torch.set_num_threads(each)  # of the operations that this thread calls
        companion = replace(companion, report=count)
        try:
            return fit_student(model.pair(scale), found, settings, companion, penalties)
        except BaseException:
            stop.set()  # the other scale need not go on
            raise

    with ThreadPoolExecutor(together) as pool:
        try:
            each_scale = zip(settings.scales, tiles, companions, strict=True)
            futures = [pool.submit(fit, *arguments) for arguments in each_scale]
            wait(futures)
        finally:
            stop.set()  # the user has enough
            torch.set_num_threads(total)
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, CancelledError)):
        raise error  # why the others were stopped goes before that they were
    return {scale: future.result() for scale, future in zip(settings.scales, futures, strict=True)}


def _fit_global(
    model: Detector,
    learn: Sequence[Path],
    held_out: Sequence[Path],
    settings: TrainingSettings,
    *,
    local: tuple[float, float],
    window: Window | None,
    report: Progress,
) -> list[float]:
    """Train the global branch, if there is one, and bring its map to the local one's quantiles."""
    if model.whole is None:
        return []
    pair = model.pair(model.scales[0])

    def small(paths: Sequence[Path]) -> NDArray[np.uint16]:
        return shrunk_images(paths, model.in_channels, window, partial(report, "shrink images"))

    losses = fit_global(
        model.whole,
        pair,
        small(learn),
        steps=settings.global_steps,
        seed=settings.seed,
        progress=partial(report, "train global branch"),
    )
    shares = settings.q_a, settings.q_b
    set_affine(model.whole, pair, small(held_out), shares=shares, local=local)
    return losses


def _validated_on(validation: ValidationImages | None, validate: Validate | None) -> str:
    if validate is None:
        return "nothing: the last state was kept"
    if validation is None:
        return "drawn defects on held-out good images"
    good, bad = (min(len(paths), MOST_IMAGES) for paths in (validation.good, validation.bad))
    return f"{good} good and {bad} defective images"


def split(images: Sequence[Path], settings: TrainingSettings) -> tuple[list[Path], list[Path]]:
    """Images to learn from and held-out ones, by the seed; both in the given order."""
    if len(images) < 2:
        raise DataError(
            f"{len(images)} good image(s) found, expected at least 2: one to learn from and one "
            "held out; twenty or more make a detector that can be trusted"
        )
    count = min(max(1, round(settings.held_out * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(settings.seed).permutation(len(images))[:count].tolist())
    learn = [path for k, path in enumerate(images) if k not in chosen]
    return learn, [images[k] for k in sorted(chosen)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(what: str, done: int, total: int) -> None:
    pass
