"""The fused graph in OpenVINO's operations, in float or quantised to 8 bits.

Teacher and student run side by side up to the last layer, which joins them: on the CPU a little
faster than grouped convolutions (measured: 63 against 69 ms).

Quantised (`peaks` given), as measured to matter (models/README.md):

1. Grey values are 8 bits already. The first layer's bias takes back their offset times the rounded
   weights, not the exact ones. At scale 2, which sees averages, that layer stays in float.
2. Activations are not negative after a ReLU: 256 levels from 0 to the highest one that calibration
   saw. Clipping them costs more than finer steps gain. Those of the first layer differ most: its
   channels are brought to one range, which the next layer's weights take back.
3. Where teacher and student meet they share one range, since only their difference counts.
4. Weights have 255 levels, symmetric, with a range for each output channel.
5. Squares, their sum and the scales' sum stay in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from models.fused import FusedBranch, FusedGraph
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, map_hw

Peaks = Mapping[str, Sequence[tuple[Sequence[float], Sequence[float]]]]
"""See `models.bundle.Calibration.activation_peaks`."""
LEAST_SHARE = np.float32(1e-3)
"""Of the first layer's range: what a channel that is hardly ever active counts as."""


def build_model(graph: FusedGraph, rows: int, columns: int, peaks: Peaks | None = None) -> ov.Model:
    """uint8 [1, rows, columns, C] of a padded frame -> raw map float32 [1, h, w].

    peaks: quantise to 8 bits, by these.
    """
    frame, planes = _planes(graph, rows, columns)
    both = 2 * FRAME_MARGIN_PX
    size = map_hw(rows - both, columns - both)
    maps = []
    for branch in graph.branches:
        ranges = peaks[f"scale{branch.scale}"] if peaks is not None else None
        joined = op.concat(_sides(planes, graph.offset, branch, ranges), 1)
        layer = branch.layers[-1]
        difference = _convolve(joined, layer.weight, layer.bias, quantised=ranges is not None)
        squared = op.reduce_sum(op.multiply(difference, difference), np.array([1]), False)
        maps.append(_enlarged(squared, branch.scale, size))
    return ov.Model([reduce(op.add, maps)], [frame], graph.variant)


def build_peaks_model(graph: FusedGraph, rows: int, columns: int) -> ov.Model:
    """uint8 [1, rows, columns, C] -> the highest outputs of each channel, float32 [channels]: of
    each branch, in it of teacher and student, and of these of each layer but the last.
    """
    frame, planes = _planes(graph, rows, columns)
    found: list[Any] = []
    for branch in graph.branches:
        _sides(planes, graph.offset, branch, None, found)
    return ov.Model(found, [frame], f"{graph.variant} peaks")


def _planes(graph: FusedGraph, rows: int, columns: int) -> tuple[Any, Any]:
    """The input, and its pixels float32 [1, C, rows, columns], 0..255."""
    frame = op.parameter([1, rows, columns, graph.in_channels], np.uint8)
    return frame, op.transpose(op.convert(frame, np.float32), np.array([0, 3, 1, 2]))


