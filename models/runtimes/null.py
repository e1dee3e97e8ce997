"""A runtime that does nothing, for measuring the line around it: canned maps with a few boxes.

It needs no bundle; `CALIBRATION` stands in for a bundle's. Every frame of one size gets the same
map, with three defects over the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, Calibration, EngineThresholds
from models.runtimes.base import EngineOptions, Runtime

ENGINE = "null/none"
CALIBRATION = Calibration(
    q_a=0.0,
    q_b=0.1,
    engines={
        ENGINE: EngineThresholds(
            image_threshold=0.5,
            pixel_threshold=0.4,
            images=0,
            above=0,
            false_reject_bound=1.0,
            confidence=0.95,
            chosen="fixed: for measuring the line, not parts",
        )
    },
)
"""With these quantiles a raw value is its own score."""
BOXES = ((0.1, 0.2, 0.06, 0.04), (0.5, 0.5, 0.03, 0.08), (0.8, 0.7, 0.02, 0.02))
"""x, y, width and height of the canned defects, as shares of the map."""


class NullRuntime:
    """See `models.runtimes.base.Runtime`."""

    engine_id = f"{ENGINE}/none"

    def __init__(self) -> None:
        self._maps: dict[tuple[int, ...], tuple[NDArray[np.float32], float]] = {}

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """Copy the canned map into each `out`, whatever the frame shows."""
        peaks = []
        for raw_map in out:
            canned, peak = self._maps.get(raw_map.shape) or self._draw(raw_map.shape)
            np.copyto(raw_map, canned)
            peaks.append(peak)
        return peaks

    def close(self) -> None:
        self._maps.clear()

    def _draw(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], float]:
        rows, columns = shape
        # A faint ramp, so that a torn map shows.
        canned = np.linspace(0.0, 0.2, rows * columns, dtype=np.float32).reshape(shape)
        for x, y, width, height in BOXES:
            top, left = int(y * rows), int(x * columns)
            bottom, right = top + 1 + int(height * rows), left + 1 + int(width * columns)
            canned[top:bottom, left:right] = 0.9
        self._maps[shape] = canned, float(canned.max())
        return self._maps[shape]


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`."""
    return NullRuntime()
