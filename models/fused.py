"""A detector as chains of convolutions, from pixels to the raw map. No torch here.

There is one chain, or branch, for each scale at which the detector looks at the frame (see
`models.efficientad.Detector`); the raw map is the sum of theirs. In each, everything linear is
folded into the weights, in float64, before they are rounded to float32:

1. First layer: x / 255, input mean and standard deviation. It reads pixel values less `offset`,
   the mean pixel rounded to whole grey values: exact in bfloat16 too, and no weight's rounding
   is multiplied by the mean brightness, nor a large bias left to be rounded (OpenVINO rounds
   biases to bfloat16: 5 % of the map, measured). Its outputs are teacher and student channels
   side by side.
2. Middle layers: two groups, teacher then student.
3. Last layer: one convolution over both, weights [W_T / sigma, -W_S] / r and bias
   ((b_T - mu) / sigma - b_S) / r, with mu, sigma the teacher's feature statistics at this scale,
   and r^2 the number of channels times that of scales. Its output is the difference over r. A
   rotation, where there is one, is multiplied in from the left.
4. The branch's map is the sum of its squares over the channels, to be summed in float32.

The result equals `models.efficientad.Detector.forward` up to float32 rounding (tested).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.variants import FRAME_MARGIN_PX, SCALES, STRIDE, VARIANTS
from models.whole import WholeGraph, whole_graph, whole_shapes

Weights = Mapping[str, NDArray[np.float32]]
"""A `Detector`'s state: `teacher.conv1.weight`, ..., `input_mean`, `input_std`, and for each scale
`scale1.student.conv1.weight`, ..., `scale1.feature_mean`, `scale1.feature_std`, and perhaps
`scale1.rotation` (see `models.rotation`)."""


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
class FusedBranch:
    """Pixels at one scale -> layers -> sum of squares -> map at this scale."""

    scale: int
    layers: tuple[FusedConv, ...]


@dataclass(frozen=True, slots=True)
class FusedGraph:
    """uint8 [N, C, rows, columns] - offset -> branches -> the sum of their maps [N, h, w]."""

    variant: str
    in_channels: int
    offset: NDArray[np.float32]
    """[in_channels], whole numbers 0..255."""
    branches: tuple[FusedBranch, ...]
    whole: WholeGraph | None = None
    """The global branch, which looks at the frame beside these."""

    def pieces(self, map_hw: tuple[int, int], at_most_bytes: int) -> tuple[Piece, ...]:
        """A frame's pieces, equally large, in the order in which they are to be inferred.

        Their largest tensor, in float32, stays near the bound: margins above and below come on top.
        Strips of whole rows, unless these are so low that their overlap costs more than columns do.
        """

        def fitting(columns: int) -> int:
            row = STRIDE * self.largest_tensor_bytes(1, input_rows(columns))
            return at_most_bytes // row

        rows, columns = map_hw
        split = strips(columns, columns)
        if fitting(columns) < min(rows, LEAST_ROWS):
            square = isqrt(at_most_bytes // self.largest_tensor_bytes(STRIDE, STRIDE))
            split = strips(columns, max(LEAST_STRIP, square))
        down = strips(rows, max(LEAST_STRIP, fitting(split[0].last - split[0].first)))
        return tuple(Piece(part, side) for part in down for side in split)

    def largest_tensor_bytes(self, rows: int, columns: int) -> int:
        """Of the first layers' outputs, teacher and student together, in float32."""
        return max(
            len(branch.layers[0].bias) * 4 * rows * columns // branch.scale**2
            for branch in self.branches
        )


@dataclass(frozen=True, slots=True)
class Strip:
    """Map rows [first, last) of a frame, and the padded input rows that they need; or columns.

    The last strip's rows may end one beyond the padded frame's.
    """

    first: int
    last: int

    @property
    def input_rows(self) -> slice:
        return slice(STRIDE * self.first, STRIDE * self.first + input_rows(self.last - self.first))


@dataclass(frozen=True, slots=True)
class Piece:
    """What is inferred at once of a frame too large for that: a strip of it, or a part of one."""

    rows: Strip
    columns: Strip

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Of the padded frame."""
        return self.rows.input_rows, self.columns.input_rows

    @property
    def cells(self) -> tuple[slice, slice]:
        """Of the frame's map."""
        return (
            slice(self.rows.first, self.rows.last),
            slice(self.columns.first, self.columns.last),
        )

    def padded_hw(self, frame_hw: tuple[int, int]) -> tuple[int, int]:
        """Of its pixels, in a padded frame of this size."""
        height, width = (
            min(place.stop, side) - place.start
            for place, side in zip(self.pixels, frame_hw, strict=True)
        )
        return height, width


LEAST_STRIP = 8
"""Rows of the lowest strip."""
LEAST_ROWS = 80
"""Lower strips of whole rows compute a tenth more for their overlap: then columns are cheaper."""


def input_rows(map_rows: int) -> int:
    """Padded frame rows from which `map_rows` rows of the map come, at every scale alike."""
    return STRIDE * map_rows + 2 * (FRAME_MARGIN_PX - 1)


