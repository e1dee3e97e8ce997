"""Image files come as the frames they are, or are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.errors import DataError
from models.images import list_images, read_image
from models.tiles import pad_frame
from models.untrained import textured_frame


@pytest.mark.parametrize("stored", ["grey", "colour", "alpha"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(tmp_path: Path, stored: str, channels: int) -> None:
    rgb = textured_frame(40, 50, 3)
    rgb[:, :, 0] = 200
    path = tmp_path / "image.png"
    if stored == "grey":
        cv2.imwrite(str(path), rgb[:, :, 1])
        expected = rgb[:, :, 1:2]
    else:
        bgr = rgb[:, :, ::-1]
        alpha = np.full((40, 50, 1), 7, np.uint8)
        cv2.imwrite(str(path), np.dstack([bgr, alpha]) if stored == "alpha" else bgr)
        expected = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)[:, :, None] if channels == 1 else rgb
    found = read_image(path, channels)
    assert found.shape == (40, 50, channels)
    assert found.flags.c_contiguous
    assert (found == expected).all()


def test_what_is_no_frame(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((40, 40), np.uint16))
    cv2.imwrite(str(tmp_path / "small.png"), np.zeros((32, 40), np.uint8))
    for name, what in (
        ("absent.png", "unreadable"),
        ("empty.png", "no image found"),
        ("text.png", "no image found"),
        ("deep.png", "uint16 pixels found, expected 8 bit"),
        ("small.png", "40x32 found, expected at least 33x33"),
    ):
        with pytest.raises(DataError, match=what):
            read_image(tmp_path / name, 1)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]
    for folder in (tmp_path / "folder.png", tmp_path / "absent"):
        with pytest.raises(DataError, match=r"nothing found|no image found"):
            list_images(folder)


def test_margin_reflects_without_repeating_the_edge() -> None:
    frame = np.arange(40 * 50, dtype=np.uint16).reshape(40, 50, 1).astype(np.uint8)
    padded = pad_frame(frame, 16)
    assert padded.shape == (72, 82, 1)
    assert (padded[16:-16, 16:-16] == frame).all()
    assert (padded[15, 16:-16] == frame[1]).all()
    assert (padded[0, 0] == frame[16, 16]).all()


def test_a_header_that_promises_too_much_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with pytest.raises(DataError, match="that are no image found"):
        read_image(path)
