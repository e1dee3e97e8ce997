"""The student's training: what it is shown, what is asked of it, and how it is moved.

1. The student begins as a copy of the teacher with a little noise: it gives the teacher's features
   everywhere, and has to learn where not to.
2. It is shown crops of good tiles, half of them with small drawn defects (`models.defects`). Crops
   come back to where the map is highest on good surface (`models.crops`).
3. On good cells the squared difference of the features shall vanish, its mean and its hardest part
   (EfficientAD, equation 2). And it shall tell good from bad: a logistic loss puts the map of good
   cells below a margin and that of each drawn defect above it. Nothing is asked where a defect
   is only in the corner of the eye. Real defects are neither needed nor known.
4. Muon, with one cycle of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models.compute import compute_type
from models.crops import GOOD, Batch, CropSource
from models.efficientad import StudentTeacher, hard_feature_loss
from models.errors import DataError
from models.muon import Muon
from models.procedural import draw, photograph
from models.tiles import TileSet
from models.variants import ALLOWED_SCALES, RECEPTIVE_FIELD_PX

MAX_GRADIENT = 1.0
BEGIN_NOISE = 0.1
"""Of each parameter's deviation. A plain copy has no gradient: the difference is zero."""
FLOOR = 1e-4
"""Added to the map before its logarithm."""
SHARPNESS = 4.0
"""Of the logistic losses, per factor e of the map."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What decides a detector, beside its images and its teacher."""

    scales: tuple[int, ...] = (1,)
    """At which the frame is looked at: 2 sees faint wide defects and costs a quarter of 1."""
    steps: int = 3000
    """At each scale."""
    batch: int = 4
    """Crops in each step."""
    crop_px: int = 128
    learning_rate: float = 8e-3
    """At its highest. The paper's 1e-4 is for 70,000 steps; README.md beside this file has more."""
    optimiser: str = "muon"
    """Or `adam`, the paper's."""
    one_cycle: bool = True
    """Raise and lower the learning rate in one cycle; otherwise as in the paper, see decay_at."""
    weight_decay: float = 1e-5
    decay_at: float = 0.95
    """Share of the steps after which the learning rate is a tenth."""
    hard_quantile: float = 0.99
    """The loss is the mean of this quantile's upper share of the squared differences."""
    hard_weight: float = 0.1
    mean_weight: float = 1.0
    spoiled: float = 0.5
    """Share of the crops with drawn defects; 0 leaves the good cells' losses alone."""
    revisited: float = 0.5
    """Share of the crops that come back to the hardest good places."""
    margin: float = 0.5
    """Raw map value between good cells and drawn defects."""
    good_weight: float = 3.0
    """Of the good cells' logistic loss; the defects' has 1."""
    penalty: float = 0.0
    """Weight of the student's own output on pictures of nothing (the paper's equation 4)."""
    held_out: float = 0.2
    q_a: float = 0.9
    q_b: float = 0.995
    tile: int = 256
    seed: int = 0


def check_settings(settings: TrainingSettings) -> None:
    """Raise `DataError` for settings that cannot be trained with."""
    allowed = {
        "scales": settings.scales in ALLOWED_SCALES,
        "steps": settings.steps >= 1,
        "batch": settings.batch >= 1,
        "optimiser": settings.optimiser in ("muon", "adam"),
        "crop_px": settings.crop_px >= RECEPTIVE_FIELD_PX,
        "learning_rate": 0 < settings.learning_rate < math.inf,
        "weight_decay": 0 <= settings.weight_decay < math.inf,
        "decay_at": 0 < settings.decay_at <= 1,
        "hard_quantile": 0 <= settings.hard_quantile < 1,
        "spoiled": 0 <= settings.spoiled <= 1,
        "revisited": 0 <= settings.revisited <= 1,
        "hard_weight": 0 <= settings.hard_weight < math.inf,
        "mean_weight": 0 <= settings.mean_weight < math.inf,
        "margin": 0 < settings.margin < math.inf,
        "good_weight": 0 <= settings.good_weight < math.inf,
        "penalty": 0 <= settings.penalty < math.inf,
        "held_out": 0 < settings.held_out < 1,
        "q_a": 0 < settings.q_a < settings.q_b < 1,
    }
    for name, fits in allowed.items():
        if not fits:
            raise DataError(
                f"training setting {name}: {getattr(settings, name)!r} found, which cannot be "
                f"trained with; the default is {getattr(TrainingSettings(), name)!r}"
            )


@torch.no_grad()
def begin_student(model: StudentTeacher, seed: int) -> None:
    """Set `model.student` to the teacher, with its features normalised, and a little noise."""
    model.copy_teacher()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.student.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(BEGIN_NOISE * parameter.std() * noise)


