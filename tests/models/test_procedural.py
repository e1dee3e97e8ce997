"""Procedural pictures are what the teacher's training takes them for."""

from __future__ import annotations

import numpy as np
import pytest

from models.procedural import LAYERS, Picture, draw, photograph


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
