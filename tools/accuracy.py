"""The accuracy benchmark: trained on `train`, chosen and calibrated on `val`, looked at on `test`.

Run by `python -m tools.bench accuracy`. For each data set, settings are fixed here (`PLANS`); they
were chosen on `val`, but for the numbers of steps, which are what two hours allow. Every seed
trains from nothing. Thresholds are those of `linewatch calibrate` on one half of val; the other
half chose the state that is kept. Test images meet the detector once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from calibrate.boxes_eval import RIGHT_IOU
from calibrate.calibration import calibrate
from calibrate.evaluation import Judge, Seen
from calibrate.labelled import Labels
from calibrate.metrics import box_peak, image_auroc
from calibrate.policies import Policy
from models.augment import Augmentation
from models.bundle import Bundle
from models.images import read_image
from models.references import save_detector
from models.runtimes import open_runtime
from models.settings import TrainingSettings
from models.teacher import Teacher
from models.training import train
from models.untrained import untrained_model
from models.validation import ValidationImages
from pipeline.commands.progress import progress_bar
from pipeline.config import Recipe
from tools.accuracy_figures import Looked, figures
from tools.image_sets import ImageSet, halves, load_set

TOY_BLUR_SIGMA = 2.0
TOY_MEDIAN_PX = 41
SOURCES = ("models", "calibrate", "pipeline", "tools")

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of one data set."""

    settings: TrainingSettings
    recipe: Recipe = field(default_factory=Recipe)


PLANS = {
    "deeppcb": Plan(
        TrainingSettings(
            steps=1500,
            accumulate=2,
            augment=Augmentation(mirror=True, quarter_turns=True),
            precedents=True,
            wide_view=True,
            wide_crop_px=256,
            wide_steps=5000,
            validations=4,
        ),
        Recipe(box_fraction=0.5, box_margin_px=12),
    ),
    "magnetic_tile": Plan(
        TrainingSettings(
            scales=(1, 2),
            steps=1500,
            augment=Augmentation(mirror=True),
            wide_view=True,
            wide_scales=(1, 2),
            wide_steps=5000,
            validations=4,
        ),
        Recipe(box_fraction=0.1, box_margin_px=4, merge_px=16),
    ),
}
POLICY = Policy("youden")
"""Val has defective images, and too few good ones for a promise that is worth its name."""


def bench(
    data: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    *,
    variant: str,
    steps: int,
    random_teacher: bool,
    device: str,
    out: Path,
    quiet: bool,
) -> dict[str, Any]:
    """All sets and seeds. What was found is written to `out`, seed by seed, and not done again when
    the same is asked for: a killed benchmark goes on, and a seed more does not cost all of them."""
    out.mkdir(parents=True, exist_ok=True)
    table: dict[str, Any] = {"variant": variant, "seeds": list(seeds), "sets": {}}
    for name in names:
        images = load_set(data, name)
        plan = PLANS[name]
        looks, abouts = [], []
        for seed in seeds:
            settings = replace(plan.settings, seed=seed)
            if steps:
                settings = replace(settings, steps=steps, wide_steps=steps)
            if random_teacher:  # what the others make up for it does not count
                settings = replace(settings, wide_view=False, precedents=False)
            asked = replace(plan, settings=settings)
            what = (
                f"{variant}, {random_teacher=}, {device}, {torch.get_num_threads()} threads, "
                f"{asked!r}, program {PROGRAM}, data {_data(images)}"
            )
            digest = hashlib.sha256(what.encode()).hexdigest()[:12]
            kept = out / f"{name}-{seed}-{digest}.json"
            states = out / f"states-{name}-{digest}"
            if (before := _kept(kept, what)) is None:
                with progress_bar(f"{name}, seed {seed}", None, quiet=quiet) as update:
                    looked, about = run_seed(
                        images,
                        asked,
                        variant=variant,
                        teacher=random_features(variant, seed) if random_teacher else None,
                        work=out,
                        state_dir=states,
                        device=device,
                        report=lambda what, done, total: update(done, total, what),
                    )
                before = {"looked": asdict(looked), "about": about, "asked": what}
                partial = kept.with_suffix(".partial")
                partial.write_text(json.dumps(before))
                partial.replace(kept)
                shutil.rmtree(states, ignore_errors=True)
            looks.append(Looked(**before["looked"]))
            abouts.append(before["about"])
        about = {"runs": abouts, "toy_image_auroc": toy_auroc(images)}
        table["sets"][name] = figures(looks) | about
    return table