def fit_student(
    model: StudentTeacher,
    tiles: TileSet,
    settings: TrainingSettings,
    report: Callable[[str, int, int], None],
) -> list[float]:
    """Train `model.student` in place; the loss of every step."""
    rng = np.random.default_rng([settings.seed, 1])
    half = compute_type()
    student = model.student.train()
    optimiser = _optimiser(student, settings)
    schedule = _schedule(optimiser, settings)
    source = CropSource(
        tiles,
        rng,
        batch=settings.batch,
        crop_px=settings.crop_px,
        spoiled=settings.spoiled,
        revisited=settings.revisited,
    )
    losses: list[float] = []
    for step in range(1, settings.steps + 1):
        batch = source.draw()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", half, enabled=half != torch.float32):
            # Crops of images smaller than the crop have sizes of their own.
            squared = [
                model.squared_difference(model.normalise(crops.pixels)) for crops in batch.groups
            ]
            strange = _strange(model, rng, settings) if settings.penalty else 0.0
        # [C, cells]
        flat = torch.cat([part.float().transpose(0, 1).flatten(1) for part in squared], dim=1)
        cells = torch.cat([crops.cells.flatten() for crops in batch.groups])
        loss = student_loss(flat, cells, settings) + settings.penalty * strange
        losses.append(_finite(loss, losses, settings))
        source.report(batch, _highest(batch, squared, settings.batch))
        torch.autograd.backward(loss)
        if settings.optimiser == "adam":
            # At such learning rates one hard batch would otherwise end in dead ReLUs.
            torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRADIENT)
        optimiser.step()
        schedule.step()
        report("train student", step, settings.steps)
    student.eval()
    return losses


def _finite(loss: torch.Tensor, before: list[float], settings: TrainingSettings) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise DataError(
            f"loss {value} found at step {len(before) + 1} of {settings.steps}, expected a finite "
            f"one: lower the learning rate (it was {settings.learning_rate:g}; the loss before was "
            f"{before[-1] if before else value:g})"
        )
    return value


def student_loss(
    squared: torch.Tensor, cells: torch.Tensor, settings: TrainingSettings
) -> torch.Tensor:
    """Squared differences [C, cells] of a batch and what each cell shows -> the loss.

    The logistic losses take the map's logarithm, since what counts is the ratio. Each defect
    counts alike, however large.
    """
    good = squared[:, cells == GOOD]  # may be none: all of it outside of the zones
    loss = 0 * squared.sum()
    if good.numel():
        hardest = hard_feature_loss(good, settings.hard_quantile)
        loss = loss + settings.hard_weight * hardest + settings.mean_weight * good.mean()
    if not settings.spoiled:
        return loss
    if good.numel():
        each = functional.softplus(SHARPNESS * _ratio(good, settings))
        loss = loss + settings.good_weight * each.mean()
    bad = cells > GOOD
    if bool(bad.any()):
        _, defect = torch.unique(cells[bad], return_inverse=True)
        each = functional.softplus(-SHARPNESS * _ratio(squared[:, bad], settings))
        sums = torch.zeros(int(defect.max()) + 1).index_add(0, defect, each)
        loss = loss + (sums / torch.bincount(defect)).mean()
    return loss


def _ratio(squared: torch.Tensor, settings: TrainingSettings) -> torch.Tensor:
    """Logarithm of the map over the margin, of cells [C, cells]."""
    return torch.log((squared.mean(dim=0) + FLOOR) / settings.margin)


@torch.no_grad()
def _highest(batch: Batch, squared: list[torch.Tensor], count: int) -> list[float]:
    """The highest map value on good cells of each crop, in the batch's order."""
    highest = [0.0] * count
    for crops, part in zip(batch.groups, squared, strict=True):
        values = part.float().mean(dim=1).where(crops.cells == GOOD, 0.0).amax(dim=(1, 2))
        for number, value in zip(crops.numbers, values.tolist(), strict=True):
            highest[number] = value
    return highest


def _strange(
    model: StudentTeacher, rng: np.random.Generator, settings: TrainingSettings
) -> torch.Tensor:
    """The student's mean squared output on a procedural picture, far from any good image."""
    picture = photograph(rng, draw(rng, settings.crop_px))[None, ..., : model.in_channels]
    pixels = torch.from_numpy(np.ascontiguousarray(picture))
    features: torch.Tensor = model.student(model.normalise(pixels)).float()
    return (features**2).mean()


def _optimiser(student: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "adam":
        return torch.optim.Adam(student.parameters(), rate, weight_decay=decay)
    return Muon(student.parameters(), rate, weight_decay=decay)


def _schedule(
    optimiser: torch.optim.Optimizer, settings: TrainingSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle (Smith and Topin 2018) for short runs, or the paper's single drop to a tenth."""
    if settings.one_cycle:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
        )
    drop = max(1, round(settings.decay_at * settings.steps))
    return torch.optim.lr_scheduler.StepLR(optimiser, drop, gamma=0.1)
