"""The figures are scikit-learn's, their intervals hold what they say; JSON has no NaN."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from judged import THRESHOLD, crowd, curves_of, judged
from scipy import stats  # type: ignore[import-untyped]  # scipy has no types
from sklearn import metrics

from calibrate.comparison import compare
from calibrate.figures import (
    LABELS,
    Confusion,
    Figure,
    by_camera,
    by_type,
    exact_interval,
    figures,
)
from calibrate.labelled import Defect
from calibrate.metrics import PixelCurves, average_precision, image_auroc


@pytest.mark.parametrize(("good", "bad", "seed"), [(60, 40, 0), (5, 90, 1), (200, 3, 2)])
def test_figures_are_those_of_scikit_learn(good: int, bad: int, seed: int) -> None:
    found = crowd(good, bad, seed)
    labels = np.array([j.image.defective for j in found])
    scores = np.array([j.score for j in found])
    said = scores >= THRESHOLD
    expected = {
        "image_auroc": metrics.roc_auc_score(labels, scores),
        "average_precision": metrics.average_precision_score(labels, scores),
        "accuracy": metrics.accuracy_score(labels, said),
        "mean_accuracy": metrics.balanced_accuracy_score(labels, said),
        "precision": metrics.precision_score(labels, said),
        "recall": metrics.recall_score(labels, said),
        "specificity": metrics.recall_score(~labels, ~said),
        "f1": metrics.f1_score(labels, said),
        "false_rejects": 1 - metrics.recall_score(~labels, ~said),
        "escapes": 1 - metrics.recall_score(labels, said),
    }
    ours = figures(found)
    for key, value in expected.items():
        assert ours[key].value == pytest.approx(float(value), abs=1e-9), key
    table = metrics.confusion_matrix(labels, said)
    confusion = Confusion.of(found)
    assert table.ravel().tolist() == [
        confusion.good_passed,
        confusion.good_failed,
        confusion.bad_passed,
        confusion.bad_failed,
    ]


def test_pixel_figures_are_those_of_scikit_learn_and_their_intervals_hold_them() -> None:
    found = crowd(12, 10)
    curves = curves_of(found)
    ours = figures(found, curves)
    rng = np.random.default_rng(0)
    pixels, truths = [], []
    for each in found:
        scores = rng.gamma(2.0, 0.1, each.frame_hw).astype(np.float32)
        mask = np.zeros(each.frame_hw, np.bool_)
        if each.image.defective:
            mask[10:20, 10:30] = True
            scores[mask] += np.float32(0.3)
        pixels.append(scores.ravel())
        truths.append(mask.ravel())
    expected = metrics.roc_auc_score(np.concatenate(truths), np.concatenate(pixels))
    assert ours["pixel_auroc"].value == pytest.approx(float(expected), abs=1e-9)
    for key in ("pixel_auroc", "au_pro"):
        assert ours[key].low <= ours[key].value + 1e-3
        assert ours[key].value <= ours[key].high + 1e-3
        assert ours[key].high - ours[key].low < 0.1


def test_boxes_are_counted() -> None:
    found = [judged(0.5), judged(2, "a", truth=3, matched=2, boxes=4), judged(2, "a", truth=1)]
    ours = figures(found)
    assert ours["box_precision"].value == pytest.approx(0.5)
    assert ours["box_recall"].value == pytest.approx(0.5)
    assert ours["box_f"].value == pytest.approx(0.5)
    assert ours["defect_recall"].value == pytest.approx(0.5)


@pytest.mark.parametrize("which", ["good", "bad", "one"])
def test_one_class_alone_has_what_can_be_said_and_no_more(which: str) -> None:
    found = {"good": crowd(9, 0), "bad": crowd(0, 9), "one": [judged(2.0, "a")]}[which]
    ours = figures(found)
    assert math.isnan(ours["image_auroc"].value)
    assert math.isnan(ours["recall"].value) == (which == "good")
    assert math.isnan(ours["false_rejects"].value) == (which != "good")
    text = json.dumps({key: figure.plain() for key, figure in ours.items()}, allow_nan=False)
    assert "null" in text


def test_groups_have_all_good_images_beside_them() -> None:
    found = crowd(30, 30)
    groups = by_type(found)
    assert list(groups) == ["crack", "dent", "hole <b>"]
    some = [each for each in found if not each.image.defective or each.image.kind == "dent"]
    assert groups["dent"]["image_auroc"] == figures(some)["image_auroc"]
    assert "box_f" not in groups["dent"]
    assert list(by_camera(found)) == ["cam0", "cam1"]
    assert by_camera(crowd(3, 0)[::2]) == {}


@pytest.mark.parametrize(("count", "of"), [(0, 10), (10, 10), (3, 40), (1, 1)])
def test_shares_have_exact_intervals(count: int, of: int) -> None:
    low, high = exact_interval(count, of)
    expected = stats.binomtest(count, of).proportion_ci(0.95, method="exact")
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_bootstrap_intervals_hold_the_truth_nineteen_times_in_twenty() -> None:
    truth = stats.norm.cdf(1 / math.sqrt(2))  # AUROC of N(1, 1) against N(0, 1)
    hits = 0
    for seed in range(16):
        rng = np.random.default_rng(seed)
        found = [judged(float(v)) for v in rng.normal(5, 1, 60)]
        found += [judged(float(v), "a") for v in rng.normal(6, 1, 60)]
        figure = figures(found)["image_auroc"]
        hits += figure.low <= truth <= figure.high
    assert hits >= 13  # 15.2 expected; under 13 once in 100 times


def test_average_precision_without_a_class_is_nan() -> None:
    assert math.isnan(average_precision([], [1.0]))
    assert math.isnan(average_precision([1.0], []))
    assert average_precision([1.0], [2.0]) == image_auroc([1.0], [2.0]) == 1.0


def test_every_figure_has_a_name() -> None:
    assert set(figures(crowd(5, 5), curves_of(crowd(5, 5)))) == set(LABELS)
    assert set(Figure(float("nan")).plain().values()) == {None}


def test_comparison_names_every_verdict_that_differs() -> None:
    first = crowd(40, 40)
    second = [judged(j.score, j.image.kind, name=j.image.path.name) for j in first]
    worse = first[50]
    assert worse.failed
    second[50] = judged(0.2, worse.image.kind, name=worse.image.path.name)
    found = compare(first, second)
    assert [a.image.path.name for a, _ in found.flipped] == [worse.image.path.name]
    assert found.differences["recall"].value == pytest.approx(-1 / 40)
    assert found.differences["recall"].high <= 0
    assert found.differences["false_rejects"] == Figure(0.0, 0.0, 0.0)
    assert found.milliseconds == (12.5, 12.5)
    same = compare(first, first)
    assert not same.flipped
    assert all(figure.value == 0 for figure in same.differences.values())


def test_the_best_pixel_threshold_is_the_best_of_all() -> None:
    found = crowd(4, 6)
    curves = curves_of(found)
    threshold, score = curves.best_f_score()
    rng = np.random.default_rng(0)
    pixels, truths = [], []
    for each in found:
        scores = rng.gamma(2.0, 0.1, each.frame_hw).astype(np.float32)
        mask = np.zeros(each.frame_hw, np.bool_)
        if each.image.defective:
            mask[10:20, 10:30] = True
            scores[mask] += np.float32(0.3)
        pixels.append(scores.ravel())
        truths.append(mask.ravel())
    flat, truth = np.concatenate(pixels), np.concatenate(truths)
    assert metrics.f1_score(truth, flat >= threshold) == pytest.approx(score, abs=1e-9)
    precision, recall, _ = metrics.precision_recall_curve(truth, flat)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    assert score == pytest.approx(float(best), abs=1e-3)
    assert PixelCurves().best_f_score() == (0.0, 0.0)


def test_ten_photographs_of_a_part_are_one_witness() -> None:
    parts = crowd(30, 30)
    photographs = [
        dataclasses.replace(each, part=f"p{k}") for k, each in enumerate(parts) for _ in range(10)
    ]
    alone, many = figures(parts, curves_of(parts)), figures(photographs)
    for key in ("recall", "false_rejects", "image_auroc", "defect_recall"):
        assert many[key].value == pytest.approx(alone[key].value)
        width = many[key].high - many[key].low
        # Exact intervals are a little wider than drawn ones; a third of it would be ten witnesses.
        assert width > 0.6 * (alone[key].high - alone[key].low), key
    curves = curves_of(parts)
    one, other = (curves.interval("pixel_auroc", 200, p) for p in (None, ["a"] * 30 + ["b"] * 30))
    assert one[1] > one[0]
    assert other[0] == other[1]


def test_a_type_is_judged_by_its_own_defects() -> None:
    """Ten images with an "open" that is found and a "short" that is missed."""
    box = (1, 2, 9, 8)
    found = [judged(0.5)]
    for k in range(10):
        each = judged(2.0, "open", name=f"{k}.png", truth=2, matched=1, boxes=1)
        defects = (Defect("open", box), Defect("short", (20, 20, 30, 30)))
        image = dataclasses.replace(each.image, kind="", boxes=defects)
        found.append(dataclasses.replace(each, image=image, truth=defects))
    groups = by_type(found)
    assert groups["open"]["defect_recall"].value == groups["open"]["box_recall"].value == 1
    assert groups["short"]["defect_recall"].value == groups["short"]["box_recall"].value == 0


def test_boxes_where_nobody_knows_the_place_are_neither_right_nor_wrong() -> None:
    known = [judged(2.0, "a", name=f"{k}.png", truth=1, matched=1, boxes=1) for k in range(5)]
    unknown = [judged(2.0, "a", name=f"u{k}.png", boxes=2) for k in range(5)]
    assert figures([judged(0.1), *known, *unknown])["box_precision"].value == 1


def test_cameras_with_other_thresholds_are_ranked_by_their_own() -> None:
    low = [dataclasses.replace(judged(s), threshold=0.1) for s in (0.05, 0.06)]
    high = [dataclasses.replace(judged(s, "a"), threshold=0.02) for s in (0.03, 0.04)]
    assert figures([*low, *high])["image_auroc"].value == 1
