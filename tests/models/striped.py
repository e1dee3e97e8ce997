"""Pictures of tracks on a board."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def stripes(seed: int, side: int = 160) -> NDArray[np.uint8]:
    """Dark tracks on a bright board, from left to right."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 220, np.uint8)
    for row in range(int(rng.integers(8, 16)), side, 24):
        image[row : row + 8] = 40
    return image
