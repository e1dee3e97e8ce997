"""Patch description networks (Batzner et al., EfficientAD, WACV 2024, tables 6 and 7).

Every output cell sees 33x33 input pixels at stride 4, and all convolutions are unpadded: a frame
with 16 pixels of margin on each side gives ceil(H / 4) x ceil(W / 4) cells, cell (i, j) centred on
pixel (4i, 4j). `VARIANTS` is the one place where the shapes stand; the fused graphs of the runtimes
are built from it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

RECEPTIVE_FIELD_PX = 33
STRIDE = 4
MARGIN_PX = 16
FEATURES = 384


@dataclass(frozen=True, slots=True)
class Conv:
    """One unpadded, stride-1 convolution; `pool` halves the resolution after its ReLU."""

    out_channels: int
    kernel: int
    pool: bool = False


VARIANTS: dict[str, tuple[Conv, ...]] = {
    # About a quarter of pdn_small's widths: a sixteenth of its arithmetic, for stations without GPU.
    "pdn_tiny": (Conv(32, 4, True), Conv(64, 4, True), Conv(64, 3), Conv(96, 4)),
    "pdn_small": (Conv(128, 4, True), Conv(256, 4, True), Conv(256, 3), Conv(FEATURES, 4)),
    "pdn_medium": (
        Conv(256, 4, True),
        Conv(512, 4, True),
        Conv(512, 1),
        Conv(512, 3),
        Conv(FEATURES, 4),
        Conv(FEATURES, 1),
    ),
}
"""Layers in order. A ReLU follows every convolution but the last."""


def feature_channels(variant: str) -> int:
    """Output channels of a variant's teacher."""
    return VARIANTS[variant][-1].out_channels


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
