"""Drawn defects are where they are said to be, and nothing else is changed."""

from __future__ import annotations

import numpy as np
import pytest

from models.defects import FEW_TONES, SMALLEST_PX, Picture, spoil
from models.procedural import draw


def pictures(count: int, size: int = 128) -> list[Picture]:
    return [draw(np.random.default_rng(seed), size) for seed in range(count)]


def changed(before: Picture, after: Picture) -> np.ndarray:
    difference = np.abs(after - before)
    return difference.max(axis=2) if difference.ndim == 3 else difference


@pytest.mark.parametrize("grey", [False, True])
def test_a_defect_is_where_it_is_said_to_be(grey: bool) -> None:
    found = 0
    for seed, coloured in enumerate(pictures(120)):
        picture = coloured.mean(axis=2) if grey else coloured
        before = picture.copy()
        after, where = spoil(np.random.default_rng(seed), picture, 1)
        assert (picture == before).all()
        assert after.dtype == np.float32
        assert after.min() >= 0
        assert after.max() <= 1
        assert where.shape == (128, 128)
        assert set(np.unique(where)) <= {-1, 0, 1}
        change = changed(picture, after)
        assert (change[where == 0] <= 1 / 255).all()
        if (where == 1).any():  # what a little blur sees is wider than the change
            found += 1
            assert change[where == 1].max() > 0.015
    assert found > 70


def test_several_defects_are_told_apart() -> None:
    numbers: list[int] = []
    for seed, picture in enumerate(pictures(30)):
        where = spoil(np.random.default_rng(seed), picture, 6)[1]
        assert where.max() <= 6
        numbers += np.unique(where[where > 0]).tolist()
    assert len(numbers) > 90
    assert set(numbers) == {1, 2, 3, 4, 5, 6}


def test_larger_defects_are_asked_for_at_their_rims_alone() -> None:
    rng = np.random.default_rng(1)
    picture = (0.5 + 0.02 * rng.standard_normal((200, 200))).astype(np.float32)
    asked = [spoil(rng, picture, 1)[1] for _ in range(200)]
    inside = [where for where in asked if (where > 0).any() and (where == -1).any()]
    assert len(inside) > 20
    for where in inside:
        rows, columns = np.nonzero(where > 0)
        assert np.ptp(rows) + np.ptp(columns) >= SMALLEST_PX / 2


@pytest.mark.parametrize("tones", [(0.0, 1.0), (0.1, 0.4, 0.9)])
def test_few_tones_stay_few(tones: tuple[float, ...]) -> None:
    rng = np.random.default_rng(2)
    palette = np.array(tones, np.float32)
    assert len(palette) <= FEW_TONES
    touched = 0
    for _ in range(20):
        picture = palette[rng.integers(0, len(palette), (8, 8))].repeat(16, 0).repeat(16, 1)
        after, where = spoil(rng, picture, 4, specks=3)
        assert set(np.unique(after)) <= set(palette.tolist())
        touched += int((where > 0).any())
    assert touched >= 15


def test_specks_are_good() -> None:
    rng = np.random.default_rng(3)
    for picture in pictures(10):
        after, where = spoil(rng, picture, 0, specks=30)
        assert not where.any()
        assert (after != picture).any()
        assert (changed(picture, after) > 0).mean() < 0.05


def test_no_defect_and_no_room_for_one() -> None:
    rng = np.random.default_rng(0)
    picture = draw(rng, 64)
    unchanged, where = spoil(rng, picture, 0)
    assert (unchanged == picture).all()
    assert not where.any()
    tiny = picture[:5, :5]
    assert (spoil(rng, tiny, 3)[0] == tiny).all()


def test_flat_picture_and_one_seed() -> None:
    flat = np.zeros((96, 96), np.float32)
    runs = [spoil(np.random.default_rng(seed), flat, 5) for seed in (4, 4, 5)]
    assert all((one == two).all() for one, two in zip(runs[0], runs[1], strict=True))
    assert np.isfinite(runs[2][0]).all()
