"""The accuracy benchmark: trained on `train`, chosen and calibrated on `val`, looked at on `test`.

Run by `python -m tools.bench accuracy`. For each data set, settings are fixed here (`PLANS`); they
were chosen on `val`. Every seed trains from nothing. Thresholds are those of `linewatch calibrate`
on one half of val; the other half chose the state that is kept. Test images meet the detector once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from calibrate.boxes_eval import RIGHT_IOU, f_score
from calibrate.calibration import calibrate
from calibrate.evaluation import Judge, Seen
from calibrate.labelled import Labels
from calibrate.metrics import box_peak, image_auroc, interval, recall_at
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
from tools.image_sets import ImageSet, halves, load_set

TOY_BLUR_SIGMA = 2.0
TOY_MEDIAN_PX = 41
SOURCES = ("models", "calibrate", "pipeline", "tools")

ROWS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "au_pro": "AU-PRO (0.3)",
    "recall_at_1": "defect recall at 1 % false rejects",
    "recall_at_5": "defect recall at 5 % false rejects",
    "frozen_recall": "threshold of val: defect recall",
    "frozen_image_recall": "threshold of val: image recall",
    "frozen_false_rejects": "threshold of val: false rejects",
    "box_f": "threshold of val: F-score of boxes, IoU 0.33",
}
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings of one data set."""

    settings: TrainingSettings
    recipe: Recipe = field(default_factory=Recipe)


PLANS = {
    "deeppcb": Plan(
        TrainingSettings(
            steps=2000,
            accumulate=2,
            augment=Augmentation(mirror=True, quarter_turns=True),
            precedents=True,
            wide_view=True,
            wide_crop_px=256,
            wide_steps=6000,
            validations=4,
        ),
        Recipe(box_fraction=0.5, box_margin_px=12),
    ),
    "magnetic_tile": Plan(
        TrainingSettings(
            scales=(1, 2),
            steps=3000,
            augment=Augmentation(mirror=True),
            wide_view=True,
            wide_scales=(1, 2),
            wide_steps=6000,
            validations=4,
        ),
        Recipe(box_fraction=0.4, edge_px=16),
    ),
}
POLICY = Policy("youden")
"""Val has defective images, and too few good ones for a promise that is worth its name."""


@dataclass(slots=True)
class Looked:
    """Raw results of one detector on the test images."""

    good: list[float]
    """Highest score of each good image."""
    bad: list[float]
    bad_kinds: list[list[str]]
    """Of each defective image: what is in it."""
    peaks: list[tuple[int, str, float]]
    """Defective image, kind and highest value of each defect."""
    good_failed: int
    bad_failed: int
    defects_failed: list[bool]
    """Whether each defect lies under a box of the frozen threshold."""
    boxes: int
    found: int
    """Defects that a box overlaps with an IoU of over 0.33; each box finds one."""
    pixel_auroc: float
    au_pro: float


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
            kept = out / f"{name}-{seed}.json"
            what = f"{variant}, {random_teacher=}, {device}, {asked!r}, sources {_sources()}"
            if (before := _kept(kept, what)) is None:
                with progress_bar(f"{name}, seed {seed}", None, quiet=quiet) as update:
                    looked, about = run_seed(
                        images,
                        asked,
                        variant=variant,
                        teacher=random_features(variant, seed) if random_teacher else None,
                        work=out,
                        device=device,
                        report=lambda what, done, total: update(done, total, what),
                    )
                before = {"looked": asdict(looked), "about": about, "asked": what}
                kept.write_text(json.dumps(before))
            looks.append(Looked(**before["looked"]))
            abouts.append(before["about"])
        about = {"runs": abouts, "toy_image_auroc": toy_auroc(images)}
        table["sets"][name] = figures(looks) | about
    return table


