"""Figures of pictures, and limits that good ones set: what they must tell apart, and what not."""

from __future__ import annotations

import itertools
import json
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError
from pipeline.optics.measure import (
    FIGURES,
    MIN_IMAGES,
    OpticsLimits,
    learn,
    measure,
    score_of,
)

Frame = NDArray[np.uint8]


def scene(seed: int = 0, height: int = 240, width: int = 320, channels: int = 1) -> Frame:
    """A plate with edges, some grain."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width), 60.0, np.float32)
    picture[height // 4 : -height // 4, width // 4 : -width // 4] = 150
    marks = np.random.default_rng(1000)  # the same on every plate
    for _ in range(60):
        y, x = marks.integers(0, (height - 8, width - 8))
        picture[y : y + marks.integers(2, 9), x : x + marks.integers(2, 9)] += marks.normal(0, 40)
    picture += rng.normal(0, 2, picture.shape).astype(np.float32)
    grey = np.clip(np.rint(cv2.GaussianBlur(picture, (0, 0), 0.7)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], channels, axis=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("height", "width"), [(33, 33), (33, 500), (201, 200), (240, 320), (1024, 1280)]
)
def test_figures_of_any_size(height: int, width: int, channels: int) -> None:
    found = measure(scene(1, height, width, channels))
    assert max(found.thumb.shape) <= 200
    assert found.thumb.shape == (height // found.px, width // found.px)
    assert 60 < found.exposure < 150
    assert 0 <= found.sharpness < 2
    assert np.isfinite(found.places()).all()


def test_grey_and_colour_agree() -> None:
    grey, colour = measure(scene(2)), measure(scene(2, channels=3))
    assert np.allclose(grey.thumb, colour.thumb, atol=1)
    assert grey.exposure == pytest.approx(colour.exposure, abs=0.5)
    assert grey.sharpness == pytest.approx(colour.sharpness, rel=0.02)


def test_a_view_into_a_padded_frame_is_measured_like_a_copy() -> None:
    padded = np.pad(scene(3), ((32, 32), (32, 32), (0, 0)), mode="reflect")
    assert measure(padded[32:-32, 32:-32]).exposure == measure(scene(3)).exposure
    assert np.array_equal(measure(padded[32:-32, 32:-32]).thumb, measure(scene(3)).thumb)


def test_a_thumbnail_outlives_its_frame() -> None:
    frame = scene(4, 100, 100)
    found = measure(frame)
    before = found.thumb.copy()
    frame[:] = 0
    assert np.array_equal(found.thumb, before)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_a_picture_of_nothing(level: int) -> None:
    found = measure(np.full((100, 120, 1), level, np.uint8))
    assert found.exposure == level
    assert found.clipped == (level == 255)
    assert (found.spread, found.sharpness, found.detail) == (0, 0, 0)
    assert np.isfinite(found.places()).all()


def test_the_lamp_cancels_out_of_contrast_and_sharpness() -> None:
    bright = scene(5).astype(np.float32)
    dim = np.rint(bright * 0.6).astype(np.uint8)
    one, other = measure(scene(5)), measure(dim)
    assert other.exposure == pytest.approx(0.6 * one.exposure, rel=0.01)
    assert other.contrast == pytest.approx(one.contrast, rel=0.03)
    assert other.sharpness == pytest.approx(one.sharpness, rel=0.05)


def test_blur_takes_sharpness_and_detail() -> None:
    figures = [measure(scene(6))]
    for sigma in (1.0, 2.0, 4.0):
        blurred = cv2.GaussianBlur(scene(6), (0, 0), sigma)[..., None]
        figures.append(measure(blurred.astype(np.uint8)))
    assert all(a.sharpness > b.sharpness for a, b in itertools.pairwise(figures))
    assert figures[-1].detail < figures[0].detail


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (5, 0), (0, -7), (-20, 13), (40, 20)])
def test_shift_is_found_to_a_pixel(dx: int, dy: int) -> None:
    limits = learn([measure(scene(k)) for k in range(MIN_IMAGES)])
    moved = np.roll(scene(99), (dy, dx), axis=(0, 1))
    for _ in range(3):  # the reference stays as it is
        x, y, match = limits.reference.locate(measure(moved).thumb)
        assert (x, y) == pytest.approx((dx, dy), abs=1.0)
        assert match > 0.3


def test_limits_come_back_from_json() -> None:
    scores = {"torch/f32": [0.01 * k for k in range(101)]}
    limits = learn([measure(scene(k)) for k in range(MIN_IMAGES)], scores)
    plain = json.loads(json.dumps(limits.plain()))
    again = OpticsLimits.of_plain(plain)
    for name in ("middle", "low", "high"):
        assert np.array_equal(getattr(limits, name), getattr(again, name))
    assert (again.images, again.least, again.scores) == (limits.images, limits.least, limits.scores)
    assert again.scores["torch/f32"] == pytest.approx((0.1, 0.5, 0.9))
    assert np.array_equal(again.reference.thumb, limits.reference.thumb)
    values = limits.values(measure(scene(50)))
    assert np.array_equal(again.values(measure(scene(50))), values)
    assert np.abs(again.deviations(values)).max() < 3


def test_images_that_show_nothing_in_common_do_not_tell_where_the_camera_is() -> None:
    def noise(seed: int) -> Frame:
        levels = np.random.default_rng(seed).integers(0, 256, (80, 100, 1), np.uint8)
        return np.repeat(np.repeat(levels, 4, axis=0), 4, axis=1)

    limits = learn([measure(noise(k)) for k in range(30)])
    for name in ("shift x", "shift y", "match"):
        assert limits.low[FIGURES.index(name)] == -np.inf
    assert not limits.deviations(limits.values(measure(noise(99))))[5:8].any()


def test_too_few_images_or_of_different_sizes_are_refused() -> None:
    with pytest.raises(DataError, match="9 good images found, expected at least 10"):
        learn([measure(scene(k)) for k in range(MIN_IMAGES - 1)])
    with pytest.raises(DataError, match="0 good images found"):
        learn([])
    mixed = [measure(scene(k, height=240 + 8 * (k == 3))) for k in range(MIN_IMAGES)]
    with pytest.raises(DataError, match="different sizes"):
        learn(mixed)


def test_a_frame_of_another_size_is_refused() -> None:
    limits = learn([measure(scene(k)) for k in range(MIN_IMAGES)])
    assert limits.fits((240, 320))
    assert not limits.fits((248, 320))
    assert not limits.fits((480, 640))  # the same thumbnail, of other pixels
    with pytest.raises(DataError, match="320x248 found, expected 320x240"):
        limits.values(measure(scene(1, height=248)))


@pytest.mark.parametrize(
    "change",
    [
        {"limits": None},
        {"limits": {"shape": [3, 4], "zlib": "eJw="}},
        {"thumb": {"shape": [10], "zlib": ""}},
        {"least": [1, 2]},
        {"px": "x"},
        {"scores": {"torch/f32": [1]}},
        {"scores": None},
    ],
)
def test_damaged_limits_are_refused(change: dict[str, Any]) -> None:
    plain = learn([measure(scene(k)) for k in range(MIN_IMAGES)]).plain()
    with pytest.raises(ConfigError, match="damaged"):
        OpticsLimits.of_plain(plain | change)
    for key in plain:
        with pytest.raises(ConfigError, match="damaged"):
            OpticsLimits.of_plain({k: v for k, v in plain.items() if k != key})


def test_limits_that_are_none_are_refused() -> None:
    limits = learn([measure(scene(k)) for k in range(MIN_IMAGES)])
    plain = limits.plain()
    limits.low[3] = np.nan
    with pytest.raises(ConfigError, match="no limits"):
        OpticsLimits.of_plain(plain | {"limits": limits.plain()["limits"]})


def test_scores_are_those_of_the_rule() -> None:
    assert score_of(0.2, 0.2, 0.4) == 0
    assert score_of(0.4, 0.2, 0.4) == pytest.approx(0.1)
