"""Preparation: against slow arithmetic, in place, at the extremes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from preparations import applied, field, lens, noise, strided

from models.good_images import to_8_bit
from pipeline.config.prepare import PreparationConfig, WindowConfig
from pipeline.prepare.flatfield import FlatField
from pipeline.prepare.lens import Lens
from pipeline.prepare.preparation import Preparation, window_table
from pipeline.sources.base import FrameFormat

BAYER = ("RG", "GR", "GB", "BG")


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(33, 60), st.integers(33, 60)),
    st.sampled_from([0, 90, 180, 270]),
    st.booleans(),
)
def test_region_and_rotation_are_slicing_and_rot90(
    corner_and_size: tuple[int, int, int, int], rotate: Any, color: bool
) -> None:
    x, y, width, height = corner_and_size
    source = FrameFormat(80, 80, 3 if color else 1)
    raw = noise(source)
    config = PreparationConfig(roi_xyxy=(x, y, x + width, y + height), rotate=rotate)
    expected = np.rot90(raw[y : y + height, x : x + width], -rotate // 90)
    assert np.array_equal(applied(config, source, color, raw), expected)


def test_the_whole_frame_as_region_and_nothing_else_is_plain() -> None:
    source = FrameFormat(40, 50)
    for config in (PreparationConfig(), PreparationConfig(roi_xyxy=(0, 0, 50, 40))):
        assert Preparation(config, source, False).plain
        raw = noise(source)
        assert np.array_equal(applied(config, source, False, raw), raw)


@pytest.mark.parametrize(
    ("config", "source", "color"),
    [
        (PreparationConfig(roi_xyxy=(0, 0, 49, 40)), FrameFormat(40, 50), False),
        (PreparationConfig(rotate=180), FrameFormat(40, 50), False),
        (PreparationConfig(), FrameFormat(40, 50, bits=10), False),
        (PreparationConfig(), FrameFormat(40, 50, bayer="RG"), True),
        (PreparationConfig(), FrameFormat(40, 50, bayer="RG"), False),
        (PreparationConfig(), FrameFormat(40, 50), True),
        (PreparationConfig(window=WindowConfig(black=3)), FrameFormat(40, 50), False),
    ],
)
def test_what_changes_pixels_is_not_plain(
    config: PreparationConfig, source: FrameFormat, color: bool
) -> None:
    assert not Preparation(config, source, color).plain


def test_grey_and_colour_sources_serve_either() -> None:
    grey, rgb = FrameFormat(40, 50), FrameFormat(40, 50, 3)
    raw = noise(grey)
    assert np.array_equal(applied(PreparationConfig(), grey, True, raw), np.repeat(raw, 3, axis=2))
    raw = noise(rgb)
    exact = raw @ np.array([0.299, 0.587, 0.114])
    found = applied(PreparationConfig(), rgb, False, raw)[:, :, 0]
    assert np.abs(found - exact).max() < 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(("black", "white"), [(0, None), (0, 1), (17, 201), (254, 255)])
def test_the_window_is_what_training_does(bits: int, black: int, white: int | None) -> None:
    """`linewatch train --levels BLACK,WHITE` makes equal pixels of 16 bit images."""
    source = FrameFormat(64, 1024, bits=bits)
    raw = np.resize(np.arange(2**bits), source.shape_hwc).astype(source.dtype)
    config = PreparationConfig(window=WindowConfig(black=black, white=white))
    levels = (black, white or 2**bits - 1)
    expected = to_8_bit(raw.astype(np.uint16), levels)
    assert np.array_equal(applied(config, source, False, raw), expected)


def test_gamma_is_genicams() -> None:
    source = FrameFormat(64, 64, bits=12)
    raw = np.arange(4096, dtype=np.uint16).reshape(source.shape_hwc)
    config = PreparationConfig(window=WindowConfig(black=64, white=4000, gamma=0.45))
    share = np.clip((raw.astype(float) - 64) / (4000 - 64), 0, 1)
    exact = 255 * share**0.45
    found = applied(config, source, False, raw)
    assert np.abs(found - exact).max() <= 0.501
    assert (np.diff(found.ravel().astype(int)) >= 0).all()


def test_values_above_the_sources_bits_are_white() -> None:
    table = window_table(WindowConfig(), 10)
    assert table is not None
    assert (table[1023:] == 255).all()


def mosaic(rgb: NDArray[Any], bayer: str) -> NDArray[Any]:
    """What a sensor with this pattern sees of an RGB picture."""
    second = {"RG": "GB", "GR": "BG", "GB": "RG", "BG": "GR"}[bayer]
    raw = np.empty((*rgb.shape[:2], 1), rgb.dtype)
    for row, letters in enumerate((bayer, second)):
        for column, letter in enumerate(letters):
            raw[row::2, column::2, 0] = rgb[row::2, column::2, "RGB".index(letter)]
    return raw


@pytest.mark.parametrize("bayer", BAYER)
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (3, 5)])
@pytest.mark.parametrize("bits", [8, 12])
def test_bayer_patterns_give_the_colours_that_were_there(
    bayer: str, corner: tuple[int, int], bits: int
) -> None:
    """Red, green and blue fields, of which each pattern and each corner must find the colours."""
    source = FrameFormat(48, 144, bits=bits, bayer=bayer)
    top = 2**bits - 1
    rgb = np.zeros((48, 144, 3), source.dtype)
    for number in range(3):
        rgb[:, 48 * number : 48 * number + 48, number] = top * 4 // 5
    raw = mosaic(rgb, bayer)
    x, y = corner
    config = PreparationConfig(roi_xyxy=(x, y, 144, 48))
    found = applied(config, source, True, raw)
    expected = np.rint(rgb[y:, x:] * (255 / top))
    inner = [slice(4, 40), slice(52, 90), slice(100, 136)]
    for columns in inner:  # not where two fields meet
        assert np.abs(found[4:-4, columns].astype(int) - expected[4:-4, columns]).max() <= 1
    grey = applied(config, source, False, raw)[:, :, 0]
    luma = expected @ np.array([0.299, 0.587, 0.114])
    for columns in inner:
        assert np.abs(grey[4:-4, columns] - luma[4:-4, columns]).max() <= 1.5


@pytest.mark.parametrize(
    "source",
    [
        FrameFormat(41, 50),
        FrameFormat(41, 50, 3),
        FrameFormat(41, 50, bits=10),
        FrameFormat(41, 50, bits=16),
        FrameFormat(41, 50, 3, bits=12),
    ],
    ids=str,
)
def test_dark_and_flat_field_against_slow_arithmetic(source: FrameFormat, tmp_path: Path) -> None:
    path = tmp_path / "flat.npz"
    made = field(source, path)
    roi = (5, 3, 48, 40)
    config = PreparationConfig(roi_xyxy=roi, flatfield=str(path), rotate=90)
    raw = noise(source)
    light = np.maximum(raw.astype(np.float64) - made.dark, 0) * made.gain
    corrected = np.minimum(np.rint(light), 2 ** (8 if source.bits == 8 else 16) - 1)
    levels = (0, 2**source.bits - 1)
    eight = corrected if source.bits == 8 else to_8_bit(corrected.astype(np.uint16), levels)
    expected = np.rot90(eight[roi[1] : roi[3], roi[0] : roi[2]], -1)
    found = applied(config, source, source.channels == 3, raw)
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1  # float32, at halves
    assert (found == expected).mean() > 0.999


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.asarray(128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7), np.uint8)[:, :, None]


def test_undistortion_and_region_compose(tmp_path: Path) -> None:
    """Cutting and then undistorting is undistorting and then cutting, away from the cut."""
    path = tmp_path / "lens.json"
    made = lens(path, 320, 240)
    raw = smooth(240, 320)
    whole = applied(PreparationConfig(lens=str(path)), FrameFormat(240, 320), False, raw)
    opencv = cv2.undistort(
        raw, made.matrix, np.array(made.distortion), None, made.undistorted_matrix
    )
    assert np.abs(whole[8:-8, 8:-8, 0].astype(int) - opencv[8:-8, 8:-8]).max() <= 3
    roi = (31, 20, 290, 220)
    config = PreparationConfig(lens=str(path), roi_xyxy=roi)
    cut = applied(config, FrameFormat(240, 320), False, raw)
    outer = whole[20:220, 31:290]
    assert np.abs(cut.astype(int) - outer)[12:-12, 12:-12].max() <= 1
    assert np.abs(raw[20:220, 31:290].astype(int) - cut)[12:-12, 12:-12].max() > 20


def test_a_lens_without_distortion_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lens.json"
    ideal = lens(path, 50, 40).model_copy(
        update={
            "distortion": (0.0,) * 5,
            "camera_matrix": ((300.0, 0.0, 25.0), (0.0, 300.0, 20.0), (0.0, 0.0, 1.0)),
        }
    )
    path.write_text(ideal.model_dump_json())
    raw = noise(FrameFormat(40, 50, 3))
    found = applied(PreparationConfig(lens=str(path)), FrameFormat(40, 50, 3), True, raw)
    assert np.abs(found.astype(int) - raw).max() <= 1


@pytest.mark.parametrize("bayer", BAYER)
def test_everything_at_once_is_one_step_after_the_other(bayer: str, tmp_path: Path) -> None:
    source = FrameFormat(120, 160, bits=12, bayer=bayer)
    flat_path, lens_path = tmp_path / "flat.npz", tmp_path / "lens.json"
    field(source, flat_path)
    lens(lens_path, 160, 120)
    window = WindowConfig(black=100, white=3000, gamma=0.8)
    roi = (11, 6, 131, 109)
    raw = noise(source)
    config = PreparationConfig(
        roi_xyxy=roi, flatfield=str(flat_path), window=window, lens=str(lens_path), rotate=270
    )
    found = applied(config, source, True, raw)
    first = PreparationConfig(roi_xyxy=roi, flatfield=str(flat_path), window=window)
    eight = applied(first, source, True, raw)
    map_x, map_y = Lens.load(lens_path).maps(roi)
    straight = cv2.remap(eight, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    assert np.array_equal(found, np.rot90(straight, 1))
    assert found.shape == (120, 103, 3)


def test_the_hash_is_of_what_changes_pixels(tmp_path: Path) -> None:
    source = FrameFormat(40, 50, bits=12)
    path, copy, other = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    made = field(source, path)
    FlatField(source, made.dark, made.gain, "another day", 1, 1).save(copy)
    field(source, other)
    lens(tmp_path / "a.json", 50, 40)
    lens(tmp_path / "b.json", 50, 40, k1=-0.21)
    different = [
        PreparationConfig(),
        PreparationConfig(rotate=90),
        PreparationConfig(roi_xyxy=(1, 0, 50, 40)),
        PreparationConfig(window=WindowConfig(black=1)),
        PreparationConfig(window=WindowConfig(gamma=1.1)),
        PreparationConfig(flatfield=str(path)),
        PreparationConfig(flatfield=str(other)),
        PreparationConfig(lens=str(tmp_path / "a.json")),
        PreparationConfig(lens=str(tmp_path / "b.json")),
    ]
    hashes = [Preparation(config, source, False).sha256 for config in different]
    assert len(set(hashes)) == len(hashes)
    assert Preparation(PreparationConfig(), source, True).sha256 not in hashes

    same = [
        (PreparationConfig(), PreparationConfig(roi_xyxy=(0, 0, 50, 40))),
        (PreparationConfig(), PreparationConfig(window=WindowConfig(white=4095))),
        (PreparationConfig(flatfield=str(path)), PreparationConfig(flatfield=str(copy))),
    ]
    for pair in same:
        one, two = (Preparation(config, source, False).sha256 for config in pair)
        assert one == two


@pytest.mark.parametrize(
    "config",
    [
        PreparationConfig(roi_xyxy=(40, 30, 600, 450)),
        PreparationConfig(rotate=90),
        PreparationConfig(window=WindowConfig(black=9), rotate=270),
    ],
    ids=str,
)
def test_a_frame_takes_no_memory(config: PreparationConfig) -> None:
    source = FrameFormat(480, 640, bits=12 if config.window.black else 8)
    preparation = Preparation(config, source, False)
    raw = noise(source)
    _, out = strided(preparation.shape_hwc)
    preparation.apply(raw, out)
    tracemalloc.start()
    preparation.apply(raw, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
