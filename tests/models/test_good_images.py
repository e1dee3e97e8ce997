"""Damaged files are named, 16 bit ones become 8 bit ones, and too many faults are an error."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from models.errors import DataError
from models.good_images import check_images, to_8_bit
from models.images import list_images, read_image
from models.untrained import textured_frame


def write(folder: Path, count: int) -> Path:
    folder.mkdir()
    for k in range(count):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(40, 50, 1, seed=k))
    return folder


def test_a_few_damaged_files_are_left_out_by_name(tmp_path: Path) -> None:
    good = write(tmp_path / "good", 20)
    (good / "cut.png").write_bytes((good / "0.png").read_bytes()[:60])
    cv2.imwrite(str(good / "tiny.png"), np.zeros((20, 40), np.uint8))
    found = check_images(list_images(good), convert_into=tmp_path / "8bit")
    assert len(found.paths) == 20
    assert len(found.left_out) == 2
    assert any("cut.png" in sentence for sentence in found.left_out)
    assert any("40x20 found" in sentence for sentence in found.left_out)
    assert not (tmp_path / "8bit").exists()


def test_many_damaged_files_are_an_error(tmp_path: Path) -> None:
    good = write(tmp_path / "good", 7)
    for k in range(3):
        (good / f"broken{k}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3 of 10 images cannot be used(.|\n)*broken0"):
        check_images(list_images(good), convert_into=tmp_path / "8bit")


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_files_become_8_bit_ones(tmp_path: Path, channels: int) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    ramp = np.linspace(0, 4095, 40 * 50 * channels).reshape(40, 50, channels).astype(np.uint16)
    for k in range(3):
        cv2.imwrite(str(folder / f"{k}.png"), ramp if channels == 3 else ramp[..., 0])
    with pytest.raises(DataError, match="--levels"):
        check_images(list_images(folder), convert_into=tmp_path / "8bit")
    told: list[tuple[int, int]] = []
    found = check_images(
        list_images(folder),
        levels=(100, 4000),
        convert_into=tmp_path / "8bit",
        progress=lambda *counts: told.append(counts),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    image = read_image(found.paths[0])
    expected = to_8_bit(ramp, (100, 4000))
    np.testing.assert_array_equal(image, expected[..., ::-1] if channels == 3 else expected)
    before = [path.stat().st_mtime_ns for path in found.paths]
    again = check_images(list_images(folder), levels=(100, 4000), convert_into=tmp_path / "8bit")
    assert [path.stat().st_mtime_ns for path in again.paths] == before
    other = check_images(list_images(folder), levels=(0, 4000), convert_into=tmp_path / "8bit")
    assert set(other.paths).isdisjoint(found.paths)


def test_black_and_white_points() -> None:
    values = np.array([[0, 99, 100, 300, 500, 501, 65535]], np.uint16)
    assert to_8_bit(values, (100, 500)).tolist() == [[0, 0, 0, 128, 255, 255, 255]]


@pytest.mark.parametrize("levels", [(5, 5), (9, 3), (-1, 100), (0, 70000)])
def test_levels_that_are_none_are_refused(tmp_path: Path, levels: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="black < white"):
        check_images([], levels=levels, convert_into=tmp_path)


def test_no_room_for_converted_files_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.full((40, 40), 3000, np.uint16))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"):
        check_images(list_images(folder), levels=(0, 4095), convert_into=tmp_path / "file" / "x")
