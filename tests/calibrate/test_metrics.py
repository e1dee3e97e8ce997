"""The metrics agree with slow and plain ones, and with what is known of simple cases."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibrate.metrics import (
    PixelCurves,
    at_pixels,
    box_peak,
    for_curves,
    image_auroc,
    interval,
    recall_at,
    threshold_at,
)
from pipeline.errors import DataError


def plain_au_pro(
    maps: list[NDArray[np.float32]], masks: list[NDArray[np.bool_]], limit: float = 0.3
) -> float:
    """Threshold by threshold, as the paper says it."""
    regions = []
    for scores, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8))
        regions += [scores[labels == k] for k in range(1, count)]
    good = np.concatenate([s[~m] for s, m in zip(maps, masks, strict=True)])
    points = [(0.0, 0.0)]
    for threshold in np.unique(np.concatenate([s.ravel() for s in maps]))[::-1]:
        marked = float((good >= threshold).mean())
        overlap = float(np.mean([(r >= threshold).mean() for r in regions]))
        points.append((marked, overlap))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x1 > limit:
            end = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + end) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def scene(seed: int, hardness: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        x, y = (int(v) for v in rng.integers(0, 36, 2))
        mask[y : y + int(rng.integers(1, 9)), x : x + int(rng.integers(1, 9))] = 1
    scores = rng.gamma(2.0, size=mask.shape) + hardness * mask
    return scores.astype(np.float32), mask.astype(bool)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), hardness=st.sampled_from([0.0, 1.0, 3.0, 30.0]))
def test_curves_are_those_of_plain_ones(seed: int, hardness: float) -> None:
    from sklearn.metrics import roc_auc_score

    pairs = [scene(seed + k, hardness) for k in range(3)]
    maps, masks = [s for s, _ in pairs], [m for _, m in pairs]
    labels = np.concatenate([m.ravel() for m in masks])
    values = np.concatenate([s.ravel() for s in maps])
    au_pro, auroc = plain_au_pro(maps, masks), roc_auc_score(labels, values)
    # Exact; in bins from the first image on; and from the third on.
    for exact, off in ((1 << 24, 1e-9), (0, 1e-4), (4500, 1e-4)):
        curves = PixelCurves(exact=exact)
        for scores, mask in pairs:
            curves.add(scores, mask)
        assert curves.au_pro() == pytest.approx(au_pro, abs=off)
        assert curves.auroc() == pytest.approx(auroc, abs=off)


def test_bins_are_as_good_as_exact_for_many_pixels() -> None:
    rng = np.random.default_rng(0)
    exact, binned = PixelCurves(), PixelCurves(exact=0)
    for _ in range(4):
        scores = rng.gamma(2.0, 0.3, (600, 700)).astype(np.float32)
        mask = np.zeros(scores.shape, np.bool_)
        mask[100:160, 100:300] = mask[400:420, 50:90] = True
        scores[mask] += np.float32(0.4)
        for curves in (exact, binned):
            curves.add(scores, mask)
    assert binned.auroc() == pytest.approx(exact.auroc(), abs=1e-6)
    assert binned.au_pro() == pytest.approx(exact.au_pro(), abs=1e-6)
    assert binned.best_f_score() == pytest.approx(exact.best_f_score(), abs=1e-4)


def test_minus_zero_is_zero() -> None:
    curves = PixelCurves()
    scores = np.array([[-0.0, 0.0], [0.0, 1.0]], np.float32)
    curves.add(scores, scores > 0.5)
    assert curves.auroc() == 1.0


def test_good_images_count_in_both_curves() -> None:
    scores, mask = scene(1, 3.0)
    alone, together = PixelCurves(), PixelCurves()
    alone.add(scores, mask)
    together.add(scores, mask)
    together.add(np.full((64, 64), 1e6, np.float32))  # false alarms everywhere
    assert together.auroc() < alone.auroc()
    assert together.au_pro() == pytest.approx(0.0)


def test_perfect_maps_are_perfect() -> None:
    mask = np.zeros((32, 32), np.bool_)
    mask[3:6, 4:9] = mask[20:22, 20:30] = True
    curves = PixelCurves()
    curves.add(mask.astype(np.float32), mask)
    assert curves.auroc() == 1.0
    assert curves.au_pro() == pytest.approx(1.0)


def test_nothing_to_compare_is_nan() -> None:
    curves = PixelCurves()
    assert math.isnan(curves.auroc())
    assert math.isnan(curves.au_pro())
    curves.add(np.ones((8, 8), np.float32))
    assert math.isnan(curves.auroc())
    assert math.isnan(image_auroc([], [1.0]))
    assert math.isnan(recall_at([1.0], [], 0.01))


def test_scores_under_zero_keep_their_order() -> None:
    """Most of a defect is below q_a where the map is faint."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0, 0.05, 400), [-20, 0, 1e6]]).astype(np.float32)
    inspected = np.ones(403, np.bool_)
    inspected[:7] = False
    found = for_curves(scores, inspected)
    assert found.dtype == np.float32
    assert (found[:7] == 0).all()
    np.testing.assert_array_equal(np.argsort(found[7:]), np.argsort(scores[7:]))
    assert (np.diff(np.sort(found[7:])) > 0).all()
    assert found[7:].min() > 0


