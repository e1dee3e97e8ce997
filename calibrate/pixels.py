"""The pixel threshold where it is known where defects are: what outlines them best.

With masks: the score with the best F-score over pixels of the defective images. With boxes: of a
row of thresholds the one with the best F-score over boxes (`calibrate.boxes_eval.matched`), as the
line would publish them: all places over the pixel threshold of an image that fails, none of one
that passes. Never above the image threshold, where a box that fails the part would be left without
pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calibrate.boxes_eval import f_score, matched
from calibrate.labelled import LabelledImage
from calibrate.metrics import PixelCurves, at_pixels
from calibrate.scores import GoodMap, Recipes, Scorer
from calibrate.thresholds import LOWEST
from pipeline.rules import Thresholds

STEPS = 40
"""Thresholds that are tried for boxes, in even ratios from the image's down to `LOWEST`: beside a
wide view a map's values go over powers of ten."""


def pixel_threshold(
    maps: Sequence[GoodMap],
    labels: Sequence[LabelledImage],
    scorer: Scorer,
    numbers: Callable[[float], Thresholds],
    recipes: Recipes,
    *,
    at_most: float,
) -> tuple[float | None, str]:
    """None where nobody knows where defects are; and a sentence about the choice.

    maps, labels: of defective images. scorer: with any thresholds. numbers: thresholds with a pixel
    threshold.
    """
    if any(image.mask is not None for image in labels):
        curves = PixelCurves()
        for found, image in zip(maps, labels, strict=True):
            truth = image.truth(found.frame_hw)
            if truth.mask.any():
                scores = np.maximum(scorer.rule(found).scores(found.raw_map), 0)
                curves.add(at_pixels(scores, *found.frame_hw), truth.mask)
        threshold, score = curves.best_f_score()
        if not score > 0:
            return None, ""
        chosen = min(max(threshold, LOWEST), at_most)
        return chosen, f"the pixel threshold has the best F-score over pixels, {score:.3f}"
    known = [k for k, image in enumerate(labels) if image.boxes]
    if not known:
        return None, ""
    best, best_score = None, 0.0
    for threshold in np.geomspace(at_most, min(LOWEST, at_most), STEPS):
        thresholds = numbers(float(threshold))
        rules = Scorer(thresholds, recipes)
        found_all = boxes_all = true_all = 0
        for k in known:
            found = maps[k]
            decision = rules.rule(found).decide(found.raw_map)
            failed = decision.image_score >= at_most
            boxes = [defect.box_xyxy for defect in decision.defects] if failed else []
            defects = labels[k].truth(found.frame_hw).defects
            found_all += len(matched(boxes, [defect.box_xyxy for defect in defects]))
            boxes_all += len(boxes)
            true_all += len(defects)
        score = f_score(found_all, boxes_all, true_all)
        if score > best_score:
            best, best_score = float(threshold), score
    if best is None:
        return None, ""
    return best, f"the pixel threshold has the best F-score of boxes at IoU 0.33, {best_score:.3f}"
