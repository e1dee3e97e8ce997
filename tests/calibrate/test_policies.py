"""Thresholds chosen with defective parts: the best of all cuts, and honest bounds beside them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.policies import POLICIES, Cuts, Policy, choose
from calibrate.thresholds import Promise, upper_bound
from pipeline.errors import DataError

scores = st.lists(st.floats(0.02, 50), min_size=5, max_size=30)


def worth(policy: Policy, good: list[float], bad: list[float], threshold: float) -> float:
    """The criterion, threshold by threshold, as its definition says."""
    rejects = float(np.mean(np.array(good) >= threshold))
    escapes = float(np.mean(np.array(bad) < threshold))
    if policy.name == "youden":
        return 1 - escapes - rejects
    if policy.name == "cost":
        return -(
            policy.escape_cost * policy.defect_share * escapes + (1 - policy.defect_share) * rejects
        )
    found = (1 - escapes) * len(bad)
    precision = found / max(1e-12, found + rejects * len(good))
    recall = found / len(bad)
    weight = policy.beta**2
    return (1 + weight) * precision * recall / max(1e-12, weight * precision + recall)


@settings(deadline=None, max_examples=60)
@given(
    good=scores,
    bad=scores,
    name=st.sampled_from(["youden", "f", "cost"]),
    beta=st.floats(0.3, 3),
    cost=st.floats(0.5, 500),
)
def test_no_other_threshold_is_better(
    good: list[float], bad: list[float], name: str, beta: float, cost: float
) -> None:
    policy = Policy(name, beta=beta, escape_cost=cost, defect_share=0.1)
    chosen = choose(good, bad, policy, Promise())
    ours = worth(policy, good, bad, chosen.good.threshold)
    for other in [*good, *bad, 0.015, 60.0]:
        assert ours >= worth(policy, good, bad, other) - 1e-6
        assert ours >= worth(policy, good, bad, np.nextafter(other, np.inf)) - 1e-6


@settings(deadline=None, max_examples=40)
@given(good=scores, bad=scores, name=st.sampled_from(POLICIES))
def test_counts_and_bounds_are_those_of_the_threshold(
    good: list[float], bad: list[float], name: str
) -> None:
    chosen = choose(good, bad, Policy(name), Promise(0.2, 0.8))
    threshold = chosen.good.threshold
    assert chosen.good.above == sum(score >= threshold for score in good)
    assert chosen.below == sum(score < threshold for score in bad)
    assert chosen.escape_bound == upper_bound(chosen.below, len(bad), 0.8)
    assert any("escapes" in note for note in chosen.notes)


def test_separated_scores_are_cut_in_the_middle_of_the_gap() -> None:
    good, bad = [1.0, 1.1, 1.2, 1.3, 2.0], [6.0, 7.0, 8.0, 9.0, 9.5]
    for name in ("youden", "f", "cost"):
        assert choose(good, bad, Policy(name), Promise()).good.threshold == pytest.approx(4.0)


def test_the_wanted_recall_is_kept_with_confidence_where_it_can_be() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(2, 0.5, 200).tolist(), rng.normal(5, 1, 400).tolist()
    chosen = choose(good, bad, Policy("recall", recall=0.95), Promise(0.005, 0.95))
    assert chosen.escape_bound <= 0.05
    higher = np.nextafter(np.sort(bad)[chosen.below], np.inf)
    assert upper_bound(chosen.below + 1, 400, 0.95) > 0.05
    assert higher > chosen.good.threshold
    few = choose(good, bad[:20], Policy("recall", recall=0.99), Promise(0.005, 0.95))
    assert few.below == 0
    assert "needs 299 defective parts, 20 found" in few.notes[0]


def test_cuts_tell_all_different_thresholds_apart() -> None:
    cuts = Cuts([1.0, 2.0, 2.0], [2.0, 3.0])
    assert list(cuts.rejected) == [3, 2, 0, 0]
    assert list(cuts.escaped) == [0, 0, 1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "best"},
        {"beta": 0},
        {"escape_cost": float("nan")},
        {"recall": 1.0},
        {"defect_share": 0.0},
    ],
)
def test_a_policy_that_is_none(wrong: dict[str, float]) -> None:
    with pytest.raises(DataError, match="found, expected"):
        Policy(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("good", "bad"), [([1.0] * 4, [2.0] * 9), ([1.0] * 9, [2.0] * 4), ([1.0] * 9, [])]
)
def test_too_few_of_a_kind_choose_nothing(good: list[float], bad: list[float]) -> None:
    with pytest.raises(DataError, match="expected at least 5 of each"):
        choose(good, bad, Policy("youden"), Promise())


@pytest.mark.parametrize("name", POLICIES)
def test_nan_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="not finite"):
        choose([1.0] * 9, [2.0] * 8 + [float("nan")], Policy(name), Promise())