def strips(map_rows: int, at_most: int) -> tuple[Strip, ...]:
    """Equally high strips that cover all rows, each begun before the one before it ends.

    Equal heights let one compiled shape serve them all. Each begins where a row of the coarsest
    scale's map does. Between those rows the frame's map is interpolated, so a strip's last rows are
    right in the last one only, and the next strip, inferred later, writes them over. `at_most`
    bounds a strip's rows, and is at least 8.
    """
    if map_rows <= at_most:
        return (Strip(0, map_rows),)
    coarse = SCALES[-1]
    overlap = coarse + 1  # a row more where heights are odd
    count = -(-(map_rows - overlap) // (at_most - 1 - overlap))
    height = -(-(map_rows + (count - 1) * overlap) // count)
    height += (map_rows - height) % coarse
    last = map_rows - height
    starts = [*range(0, last, height - height % coarse - coarse), last]
    return tuple(Strip(start, start + height) for start in starts)


def check_weights(
    weights: Weights,
    variant: str,
    in_channels: int,
    scales: Sequence[int],
    *,
    global_branch: bool = False,
) -> None:
    """Raise `BundleError` unless the tensors are exactly those of the detector, and finite."""
    expected = weight_shapes(variant, in_channels, scales)
    channels = VARIANTS[variant][-1].out_channels
    for name in (f"scale{scale}.rotation" for scale in scales):
        kept = weights[name].shape[0] if name in weights and weights[name].ndim == 2 else 0
        if name in weights:
            expected[name] = (min(max(kept, 1), channels), channels)
    if global_branch:
        expected |= whole_shapes(variant, in_channels)
    for name in sorted(expected.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else "none"
        wanted = expected.get(name, "none")
        if found != wanted:
            raise BundleError(
                f"weights.safetensors: tensor {name}: shape {found} found, expected {wanted} for "
                f"{variant} with {in_channels} input channel(s) and scales {list(scales)}: train "
                "the bundle again"
            )
        if weights[name].dtype != np.float32 or not np.isfinite(weights[name]).all():
            raise BundleError(
                f"weights.safetensors: tensor {name}: {weights[name].dtype} with NaN or infinity "
                "perhaps, expected finite float32: train the bundle again"
            )


def weight_shapes(
    variant: str, in_channels: int, scales: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a detector's tensors."""
    if variant not in VARIANTS:
        raise BundleError(
            f"manifest.json: variant {variant!r} found, expected one of {', '.join(VARIANTS)}"
        )
    specs = VARIANTS[variant]
    shapes: dict[str, tuple[int, ...]] = {
        "input_mean": (in_channels,),
        "input_std": (in_channels,),
    }
    for scale in scales:
        for name in ("feature_mean", "feature_std"):
            shapes[f"scale{scale}.{name}"] = (specs[-1].out_channels,)
    for net in ("teacher", *(f"scale{scale}.student" for scale in scales)):
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


def fuse(
    weights: Weights,
    variant: str,
    in_channels: int,
    scales: Sequence[int] = (1,),
    *,
    global_branch: bool = False,
) -> FusedGraph:
    """Fold a detector. Raises `BundleError` when the weights are not the variant's."""
    check_weights(weights, variant, in_channels, scales, global_branch=global_branch)
    mean_px = 255.0 * weights["input_mean"].astype(np.float64)
    offset = np.clip(np.rint(mean_px), 0, 255)
    branches = (_branch(weights, variant, scale, len(scales), offset) for scale in scales)
    whole = whole_graph(weights, variant, in_channels) if global_branch else None
    return FusedGraph(variant, in_channels, offset.astype(np.float32), tuple(branches), whole)


def _branch(
    weights: Weights, variant: str, scale: int, scales: int, offset: NDArray[np.float64]
) -> FusedBranch:
    specs = VARIANTS[variant]
    student = f"scale{scale}.student"

    def get(name: str) -> NDArray[np.float64]:
        return weights[name].astype(np.float64)

    def pair(number: int, what: str) -> NDArray[np.float64]:
        return np.concatenate([get(f"{net}.conv{number}.{what}") for net in ("teacher", student)])

    mean_px, std_px = 255.0 * get("input_mean"), 255.0 * get("input_std")
    layers: list[FusedConv] = []
    for number, spec in enumerate(specs[:-1], start=1):
        weight, bias = pair(number, "weight"), pair(number, "bias")
        if number == 1:
            weight = weight / std_px[:, None, None]
            bias = bias - np.einsum("oikl,i->o", weight, mean_px - offset)
        layers.append(_conv(weight, bias, 1 if number == 1 else 2, True, spec.pool))

    last = len(specs)
    root = np.sqrt(float(specs[-1].out_channels * scales))
    sigma = get(f"scale{scale}.feature_std")
    teacher = get(f"teacher.conv{last}.weight") / sigma[:, None, None, None]
    weight = np.concatenate([teacher, -get(f"{student}.conv{last}.weight")], axis=1) / root
    bias = (get(f"teacher.conv{last}.bias") - get(f"scale{scale}.feature_mean")) / sigma
    bias = (bias - get(f"{student}.conv{last}.bias")) / root
    if f"scale{scale}.rotation" in weights:
        rotation = get(f"scale{scale}.rotation")
        weight, bias = np.einsum("kc,cixy->kixy", rotation, weight), rotation @ bias
    layers.append(_conv(weight, bias, 1, False, specs[-1].pool))
    return FusedBranch(scale, tuple(layers))


def _conv(
    weight: NDArray[np.float64], bias: NDArray[np.float64], groups: int, relu: bool, pool: bool
) -> FusedConv:
    as32 = np.ascontiguousarray(weight, dtype=np.float32), bias.astype(np.float32)
    return FusedConv(*as32, groups=groups, relu=relu, pool=pool)
