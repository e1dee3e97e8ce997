"""Procedural pictures are what the teacher's training takes them for."""

from __future__ import annotations

import numpy as np
import pytest

from models.procedural import LAYERS, Picture, draw, photograph, spoil


@pytest.mark.parametrize("layer", [layer for layer, _ in LAYERS], ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("size", [64, 161])
def test_layers(layer: object, size: int) -> None:
    assert callable(layer)
    for seed in range(5):
        picture = layer(np.random.default_rng(seed), size)
        assert picture.shape == (size, size, 3)
        assert picture.dtype == np.float32
        assert np.isfinite(picture).all()


def pictures(count: int, size: int = 96) -> list[Picture]:
    return [draw(np.random.default_rng(seed), size) for seed in range(count)]


def test_pictures_are_drawn_from_the_seed() -> None:
    one, again, other = (draw(np.random.default_rng(seed), 96) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_pictures_differ_and_stay_in_range() -> None:
    drawn = np.stack(pictures(60))
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    means, deviations = drawn.mean(axis=(1, 2, 3)), drawn.std(axis=(1, 2)).mean(axis=1)
    assert means.std() > 0.1  # dark and bright ones
    assert np.quantile(deviations, 0.1) < 0.05  # faint and strong ones
    assert np.quantile(deviations, 0.9) > 0.15
    colour = np.ptp(drawn, axis=3).max(axis=(1, 2))
    assert 0.1 < (colour == 0).mean() < 0.9  # grey and coloured ones


def test_spectrum_falls_like_that_of_natural_images() -> None:
    """Power over frequency f goes as f^-a; natural images have a about 2 (Ruderman 1994)."""
    drawn = np.stack(pictures(200)).mean(axis=3)
    window = np.hanning(96)[:, None] * np.hanning(96)
    centred = (drawn - drawn.mean(axis=(1, 2), keepdims=True)) * window
    power = (np.abs(np.fft.fft2(centred)) ** 2).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96))
    chosen = (frequency > 0.03) & (frequency < 0.2)  # above it, lens and blur
    slope = np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0]
    assert -3 < slope < -1.5


@pytest.mark.parametrize("shape", [(80, 90, 3), (80, 90)])
def test_photographs_differ_in_light_and_not_in_place(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    scene = np.full(shape, 0.3, np.float32)
    scene[20:60, 30:70] = 0.6
    shots = [photograph(rng, scene) for _ in range(20)]
    assert all(shot.shape == shape and shot.dtype == np.uint8 for shot in shots)
    inside = np.array([shot[25:55, 35:65].mean() for shot in shots])
    outside = np.array([shot[:15].mean() for shot in shots])
    assert inside.std() > 10
    assert (inside > outside).all()


def test_defects_are_where_they_are_said_to_be() -> None:
    found = 0
    for seed, picture in enumerate(pictures(30, 128)):
        before = picture.copy()
        spoiled, taken = spoil(np.random.default_rng(seed), picture, 6)
        assert (picture == before).all()
        assert taken.shape == (128, 128)
        assert set(np.unique(taken)) <= {0.0, 0.5, 1.0}
        change = np.abs(spoiled - picture).mean(axis=2)
        assert spoiled.min() >= 0
        assert spoiled.max() <= 1
        assert (
            change[taken == 1] > 0
        ).mean() > 0.7  # what is seen is a little wider than the change
        assert (taken == 1).mean() < 0.5  # six of up to 80 px on 128
        found += int((taken == 1).any())
    assert found >= 25


def test_no_defect_and_no_room_for_one() -> None:
    rng = np.random.default_rng(0)
    picture = draw(rng, 64)
    unchanged, taken = spoil(rng, picture, 0)
    assert (unchanged == picture).all()
    assert not taken.any()
    tiny = picture[:5, :5]
    assert (spoil(rng, tiny, 3)[0] == tiny).all()
