"""What is done to a source's frames before they reach the line (`pipeline.prepare.preparation`)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from pipeline.config.types import MAX_SIDE_PX, PathText, Strict

Edge = Annotated[int, Field(ge=0, le=MAX_SIDE_PX)]


class WindowConfig(Strict):
    """Which of the source's values become 0 to 255."""

    black: int = Field(default=0, ge=0, le=65534)
    """This and less becomes 0, in the source's units."""
    white: int | None = Field(default=None, ge=1, le=65535)
    """This and more becomes 255. None: the largest value that the source's bits can hold."""
    gamma: PositiveFloat = 1.0
    """y = x ** gamma between the two, as in GenICam: below 1 brightens what is dark."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.white is not None and self.black >= self.white:
            raise ValueError(
                f"black below white, and they are {self.black} and {self.white}: black becomes 0"
            )
        return self


class PreparationConfig(Strict):
    """In the order in which it is done: region, flat field, window, lens, rotation."""

    roi_xyxy: tuple[Edge, Edge, Edge, Edge] | None = None
    """The part of the source's frame that is inspected: half open, in its pixels. None: all."""
    flatfield: PathText | None = None
    """What `linewatch flatfield` made."""
    window: WindowConfig = WindowConfig()
    lens: PathText | None = None
    """What `linewatch calibrate-lens` made."""
    rotate: Literal[0, 90, 180, 270] = 0
    """Degrees, clockwise."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.roi_xyxy is not None:
            x0, y0, x1, y1 = self.roi_xyxy
            if x0 >= x1 or y0 >= y1:
                raise ValueError(
                    f"roi_xyxy as [x0, y0, x1, y1] with x0 < x1 and y0 < y1, and it is "
                    f"{list(self.roi_xyxy)}"
                )
        return self
