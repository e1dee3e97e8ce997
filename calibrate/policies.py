"""From the scores of good and of defective parts to an image threshold.

`good` needs no defective parts: see `calibrate.thresholds`. With some, a person may prefer:

    youden   the ROC point with the greatest recall less false rejects (Youden 1950)
    f        the best F-beta: 1 weighs an escape as a false reject, 2 an escape more
    cost     the least expected cost of a part, from the costs and the share of defective parts
    recall   the highest threshold that finds the wanted share of defective parts, with the stated
             confidence where there are enough of them

Whatever was chosen, one-sided binomial bounds of false rejects and of escapes stand beside it.
Those of `good` are exact, and the bound that `recall` keeps is. A threshold that was fitted to the
same parts makes the others optimistic (about twice as many misses as stated, simulated with 30
parts of each), and the sentence says so; `evaluate` on other parts does not flatter.

Thresholds are looked for between scores: in the widest gap of those that are equally good, in its
middle. A part fails when its score reaches the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrate.thresholds import (
    LOWEST,
    Choice,
    Promise,
    allowed_above,
    choose_threshold,
    images_needed,
    upper_bound,
)
from pipeline.errors import DataError

POLICIES = ("good", "youden", "f", "cost", "recall")
MIN_EACH = 5
"""Fewer good or defective parts choose nothing."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the image threshold is chosen."""

    name: str = "good"
    beta: float = 1.0
    """Of `f`."""
    escape_cost: float = 10.0
    """Of `cost`: what a defective part that passes costs, in false rejects."""
    defect_share: float = 0.01
    """Of `cost`: the share of defective parts on the line, not among the images."""
    recall: float = 0.99
    """Of `recall`."""

    def __post_init__(self) -> None:
        if self.name not in POLICIES:
            raise DataError(f"policy {self.name!r} found, expected one of {', '.join(POLICIES)}")
        for name in ("beta", "escape_cost"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} {getattr(self, name)!r} found, expected a positive number")
        for name in ("defect_share", "recall"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(f"{name} {getattr(self, name)!r} found, expected a share of 0..1")


@dataclass(frozen=True, slots=True)
class Chosen:
    """A threshold, and what can be said of good and of defective parts at it."""

    good: Choice
    """Its threshold is the one that was chosen."""
    bad: int
    below: int
    """Defective parts that would pass."""
    escape_bound: float
    """1 without defective parts."""
    notes: tuple[str, ...]


def choose(good: Sequence[float], bad: Sequence[float], policy: Policy, promise: Promise) -> Chosen:
    """good, bad: a score of each independent part. Raises `DataError` for too few of them, and for
    scores that are not finite.
    """
    scores = np.array([*good, *bad], np.float64)
    if not np.isfinite(scores).all():
        raise DataError("a score that is not finite found: the engine failed on an image")
    if policy.name == "good":
        choice = choose_threshold(good, promise)
        return _with_bounds(choice, bad, promise, [choice.sentence])
    if len(good) < MIN_EACH or len(bad) < MIN_EACH:
        raise DataError(
            f"{len(good)} good and {len(bad)} defective parts found, expected at least {MIN_EACH} "
            f"of each for the policy {policy.name!r}: add images, or use the policy `good`"
        )
    cuts = Cuts(good, bad)
    if policy.name == "recall":
        threshold, sentence = _for_recall(cuts, policy.recall, promise)
    else:
        value, sentence = _worth(cuts, policy)
        threshold = cuts.best(value)
    if threshold < LOWEST:
        sentence += f"; that would be {threshold:.3g}, and no threshold is lower than {LOWEST:g}"
        threshold = LOWEST
    above = int((np.asarray(good) >= threshold).sum())
    bound = upper_bound(above, len(good), promise.confidence)
    fitted = policy.name != "recall"
    kept = bound <= promise.false_reject and not fitted
    if fitted:
        sentence += "; chosen on the parts that it is counted on, so the bounds are optimistic"
    choice = Choice(threshold, len(good), above, bound, kept, sentence)
    notes = [
        sentence,
        f"{above} of {len(good)} good parts reach the threshold: at most {bound:.2%} false rejects "
        f"at {promise.confidence:.0%} confidence",
    ]
    return _with_bounds(choice, bad, promise, notes)


class Cuts:
    """All thresholds that tell the given scores apart differently, rising; and what each does."""

    def __init__(self, good: Sequence[float], bad: Sequence[float]) -> None:
        values = np.unique(np.array([*good, *bad], np.float64))
        step = max(float(values[-1] - values[0]), abs(float(values[-1])), 1e-9) * 1e-3
        edges = np.concatenate([[values[0] - step], values, [values[-1] + step]])
        self.at: NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2
        self.gap = np.diff(edges)
        ranked = [np.sort(np.asarray(scores, np.float64)) for scores in (good, bad)]
        self.goods, self.bads = len(good), len(bad)
        under = [np.searchsorted(scores, self.at, "left") for scores in ranked]
        self.rejected = self.goods - under[0]
        self.escaped = under[1]

    def best(self, value: NDArray[np.float64]) -> float:
        """Where the value is highest; of those, in the middle of the widest gap."""
        equal = np.flatnonzero(value >= value.max() - 1e-12)
        return float(self.at[equal[np.argmax(self.gap[equal])]])


def _worth(cuts: Cuts, policy: Policy) -> tuple[NDArray[np.float64], str]:
    rejects, escapes = cuts.rejected / cuts.goods, cuts.escaped / cuts.bads
    if policy.name == "youden":
        return 1 - escapes - rejects, "the ROC point with the greatest recall less false rejects"
    if policy.name == "cost":
        share = policy.defect_share
        cost = policy.escape_cost * share * escapes + (1 - share) * rejects
        return -cost, (
            f"the least expected cost, an escape as much as {policy.escape_cost:g} false rejects "
            f"and {share:.2%} of the parts defective"
        )
    found = cuts.bads - cuts.escaped
    weight = policy.beta**2
    score = (1 + weight) * found / ((1 + weight) * found + weight * cuts.escaped + cuts.rejected)
    return np.asarray(score, np.float64), f"the best F-score, beta {policy.beta:g}"


def _for_recall(cuts: Cuts, recall: float, promise: Promise) -> tuple[float, str]:
    wanted = Promise(false_reject=1 - recall, confidence=promise.confidence)
    allowed = allowed_above(cuts.bads, wanted)
    sentence = f"at least {recall:.2%} of the defective parts at {promise.confidence:.0%}"
    if allowed < 0:
        allowed = math.floor((1 - recall) * cuts.bads + 1e-9)
        sentence += (
            f" needs {images_needed(wanted)} defective parts, {cuts.bads} found; the threshold "
            f"finds that share of those that are there"
        )
    # The highest cut that lets no more escape; of good parts it rejects the fewest.
    number = int(np.flatnonzero(cuts.escaped <= allowed)[-1])
    return float(cuts.at[number]), sentence


def _with_bounds(
    choice: Choice, bad: Sequence[float], promise: Promise, notes: Sequence[str]
) -> Chosen:
    if not bad:
        return Chosen(choice, 0, 0, 1.0, tuple(notes))
    below = int((np.asarray(bad) < choice.threshold).sum())
    bound = upper_bound(below, len(bad), promise.confidence)
    said = (
        f"{below} of {len(bad)} defective parts stay under the threshold: at most {bound:.2%} "
        f"escapes of such defects at {promise.confidence:.0%} confidence"
    )
    return Chosen(choice, len(bad), below, bound, (*notes, said))
