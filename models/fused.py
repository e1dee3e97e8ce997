"""The student-teacher pair as one chain of convolutions, from pixels to the raw map. No torch here.

Everything linear is folded into the weights, in float64, before they are rounded to float32:

1. First layer: x / 255, input mean and standard deviation. It reads pixel values less `offset`,
   the mean pixel rounded to whole grey values: exact in bfloat16 too, and no weight's rounding
   is multiplied by the mean brightness, nor a large bias left to be rounded (OpenVINO rounds
   biases to bfloat16: 5 % of the map, measured). Its outputs are teacher and student channels
   side by side.
2. Middle layers: two groups, teacher then student.
3. Last layer: one convolution over both, weights [W_T / sigma, -W_S] / sqrt(C) and bias
   ((b_T - mu) / sigma - b_S) / sqrt(C), with mu, sigma the teacher's feature statistics. Its
   output is (normalised teacher - student) / sqrt(C).
4. The raw map is the sum of its squares over the channels, to be summed in float32.

The result equals `models.efficientad.StudentTeacher.forward` up to float32 rounding (tested).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.variants import RECEPTIVE_FIELD_PX, STRIDE, VARIANTS

Weights = Mapping[str, NDArray[np.float32]]
"""A `StudentTeacher`'s state, by the names of its parameters and buffers."""


@dataclass(frozen=True, slots=True)
class FusedConv:
    """One unpadded, stride-1 convolution, then perhaps a ReLU, then perhaps a 2x2 average."""

    weight: NDArray[np.float32]
    """[out_channels, in_channels / groups, kernel, kernel]"""
    bias: NDArray[np.float32]
    """[out_channels]"""
    groups: int
    relu: bool
    pool: bool


@dataclass(frozen=True, slots=True)
class FusedGraph:
    """uint8 [N, C, rows, columns] - offset -> layers -> sum of squares -> raw map [N, h, w]."""

    variant: str
    in_channels: int
    offset: NDArray[np.float32]
    """[in_channels], whole numbers 0..255."""
    layers: tuple[FusedConv, ...]


@dataclass(frozen=True, slots=True)
class Strip:
    """Map rows [first, last) of a frame, and the padded input rows that they need."""

    first: int
    last: int

    @property
    def input_rows(self) -> slice:
        return slice(STRIDE * self.first, STRIDE * self.first + input_rows(self.last - self.first))


def input_rows(map_rows: int) -> int:
    """Padded frame rows that `map_rows` rows of the map see (the same for columns)."""
    return STRIDE * (map_rows - 1) + RECEPTIVE_FIELD_PX


def strips(map_rows: int, at_most: int) -> tuple[Strip, ...]:
    """Equally high strips that cover all rows; the last may overlap the one before it.

    Equal heights let one compiled shape serve them all. `at_most` >= 1 bounds a strip's rows.
    """
    count = -(-map_rows // at_most)
    height = -(-map_rows // count)
    starts = [min(k * height, map_rows - height) for k in range(count)]
    return tuple(Strip(start, start + height) for start in starts)


def check_weights(weights: Weights, variant: str, in_channels: int) -> None:
    """Raise `BundleError` unless the tensors are exactly those of the variant, and finite."""
    expected = weight_shapes(variant, in_channels)
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else "none"
        wanted = expected.get(name, "none")
        if found != wanted:
            raise BundleError(
                f"weights.safetensors: tensor {name}: shape {found} found, expected {wanted} for "
                f"{variant} with {in_channels} input channel(s): train the bundle again"
            )
        if weights[name].dtype != np.float32 or not np.isfinite(weights[name]).all():
            raise BundleError(
                f"weights.safetensors: tensor {name}: {weights[name].dtype} with NaN or infinity "
                "perhaps, expected finite float32: train the bundle again"
            )


def weight_shapes(variant: str, in_channels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a `StudentTeacher`'s parameters and buffers."""
    if variant not in VARIANTS:
        raise BundleError(
            f"manifest.json: variant {variant!r} found, expected one of {', '.join(VARIANTS)}"
        )
    specs = VARIANTS[variant]
    shapes: dict[str, tuple[int, ...]] = {
        "input_mean": (in_channels,),
        "input_std": (in_channels,),
        "feature_mean": (specs[-1].out_channels,),
        "feature_std": (specs[-1].out_channels,),
    }
    for net in ("teacher", "student"):
        channels = in_channels
        for number, spec in enumerate(specs, start=1):
            shapes[f"{net}.conv{number}.weight"] = (
                spec.out_channels,
                channels,
                spec.kernel,
                spec.kernel,
            )
            shapes[f"{net}.conv{number}.bias"] = (spec.out_channels,)
            channels = spec.out_channels
    return shapes


def fuse(weights: Weights, variant: str, in_channels: int) -> FusedGraph:
    """Fold a `StudentTeacher`. Raises `BundleError` when the weights are not the variant's."""
    check_weights(weights, variant, in_channels)
    specs = VARIANTS[variant]

    def get(name: str) -> NDArray[np.float64]:
        return weights[name].astype(np.float64)

    def pair(number: int, what: str) -> NDArray[np.float64]:
        return np.concatenate([get(f"{net}.conv{number}.{what}") for net in ("teacher", "student")])

    mean_px, std_px = 255.0 * get("input_mean"), 255.0 * get("input_std")
    offset = np.clip(np.rint(mean_px), 0, 255)
    layers: list[FusedConv] = []
    for number, spec in enumerate(specs[:-1], start=1):
        weight, bias = pair(number, "weight"), pair(number, "bias")
        if number == 1:
            weight = weight / std_px[:, None, None]
            bias = bias - np.einsum("oikl,i->o", weight, mean_px - offset)
        layers.append(_conv(weight, bias, 1 if number == 1 else 2, True, spec.pool))

    last = len(specs)
    root = np.sqrt(float(specs[-1].out_channels))
    sigma = get("feature_std")
    teacher = get(f"teacher.conv{last}.weight") / sigma[:, None, None, None]
    weight = np.concatenate([teacher, -get(f"student.conv{last}.weight")], axis=1) / root
    bias = (get(f"teacher.conv{last}.bias") - get("feature_mean")) / sigma
    bias = (bias - get(f"student.conv{last}.bias")) / root
    layers.append(_conv(weight, bias, 1, False, specs[-1].pool))
    return FusedGraph(variant, in_channels, offset.astype(np.float32), tuple(layers))


def _conv(
    weight: NDArray[np.float64], bias: NDArray[np.float64], groups: int, relu: bool, pool: bool
) -> FusedConv:
    as32 = np.ascontiguousarray(weight, dtype=np.float32), bias.astype(np.float32)
    return FusedConv(*as32, groups=groups, relu=relu, pool=pool)
