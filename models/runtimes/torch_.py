"""PyTorch, float32, channels_last: the fused graph as plain torch calls.

On the CPU it is what OpenVINO is checked against; on a CUDA device it is the first GPU runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle
from models.efficientad import at_scale, enlarged
from models.errors import BundleError
from models.fused import FusedGraph
from models.runtimes.base import EngineOptions, Runtime, check_batch

STRIP_BYTES = 256 << 20
"""Bound of the largest intermediate tensor: two or three of them live at once."""


class TorchRuntime:
    """See `models.runtimes.base.Runtime`. `threads` sets torch's own, for the whole process."""

    def __init__(self, graph: FusedGraph, options: EngineOptions, device: str = "cpu") -> None:
        self.engine_id = f"torch/{options.precision}/{device}"
        self._graph = graph
        self._device = torch.device(device)
        if options.threads > 0:
            torch.set_num_threads(options.threads)
        self._offset = torch.from_numpy(graph.offset).to(self._device)
        self._tensors = [
            [
                (
                    torch.from_numpy(layer.weight)
                    .to(self._device)
                    .contiguous(memory_format=torch.channels_last),
                    torch.from_numpy(layer.bias).to(self._device),
                )
                for layer in branch.layers
            ]
            for branch in graph.branches
        ]

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """See `Runtime.infer`. Raises `DataError` for shapes that do not fit."""
        check_batch(padded, out, self._graph.in_channels)
        peaks = []
        for frame, raw_map in zip(padded, out, strict=True):
            for strip in self._graph.strips(raw_map.shape[0], frame.shape[1], STRIP_BYTES):
                part = raw_map[strip.first : strip.last]
                part[...] = self._map(frame[strip.input_rows], part.shape)
            peaks.append(float(raw_map.max()))
        return peaks

    def close(self) -> None:
        self._tensors.clear()

    @torch.inference_mode()
    def _map(self, rows: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.float32]:
        # A copy, since torch.from_numpy warns about read-only frames and refuses some strides.
        pixels = torch.from_numpy(np.array(rows)).to(self._device)
        # Channels last in memory, as the frame is.
        planes = (pixels.float() - self._offset).permute(2, 0, 1)[None]
        raw_map = torch.zeros(size, device=self._device)
        for branch, tensors in zip(self._graph.branches, self._tensors, strict=True):
            x = at_scale(planes, branch.scale)
            for layer, (weight, bias) in zip(branch.layers, tensors, strict=True):
                x = nn.functional.conv2d(x, weight, bias, groups=layer.groups)
                if layer.relu:
                    x = x.relu_()
                if layer.pool:
                    x = nn.functional.avg_pool2d(x, 2)
            found = enlarged(x.square_().sum(dim=1), branch.scale)
            raw_map += found[0, : size[0], : size[1]]
        on_cpu: NDArray[np.float32] = raw_map.cpu().numpy()
        return on_cpu


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the torch runtime: name a bundle")
    return TorchRuntime(bundle.graph(), options)
