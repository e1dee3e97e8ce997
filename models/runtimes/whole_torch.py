"""The global branch by torch, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from models.whole import Floats, Layer, WholeGraph


def open_whole(graph: WholeGraph, threads: int) -> Any:
    """See `models.runtimes.with_whole.InferWhole`. `threads` are torch's own."""

    @torch.inference_mode()
    def infer(planes: Floats, with_margin: Floats) -> Floats:
        rebuilt = _through(torch.from_numpy(planes), graph.autoencoder)
        guess = _through(torch.from_numpy(with_margin), graph.student)
        squared = (rebuilt - guess).square().mean(dim=(0, 1))
        return np.asarray(squared.numpy(), np.float32)

    return infer


def _through(x: torch.Tensor, layers: tuple[Layer, ...]) -> torch.Tensor:
    for layer in layers:
        step = layer.step
        if layer.weight is None or layer.bias is None:
            x = functional.interpolate(x, size=(step.resize, step.resize), mode="bilinear")
            continue
        weight, bias = torch.from_numpy(layer.weight), torch.from_numpy(layer.bias)
        x = functional.conv2d(x, weight, bias, step.stride, step.padding)
        if step.relu:
            x = x.relu_()
        if layer.pool:
            x = functional.avg_pool2d(x, 2)
    return x
