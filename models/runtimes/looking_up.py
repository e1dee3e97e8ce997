"""An engine whose suspicions are looked up among the training images (`models.precedents`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.precedents import POWER, Precedents
from models.runtimes.base import Runtime


class LookingUp:
    """Any runtime, with its maps weighed by precedents where they are over `level` (raw), with
    `power`.

    It answers with the engine's own id: a bundle either brings precedents or not, and its
    thresholds were chosen accordingly. The highest places of what the engine is given are looked
    up, so a recipe's zones, which decide that, should be the same in calibration and on the line.
    """

    name = "precedents"

    def __init__(
        self, engine: Runtime, precedents: Precedents, level: float, power: float = POWER
    ) -> None:
        self.inner, self._precedents = engine, precedents
        self._level, self._power = level, power

    @property
    def engine_id(self) -> str:
        return self.inner.engine_id

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self.inner.infer(padded, out)
        for frame, raw_map in zip(padded, out, strict=True):
            self._precedents.weigh(frame, raw_map, self._level, self._power)
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        self.inner.close()