def _sources() -> str:
    """Hash of the program: figures of another one are not these."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path for name in SOURCES for path in (root / name).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


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
    device: str,
    report: Report,
) -> tuple[Looked, dict[str, Any]]:
    """Train, calibrate and look at the test images; results and how they came about."""
    begun = time.monotonic()
    choosing, calibrating = halves(images.val)
    state_dir = work / f"states-{_sources()}"
    resumed = any(state_dir.glob("*.state"))
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
    for state in trained.states:
        state.unlink(missing_ok=True)
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
        "resumed": resumed,
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


def figures(seeds: Sequence[Looked]) -> dict[str, Any]:
    """[mean over the seeds, low, high]: of what is ranked, 95 % intervals over images drawn again
    (the same ones for all seeds); of pixels and of the frozen threshold, the seeds' extremes.
    """
    kinds = sorted({kind for _, kind, _ in seeds[0].peaks})
    table: dict[str, Any] = {
        "image_auroc": _resampled(seeds, lambda good, bad, _: image_auroc(good, bad)),
        "pixel_auroc": _spread([looked.pixel_auroc for looked in seeds]),
        "au_pro": _spread([looked.au_pro for looked in seeds]),
        "recall_at_1": _resampled(seeds, lambda good, _, peaks: recall_at(good, peaks, 0.01)),
        "recall_at_5": _resampled(seeds, lambda good, _, peaks: recall_at(good, peaks, 0.05)),
        "frozen_false_rejects": _spread([s.good_failed / len(s.good) for s in seeds]),
        "frozen_image_recall": _spread([s.bad_failed / len(s.bad) for s in seeds]),
        "frozen_recall": _spread([float(np.mean(s.defects_failed)) for s in seeds]),
        "box_f": _spread([_f_score(s) for s in seeds]),
        "kinds": {},
    }
    for kind in kinds:
        table["kinds"][kind] = {
            "image_auroc": _resampled(seeds, lambda good, bad, _: image_auroc(good, bad), kind),
            "recall_at_1": _resampled(
                seeds, lambda good, _, peaks: recall_at(good, peaks, 0.01), kind
            ),
            "recall_at_5": _resampled(
                seeds, lambda good, _, peaks: recall_at(good, peaks, 0.05), kind
            ),
        }
    return table


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


def print_table(found: dict[str, Any]) -> None:
    """One table for each data set, kinds of defects below."""
    for name, figures_ in found["sets"].items():
        whole = [run["minutes"] for run in figures_["runs"] if not run["resumed"]]
        minutes = f"{np.mean(whole):.1f}" if whole else "?"
        table = Table(title=f"{name}: {found['variant']}, {len(found['seeds'])} seed(s)")
        for column in ("", "mean", "low", "high"):
            table.add_column(column, justify="right" if column else "left")
        for key, label in ROWS.items():
            table.add_row(label, *(f"{value:.3f}" for value in figures_[key]))
        for kind, of_kind in figures_["kinds"].items():
            for key, values in of_kind.items():
                table.add_row(f"{kind}: {ROWS[key]}", *(f"{value:.3f}" for value in values))
        table.caption = (
            f"toy: image AUROC {figures_['toy_image_auroc']:.3f}; {minutes} min a training; "
            f"{found['machine']}, {found['when']}"
        )
        Console().print(table)


Statistic = Callable[[list[float], list[float], list[float]], float]
"""Of good images' scores, defective images' scores, defects' peaks."""


def _resampled(seeds: Sequence[Looked], statistic: Statistic, kind: str = "") -> list[float]:
    """[mean over the seeds, lower, upper end of its interval]."""

    def value(good: NDArray[np.intp], bad: NDArray[np.intp]) -> float:
        values = []
        for looked in seeds:
            scores = np.array(looked.good)[good].tolist()
            chosen = [k for k in bad.tolist() if not kind or kind in looked.bad_kinds[k]]
            peaks = [
                peak
                for k in chosen
                for which, peak in _peaks(looked, k)
                if not kind or which == kind
            ]
            values.append(statistic(scores, [looked.bad[k] for k in chosen], peaks))
        return float(np.mean(values))

    goods, bads = len(seeds[0].good), len(seeds[0].bad)
    everything = value(np.arange(goods), np.arange(bads))

    def drawn(indices: NDArray[np.intp]) -> float:
        """Good and defective images are drawn each among their kind."""
        rng = np.random.default_rng(indices[:8].tolist())
        return value(rng.integers(0, goods, goods), rng.integers(0, bads, bads))

    return [everything, *interval(drawn, goods + bads, resamplings=300)]


def _peaks(looked: Looked, image: int) -> list[tuple[str, float]]:
    return [(kind, peak) for number, kind, peak in looked.peaks if number == image]


def _spread(values: Sequence[float]) -> list[float]:
    """[mean, lowest, highest] over the seeds."""
    return [float(np.mean(values)), float(min(values)), float(max(values))]


def _f_score(looked: Looked) -> float:
    return f_score(looked.found, looked.boxes, len(looked.peaks))
