"""`linewatch train`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from models.curves import curves
from models.good_images import GoodImages, check_images
from models.images import guess_channels, list_images, read_image
from models.montage import montage
from models.references import save_detector
from models.settings import TrainingSettings
from models.teacher import load_teacher
from models.training import TrainedDetector, split, train
from models.validation import ValidationImages
from models.variants import ALLOWED_SCALES, VARIANTS
from pipeline.commands.processes import join_processes, one_after_the_other
from pipeline.commands.progress import Update, progress_bar
from pipeline.config import load_recipe
from pipeline.errors import ConfigError, DataError
from pipeline.rules import inspected_pixels
from pipeline.sources.frames import extract_frames
from pipeline.training_config import (
    TrainingConfig,
    ValidationConfig,
    load_training,
    settings_of,
)
from pipeline.window import inspected_window

REFERENCE_FRAMES = 2
YAML = (".yaml", ".yml")


def command(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of images of good parts, a recording, or a YAML file."),
    ],
    out: Annotated[Path, typer.Option(help="Folder in which the bundle is made.")] = Path(
        "bundles"
    ),
    variant: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(VARIANTS)}: larger is better and slower. [pdn_tiny]"),
    ] = None,
    color: Annotated[
        bool | None,
        typer.Option("--color/--grey", help="Default: colour if the images have any."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="The camera's recipe (YAML): only its zones are learnt.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="A teacher's file. Default: the built-in one.")
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            help="1, 2 (half the size: 4 times as fast) or 1,2: faint wide defects too. [1]"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="At each scale. More is better, up to a point. [3000]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed, the same bundle. [0]")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, as KEY=VALUE; may be given more than once."),
    ] = None,
    validate_good: Annotated[
        Path | None, typer.Option(help="Full-size good images that choose the best state.")
    ] = None,
    validate_defect: Annotated[
        list[Path] | None, typer.Option(help="Defective ones for the same; more than one folder.")
    ] = None,
    penalty: Annotated[
        Path | None, typer.Option(help="Images of anything else, on which it shall stay silent.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Black and white point of 16 bit images: 0,4095 for 12 bit.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(min=1, help="Of a recording: each so many-th frame. [1]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a killed training was.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: all cores.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for tiles that do not fit into memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Learn a part from images of good ones; writes a bundle.

    No defect is shown to it. Give full-size frames as the camera takes them, a hundred or more,
    with all that is normal in them: every product, light and position. Then choose the thresholds
    with [bold]linewatch calibrate[/], on images that were not learnt from.

    Beside the bundle it writes BUNDLE-tiles.png, which shows what was learnt from, and
    BUNDLE-curves.png, which shows how it went. A state is kept on the way: after a crash or a kill,
    the same command with --resume goes on from it.

    [bold]linewatch train good/ --out bundles[/]

    [bold]linewatch train monday.mkv --every 10 --scales 1,2[/]

    [bold]linewatch train boards/ --set augment.mirror=true --set precedents=true
    --set wide_view=true[/]

    [bold]torchrun --nproc-per-node 4 -m pipeline.cli train part.yaml --device cuda[/]
    """
    begun = time.monotonic()
    config = load_training(source) if source.suffix.lower() in YAML else _from(source)
    changes: dict[str, Any] = {
        "variant": variant,
        "color": color,
        "recipe": _text(recipe),
        "teacher": _text(teacher),
        "penalty": _text(penalty),
        "levels": _two_numbers(levels) if levels else None,
        "every": every,
        "validation": _validation(validate_good, validate_defect),
    }
    if variant is not None and variant not in VARIANTS:
        raise ConfigError(f"--variant {variant!r} found, expected one of {', '.join(VARIANTS)}")
    config = config.model_copy(
        update={key: value for key, value in changes.items() if value is not None}
    )
    settings = _settings(config, scales=scales, steps=steps, seed=seed, others=setting or [])
    if threads:
        torch.set_num_threads(threads)
    with join_processes(device) as (rank, place):
        quiet = as_json or rank > 0
        with progress_bar("Training", None, quiet=quiet) as update:
            detector, images = _train(
                config, settings, out=out, cache=cache, resume=resume, device=place, update=update
            )
        if rank > 0:
            return
        frames = [read_image(p, detector.model.in_channels) for p in detector.held_out]
        bundle = save_detector(
            out,
            detector.model,
            q_a=detector.q_a,
            q_b=detector.q_b,
            provenance=detector.provenance | {"left_out": images.left_out},
            precedents=detector.precedents,
            wide=detector.wide,
            frames=frames[:REFERENCE_FRAMES],
        )
        tiles = bundle.with_name(f"{bundle.name}-tiles.png")
        learnt, _ = split(images.paths, settings)
        _write(tiles, montage(learnt, settings, inspected_of(config, images.paths)))
        drawn = bundle.with_name(f"{bundle.name}-curves.png")
        _write(drawn, curves(detector.fits))
        for state in detector.states:
            state.unlink(missing_ok=True)
    seconds = time.monotonic() - begun
    pictures = [tiles, drawn]
    _tell(bundle, pictures, detector, images, seconds=seconds, resume=resume, as_json=as_json)


