"""Raw frames, flat fields and lenses to prepare frames with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.prepare import PreparationConfig
from pipeline.prepare.flatfield import FlatField
from pipeline.prepare.lens import Lens
from pipeline.prepare.preparation import Preparation
from pipeline.sources.base import FrameFormat

RNG = np.random.default_rng(7)


def noise(source: FrameFormat) -> NDArray[Any]:
    return RNG.integers(0, 2**source.bits, source.shape_hwc).astype(source.dtype)


def strided(shape_hwc: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A padded frame of sevens, and the view inside of it that a slot gives."""
    height, width, channels = shape_hwc
    padded = np.full((height + 64, width + 64, channels), 7, np.uint8)
    return padded, padded[32:-32, 32:-32]


def applied(
    config: PreparationConfig, source: FrameFormat, color: bool, raw: NDArray[Any]
) -> NDArray[np.uint8]:
    """Prepared, twice with one object, into a strided view whose surroundings stay untouched."""
    preparation = Preparation(config, source, color)
    before = raw.copy()
    for _ in range(2):
        padded, out = strided(preparation.shape_hwc)
        preparation.apply(raw, out)
    assert np.array_equal(raw, before)
    margins = np.ones(padded.shape, bool)
    margins[32:-32, 32:-32] = False
    assert (padded[margins] == 7).all()
    return out


def field(source: FrameFormat, path: Path) -> FlatField:
    """A flat field of this format, written to `path`."""
    dark = RNG.integers(0, 2**source.bits // 8, source.shape_hwc).astype(source.dtype)
    gain = RNG.uniform(0.5, 2.0, source.shape_hwc).astype(np.float32)
    made = FlatField(source, dark, gain, "2026-01-01T00:00:00+00:00", 8, 8)
    made.save(path)
    return made


def lens(path: Path, width: int, height: int, k1: float = -0.2) -> Lens:
    made = Lens(
        width=width,
        height=height,
        camera_matrix=((300.0, 0.0, width / 2 + 3.3), (0.0, 310.0, height / 2 - 2.2), (0, 0, 1)),
        distortion=(k1, 0.05, 0.001, -0.002, 0.0),
        mm_per_px=0.05,
        made="2026-01-01",
        board="checkerboard 9x6",
        rms_px=0.1,
        focal_std=0.001,
        coverage=0.8,
    )
    path.write_text(made.model_dump_json())
    return made
