"""The shapes of the patch description networks, without torch (EfficientAD, tables 6 and 7).

`VARIANTS` is the one place where they stand: `models.pdn` builds the modules from it, and
`models.fused` the graphs of the compiled engines.
"""

from __future__ import annotations

from dataclasses import dataclass

RECEPTIVE_FIELD_PX = 33
STRIDE = 4
MARGIN_PX = 16
"""What a network sees beyond a frame's or tile's side, at its own scale."""
SCALES = (1, 2)
"""Reductions that a detector may look at: 1 is the frame itself, 2 its 2x2 averages."""
ALLOWED_SCALES = ((1,), (2,), SCALES)
FRAME_MARGIN_PX = MARGIN_PX * SCALES[-1]
"""Around a frame for an engine: enough for the coarsest scale."""
GRID_PX = STRIDE * SCALES[-1]
"""A piece of a frame that begins at multiples of it has exactly a piece of the frame's map."""
FEATURES = 384


@dataclass(frozen=True, slots=True)
class Conv:
    """One unpadded, stride-1 convolution; `pool` halves the resolution after its ReLU."""

    out_channels: int
    kernel: int
    pool: bool = False


VARIANTS: dict[str, tuple[Conv, ...]] = {
    # About a quarter of the widths, a sixteenth of the arithmetic: for stations without a GPU.
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


def map_hw(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the map of a frame: cell (i, j) is centred on pixel (4i, 4j)."""
    return -(-height // STRIDE), -(-width // STRIDE)