def _train(
    config: TrainingConfig,
    settings: TrainingSettings,
    *,
    out: Path,
    cache: Path | None,
    resume: bool,
    device: str,
    update: Update,
) -> tuple[TrainedDetector, GoodImages]:
    def report(what: str, done: int, total: int) -> None:
        update(done, total, what)

    left_out: list[str] = []

    def checked(found: list[Path]) -> list[Path]:
        usable = check_images(
            found,
            levels=config.levels,
            convert_into=out / "frames" / "8bit",
            progress=lambda done, total: report("check images", done, total),
        )
        left_out.extend(usable.left_out)
        return usable.paths

    validation, penalty_images = None, []
    with one_after_the_other():
        good = Path(config.good)
        if good.is_file():
            good = extract_frames(
                good,
                out / "frames",
                config.every,
                lambda done, total: update(done, total, "read recording"),
            )
        paths = checked(list_images(good))
        if config.validation is not None:
            bad = [
                path for folder in config.validation.defect for path in list_images(Path(folder))
            ]
            validation = ValidationImages(
                checked(list_images(Path(config.validation.good))), checked(bad)
            )
        if config.penalty is not None:
            penalty_images = checked(list_images(Path(config.penalty)))
    channels = guess_channels(paths) if config.color is None else (3 if config.color else 1)
    detector = train(
        paths,
        config.variant,
        channels=channels,
        settings=settings,
        teacher=load_teacher(Path(config.teacher), channels) if config.teacher else None,
        inspected=inspected_of(config, paths),
        window=_window(config, paths),
        validation=validation,
        penalty_images=penalty_images,
        cache_dir=cache,
        state_dir=out,
        resume=resume,
        device=device,
        progress=report,
    )
    return detector, GoodImages(paths, left_out)


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), picture[..., ::-1]):
        raise DataError(f"{path}: cannot be written; the bundle beside it is whole")


def _from(source: Path) -> TrainingConfig:
    return TrainingConfig(good=str(source.absolute()))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _validation(good: Path | None, defect: list[Path] | None) -> ValidationConfig | None:
    if (good is None) != (not defect):
        raise ConfigError(
            "one of --validate-good and --validate-defect found, expected both or none"
        )
    if good is None or not defect:
        return None
    return ValidationConfig(
        good=str(good.absolute()), defect=tuple(str(folder.absolute()) for folder in defect)
    )


def _settings(
    config: TrainingConfig,
    *,
    scales: str | None,
    steps: int | None,
    seed: int | None,
    others: list[str],
) -> TrainingSettings:
    """The file's settings, and those of the command line over them."""
    given: dict[str, Any] = dict(config.settings)
    if scales is not None:
        wanted = _two_numbers(scales) if "," in scales else (scales,)
        if tuple(str(scale) for scale in wanted) not in {
            tuple(map(str, allowed)) for allowed in ALLOWED_SCALES
        }:
            raise ConfigError(f"--scales {scales!r} found, expected 1, 2 or 1,2")
        given["scales"] = [int(scale) for scale in wanted]
    if steps is not None:
        given["steps"] = steps
    if seed is not None:
        given["seed"] = seed
    for text in others:
        key, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"--set {text!r} found, expected KEY=VALUE, such as batch=8")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        head, _, tail = key.partition(".")
        if tail:
            inner = given.setdefault(head, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {head} has no keys of its own")
            inner[tail] = parsed
        else:
            given[key] = parsed
    return settings_of(given)


def _two_numbers(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{text!r} found, expected two whole numbers, such as 0,4095") from error
    return first, second


def inspected_of(config: TrainingConfig, paths: list[Path]) -> NDArray[np.bool_] | None:
    """The recipe's zones as a mask of frame pixels, bool (H, W) of the first image's size; None,
    which is all of it, where zones move with the part."""
    if config.recipe is None or not (recipe := load_recipe(Path(config.recipe))).zones:
        return None
    if recipe.fixture is not None:
        return None
    height, width = read_image(paths[0]).shape[:2]
    return inspected_pixels(recipe, (height, width))


def _window(config: TrainingConfig, paths: list[Path]) -> tuple[int, int, int, int] | None:
    """What of a frame the engine will be given on the line, for the global branch."""
    if config.recipe is None:
        return None
    height, width = read_image(paths[0]).shape[:2]
    found = inspected_window(load_recipe(Path(config.recipe)), (height, width))
    return found.top, found.left, found.bottom, found.right


def _tell(
    bundle: Path,
    pictures: list[Path],
    detector: TrainedDetector,
    images: GoodImages,
    *,
    seconds: float,
    resume: bool,
    as_json: bool,
) -> None:
    about = detector.provenance
    if as_json:
        figures = {
            "bundle": str(bundle),
            "pictures": [str(path) for path in pictures],
            "images": about["images"],
            "held_out": about["held_out"],
            "left_out": images.left_out,
            "resumed_at": {scale: fit.resumed_at for scale, fit in detector.fits.items()},
            "wide_resumed_at": {fit.view.scale: fit.resumed_at for fit in detector.wide_fits},
            "validated_on": about["validated_on"],
            "curves": about["curves"],
            "seconds": seconds,
        }
        print(json.dumps(figures, indent=2))
        return
    console = Console()

    def say(sentence: str) -> None:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)

    for sentence in images.left_out:
        say(f"left out: {sentence}")
    say(
        f"{detector.model.variant} learnt from {about['images']} images, {about['held_out']} held "
        f"out, in {seconds:.0f} s."
    )
    if resume and not detector.resumed:
        say("No state of this very training was found, so it began anew.")
    for scale, fit in detector.fits.items():
        if fit.resumed_at:
            say(f"Scale {scale}: went on after step {fit.resumed_at}.")
        if fit.curve:
            best = max(point.auroc for point in fit.curve)
            say(
                f"Scale {scale}: state of step {fit.kept_step} kept, AUROC {best:.3f} on "
                f"{about['validated_on']}."
            )
    for wide in detector.wide_fits:
        if wide.resumed_at:
            say(f"Wide view, scale {wide.view.scale}: went on after step {wide.resumed_at}.")
    say(f"What was learnt from, and how it went:\n  {pictures[0]}\n  {pictures[1]}")
    say(f"Next: choose its thresholds,\n  linewatch calibrate {bundle} --good FOLDER")
    print(f"bundle: {bundle}")
