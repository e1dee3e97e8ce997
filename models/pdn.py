"""Patch description networks (Batzner et al., EfficientAD, WACV 2024, tables 6 and 7).

Every output cell sees 33x33 input pixels at stride 4, and all convolutions are unpadded: a frame
with 16 pixels of margin on each side gives ceil(H / 4) x ceil(W / 4) cells, cell (i, j) centred on
pixel (4i, 4j). The shapes stand in `models.variants`, which needs no torch.
"""

from __future__ import annotations

import torch
from torch import nn

from models.variants import (
    FEATURES,
    MARGIN_PX,
    RECEPTIVE_FIELD_PX,
    STRIDE,
    VARIANTS,
    Conv,
    feature_channels,
)

__all__ = [
    "FEATURES",
    "MARGIN_PX",
    "PDN",
    "RECEPTIVE_FIELD_PX",
    "STRIDE",
    "VARIANTS",
    "Conv",
    "feature_channels",
]


class PDN(nn.Module):
    """[N, in_channels, H + 32, W + 32] float -> [N, C, ceil(H / 4), ceil(W / 4)] float.

    Layers are named conv1, conv2, ... as in the public weights.
    """

    def __init__(self, variant: str, in_channels: int) -> None:
        super().__init__()
        self.variant = variant
        self.in_channels = in_channels
        self.specs = VARIANTS[variant]
        channels = in_channels
        for number, spec in enumerate(self.specs, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, spec.out_channels, spec.kernel))
            channels = spec.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, spec in enumerate(self.specs, start=1):
            x = self.get_submodule(f"conv{number}")(x)
            if number < len(self.specs):
                x = torch.relu(x)
            if spec.pool:
                x = nn.functional.avg_pool2d(x, 2)
        return x
