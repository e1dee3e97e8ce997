"""Augmented crops are what they say, and their cells stay with their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from models.augment import Augmentation, augmented, check_augmentation
from models.errors import DataError
from models.tiles import cells_hw, pixels_of
from models.untrained import textured_frame


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(mirror=True),
        Augmentation(quarter_turns=True),
        Augmentation(mirror=True, quarter_turns=True),
    ],
)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 8), (12, 12)])
def test_cells_go_with_their_pixels(augmentation: Augmentation, rows: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    counted = rng.random((rows, columns)) < 0.5
    crop = np.zeros((pixels_of(rows), pixels_of(columns), 1), np.uint8)
    for row, column in zip(*np.nonzero(counted), strict=True):
        crop[16 + 4 * row, 16 + 4 * column - 2 : 16 + 4 * column + 3] = 200  # wider than high
        crop[16 + 4 * row, 16 + 4 * column] = 255  # the pixel that the cell is centred on
    seen = set()
    for _ in range(40):
        pixels, cells = augmented(crop, counted, augmentation, rng)
        assert cells_hw(*pixels.shape[:2]) == cells.shape
        centres = pixels[16::4, 16::4, 0][: cells.shape[0], : cells.shape[1]]
        np.testing.assert_array_equal(centres == 255, cells)
        seen.add(pixels.tobytes())
    if rows > 1:
        turned, mirrored = augmentation.quarter_turns, augmentation.mirror
        assert len(seen) == (4 if turned else 1) * (2 if mirrored else 1)


def test_small_turns_keep_size_and_ask_nothing_of_invented_corners() -> None:
    rng = np.random.default_rng(1)
    crop = textured_frame(pixels_of(24), pixels_of(24), 1, seed=2)
    counted = np.ones((24, 24), np.bool_)
    asked = []
    for _ in range(20):
        pixels, cells = augmented(crop, counted, Augmentation(turn_degrees=10), rng)
        assert pixels.shape == crop.shape
        assert cells.shape == counted.shape
        assert cells[12, 12]
        asked.append(cells.mean())
    assert 0.5 < min(asked) < 0.95


def test_light_changes_mean_and_spread_within_bounds() -> None:
    rng = np.random.default_rng(2)
    crop = textured_frame(125, 125, 3, seed=3)
    shifts, spreads = [], []
    for _ in range(50):
        pixels, _ = augmented(
            crop, np.ones((24, 24), np.bool_), Augmentation(brightness=0.1, contrast=0.2), rng
        )
        shifts.append(float(pixels.mean() - crop.mean()))
        spreads.append(float(pixels.std() / crop.std()))
    assert max(map(abs, shifts)) < 0.1 * 255 + 1
    assert max(shifts) - min(shifts) > 20
    assert min(spreads) > 0.75
    assert max(spreads) < 1.25


def test_nothing_is_asked_by_default() -> None:
    assert not Augmentation().any
    assert Augmentation(contrast=0.1).any


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(turn_degrees=90), Augmentation(brightness=-0.1), Augmentation(contrast=2.0)],
)
def test_what_would_not_stay_good_is_refused(augmentation: Augmentation) -> None:
    with pytest.raises(DataError, match=r"augment\.\w+: .* found, expected 0 to"):
        check_augmentation(augmentation)
