from __future__ import annotations

import numpy as np
import pytest

from tools.baseline import baseline_scores, median_background, recall_at_false_rejects


def test_the_peak_is_where_the_frame_differs() -> None:
    rng = np.random.default_rng(0)
    good = [np.clip(rng.normal(100, 3, (60, 80, 1)), 0, 255).astype(np.uint8) for _ in range(9)]
    background = median_background(good)
    assert background.shape == (60, 80)
    frame = good[0].copy()
    frame[20:30, 40:50] = 160
    found = baseline_scores(background, [good[1], frame])
    assert found[0].score < 10
    assert found[1].score > 30
    assert 40 <= found[1].peak_xy[0] < 50
    assert 20 <= found[1].peak_xy[1] < 30
    hidden = np.ones((60, 80), np.bool_)
    hidden[10:40, 30:60] = False
    assert baseline_scores(background, [frame], hidden)[0].score < 10


def test_colours_are_averaged() -> None:
    frames = [np.full((40, 40, 3), 90, np.uint8)] * 3
    assert baseline_scores(median_background(frames), frames)[0].score == 0


@pytest.mark.parametrize(
    ("good", "bad", "recall"),
    [
        ([1.0] * 100, [2.0, 0.5], 0.5),
        ([*range(100)], [97.5, 96.0], 0.5),
        ([*range(10)], [9.5, 9.0], 0.5),
        ([5.0], [5.0], 0.0),
    ],
)
def test_recall_at_two_percent(good: list[float], bad: list[float], recall: float) -> None:
    assert recall_at_false_rejects(good, bad) == recall


def test_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="no good frames"):
        median_background([])
    with pytest.raises(ValueError, match="0 good and 1 bad"):
        recall_at_false_rejects([], [1.0])