@pytest.mark.parametrize(
    ("scores", "mask"),
    [
        (np.full((4, 4), -1, np.float32), None),
        (np.full((4, 4), np.nan, np.float32), None),
        (np.full((4, 4), np.inf, np.float32), None),
        (np.ones((4, 4), np.float32), np.zeros((4, 5), np.bool_)),
    ],
)
def test_what_is_no_map_is_refused(
    scores: NDArray[np.float32], mask: NDArray[np.bool_] | None
) -> None:
    with pytest.raises(DataError, match="found, expected"):
        PixelCurves().add(scores, mask)


@pytest.mark.parametrize(
    ("share", "threshold", "recall"), [(0.0, 9.0, 0.25), (0.1, 8.0, 0.5), (0.25, 7.0, 0.75)]
)
def test_threshold_rejects_no_more_than_asked(
    share: float, threshold: float, recall: float
) -> None:
    good = [float(k) for k in range(10)]
    assert threshold_at(good, share) == threshold
    assert np.mean(np.array(good) > threshold) <= share
    assert recall_at(good, [7.0, 7.5, 8.5, 10.0], share) == recall


def test_threshold_of_no_images_is_refused() -> None:
    with pytest.raises(DataError, match="no good images"):
        threshold_at([], 0.01)


@pytest.mark.parametrize(("height", "width"), [(33, 33), (40, 41), (64, 101)])
def test_cells_stand_on_their_pixels(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    raw_map = rng.random((-(-height // 4), -(-width // 4)), np.float32)
    enlarged = at_pixels(raw_map, height, width)
    assert enlarged.shape == (height, width)
    np.testing.assert_allclose(enlarged[::4, ::4], raw_map, rtol=1e-5)
    middle = (raw_map[0, 0] + raw_map[0, 1]) / 2
    assert enlarged[0, 2] == pytest.approx(middle, rel=1e-5)


def test_peaks_of_boxes() -> None:
    raw_map = np.zeros((16, 16), np.float32)
    raw_map[2, 2], raw_map[10, 12], raw_map[15, 0] = 5, 7, 9
    assert box_peak(raw_map, (6, 6, 12, 12)) == 5.0
    assert box_peak(raw_map, (44, 40, 45, 41)) == 7.0
    assert box_peak(raw_map, (0, 60, 64, 64)) == 9.0


def test_interval_holds_the_value_and_shrinks_with_images() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for count in (20, 500):
        values = rng.normal(size=count)
        low, high = interval(lambda drawn, v=values: float(v[drawn].mean()), count)
        assert low < values.mean() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
