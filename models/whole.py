"""The global branch: the whole frame at 256x256, for what is missing, misplaced or too much.

A student-teacher that sees 33 px does not know what belongs where. So the frame is shrunk as a
whole, an autoencoder with a narrow middle gives back the features that a good frame would have,
and a student of its own predicts the autoencoder, having learned that on good frames only; where
they differ, the whole is unusual (EfficientAD, section 3.3, equation 5). No torch here.

1. `shrink`: means of areas, (H, W, C) -> (256, 256, C), float32.
2. Autoencoder on it, student on it with its 16 px of reflected margin: two maps (64, 64) of
   features; the mean square of their difference is the global map.
3. `spread`: linear, to the cells of the frame's map.
4. The mean of the local map and of alpha x + beta of the global one, which gives both maps the
   same two quantiles: the raw map.

The resampling is two matrix products, so that every runtime does it alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.variants import STRIDE, VARIANTS, feature_channels, map_hw

SIDE_PX = 256
CELLS = SIDE_PX // STRIDE
PREFIX = "global."
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Step:
    """A convolution with zero padding, or, where `resize` is over 0, linear resizing to a square
    of that side (pixel centres aligned)."""

    out_channels: int = 0
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    relu: bool = False
    resize: int = 0


def autoencoder_steps(variant: str) -> tuple[Step, ...]:
    """EfficientAD, table 8; half its widths for pdn_tiny."""
    first = 16 if variant == "pdn_tiny" else 32
    width = 2 * first
    down = [Step(n, 4, 2, 1, relu=True) for n in (first, first, width, width, width)]
    up: list[Step] = []
    for side in (3, 8, 15, 32, 63, 127):
        up += [Step(resize=side), Step(width, 4, 1, 2, relu=True)]
    last = [Step(resize=CELLS), Step(width, 3, 1, 1, relu=True)]
    return (*down, Step(width, 8), *up, *last, Step(feature_channels(variant), 3, 1, 1))


@dataclass(frozen=True, slots=True)
class Layer:
    """A step with its weights; None for resizing. `pool`: a 2x2 average after it."""

    step: Step
    weight: Floats | None = None
    bias: Floats | None = None
    pool: bool = False


@dataclass(frozen=True, slots=True)
class WholeGraph:
    """Planes [1, C, 256, 256] (and [1, C, 288, 288] for the student), 0..255, -> map [64, 64]."""

    in_channels: int
    mean: Floats
    """[C], of pixels 0..255."""
    std: Floats
    autoencoder: tuple[Layer, ...]
    student: tuple[Layer, ...]
    alpha: float
    beta: float


def whole_shapes(variant: str, in_channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the branch's tensors."""
    shapes: dict[str, tuple[int, ...]] = {f"{PREFIX}affine": (2,)}
    channels = in_channels
    for number, spec in enumerate(VARIANTS[variant], start=1):
        name = f"{PREFIX}student.conv{number}"
        shapes[f"{name}.weight"] = (spec.out_channels, channels, spec.kernel, spec.kernel)
        shapes[f"{name}.bias"] = (spec.out_channels,)
        channels = spec.out_channels
    channels = in_channels
    for name, step in _named(variant):
        if step.resize:
            continue
        shapes[f"{name}.weight"] = (step.out_channels, channels, step.kernel, step.kernel)
        shapes[f"{name}.bias"] = (step.out_channels,)
        channels = step.out_channels
    return shapes


def whole_graph(weights: Mapping[str, Floats], variant: str, in_channels: int) -> WholeGraph:
    """weights: a detector's tensors, checked."""
    layers = [
        Layer(step)
        if step.resize
        else Layer(step, weights[f"{name}.weight"], weights[f"{name}.bias"])
        for name, step in _named(variant)
    ]
    specs = VARIANTS[variant]
    student = [
        Layer(
            Step(spec.out_channels, spec.kernel, relu=number < len(specs)),
            weights[f"{PREFIX}student.conv{number}.weight"],
            weights[f"{PREFIX}student.conv{number}.bias"],
            pool=spec.pool,
        )
        for number, spec in enumerate(specs, start=1)
    ]
    alpha, beta = (float(value) for value in weights[f"{PREFIX}affine"])
    return WholeGraph(
        in_channels,
        np.float32(255) * weights["input_mean"],
        np.float32(255) * weights["input_std"],
        tuple(layers),
        tuple(student),
        alpha,
        beta,
    )


def _named(variant: str) -> Sequence[tuple[str, Step]]:
    """Steps of the autoencoder, convolutions counted from 1."""
    named, number = [], 0
    for step in autoencoder_steps(variant):
        number += not step.resize
        named.append((f"{PREFIX}autoencoder.conv{number}", step))
    return named


def shrink(frame: NDArray[np.uint8]) -> Floats:
    """(H, W, C) -> float32 (256, 256, C), 0..255: the mean of the area that each pixel covers."""
    height, width, channels = frame.shape
    rows = area_weights(height) @ np.asarray(frame, np.float32).reshape(height, width * channels)
    columns = rows.reshape(SIDE_PX, width, channels).transpose(0, 2, 1) @ area_weights(width).T
    return np.ascontiguousarray(columns.transpose(0, 2, 1))


def spread(whole_map: Floats, frame_hw: tuple[int, int]) -> Floats:
    """(64, 64) -> (ceil(H / 4), ceil(W / 4)): each cell's value where its pixel lies."""
    height, width = frame_hw
    return np.asarray(cell_weights(height) @ whole_map @ cell_weights(width).T, np.float32)


@lru_cache(maxsize=16)
def area_weights(side: int) -> Floats:
    """(256, side): what share each of `side` pixels has in each of 256."""
    edges = np.linspace(0, side, SIDE_PX + 1)
    at = np.arange(side)
    overlap = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    weights = np.clip(overlap, 0, None) * (SIDE_PX / side)
    return np.asarray(weights, np.float32)


@lru_cache(maxsize=16)
def cell_weights(side: int) -> Floats:
    """(ceil(side / 4), 64): linear interpolation between the global map's cells.

    Cell k of the small image is centred on its pixel 4k, cell i of the frame on pixel 4i.
    """
    pixels = STRIDE * np.arange(map_hw(side, side)[0])
    small = (pixels + 0.5) * (SIDE_PX / side) - 0.5
    place = np.clip(small / STRIDE, 0, CELLS - 1)
    low = np.minimum(place.astype(int), CELLS - 2)
    weights = np.zeros((len(pixels), CELLS), np.float32)
    at = np.arange(len(pixels))
    weights[at, low] = 1 - (place - low)
    weights[at, low + 1] = place - low
    return weights
