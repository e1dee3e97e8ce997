"""Pictures of tracks on a board, and a wide view that has learnt nothing of them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.wide import WideView
from models.wide_net import WideNet


def stripes(seed: int, side: int = 160) -> NDArray[np.uint8]:
    """Dark tracks on a bright board, from left to right."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 220, np.uint8)
    for row in range(int(rng.integers(8, 16)), side, 24):
        image[row : row + 8] = 40
    return image


def random_view(channels: int, seed: int = 0) -> WideView:
    torch.manual_seed(seed)
    net = WideNet(channels, normed=True)
    net.train()
    with torch.no_grad():  # statistics that are not those of the beginning
        for _ in range(2):
            net(torch.randint(0, 255, (2, 64, 64, channels), dtype=torch.uint8))
    return net.eval().view()
