"""Objects are told from their background, and only their tiles are learnt from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import DataError
from models.masks import MASKS, FindObject, histogram, object_finder, object_mask, otsu
from models.montage import COLUMNS, FRAMES, SIDE_PX, montage
from models.settings import TrainingSettings
from models.tiles import build_tiles


def part(
    ground: int, tone: int, channels: int = 1, size: tuple[int, int] = (200, 300)
) -> NDArray[np.uint8]:
    """A square part at (100..180, 40..120) with grain."""
    rng = np.random.default_rng(ground)
    frame = np.full((*size, channels), ground, np.float32)
    frame[40:120, 100:180] = tone
    return np.clip(np.rint(frame + rng.normal(0, 4, frame.shape)), 0, 255).astype(np.uint8)


def write(folder: Path, frames: list[NDArray[np.uint8]]) -> list[Path]:
    folder.mkdir()
    for k, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{k:02d}.png"), frame[..., ::-1])
    return sorted(folder.iterdir())


@pytest.mark.parametrize("how", ["otsu", "otsu_set", "threshold"])
@pytest.mark.parametrize(("ground", "tone"), [(30, 200), (220, 60)])
@pytest.mark.parametrize("channels", [1, 3])
def test_bright_and_dark_parts_are_found(
    tmp_path: Path, how: str, ground: int, tone: int, channels: int
) -> None:
    paths = write(tmp_path / "good", [part(ground, tone, channels)] * 3)
    find = object_finder(how, 0.5, paths)
    assert find is not None
    mask = find(part(ground, tone, channels))
    expected = np.zeros((200, 300), np.bool_)
    expected[40:120, 100:180] = True
    assert (mask == expected).all()


def test_specks_are_no_object() -> None:
    frame = part(30, 200)
    frame[10:12, 10:12] = 255
    assert not object_mask(frame, 120)[:30].any()


def test_otsu_splits_two_tones_in_the_middle() -> None:
    counts = np.zeros(256, np.int64)
    counts[[50, 150]] = 1000, 500
    assert otsu(counts) == pytest.approx(99.5, abs=1)
    assert otsu(np.bincount([7], minlength=256)) >= 0  # one tone: anything, but no error
    assert histogram(part(30, 200)).sum() == 200 * 300


def test_other_names_are_refused() -> None:
    with pytest.raises(DataError, match=r"mask 'ostu' found, expected one of none, otsu"):
        object_finder("ostu", 0.5, [])
    assert object_finder("none", 0.5, []) is None
    assert set(MASKS) == {"none", "otsu", "otsu_set", "threshold"}


@pytest.mark.parametrize(("least", "tiles"), [(0.0, 24), (0.25, 4), (0.9, 1), (1.0, 1)])
def test_tiles_are_kept_by_their_share_of_object(tmp_path: Path, least: float, tiles: int) -> None:
    frame = part(30, 200, size=(256, 384))
    frame[:] = 30
    frame[64:128, 128:192] = 200  # one tile of 64 px whole
    frame[128:160, 128:192] = 200  # the one below it by half
    frame[64:128, 192:208] = 200  # the one beside it by a quarter
    frame[64:128, 112:128] = 200
    paths = write(tmp_path / "good", [frame])
    found = build_tiles(paths, 1, tile=64, find_object=FindObject(None), min_inspected=least)
    assert len(found) == tiles
    again = build_tiles(
        paths, 1, tile=64, find_object=FindObject(None), min_inspected=least, cache_dir=tmp_path
    )
    np.testing.assert_array_equal(found.origins, again.origins)


def test_the_cache_knows_the_mask(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [part(30, 200)])
    counts = [
        len(
            build_tiles(
                paths,
                1,
                tile=64,
                cache_dir=tmp_path / "cache",
                find_object=object_finder(how, 0.5, paths),
            )
        )
        for how in ("none", "otsu")
    ]
    assert counts[0] > counts[1]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_counts_for_both_inspection_and_object(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [part(30, 200, size=(128, 256))])
    left = np.zeros((128, 256), np.bool_)
    left[:, :128] = True
    tiles = build_tiles(
        paths, 1, tile=64, find_object=FindObject(None), inspected=left, min_inspected=0.2
    )
    assert (tiles.origins[:, 1] < 128).all()


def test_the_montage_shows_learnt_and_left_out_tiles(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [part(30, 200, size=(256, 256))] * (FRAMES + 5))
    picture = montage(paths, TrainingSettings(tile=64, mask="otsu"))
    assert picture.shape == (SIDE_PX * FRAMES // COLUMNS, SIDE_PX * COLUMNS, 3)
    red, green, blue = (picture[..., k].astype(int) for k in range(3))
    assert ((green - red > 80) & (green - blue > 80)).any()
    assert ((red - green > 100) & (red - blue > 100)).any()
    one = montage(paths[:1], TrainingSettings())
    assert one.shape == (SIDE_PX, SIDE_PX, 3)