def _sides(
    planes: Any,
    offset: NDArray[np.float32],
    branch: FusedBranch,
    ranges: Sequence[tuple[Sequence[float], Sequence[float]]] | None,
    highest: list[Any] | None = None,
) -> list[Any]:
    """What teacher and student give the last layer. highest: gets the peaks' nodes, [channels]."""
    spare = FRAME_MARGIN_PX - branch.scale * MARGIN_PX
    if spare:
        bounds = np.array([spare, spare]), np.array([-spare, -spare])
        planes = op.slice(planes, *bounds, np.array([1, 1]), np.array([2, 3]))
    whole_greys = ranges is not None and branch.scale == 1
    if whole_greys:
        planes = _levels(planes, 255.0)
    else:
        planes = op.subtract(planes, op.constant(offset.reshape(1, -1, 1, 1)))
    if branch.scale > 1:
        planes = _averaged(planes, branch.scale, "ceil")
    sides = []
    for side in (0, 1):
        x = planes
        taken = np.ones(1, np.float32)
        for number, layer in enumerate(branch.layers[:-1]):
            half = slice(side * (len(layer.bias) // 2), (side + 1) * (len(layer.bias) // 2))
            first, last = number == 0, number == len(branch.layers) - 2
            quantised = whole_greys or (ranges is not None and not first)
            shift = offset if first and whole_greys else None
            weight, bias = layer.weight[half] * taken[:, None, None], layer.bias[half]
            peak = 0.0
            if ranges is not None:
                both = ranges[number] if last else ranges[number][side : side + 1]
                peak = max(max(each) for each in both)
                taken = np.ones(1, np.float32)
                if first:
                    shares = np.array(ranges[number][side], np.float32) / np.float32(peak)
                    taken = np.maximum(shares, LEAST_SHARE)
                    weight, bias = weight / taken[:, None, None, None], bias / taken
            x = _convolve(x, weight, bias, quantised=quantised, offset=shift)
            x = op.relu(x) if layer.relu else x
            if highest is not None:
                highest.append(op.reduce_max(x, np.array([0, 2, 3]), False))
            if ranges is not None:
                x = _levels(x, peak)
            if layer.pool:
                x = _averaged(x, 2, "floor")
                # Again, or the average is written in float, to be rounded by another pass.
                x = x if ranges is None else _levels(x, peak)
        sides.append(x)
    return sides


def _convolve(
    x: Any,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    *,
    quantised: bool,
    offset: NDArray[np.float32] | None = None,
) -> Any:
    """offset [C]: `x` is higher by it than what the layer was made for."""
    weight = np.ascontiguousarray(weight)
    if quantised:
        # 255 levels, symmetric, for each output channel.
        most = np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), np.float32(1e-12))
        bounds = [op.constant(sign * most) for sign in (-1, 1)]
        constant = op.fake_quantize(op.constant(weight), *bounds, *bounds, 255)
        weight = np.rint(weight / most * 127) / 127 * most
    else:
        constant = op.constant(weight)
    if offset is not None:
        bias = bias - np.einsum("oixy,i->o", weight.astype(np.float64), offset.astype(np.float64))
    x = op.convolution(x, constant, [1, 1], [0, 0], [0, 0], [1, 1])
    return op.add(x, op.constant(bias.astype(np.float32).reshape(1, -1, 1, 1)))


def _levels(x: Any, peak: float) -> Any:
    low, high = op.constant(np.float32(0)), op.constant(np.float32(max(peak, 1e-6)))
    return op.fake_quantize(x, low, high, low, high, 256)


def _averaged(x: Any, size: int, rounding: str) -> Any:
    """Averages of squares; what lies beyond the sides is left out of them."""
    window = [size, size]
    return op.avg_pool(x, window, [0, 0], [0, 0], window, True, rounding_type=rounding)


def _enlarged(raw_map: Any, scale: int, size: tuple[int, int]) -> Any:
    """[1, h, w] -> [1, *size], as `models.efficientad.enlarged`."""
    if scale == 1:
        return raw_map
    _, rows, columns = (int(side) for side in raw_map.get_output_shape(0))
    cells = op.reshape(raw_map, np.array([1, rows, 1, columns, 1]), False)
    repeated = op.tile(cells, np.array([1, 1, scale, 1, scale]))
    whole = op.reshape(repeated, np.array([1, 1, scale * rows, scale * columns]), False)
    beyond = [scale - 1] * 2
    linear = op.avg_pool(whole, [1, 1], [0, 0], beyond, [scale, scale], True)
    inside = op.slice(linear, np.array([0, 0]), np.array(size), np.array([1, 1]), np.array([2, 3]))
    return op.squeeze(inside, np.array([1]))
