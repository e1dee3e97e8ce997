from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import images
from pipeline.config import FolderSource
from pipeline.errors import SourceError
from pipeline.sources import open_source, probe
from pipeline.sources.folder import natural_key, read_image
from pipeline.types import Reason


def _save(path: Path, image: NDArray[np.generic]) -> None:
    assert cv2.imwrite(str(path), image)


def _noise(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _config(folder: Path, color: bool = False) -> FolderSource:
    return FolderSource(kind="folder", path=str(folder), color=color)


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png", "10.png", "11.png"],
        ["a1.png", "A2.png", "a10.png", "b1.png"],
        ["x1y9.png", "x1y10.png", "x01y11.png", "x2y1.png"],
        ["5.png", "7a.png", "a.png", "é.png"],
    ],
)
def test_natural_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == names


@given(st.lists(st.text(min_size=1, max_size=8), max_size=8))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(names, key=natural_key) == sorted(backwards, key=natural_key)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF"])
@pytest.mark.parametrize("color", [False, True])
def test_pixels_and_order(tmp_path: Path, suffix: str, color: bool) -> None:
    images = [_noise(40, 52, seed, 3 if color else 1) for seed in range(12)]
    for number, image in enumerate(images):
        _save(tmp_path / f"part_{number}{suffix}", image)
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_source(_config(tmp_path, color), 3)
    assert source.shape_hwc == probe(_config(tmp_path, color)) == (40, 52, 3 if color else 1)
    slot = np.zeros((72, 84, source.shape_hwc[2]), np.uint8)
    for number in range(3, 12):
        grab = source.read()
        assert grab is not None
        assert (grab.index, grab.fault, grab.pts) == (number, None, -1)
        grab.write(slot[16:-16, 16:-16])
        expected = images[number][:, :, ::-1] if color else images[number][:, :, None]
        assert np.array_equal(slot[16:-16, 16:-16], expected)
    assert source.read() is None
    source.close()


def test_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", _noise(40, 40))
    _save(tmp_path / "deep.png", np.full((40, 40), 0x9ABC, np.uint16))
    source = open_source(_config(tmp_path), 1)
    grab = source.read()
    assert grab is not None
    assert grab.fault is Reason.BROKEN_FRAME
    assert "uint16 pixels; expected 8 bit" in grab.detail


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_same_pixels_as_training_reads(tmp_path: Path, channels: int, color: bool) -> None:
    path = tmp_path / "a.png"
    _save(path, _noise(40, 44, channels=channels))
    expected = images.read_image(path, 3 if color else 1)
    assert np.array_equal(read_image(path, color), expected)


def _cut(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("suffix", "hurt"),
    [
        (".png", _cut),
        (".png", _flip),
        (".png", lambda path: _cut(path, 0.99)),
        (".jpg", _cut),
        (".bmp", lambda path: _cut(path, 0.001)),
        (".tif", _cut),
        (".png", lambda path: path.write_bytes(b"")),
        (".jpg", lambda path: path.write_bytes(b"\xff\xd8 nothing \xff\xd9")),
        (".png", lambda path: path.write_text("a page of text")),
    ],
)
def test_a_damaged_file_is_a_broken_frame(tmp_path: Path, suffix: str, hurt: object) -> None:
    for number in range(4):
        _save(tmp_path / f"{number}{suffix}", _noise(60, 64, number))
    assert callable(hurt)
    hurt(tmp_path / f"2{suffix}")
    source = open_source(_config(tmp_path))
    grabs = [source.read() for _ in range(4)]
    assert [grab.fault for grab in grabs if grab] == [None, None, Reason.BROKEN_FRAME, None]
    assert grabs[2] is not None
    assert f"2{suffix}" in grabs[2].detail
    assert source.read() is None


def test_the_first_image_may_be_broken(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    _save(tmp_path / "1.png", _noise(40, 50))
    source = open_source(_config(tmp_path))
    assert source.shape_hwc == (40, 50, 1)
    first, second = source.read(), source.read()
    assert first is not None
    assert first.fault is Reason.BROKEN_FRAME
    assert second is not None
    assert second.fault is None


@pytest.mark.parametrize("start", [0, 1, 2])
def test_another_size_is_said_so(tmp_path: Path, start: int) -> None:
    for number, width in enumerate((50, 51, 50)):
        _save(tmp_path / f"{number}.png", _noise(40, width))
    source = open_source(_config(tmp_path), start)
    assert source.shape_hwc == (40, 50, 1)
    faults = []
    while (grab := source.read()) is not None:
        faults.append(grab.fault)
        assert grab.fault is None or "51 x 40 px" in grab.detail
    assert faults == [None, Reason.WRONG_SIZE, None][start:]


def test_a_grey_file_in_a_colour_line(tmp_path: Path) -> None:
    _save(tmp_path / "0.png", _noise(40, 50))
    _save(tmp_path / "1.png", _noise(40, 50, channels=1))
    source = open_source(_config(tmp_path, color=True), 1)
    grab = source.read()
    assert grab is not None
    assert grab.fault is None


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda folder: None, "no images in it"),
        (lambda folder: folder.rmdir(), "not a folder that can be read.*check `path`"),
        (lambda folder: (folder / "a.txt").write_text("x"), "no images in it"),
        (lambda folder: (folder / "a.png").write_text("x"), "none of 1 images can be read"),
    ],
)
def test_no_images_at_all(tmp_path: Path, prepare: object, says: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    assert callable(prepare)
    prepare(folder)
    with pytest.raises(SourceError, match=says):
        open_source(_config(folder))
    with pytest.raises(SourceError, match=says):
        probe(_config(folder))
