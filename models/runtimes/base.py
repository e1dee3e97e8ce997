"""What an engine is: one method from a padded frame to its raw anomaly map.

A runtime is one file beside this one and one row in `models.runtimes.RUNTIMES`. Nothing here or in
`__init__` imports torch or openvino: that happens when a runtime is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """A compiled detector. Not thread-safe: one caller at a time."""

    @property
    def engine_id(self) -> str:
        """`runtime/precision/device`, such as `openvino/bf16/cpu`: stands in every verdict."""

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """Write the raw map of each frame of the batch and return each map's maximum.

        padded: uint8 (H + 32, W + 32, C) frames, C 1 or 3 (RGB), with their 16 pixel margin.
        out: float32 (ceil(H / 4), ceil(W / 4)) each, written in place; raw squared differences,
        the mean over channels, not normalised. Sizes may differ within the batch.
        """

    def close(self) -> None: ...
