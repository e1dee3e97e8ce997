"""The wide view by OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from models.runtimes.openvino_models import Compiled, OnDisk, arrays_sha256
from models.wide import Floats, Image, Infer, WideView, block_sizes, convolutions, forward


def open_wide(
    view: WideView,
    threads: int,
    folder: Path | None = None,
    frames_hw: Sequence[tuple[int, int]] = (),
) -> Infer:
    """See `models.wide.Infer`; compiled for each size of block. In float32.

    folder: where compiled models are kept; None: nowhere. frames_hw: frames whose blocks' sizes are
    compiled now, and kept in memory for good.
    """
    disk = OnDisk(folder, arrays_sha256(view.weights)) if folder else None
    compiled = Compiled(partial(_model, view), hint="f32", threads=threads, disk=disk)
    for height, width in frames_hw:
        for size in sorted(block_sizes((height, width), view.scale)):
            compiled.pin(size)

    def infer(block: Image) -> Floats:
        request = compiled.request(block.shape[:2])
        request.infer([block[None]])
        return np.array(request.get_output_tensor(0).data[0, 0], np.float32)

    return infer


def _model(view: WideView, height: int, width: int) -> ov.Model:
    steps = convolutions(view.in_channels)

    def convolve(name: str, x: Any) -> Any:
        step = steps[name]
        pads = [step.kernel // 2] * 2
        weight = op.constant(view.weights[f"{name}.weight"])
        x = op.convolution(x, weight, [step.stride] * 2, pads, pads, [1, 1])
        x = op.add(x, op.constant(view.weights[f"{name}.bias"].reshape(1, -1, 1, 1)))
        return op.relu(x) if step.relu else x

    def twice(x: Any) -> Any:
        sides = np.array([2 * side for side in list(x.get_output_shape(0))[2:]])
        return op.interpolate(
            x,
            sides,
            "linear_onnx",
            "sizes",
            coordinate_transformation_mode="half_pixel",
            axes=np.array([2, 3]),
        )

    pixels = op.parameter([1, height, width, view.in_channels], np.uint8)
    planes = op.transpose(op.convert(pixels, "f32"), np.array([0, 3, 1, 2]))
    x = op.subtract(op.divide(planes, np.float32(127.5)), np.float32(1))
    return ov.Model([forward(x, convolve, op.add, twice)], [pixels], "wide view")
