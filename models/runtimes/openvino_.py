"""OpenVINO on the CPU: the fused graph built directly from numpy weights; torch is not imported.

One model is compiled per input shape. A frame whose first layer's output would not fit in
`STRIP_BYTES` goes through in equally large pieces, so that one compiled shape serves it all and
memory stays bounded. Strips of whole rows are views of the frame, and their maps are written where
the caller wants them: nothing is copied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import BundleError, DataError
from models.fused import FusedGraph
from models.runtimes.base import EngineOptions, Runtime, check_batch
from models.runtimes.enginecache import constants_sha256
from models.runtimes.openvino_graph import Peaks, build_model, build_peaks_model
from models.runtimes.openvino_models import Compiled, OnDisk
from models.schema import LayerPeaks
from models.variants import FRAME_MARGIN_PX, map_hw

STRIP_BYTES = 512 << 20
"""Bound of the largest intermediate tensor, counted in float32."""


class OpenVinoRuntime:
    """See `models.runtimes.base.Runtime`. peaks: what int8 is quantised by, else None."""

    def __init__(
        self,
        graph: FusedGraph,
        options: EngineOptions,
        peaks: Peaks | None = None,
        *,
        strip_bytes: int = STRIP_BYTES,
    ) -> None:
        self.engine_id = f"openvino/{options.precision}/cpu"
        self._graph = graph
        self._strip_bytes = strip_bytes
        # What is left in float of a quantised graph (the first layer) is bfloat16 where that is
        # quicker; OpenVINO knows.
        hint = "bf16" if options.precision == "int8" else options.precision
        self._compiled = Compiled(
            lambda rows, columns: build_model(graph, rows, columns, peaks),
            hint=hint,
            threads=options.threads,
            disk=self._disk(options, peaks),
        )
        both = 2 * FRAME_MARGIN_PX
        for height, width, _ in options.shapes:
            first = graph.pieces(map_hw(height, width), strip_bytes)[0]
            self._compiled.pin(first.padded_hw((height + both, width + both)))

    def _disk(self, options: EngineOptions, peaks: Peaks | None) -> OnDisk | None:
        if options.cache_dir is None:
            return None
        content = f"{constants_sha256(self._graph)} {peaks!r}"
        return OnDisk(options.cache_dir, hashlib.sha256(content.encode()).hexdigest())

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """See `Runtime.infer`. Raises `DataError` for shapes that do not fit."""
        check_batch(padded, out, self._graph.in_channels)
        peaks = []
        for frame, raw_map in zip(padded, out, strict=True):
            pieces = self._graph.pieces((raw_map.shape[0], raw_map.shape[1]), self._strip_bytes)
            for piece in pieces:
                pixels = np.ascontiguousarray(frame[piece.pixels])
                part = raw_map[piece.cells]
                target = part if part.flags.c_contiguous else np.empty_like(part, order="C")
                request = self._compiled.request((pixels.shape[0], pixels.shape[1]))
                request.set_input_tensor(ov.Tensor(pixels[None], shared_memory=True))
                request.set_output_tensor(ov.Tensor(target[None], shared_memory=True))
                request.infer()
                if target is not part:
                    part[...] = target
            peaks.append(float(raw_map.max()))
        return peaks

    @property
    def compiled_shapes(self) -> int:
        """How many input shapes are compiled and kept."""
        return len(self._compiled)

    def close(self) -> None:
        self._compiled.clear()


def activation_peaks(
    graph: FusedGraph, padded: Iterable[NDArray[np.uint8]], threads: int = 0
) -> dict[str, tuple[LayerPeaks, ...]]:
    """What int8 is quantised by, for `Calibration.activation_peaks`, measured in float32.

    padded: uint8 (H + 64, W + 64, C) frames. Raises `DataError` for none.
    """
    compiled = Compiled(
        lambda rows, columns: build_peaks_model(graph, rows, columns), hint="f32", threads=threads
    )
    highest: list[NDArray[np.float32]] = []
    both = 2 * FRAME_MARGIN_PX
    for frame in padded:
        cells = map_hw(frame.shape[0] - both, frame.shape[1] - both)
        for piece in graph.pieces(cells, STRIP_BYTES):
            pixels = np.ascontiguousarray(frame[piece.pixels])
            found = compiled.request((pixels.shape[0], pixels.shape[1])).infer([pixels[None]])
            each = [np.array(value) for value in found.values()]
            highest = [np.maximum(*pair) for pair in zip(highest or each, each, strict=True)]
    if not highest:
        raise DataError("no frames found, expected some good ones to measure int8's ranges on")
    peaks = {}
    for branch in graph.branches:
        count = len(branch.layers) - 1
        sides, highest = (highest[:count], highest[count : 2 * count]), highest[2 * count :]
        peaks[f"scale{branch.scale}"] = tuple(
            (_numbers(teacher, number == 0), _numbers(student, number == 0))
            for number, (teacher, student) in enumerate(zip(*sides, strict=True))
        )
    return peaks


def _numbers(peaks: NDArray[np.float32], of_each: bool) -> tuple[float, ...]:
    """Only the first layer's are needed of each channel."""
    return tuple(float(f"{peak:.6g}") for peak in (peaks if of_each else [peaks.max()]))


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`. Raises `BundleError` for int8 of a bundle that was not measured."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the openvino runtime: name a bundle")
    peaks = None
    if options.precision == "int8":
        peaks = bundle.calibration.activation_peaks
        if not peaks:
            raise BundleError(
                f"{bundle.path.name}: no ranges for int8 found: run `linewatch calibrate "
                f"{bundle.path} --runtime openvino/int8 --good FOLDER`"
            )
    return OpenVinoRuntime(bundle.graph(), options, peaks)
