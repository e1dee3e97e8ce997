"""Tiles cover a frame, their maps are pieces of its map, and their cache follows its inputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import tiles as tiles_module
from models.efficientad import StudentTeacher
from models.errors import DataError
from models.shrink import shrunk
from models.tiles import TileSet, build_tiles, cut, pad_frame, tile_grid
from models.untrained import textured_frame, untrained_model
from models.variants import MARGIN_PX, map_hw

SIDES = st.integers(33, 300)
MODELS = {channels: untrained_model("pdn_tiny", channels).pair(1) for channels in (1, 3)}


@torch.inference_mode()
def map_of(model: StudentTeacher, padded: NDArray[np.uint8]) -> NDArray[np.float32]:
    raw_map: NDArray[np.float32] = model(torch.from_numpy(np.array(padded)[None]))[0].numpy()
    return raw_map


@given(SIDES, SIDES, st.sampled_from([36, 64, 128, 256]), st.sampled_from([None, 16, 36]))
def test_every_cell_is_in_a_tile(height: int, width: int, tile: int, stride: int | None) -> None:
    covered = np.zeros(map_hw(height, width), int)
    for place in tile_grid(height, width, tile, stride):
        assert place.top % 4 == place.left % 4 == 0
        assert place.top + place.height <= height
        assert place.left + place.width <= width
        assert map_hw(place.height, place.width) == map_hw(min(tile, height), min(tile, width))
        covered[place.cells] += 1
    assert covered.min() >= 1


@given(SIDES, SIDES, st.sampled_from([36, 64, 128, 256]), st.sampled_from([None, 16, 36]))
def test_shifted_tiles_may_be_left_out(
    height: int, width: int, tile: int, stride: int | None
) -> None:
    step = stride or tile
    every = tile_grid(height, width, tile, stride)
    regular = [place for place in every if place.top % step == place.left % step == 0]
    assert regular
    assert tile_grid(height, width, tile, stride, "left_out") == regular


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, st.sampled_from([1, 3]), st.sampled_from([64, 100, 256]))
def test_maps_of_tiles_are_the_map_of_the_frame(
    height: int, width: int, channels: int, tile: int
) -> None:
    frame = textured_frame(height, width, channels, seed=height + width)
    padded, model = pad_frame(frame, MARGIN_PX), MODELS[channels]
    whole = map_of(model, padded)
    assert whole.shape == map_hw(height, width)
    for place in tile_grid(height, width, tile):
        piece = map_of(model, cut(padded, place))
        np.testing.assert_allclose(piece, whole[place.cells], rtol=1e-5, atol=1e-5)


def test_what_is_too_small_at_its_scale_is_named(tmp_path: Path) -> None:
    path = tmp_path / "low.png"
    cv2.imwrite(str(path), textured_frame(64, 90, 1))
    assert len(build_tiles([path], 1, tile=64)) == 2
    with pytest.raises(
        DataError, match=r"low\.png: 90x64 found, expected at least 65x65 at scale 2"
    ):
        build_tiles([path], 1, scale=2)
    cv2.imwrite(str(path), textured_frame(65, 65, 1))
    assert len(build_tiles([path], 1, scale=2)) == 1


def test_a_shift_by_two_pixels_is_another_map() -> None:
    """Why origins are multiples of 4: it is what the equality above rests on."""
    padded, model = pad_frame(textured_frame(128, 128, 1), MARGIN_PX), MODELS[1]
    whole, shifted = map_of(model, padded), map_of(model, padded[2:, 2:])
    assert np.abs(shifted - whole).mean() > 0.01 * whole.mean()


def test_the_margin_is_real_where_the_frame_goes_on() -> None:
    frame = textured_frame(600, 540, 1)
    place = tile_grid(600, 540)[4]
    assert (place.top, place.left) == (256, 256)
    expected = frame[256 - 16 : 256 + 269, 256 - 16 : 256 + 269]
    assert (cut(pad_frame(frame, MARGIN_PX), place) == expected).all()


def test_margin_is_a_reflection() -> None:
    frame = np.arange(40, dtype=np.uint8)[None, :, None].repeat(40, axis=0)
    padded = pad_frame(frame, MARGIN_PX)
    assert padded.shape == (72, 72, 1)
    assert padded[20, :18, 0].tolist() == [16, 15, *range(14, -1, -1), 1]
    assert (padded[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] == frame).all()


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3]))
def test_shrunk_frames_are_averages_as_the_detector_takes_them(
    height: int, width: int, channels: int
) -> None:
    frame = np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)
    found = shrunk(frame, 2)
    planes = torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None]
    exact = torch.nn.functional.avg_pool2d(planes, 2, ceil_mode=True)[0].permute(1, 2, 0).numpy()
    assert found.shape == exact.shape
    assert np.abs(found - exact).max() <= 0.5
    assert shrunk(frame, 1) is frame


def test_a_mask_shrinks_to_what_is_inspected_entirely(tmp_path: Path) -> None:
    mask = np.zeros((101, 120), np.bool_)
    mask[:61, 1:] = True
    cv2.imwrite(str(tmp_path / "a.png"), textured_frame(101, 120, 1))
    tiles = build_tiles([tmp_path / "a.png"], 1, scale=2, inspected=mask)
    assert tiles.inspected is not None
    assert tiles.inspected.shape == (51, 60)
    assert tiles.inspected[:30, 1:].all()
    assert not tiles.inspected[:, 0].any()
    assert not tiles.inspected[30:].any()


@pytest.mark.parametrize("size", [(32, 100), (100, 32)])
def test_too_small_a_frame(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="expected at least 33x33"):
        tile_grid(*size)


@pytest.mark.parametrize(
    ("tile", "stride"), [(250, None), (256, 2), (32, None), (64, 128), (64, 0)]
)
def test_sizes_that_do_not_tile(tile: int, stride: int | None) -> None:
    with pytest.raises(DataError, match="multiples of 4"):
        tile_grid(500, 500, tile, stride)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "good"
    images.mkdir()
    for k, (height, width) in enumerate([(300, 256), (100, 70), (270, 300)]):
        cv2.imwrite(str(images / f"{k}.png"), textured_frame(height, width, 1, seed=k))
    return images


def same(one: TileSet, other: TileSet) -> bool:
    return len(one) == len(other) and all(
        (one[k] == other[k]).all() and one.image[k] == other.image[k] for k in range(len(one))
    )


def test_tiles_of_a_folder(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.iterdir())
    reports: list[tuple[int, int]] = []
    tiles = build_tiles(paths, 1, progress=lambda done, total: reports.append((done, total)))
    assert tiles.image.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert [tiles[k].shape for k in (0, 2)] == [(285, 285, 1), (129, 101, 1)]
    assert reports == [(1, 3), (2, 3), (3, 3)]
    cached = build_tiles(paths, 1, cache_dir=tmp_path / "cache")
    assert isinstance(cached.data, np.memmap)
    assert same(tiles, cached)


def touch(folder: Path) -> None:
    os.utime(folder / "1.png", ns=(0, 12345))


def rewrite(folder: Path) -> None:
    cv2.imwrite(str(folder / "1.png"), textured_frame(101, 70, 1, seed=9))


def remove(folder: Path) -> None:
    (folder / "1.png").unlink()


def rename(folder: Path) -> None:
    (folder / "1.png").rename(folder / "1b.png")


@pytest.mark.parametrize("change", [None, touch, rewrite, remove, rename])
def test_cache_follows_the_files(
    folder: Path, tmp_path: Path, change: Callable[[Path], None] | None
) -> None:
    cache = tmp_path / "cache"
    build_tiles(sorted(folder.iterdir()), 1, cache_dir=cache)
    before = {path.name: path.stat().st_ino for path in cache.iterdir()}
    if change is not None:
        change(folder)
    paths = sorted(folder.iterdir())
    assert same(build_tiles(paths, 1, cache_dir=cache), build_tiles(paths, 1))
    after = {path.name: path.stat().st_ino for path in cache.iterdir()}
    assert (after == before) == (change is None)


def test_cache_follows_the_parameters(folder: Path, tmp_path: Path) -> None:
    paths, cache = sorted(folder.iterdir()), tmp_path / "cache"
    build_tiles(paths, 1, cache_dir=cache)
    build_tiles(paths, 3, cache_dir=cache)
    build_tiles(paths, 1, tile=128, cache_dir=cache)
    build_tiles(paths, 1, stride=128, cache_dir=cache)
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("name", [tiles_module.DATA, tiles_module.INDEX])
@pytest.mark.parametrize("damage", [b"", b"half a file"])
def test_a_damaged_cache_is_made_again(
    folder: Path, tmp_path: Path, name: str, damage: bytes
) -> None:
    paths, cache = sorted(folder.iterdir()), tmp_path / "cache"
    build_tiles(paths, 1, cache_dir=cache)
    (home,) = cache.iterdir()
    (home / name).write_bytes(damage)
    assert same(build_tiles(paths, 1, cache_dir=cache), build_tiles(paths, 1))
    assert [path.name for path in cache.iterdir()] == [home.name]


def test_a_bad_image_leaves_no_cache(folder: Path, tmp_path: Path) -> None:
    (folder / "9.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"9\.png"):
        build_tiles(sorted(folder.iterdir()), 1, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_inspected_tiles(folder: Path) -> None:
    paths = [folder / "0.png"]
    inspected = np.zeros((300, 256), bool)
    inspected[280:] = True
    assert build_tiles(paths, 1, inspected=inspected, min_inspected=0.05).image.tolist() == [0]
    with pytest.raises(DataError, match="no tile found"):
        build_tiles(paths, 1, inspected=inspected, min_inspected=0.5)
    with pytest.raises(DataError, match="256x300 found, expected 300x256"):
        build_tiles(paths, 1, inspected=inspected.T)
