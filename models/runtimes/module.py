"""The fused graph as a torch module: torch runs it, CUDA captures it, TensorRT compiles it.

Teacher and student run side by side up to the last layer, which takes both and gives their
difference. On a GPU that is faster than grouped convolutions, and nothing is added up in 16 bits.
"""

from __future__ import annotations

import torch
from torch import nn

from models.efficientad import at_scale, enlarged
from models.fused import FusedBranch, FusedConv, FusedGraph
from models.variants import FRAME_MARGIN_PX, map_hw

DTYPES = {"f32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By precision. On a GPU fp16 is as fast as bf16 and keeps three more bits."""


class FusedModule(nn.Module):
    """uint8 [N, rows, columns, C] of padded frames -> raw maps float32 [N, h, w].

    It holds no parameters that learn: weights are those of the graph, rounded to `dtype`.
    """

    offset: torch.Tensor

    def __init__(self, graph: FusedGraph, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("offset", torch.from_numpy(graph.offset).to(dtype).view(1, -1, 1, 1))
        self.branches = nn.ModuleList(_Branch(branch, dtype) for branch in graph.branches)

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        # 0..255 and whole offsets are exact in 16 bits.
        planes = padded.to(self.dtype).permute(0, 3, 1, 2) - self.offset
        both = 2 * FRAME_MARGIN_PX
        rows, columns = map_hw(padded.shape[1] - both, padded.shape[2] - both)
        raw_map: torch.Tensor | None = None
        for branch in self.branches:
            found = branch(planes)[:, :rows, :columns]
            raw_map = found if raw_map is None else raw_map + found
        assert raw_map is not None, "a graph has at least one branch"
        return raw_map


class _Branch(nn.Module):
    """Planes [N, C, H + 64, W + 64] -> this scale's map, float32, at the frame's own stride."""

    def __init__(self, branch: FusedBranch, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = branch.scale
        self.sides = nn.ModuleList(
            nn.ModuleList(_Layer(layer, side, dtype) for layer in branch.layers[:-1])
            for side in (0, 1)
        )
        self.last = _Layer(branch.layers[-1], None, dtype)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        seen = at_scale(planes, self.scale)
        sides = []
        for layers in self.sides:
            x = seen
            assert isinstance(layers, nn.ModuleList)
            for layer in layers:
                x = layer(x)
            sides.append(x)
        difference = self.last(torch.cat(sides, dim=1)).float()
        return enlarged(difference.square().sum(dim=1), self.scale)


class _Layer(nn.Module):
    """A convolution with what follows it; `side`: teacher's or student's half, None for both."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, layer: FusedConv, side: int | None, dtype: torch.dtype) -> None:
        super().__init__()
        half = len(layer.bias) // 2
        part = slice(None) if side is None else slice(side * half, (side + 1) * half)
        weight = torch.from_numpy(layer.weight[part]).to(dtype)
        # A copy of channels last: `contiguous` hands on a 1x1 kernel as it lies.
        self.register_buffer("weight", weight.clone(memory_format=torch.channels_last))
        self.register_buffer("bias", torch.from_numpy(layer.bias[part]).to(dtype))
        self.relu, self.pool = layer.relu, layer.pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(x, self.weight, self.bias)
        if self.relu:
            x = torch.relu(x)
        return nn.functional.avg_pool2d(x, 2) if self.pool else x
