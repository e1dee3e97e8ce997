"""How closely a camera's lens, lamp and place are watched."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.types import Strict


class OpticsConfig(Strict):
    """A deviation of 1 is at calibration's limit: see `pipeline.optics.measure`."""

    watch: Literal["off", "warn", "invalid"] = "invalid"
    warn_at: PositiveFloat = 1.0
    invalid_at: float = Field(default=2.0, gt=0, le=6)
    average_frames: PositiveInt = Field(default=20, le=10000)
    """Frames over which a drift is averaged. A sudden loss of the picture needs none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.invalid_at < self.warn_at:
            raise ValueError(
                f"invalid_at of at least warn_at, {self.warn_at:g}, and it is {self.invalid_at:g}"
            )
        return self
