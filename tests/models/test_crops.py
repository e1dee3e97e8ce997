"""Crops show what they say, come back to hard places, and follow the seed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.crops import (
    GOOD,
    REVISIT_PX,
    SCATTERED_PER_PX,
    UNSURE,
    CropSource,
    Place,
    gathered,
    scattered,
    spoiled_crop,
)
from models.tiles import TileSet, cells_hw
from models.untrained import textured_frame


def tile_set(shapes: list[tuple[int, int, int]]) -> TileSet:
    frames = [textured_frame(*shape, seed=k) for k, shape in enumerate(shapes)]
    table = np.array(shapes, np.int64)
    ends = np.cumsum(table.prod(axis=1))
    numbers = np.arange(len(shapes))
    return TileSet(
        np.concatenate([frame.ravel() for frame in frames]),
        table,
        ends - table.prod(axis=1),
        numbers,
        np.zeros((len(shapes), 2), np.int64),
    )


def source(
    tiles: TileSet, seed: int = 0, *, spoiled: float = 0.5, revisited: float = 0.0, fades: float = 1
) -> CropSource:
    rng, counts = np.random.default_rng(seed), gathered(spoiled)
    return CropSource(
        tiles, rng, batch=6, crop_px=64, counts=counts, revisited=revisited, fades=fades
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_all_sizes(channels: int) -> None:
    tiles = tile_set([(33, 33, channels), (50, 200, channels), (285, 285, channels)])
    seen: set[tuple[int, ...]] = set()
    crops = source(tiles)
    for _ in range(30):
        numbers: list[int] = []
        for group in (batch := crops.draw()).groups:
            _, height, width, depth = group.pixels.shape
            assert depth == channels
            assert group.cells.shape[1:] == cells_hw(height, width)
            seen.add((height, width))
            numbers += group.numbers
        assert sorted(numbers) == list(range(6))
        crops.report(batch, [0.0] * 6)
    assert seen <= {(33, 33), (49, 61), (61, 61)}  # 4 n + 29 px, at most 64
    assert (61, 61) in seen


def test_good_crops_are_as_they_lie() -> None:
    tiles = tile_set([(100, 120, 1)])
    whole = tiles[0]
    for group in source(tiles, spoiled=0.0).draw().groups:
        assert (group.cells == GOOD).all()
        for crop in group.pixels.numpy():
            windows = np.lib.stride_tricks.sliding_window_view(whole[..., 0], (61, 61))
            assert (windows == crop[..., 0]).all(axis=(2, 3)).any()


def test_numbers_of_defects_differ_between_crops() -> None:
    crops = source(tile_set([(200, 200, 1)]), spoiled=1.0)
    (group,) = crops.draw().groups
    numbers = [set(cells[cells > 0].tolist()) for cells in group.cells]
    assert sum(map(len, numbers)) == len(set().union(*numbers)) > 0


def test_good_cells_see_no_defect() -> None:
    rng = np.random.default_rng(5)
    crop = textured_frame(128, 128, 1, seed=5)
    asked = 0
    for _ in range(30):
        pixels, cells = spoiled_crop(crop, rng, 3, specks=0)
        change = cells_changed(crop, pixels, cells.shape)
        assert not change[cells == GOOD].any()
        assert change[cells > 0].all()
        assert set(np.unique(cells)) <= {UNSURE, GOOD, *range(1, 10)}
        asked += int((cells > 0).any())
    assert asked > 15


def cells_changed(
    before: NDArray[np.uint8], after: NDArray[np.uint8], shape: tuple[int, ...]
) -> NDArray[np.bool_]:
    """Which cells see a changed pixel in their 33x33."""
    changed = np.abs(before.astype(int) - after)[..., 0] > 1  # rounding aside
    windows = np.lib.stride_tricks.sliding_window_view(changed, (33, 33))
    seen: NDArray[np.bool_] = windows.any(axis=(2, 3))[::4, ::4][: shape[0], : shape[1]]
    return seen


@pytest.mark.parametrize("short_px", [0, 20])
def test_crops_may_be_short_where_their_tile_ends(short_px: int) -> None:
    """As a frame's last block has less of it than whole ones."""
    tiles = tile_set([(150, 130, 1)])
    rng, counts = np.random.default_rng(0), gathered(0.0)
    crops = CropSource(
        tiles, rng, batch=8, crop_px=64, counts=counts, revisited=0.5, short_px=short_px
    )
    seen: set[int] = set()
    for _ in range(20):
        batch = crops.draw()
        for group in batch.groups:
            height, width = group.pixels.shape[1:3]
            ends = [range(at - 3, at + 1) for at in (150, 130)]
            for crop in group.pixels.numpy():
                windows = np.lib.stride_tricks.sliding_window_view(tiles[0][..., 0], crop.shape[:2])
                found = np.argwhere((windows == crop[..., 0]).all(axis=(2, 3)))
                assert len(found)
                for begin, length, end in zip(found[0], (height, width), ends, strict=True):
                    assert length == 61 or begin + length in end
                    seen.add(length)
        crops.report(batch, [float(k) for k in range(8)])
    assert seen == ({61} if not short_px else {41, 45, 49, 53, 57, 61})


