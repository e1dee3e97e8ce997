"""What the student is asked: the state that it begins in, and the loss.

1. The student begins as a copy of the teacher with a little noise: it gives the teacher's features
   everywhere, and has to learn where not to, from drawn defects. Without these nothing would ever
   push it away: then `begin: random`, as in the paper.
2. It is shown crops of good tiles, half of them with small drawn defects (`models.defects`). Crops
   come back to where the map is highest on good surface (`models.crops`).
3. On good cells the squared difference of the features shall vanish, its mean and its hardest part
   (EfficientAD, equation 2). And it shall tell good from bad: a logistic loss puts the map of good
   cells below a margin and that of each drawn defect above it. Nothing is asked where a defect
   is only in the corner of the eye. Real defects are neither needed nor known.
4. Muon, with one cycle of the learning rate.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from models.crops import GOOD
from models.efficientad import StudentTeacher, hard_feature_loss
from models.settings import TrainingSettings

BEGIN_NOISE = 0.1
"""Of each parameter's deviation. A plain copy has no gradient: the difference is zero."""
FLOOR = 1e-4
"""Added to the map before its logarithm."""
SHARPNESS = 4.0
"""Of the logistic losses, per factor e of the map."""


@torch.no_grad()
def begin_student(model: StudentTeacher, seed: int) -> None:
    """Set `model.student` to the teacher, with its features normalised, and a little noise."""
    model.copy_teacher()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.student.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.add_(BEGIN_NOISE * parameter.std() * noise.to(parameter.device))


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
