"""From the scores of good images to an image threshold, and how sure it is.

A frame fails when its score reaches the threshold. The k highest of n independent good images may
do so; then, with the stated confidence, at most the Clopper-Pearson bound of all good images will
(exact, one-sided; the exceedance of an order statistic follows the same Beta distribution).

1. Enough images for the promise: the lowest threshold that keeps it, just above a score.
2. Too few: just above the highest score, plus a margin. Good scores' upper tail is taken as
   exponential, its scale the mean excess of the highest fifth over the score below them; the
   margin takes the threshold from a level of 1 / n to the promised one, scale x ln(1 / (n p)),
   0 where n p >= 1. What is then promised is only what the images show: 1 - (1 - confidence)^(1/n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError

MIN_IMAGES = 5
"""Below this nothing can be said: 5 good images bound false rejects at 45 % only."""
RELATIVE_MARGIN = 1e-3
"""So much above the score that the threshold stands on: other CPUs round otherwise. Where the next
score is nearer, half of the way to it: the threshold is the order statistic, and no larger one."""
LOWEST = 0.01
"""No threshold is lower: a tenth of the way from q_a to q_b."""


@dataclass(frozen=True, slots=True)
class Promise:
    """At most this share of good images is to be rejected, with this confidence."""

    false_reject: float = 0.005
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("false_reject", "confidence"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise DataError(f"{name} {value!r} found, expected a share between 0 and 1")


@dataclass(frozen=True, slots=True)
class Choice:
    """A threshold, what it rests on, and a sentence that says so."""

    threshold: float
    images: int
    above: int
    bound: float
    kept: bool
    """Whether the promise is kept."""
    sentence: str


def choose_threshold(scores: Sequence[float], promise: Promise = Promise()) -> Choice:
    """scores: one per independent good image. Raises `DataError` for fewer than `MIN_IMAGES`."""
    count = len(scores)
    if count < MIN_IMAGES:
        raise DataError(
            f"{count} good parts found, expected at least {MIN_IMAGES}, and "
            f"{images_needed(promise)} to promise at most {promise.false_reject:.2%} false "
            f"rejects at {promise.confidence:.0%} confidence: add images of other good parts "
            "(images that hardly differ count as one part: --part says which part each shows)"
        )
    ranked = sorted(scores, reverse=True)
    if not math.isfinite(ranked[0]) or not math.isfinite(ranked[-1]):
        raise DataError("a score that is not finite found: the engine failed on a good image")
    allowed = allowed_above(count, promise)
    kept = allowed >= 0
    base = ranked[max(allowed, 0)]
    margin = 0.0 if kept else tail_scale(ranked) * max(0.0, -math.log(count * promise.false_reject))
    # Just above the order statistic that the bound allows, and never beyond the next score.
    margin = max(margin, RELATIVE_MARGIN * abs(base))
    higher = [score for score in ranked if score > base]
    if higher:
        margin = min(margin, (higher[-1] - base) / 2)
    threshold = max(base + margin, float(np.nextafter(base, np.inf)), LOWEST)
    above = sum(score >= threshold for score in scores)
    bound = upper_bound(above, count, promise.confidence)
    wish = f"at most {promise.false_reject:.2%} false rejects at {promise.confidence:.0%}"
    if kept:
        sentence = (
            f"{wish}: {above} of {count} good images reach the threshold, which bounds the share "
            f"at {bound:.2%}"
        )
    else:
        needed = images_needed(promise)
        sentence = (
            f"{wish} needs {needed} good images with none above; {count} found, {needed - count} "
            f"more are needed; now at most {bound:.2%} can be promised; the threshold is the "
            f"highest score {base:.4g} and a margin of {threshold - base:.4g} (exponential tail)"
        )
    return Choice(threshold, count, above, bound, kept, sentence)


def upper_bound(above: int, count: int, confidence: float) -> float:
    """Clopper-Pearson: the largest p with P(at most `above` of `count` | p) >= 1 - confidence.

    Exact, by bisection on the binomial sum. 1 when all are above, or for no images.
    """
    if above >= count:
        return 1.0
    low, high = above / count, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _at_most(above, count, middle) >= 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def images_needed(promise: Promise) -> int:
    """How many good images keep the promise when none of them is above the threshold."""
    return math.ceil(math.log1p(-promise.confidence) / math.log1p(-promise.false_reject))


def allowed_above(count: int, promise: Promise) -> int:
    """How many of `count` images may be above the threshold; -1: too few to promise anything."""
    # The bound of k is at most p exactly when P(at most k | p) is at most 1 - confidence.
    allowed, total = -1, 0.0
    while allowed + 1 < count:
        total += _exactly(allowed + 1, count, promise.false_reject)
        if total > 1 - promise.confidence:
            break
        allowed += 1
    return allowed


def tail_scale(ranked: Sequence[float]) -> float:
    """Mean excess of the highest fifth over the score below it; ranked: descending, two or more.

    Of few images more than a fifth, up to five: a mean of two or three says nothing.
    """
    size = min(max(5, len(ranked) // 5), len(ranked) - 1)
    return sum(score - ranked[size] for score in ranked[:size]) / size


def _at_most(above: int, count: int, share: float) -> float:
    """P(X <= above) for X binomial(count, share)."""
    return math.fsum(_exactly(k, count, share) for k in range(above + 1))


def _exactly(above: int, count: int, share: float) -> float:
    """P(X = above) for X binomial(count, share), 0 < share < 1."""
    choices = math.lgamma(count + 1) - math.lgamma(above + 1) - math.lgamma(count - above + 1)
    return math.exp(choices + above * math.log(share) + (count - above) * math.log1p(-share))