def test_uninspected_cells_ask_nothing() -> None:
    tiles = tile_set([(132, 132, 1)])
    inspected = np.zeros((100, 100), np.bool_)
    masked = TileSet(tiles.data, tiles.shapes, tiles.offsets, tiles.image, tiles.origins, inspected)
    for _ in range(5):
        for group in source(masked).draw().groups:
            assert (group.cells == UNSURE).all()


def test_hard_places_come_back() -> None:
    tiles = tile_set([(285, 285, 1)] * 20)
    crops = source(tiles, spoiled=0.0, revisited=0.5)
    batch = crops.draw()
    (first,) = batch.groups
    crops.report(batch, [1e6, 0, 0, 0, 0, 0])
    hard = first.pixels[0, REVISIT_PX:-REVISIT_PX, REVISIT_PX:-REVISIT_PX, 0].numpy()
    again = 0
    for _ in range(20):
        batch = crops.draw()
        (group,) = batch.groups
        for crop in group.pixels.numpy():
            windows = np.lib.stride_tricks.sliding_window_view(crop[..., 0], hard.shape)
            again += int((windows == hard).all(axis=(2, 3)).any())
        crops.report(batch, [0.0] * 6)  # learnt: no longer hard
        if not again:
            continue
        break
    assert again >= 1


@pytest.mark.parametrize("fades", [1.0, 0.5, 0.0])
def test_a_hard_place_under_drawn_defects_fades(fades: float) -> None:
    crops = source(tile_set([(61, 61, 1)]), spoiled=1.0, fades=fades)
    crops.remember([[0, 0, 0, 8.0]])
    batch = crops.draw()
    assert {place for place, _ in batch.drawn} == {Place(0, 0, 0)}
    crops.report(batch, [1.0] * 6)
    assert crops.remembered() == [[0, 0, 0, max(1.0, 8 * fades**6)]]


def test_scattered_defects_tell_nothing_of_one_another() -> None:
    rng = np.random.default_rng(0)
    area = round(4 / SCATTERED_PER_PX)
    counts, specks = np.transpose([scattered(rng, area) for _ in range(4000)])
    assert counts.mean() == pytest.approx(4, abs=0.15)
    assert counts.var() == pytest.approx(4, abs=0.4)  # a Poisson process, not half of them empty
    assert abs(np.corrcoef(counts, specks)[0, 1]) < 0.1
    assert {scattered(rng, 0)[0] for _ in range(9)} == {0}


@pytest.mark.parametrize("specks", [0, 4])
def test_a_crop_without_defects_is_good_throughout(specks: int) -> None:
    crop = textured_frame(96, 96, 1, seed=1)
    pixels, cells = spoiled_crop(crop, np.random.default_rng(0), 0, specks)
    assert (cells == GOOD).all()
    assert np.array_equal(pixels, crop) == (specks == 0)


def test_one_seed_one_series() -> None:
    tiles = tile_set([(150, 150, 1)] * 3)
    series = []
    for seed in (1, 1, 2):
        crops = source(tiles, seed, revisited=0.5)
        pixels = []
        for step in range(4):
            batch = crops.draw()
            pixels += [group.pixels.numpy() for group in batch.groups]
            crops.report(batch, [float(step + k) for k in range(6)])
        series.append(np.concatenate(pixels))
    assert (series[0] == series[1]).all()
    assert (series[0] != series[2]).any()
