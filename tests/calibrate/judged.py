"""Judged images made up for tests: what they are, what was said, and a bundle to hang them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calibrate.evaluation import Judged
from calibrate.labelled import Defect, LabelledImage
from calibrate.metrics import PixelCurves

THRESHOLD = 1.0


def judged(
    score: float,
    kind: str = "",
    *,
    name: str = "",
    camera: str = "",
    truth: int = 0,
    matched: int = 0,
    boxes: int = 0,
) -> Judged:
    """kind "": a good image. truth, matched, boxes: how many of them."""
    box = (1, 2, 9, 8)
    defects = tuple(Defect(kind, box) for _ in range(truth))
    image = LabelledImage(
        Path(name or f"{kind or 'good'}-{score:.4f}.png"),
        bool(kind),
        camera,
        kind,
        boxes=defects or None,
    )
    return Judged(
        image=image,
        frame_hw=(48, 64),
        failed=score >= THRESHOLD,
        score=score,
        raw_peak=score,
        threshold=THRESHOLD,
        boxes=(box,) * boxes,
        truth=defects,
        matches={k: k for k in range(matched)},
        found=tuple(k < matched for k in range(truth)),
        milliseconds=12.5,
        located=True,
    )


def crowd(good: int, bad: int, seed: int = 0) -> list[Judged]:
    """Scores of good and defective images that overlap; three types, two cameras."""
    rng = np.random.default_rng(seed)
    found = [
        judged(float(rng.gamma(4, 0.15)), camera=f"cam{k % 2}", name=f"good-{k:04}.png")
        for k in range(good)
    ]
    for k in range(bad):
        score = float(rng.gamma(4, 0.5))
        hit = int(score >= THRESHOLD)
        found.append(
            judged(
                score,
                ("crack", "dent", "hole <b>")[k % 3],
                name=f"bad-{k:04}.png",
                camera=f"cam{k % 2}",
                truth=2,
                matched=hit,
                boxes=2 * hit,
            )
        )
    return found


def curves_of(found: list[Judged], seed: int = 0) -> PixelCurves:
    """Maps for the judged images, with their defects in them."""
    rng = np.random.default_rng(seed)
    curves = PixelCurves(by_image=True)
    for each in found:
        scores = rng.gamma(2.0, 0.1, each.frame_hw).astype(np.float32)
        mask = np.zeros(each.frame_hw, np.bool_)
        if each.image.defective:
            mask[10:20, 10:30] = True
            scores[mask] += np.float32(0.3)
        curves.add(scores, mask)
    return curves
