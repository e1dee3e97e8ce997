"""`linewatch train`."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
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
from models.images import list_images, read_image
from models.montage import montage
from models.references import save_detector
from models.settings import TrainingSettings
from models.teacher import Teacher, load_teacher
from models.tiles import least_side
from models.trained import TrainedDetector
from models.training import split, train
from models.validation import ValidationImages
from models.variants import RECEPTIVE_FIELD_PX, VARIANTS
from pipeline.commands.processes import join_processes, one_after_the_other
from pipeline.commands.progress import Update, progress_bar
from pipeline.commands.train_options import (
    absolute,
    from_folder,
    two_numbers,
    validation_of,
    with_options,
)
from pipeline.config import load_recipe
from pipeline.errors import ConfigError, DataError
from pipeline.rules import inspected_pixels
from pipeline.sources.frames import extract_frames
from pipeline.training_config import (
    TrainingConfig,
    load_training,
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
        typer.Option(
            help=f"{', '.join(VARIANTS)}: larger ones are slower, and may find more "
            "after long training. pdn_medium needs --teacher. [pdn_tiny]"
        ),
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
        Path | None,
        typer.Option(help="Images of anything else, to stay silent on (penalty=1)."),
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
        Path | None,
        typer.Option(help="Folder in which tiles are kept for the next training."),
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
    config = load_training(source) if source.suffix.lower() in YAML else from_folder(source)
    changes: dict[str, Any] = {
        "variant": variant,
        "color": color,
        "recipe": absolute(recipe),
        "teacher": absolute(teacher),
        "penalty": absolute(penalty),
        "levels": two_numbers(levels) if levels else None,
        "every": every,
        "validation": validation_of(validate_good, validate_defect),
    }
    if variant is not None and variant not in VARIANTS:
        raise ConfigError(f"--variant {variant!r} found, expected one of {', '.join(VARIANTS)}")
    config = config.model_copy(
        update={key: value for key, value in changes.items() if value is not None}
    )
    settings = with_options(config, scales=scales, steps=steps, seed=seed, others=setting or [])
    if config.penalty is not None and not settings.penalty:
        settings = replace(settings, penalty=1.0)  # the paper's weight: the folder asks for it
    if threads:
        torch.set_num_threads(threads)
    if config.every > 1 and Path(config.good).is_dir():
        raise ConfigError(f"every {config.every} with a folder found, expected a recording")
    tiles_in = cache or out / f".tiles-{_name_of(config, settings)}"
    with join_processes(device) as (rank, place):
        quiet = as_json or rank > 0
        with progress_bar("Training", None, quiet=quiet) as update:
            detector, images = _train(
                config,
                settings,
                out=out,
                cache=tiles_in,
                resume=resume,
                device=place,
                update=update,
            )
        if rank > 0:
            return
        chosen = detector.held_out[:REFERENCE_FRAMES]
        bundle = save_detector(
            out,
            detector.model,
            q_a=detector.q_a,
            q_b=detector.q_b,
            provenance=detector.provenance | {"left_out": images.left_out, "levels": config.levels},
            precedents=detector.precedents,
            wide=detector.wide,
            frames=[read_image(path, detector.model.in_channels) for path in chosen],
        )
        tiles = bundle.with_name(f"{bundle.name}-tiles.png")
        learnt, _ = split(images.paths, settings)
        _write(tiles, montage(learnt, settings, inspected_of(config, images.paths)))
        drawn = bundle.with_name(f"{bundle.name}-curves.png")
        _write(drawn, curves(detector.fits, detector.other_losses))
        for state in detector.states:
            state.unlink(missing_ok=True)
    if cache is None:
        shutil.rmtree(tiles_in, ignore_errors=True)
    seconds = time.monotonic() - begun
    pictures = [tiles, drawn]
    _tell(bundle, pictures, detector, images, seconds=seconds, resume=resume, as_json=as_json)


def _train(
    config: TrainingConfig,
    settings: TrainingSettings,
    *,
    out: Path,
    cache: Path,
    resume: bool,
    device: str,
    update: Update,
) -> tuple[TrainedDetector, GoodImages]:
    def report(what: str, done: int, total: int) -> None:
        update(done, total, what)

    left_out: list[str] = []
    wide = settings.wide_scales if settings.wide_view else ()
    least_px = max(least_side(scale) for scale in (*settings.scales, *wide))

    def checked(found: list[Path], least_px: int = least_px) -> GoodImages:
        usable = check_images(
            found,
            levels=config.levels,
            convert_into=out / "frames" / "8bit",
            least_px=least_px,
            progress=lambda done, total: report("check images", done, total),
        )
        left_out.extend(usable.left_out)
        return usable

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
        usable = checked(list_images(good))
        if config.validation is not None:
            bad = [
                path for folder in config.validation.defect for path in list_images(Path(folder))
            ]
            validation = ValidationImages(
                checked(list_images(Path(config.validation.good))).paths, checked(bad).paths
            )
        if config.penalty is not None:
            penalty_images = checked(list_images(Path(config.penalty)), RECEPTIVE_FIELD_PX).paths
    paths = usable.paths
    color = usable.coloured > 0 if config.color is None else config.color
    channels = 3 if color else 1
    detector = train(
        paths,
        config.variant,
        channels=channels,
        settings=settings,
        teacher=_teacher(config, channels),
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
    return detector, replace(usable, left_out=left_out)


def _teacher(config: TrainingConfig, channels: int) -> Teacher | None:
    """The file's, if one is named. Raises `ConfigError` where it contradicts the variant."""
    if config.teacher is None:
        return None
    teacher = load_teacher(Path(config.teacher), channels)
    found = teacher.net.variant
    if "variant" in config.model_fields_set and config.variant != found:
        raise ConfigError(
            f"variant {config.variant} with {config.teacher} found, which is of {found}: leave out "
            "one of them"
        )
    return teacher


def _name_of(config: TrainingConfig, settings: TrainingSettings) -> str:
    """Of the same training when it is started again."""
    # One that diverged goes on with another learning rate.
    about = config.model_dump_json() + json.dumps(asdict(settings) | {"learning_rate": None})
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    if not cv2.imwrite(str(path), picture[..., ::-1]):
        raise DataError(f"{path}: cannot be written; the bundle beside it is whole")


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
    if 0 < images.coloured < len(images.paths):
        how = "in colour" if about["channels"] == 3 else "grey"
        say(
            f"{images.coloured} of {len(images.paths)} images have colour, the others none: are "
            f"they of one camera? All were learnt {how}."
        )
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
