"""The global branch by OpenVINO on the CPU, float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from models.runtimes.openvino_models import Compiled, OnDisk, arrays_sha256
from models.variants import MARGIN_PX
from models.whole import SIDE_PX, Floats, Layer, WholeGraph


def open_whole(
    graph: WholeGraph, threads: int, folder: Path | None = None
) -> Callable[[Floats, Floats], Floats]:
    """See `models.runtimes.with_whole.InferWhole`. folder: see `open_wide`."""
    disk = OnDisk(folder, arrays_sha256(_arrays(graph))) if folder else None
    compiled = Compiled(partial(_model, graph), hint="f32", threads=threads, disk=disk)
    compiled.pin((SIDE_PX, SIDE_PX + 2 * MARGIN_PX))

    def infer(planes: Floats, with_margin: Floats) -> Floats:
        request = compiled.request((planes.shape[2], with_margin.shape[2]))
        request.infer([planes, with_margin])
        return np.array(request.get_output_tensor(0).data, np.float32)

    return infer


def _model(graph: WholeGraph, side: int, with_margin: int) -> ov.Model:
    small = op.parameter([1, graph.in_channels, side, side], np.float32)
    padded = op.parameter([1, graph.in_channels, with_margin, with_margin], np.float32)
    difference = op.subtract(_through(small, graph.autoencoder), _through(padded, graph.student))
    squared = op.multiply(difference, difference)
    whole_map = op.reduce_mean(squared, np.array([0, 1]), False)
    return ov.Model([whole_map], [small, padded], "global branch")


def _arrays(graph: WholeGraph) -> dict[str, Floats]:
    return {
        f"{half} {number} {layer.step} {layer.pool} {kind}": values
        for half, layers in (("autoencoder", graph.autoencoder), ("student", graph.student))
        for number, layer in enumerate(layers)
        for kind, values in (("weight", layer.weight), ("bias", layer.bias))
        if values is not None
    }


def _through(x: Any, layers: tuple[Layer, ...]) -> Any:
    for layer in layers:
        step = layer.step
        if layer.weight is None or layer.bias is None:
            sides = np.array([step.resize, step.resize])
            x = op.interpolate(x, sides, "linear_onnx", "sizes", axes=np.array([2, 3]))
            continue
        pads = [step.padding] * 2
        x = op.convolution(x, op.constant(layer.weight), [step.stride] * 2, pads, pads, [1, 1])
        x = op.add(x, op.constant(layer.bias.reshape(1, -1, 1, 1)))
        if step.relu:
            x = op.relu(x)
        if layer.pool:
            x = op.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], True)
    return x
