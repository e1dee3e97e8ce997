"""OpenVINO on the CPU: the fused graph built directly from numpy weights; torch is not imported.

One model is compiled per input shape. A frame whose first layer's output would not fit in
`STRIP_BYTES` goes through in equally high strips, so that one compiled shape serves it all and
memory stays bounded. Strips are views of the frame, and maps are written where the caller wants
them: nothing is copied.

Compiled models are not cached on disk: compiling takes 0.05 to 0.1 s, reading a cache as long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as op

from models.bundle import Bundle
from models.errors import BundleError
from models.fused import FusedBranch, FusedConv, FusedGraph, input_rows
from models.runtimes.base import EngineOptions, Runtime, check_batch
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, map_hw

STRIP_BYTES = 512 << 20
"""Bound of the largest intermediate tensor, counted in float32."""
KEPT = 16
"""Compiled shapes kept beyond those that were asked for at the start."""


class OpenVinoRuntime:
    """See `models.runtimes.base.Runtime`."""

    def __init__(
        self, graph: FusedGraph, options: EngineOptions, *, strip_bytes: int = STRIP_BYTES
    ) -> None:
        self.engine_id = f"openvino/{options.precision}/cpu"
        self._graph = graph
        self._strip_bytes = strip_bytes
        self._core = ov.Core()
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": options.precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": options.threads,
        }
        self._requests: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._pinned: set[tuple[int, int]] = set()
        for height, width, _ in options.shapes:
            rows, columns = height + 2 * FRAME_MARGIN_PX, width + 2 * FRAME_MARGIN_PX
            first = graph.strips(map_hw(height, width)[0], columns, strip_bytes)[0]
            shape = (min(input_rows(first.last - first.first), rows), columns)
            self._request(shape)
            self._pinned.add(shape)

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """See `Runtime.infer`. Raises `DataError` for shapes that do not fit."""
        check_batch(padded, out, self._graph.in_channels)
        peaks = []
        for frame, raw_map in zip(padded, out, strict=True):
            source = np.ascontiguousarray(frame)
            target = raw_map if raw_map.flags.c_contiguous else np.empty_like(raw_map, order="C")
            for strip in self._graph.strips(target.shape[0], source.shape[1], self._strip_bytes):
                rows = source[strip.input_rows]
                request = self._request((rows.shape[0], rows.shape[1]))
                request.set_input_tensor(ov.Tensor(rows[None], shared_memory=True))
                part = target[None, strip.first : strip.last]
                request.set_output_tensor(ov.Tensor(part, shared_memory=True))
                request.infer()
            if target is not raw_map:
                raw_map[...] = target
            peaks.append(float(target.max()))
        return peaks

    @property
    def compiled_shapes(self) -> int:
        """How many input shapes are compiled and kept."""
        return len(self._requests)

    def close(self) -> None:
        self._requests.clear()

    def _request(self, shape: tuple[int, int]) -> Any:
        request = self._requests.get(shape)
        if request is None:
            model = build_model(self._graph, *shape)
            compiled = self._core.compile_model(model, "CPU", self._settings)
            request = self._requests[shape] = compiled.create_infer_request()
            spare = [key for key in self._requests if key not in self._pinned]
            for old in spare[: max(0, len(spare) - KEPT)]:
                del self._requests[old]
        self._requests.move_to_end(shape)
        return request


def build_model(graph: FusedGraph, rows: int, columns: int) -> ov.Model:
    """uint8 [1, rows, columns, C] of a padded frame -> raw map float32 [1, h, w].

    Teacher and student run side by side up to the last layer, which joins them: on the CPU a little
    faster than grouped convolutions (measured: 63 against 69 ms).
    """
    frame = op.parameter([1, rows, columns, graph.in_channels], np.uint8)
    pixels = op.subtract(op.convert(frame, np.float32), op.constant(graph.offset))
    planes = op.transpose(pixels, np.array([0, 3, 1, 2]))
    both = 2 * FRAME_MARGIN_PX
    size = map_hw(rows - both, columns - both)
    maps = [_enlarged(_map(planes, branch), branch.scale, size) for branch in graph.branches]
    raw_map = reduce(op.add, maps)
    return ov.Model([raw_map], [frame], graph.variant)


def _map(planes: Any, branch: FusedBranch) -> Any:
    """One scale's map of the whole padded frame, float32 [1, h, w]."""
    spare = FRAME_MARGIN_PX - branch.scale * MARGIN_PX
    if spare:
        bounds = np.array([spare, spare]), np.array([-spare, -spare])
        planes = op.slice(planes, *bounds, np.array([1, 1]), np.array([2, 3]))
    if branch.scale > 1:
        planes = _averaged(planes, branch.scale, "ceil")
    sides = []
    for side in (0, 1):
        x = planes
        for layer in branch.layers[:-1]:
            half = slice(side * (len(layer.bias) // 2), (side + 1) * (len(layer.bias) // 2))
            x = _convolve(x, layer, half)
        sides.append(x)
    difference = _convolve(op.concat(sides, 1), branch.layers[-1], slice(None))
    return op.reduce_sum(op.multiply(difference, difference), np.array([1]), False)


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


def _convolve(x: Any, layer: FusedConv, channels: slice) -> Any:
    weight = op.constant(np.ascontiguousarray(layer.weight[channels]))
    x = op.convolution(x, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    x = op.add(x, op.constant(layer.bias[channels].reshape(1, -1, 1, 1)))
    if layer.relu:
        x = op.relu(x)
    if layer.pool:
        x = _averaged(x, 2, "floor")
    return x


def _averaged(x: Any, size: int, rounding: str) -> Any:
    """Averages of squares; what lies beyond the sides is left out of them."""
    window = [size, size]
    return op.avg_pool(x, window, [0, 0], [0, 0], window, True, rounding_type=rounding)


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the openvino runtime: name a bundle")
    return OpenVinoRuntime(bundle.graph(), options)
