"""A map from the strongest directions of the difference: a quarter of the last layer's arithmetic.

The map is the squared length of the difference of teacher and student features. A rotation leaves
lengths as they are, and after the one that sorts directions by strength (PCA about zero), most of
the length is in the first few. A detector that keeps k of C channels has `rotation` [k, C]:
its rows are those directions, all made longer by one factor, so that the map's mean stays. It is
folded into the last convolution, and everything after it (quantiles, reference maps, thresholds) is
of the map with it.

Directions are measured on crops of held-out good images with drawn defects. What costs more than
`MOST_LOSS` of those defects' AUROC is not done.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.crops import GOOD
from models.efficientad import StudentTeacher
from models.measure import as_batch
from models.validation import DrawnCrop, Validate

MOST_LOSS = 0.002
"""Of the AUROC on drawn defects."""


@torch.inference_mode()
def strongest(
    model: StudentTeacher, crops: Sequence[DrawnCrop], keep: int
) -> tuple[torch.Tensor, float]:
    """Rotation float32 [keep, C] and the share of the map that it keeps, 0..1.

    Good and defective cells count alike in sum, so that rare strong ones decide as well.
    """
    channels = len(model.feature_mean)
    device = model.feature_mean.device
    moments = torch.zeros(2, channels, channels, dtype=torch.float64, device=device)
    for crop in crops:
        found = model.difference(model.normalise(as_batch(crop.after).to(device)))[0].double()
        counted = torch.from_numpy(crop.counted).to(device)
        defect = torch.from_numpy(crop.cells > GOOD).to(device)
        for kind, cells in enumerate((counted & ~defect, counted & defect)):
            some = found[:, cells]
            moments[kind] += some @ some.T
    traces = [float(moment.trace()) for moment in moments]
    moment = torch.stack(
        [part / trace for part, trace in zip(moments, traces, strict=True) if trace]
    ).mean(dim=0)
    values, vectors = torch.linalg.eigh(moment.cpu())
    share = float(values[-keep:].sum() / values.sum())
    rotation = vectors[:, -keep:].flip(1).T / share**0.5
    return rotation.float().to(device), share


def rotate(
    model: StudentTeacher, crops: Sequence[DrawnCrop], keep: int, validate: Validate
) -> dict[str, float | int]:
    """Set `model.rotation`, unless that costs too much. Returns what is to be told of it.

    `channels` in the result: those of the map now; `share`: of the map that they keep; `auroc` and
    `auroc_of_all`: on drawn defects, with them and with all channels.
    """
    of_all = validate(model)
    rotation, share = strongest(model, crops, keep)
    model.rotation = rotation
    auroc = validate(model)
    if auroc < of_all - MOST_LOSS:
        model.rotation = None
        keep = len(model.feature_mean)
    return {
        "channels": keep,
        "share": round(share, 5),
        "auroc": round(auroc, 5),
        "auroc_of_all": round(of_all, 5),
    }