def _program() -> str:
    """Hash of the sources: figures of another program are not these."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for name in SOURCES for path in (root / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


PROGRAM = _program()
"""Of the modules that run: files may change in the hours of a benchmark."""


def _data(images: ImageSet) -> str:
    """Hash of what is learnt from and looked at."""
    files = [
        *images.train,
        *(image.path for part in (images.val, images.test) for image in part.images),
    ]
    whole = hashlib.sha256()
    for path in files:
        whole.update(f"{path.name}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def _kept(path: Path, asked: str) -> dict[str, Any] | None:
    """What an earlier run of the same program found, asked for the same; None: nothing."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("asked") == asked else None


def random_features(variant: str, seed: int) -> Teacher:
    """A teacher that nobody taught: the baseline, with the student alone."""
    pair = untrained_model(variant, 1, seed=seed).pair(1)
    return Teacher(pair.teacher, pair.input_mean, pair.input_std, f"random-{seed}", "none")


def run_seed(
    images: ImageSet,
    plan: Plan,
    *,
    variant: str,
    teacher: Teacher | None,
    work: Path,
    state_dir: Path,
    device: str,
    report: Report,
) -> tuple[Looked, dict[str, Any]]:
    """Train, calibrate and look at the test images; results and how they came about."""
    begun = time.monotonic()
    choosing, calibrating = halves(images.val)
    trained = train(
        images.train,
        variant,
        channels=1,
        settings=plan.settings,
        teacher=teacher,
        validation=ValidationImages(
            [image.path for image in choosing.good], [image.path for image in choosing.bad]
        ),
        cache_dir=work / "tiles",
        state_dir=state_dir,
        resume=True,
        device=device,
        progress=report,
    )
    minutes = (time.monotonic() - begun) / 60
    bundle = save_detector(
        work / "bundles",
        trained.model,
        q_a=trained.q_a,
        q_b=trained.q_b,
        provenance=trained.provenance | {"minutes": round(minutes, 2)},
        precedents=trained.precedents,
        wide=trained.wide,
        frames=[read_image(path, 1) for path in trained.held_out[:2]],
    )
    calibrated = calibrate(
        bundle,
        calibrating.good,
        bad=calibrating.bad,
        recipe=plan.recipe,
        policy=POLICY,
        out_dir=work / "bundles",
        progress=lambda done, total: report("calibrate", done, total),
    )
    looked = look(calibrated, images.test, plan.recipe, report)
    about = {
        "minutes": minutes,
        "resumed": trained.resumed,
        "kept_steps": {scale: fit.kept_step for scale, fit in trained.fits.items()},
        "bundle": calibrated.name,
    }
    return looked, about


def look(bundle_path: Path, labels: Labels, recipe: Recipe, report: Report) -> Looked:
    """Images through the engine and the rule that serve."""
    bundle = Bundle.load(bundle_path)
    runtime = open_runtime(bundle)
    looked = Looked([], [], [], [], 0, 0, [], 0, 0, float("nan"), float("nan"))
    try:
        judge = Judge(bundle, runtime, {"": recipe}, least_iou=RIGHT_IOU)
        images = labels.images
        for seen in judge.judge(images, lambda k, n: report("look at test images", k, n)):
            _take(looked, seen)
    finally:
        runtime.close()
    looked.pixel_auroc, looked.au_pro = judge.curves.auroc(), judge.curves.au_pro()
    return looked


def _take(looked: Looked, seen: Seen) -> None:
    judged = seen.judged
    looked.boxes += len(judged.boxes)
    peak = float(seen.scores.max())
    if not judged.image.defective:
        looked.good.append(peak)
        looked.good_failed += judged.failed
        return
    for defect in judged.truth:
        where = len(looked.bad)
        looked.peaks.append((where, defect.kind, box_peak(seen.scores, defect.box_xyxy)))
        looked.defects_failed.append(any(_touch(box, defect.box_xyxy) for box in judged.boxes))
    looked.found += len(judged.matches)
    looked.bad.append(peak)
    looked.bad_failed += judged.failed
    looked.bad_kinds.append(sorted(judged.image.kinds))


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def toy_auroc(images: ImageSet) -> float:
    """Of the toy: the greatest difference of the blurred image from its medians around."""

    def score(path: Path) -> float:
        grey = read_image(path, 1)[..., 0]
        blurred = cv2.GaussianBlur(grey, (0, 0), TOY_BLUR_SIGMA)
        return float(cv2.absdiff(cv2.medianBlur(grey, TOY_MEDIAN_PX), blurred).max())

    return image_auroc(
        [score(image.path) for image in images.test.good],
        [score(image.path) for image in images.test.bad],
    )
