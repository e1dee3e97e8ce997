"""The global branch by torch, float32, on a CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from models.whole import Floats, Layer, WholeGraph

Step = Callable[[torch.Tensor], torch.Tensor]


def open_whole_torch(graph: WholeGraph, device: str) -> Callable[[Floats, Floats], Floats]:
    """See `models.runtimes.with_whole.InferWhole`."""
    autoencoder = [_step(layer, device) for layer in graph.autoencoder]
    student = [_step(layer, device) for layer in graph.student]
    # torch's default rounds float32 convolutions on a GPU to 10 bits (TF32).
    torch.backends.cudnn.allow_tf32 = False

    @torch.inference_mode()
    def infer(planes: Floats, with_margin: Floats) -> Floats:
        rebuilt = _through(torch.from_numpy(planes).to(device), autoencoder)
        guess = _through(torch.from_numpy(with_margin).to(device), student)
        squared = (rebuilt - guess).square().mean(dim=(0, 1))
        return np.asarray(squared.cpu().numpy(), np.float32)

    return infer


def _step(layer: Layer, device: str) -> Step:
    step = layer.step
    if layer.weight is None or layer.bias is None:
        size = (step.resize, step.resize)
        return lambda x: functional.interpolate(x, size=size, mode="bilinear")
    weight = torch.from_numpy(layer.weight).to(device)
    bias = torch.from_numpy(layer.bias).to(device)

    def run(x: torch.Tensor) -> torch.Tensor:
        x = functional.conv2d(x, weight, bias, step.stride, step.padding)
        if step.relu:
            x = x.relu_()
        return functional.avg_pool2d(x, 2) if layer.pool else x

    return run


def _through(x: torch.Tensor, steps: Sequence[Step]) -> torch.Tensor:
    for step in steps:
        x = step(x)
    return x
