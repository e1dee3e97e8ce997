"""What the student is asked: settings, the state that it begins in, and the loss.

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
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from models.augment import Augmentation, check_augmentation
from models.crops import GOOD
from models.efficientad import StudentTeacher, hard_feature_loss
from models.errors import DataError
from models.variants import ALLOWED_SCALES, RECEPTIVE_FIELD_PX

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
    accumulate: int = 1
    """Batches whose gradients are added up for one step: more crops than fit into memory."""
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
    augment: Augmentation = field(default_factory=Augmentation)
    penalty: float = 0.0
    """Weight of the student's own output on pictures of nothing (the paper's equation 4)."""
    validations: int = 10
    """How often each student is validated on the way; its best state is kept. 0: the last is."""
    precedents: bool = False
    """Look suspicions up among the training images: for boards and prints, that repeat exactly."""
    held_out: float = 0.2
    q_a: float = 0.9
    q_b: float = 0.995
    tile: int = 256
    seed: int = 0


def check_settings(settings: TrainingSettings) -> None:
    """Raise `DataError` for settings that cannot be trained with."""
    check_augmentation(settings.augment)
    allowed = {
        "scales": settings.scales in ALLOWED_SCALES,
        "steps": settings.steps >= 1,
        "batch": settings.batch >= 1,
        "accumulate": settings.accumulate >= 1,
        "validations": settings.validations >= 0,
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
        sums = each.new_zeros(int(defect.max()) + 1).index_add(0, defect, each)
        loss = loss + (sums / torch.bincount(defect)).mean()
    return loss


def _ratio(squared: torch.Tensor, settings: TrainingSettings) -> torch.Tensor:
    """Logarithm of the map over the margin, of cells [C, cells]."""
    return torch.log((squared.mean(dim=0) + FLOOR) / settings.margin)
