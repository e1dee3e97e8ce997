"""Where in a frame the part lies, so that zones can be drawn on the part."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.config.types import Coordinate, PathText, Strict


class FixtureBase(Strict):
    """x, y in frame pixels, to the right and down; angles in degrees, clockwise as one sees it."""

    kind: str
    taught_x: float
    taught_y: float
    """The part's reference point in the frame that zones are drawn on."""
    taught_angle: float = 0.0
    max_turn_degrees: float = Field(default=15.0, ge=0, le=180)
    """A part is found when it is turned by so much at most."""
    max_parts: PositiveInt = Field(default=1, le=32)
    """Parts in one frame, at most; further ones are not looked at."""
    cut_off: Literal["skip", "inspect", "invalid"] = "invalid"
    """A part that reaches to the frame's edge. skip: another frame shows it whole."""
    count_zone: tuple[Coordinate, Coordinate, Coordinate, Coordinate] | None = None
    """Half-open box x0, y0, x1, y1: a part counts where its reference point lies in it; None:
    everywhere, and each frame is expected to show a part."""
    travel_px: tuple[float, float] = (0.0, 0.0)
    """How far parts move from frame to frame, x and y: a part is counted in one frame alone."""
    travel_tolerance_px: NonNegativeFloat = 0.0
    """How much that may differ; less than half of what lies between two parts."""

    @model_validator(mode="after")
    def _check_counting(self) -> Self:
        zone, (dx, dy) = self.count_zone, self.travel_px
        if zone is not None and not (zone[0] < zone[2] and zone[1] < zone[3]):
            raise ValueError("a count_zone [x0, y0, x1, y1] with x0 < x1 and y0 < y1")
        if (dx, dy) == (0, 0):
            if self.travel_tolerance_px:
                raise ValueError("travel_tolerance_px with a travel_px that is not [0, 0]")
            return self
        if zone is None:
            raise ValueError(
                "a count_zone where parts travel (travel_px): else none is counted once"
            )
        far = (dx * dx + dy * dy) ** 0.5
        if far <= self.travel_tolerance_px:
            raise ValueError("a travel_tolerance_px smaller than travel_px")
        # How long the zone is in the direction of travel.
        sides = ((zone[2] - zone[0], abs(dx)), (zone[3] - zone[1], abs(dy)))
        room = min(side / (d / far) for side, d in sides if d)
        if room < far + self.travel_tolerance_px:
            raise ValueError(
                f"a count_zone at least as long as parts travel, {far:g} px and a tolerance of "
                f"{self.travel_tolerance_px:g}, and it is {room:.4g}: some would jump over it"
            )
        return self


class ThresholdFixture(FixtureBase):
    """A part on a plain background."""

    kind: Literal["threshold"]
    part: Literal["light", "dark"] = "light"
    level: int | None = Field(default=None, ge=0, le=255)
    """Grey level between background and part; None: found in each frame (Otsu)."""
    min_contrast: PositiveFloat = 20.0
    """Grey levels between the means of part and background: with less there is no part."""
    part_min_area_px: PositiveInt = 1000
    part_max_area_px: PositiveInt | None = None
    angle_by: Literal["axis", "rectangle", "none"] = "axis"
    """Principal axis, smallest rectangle around it, or always as taught."""


class TemplateFixture(FixtureBase):
    """A part of the picture that looks the same on every part."""

    kind: Literal["template"]
    template: PathText
    search_px: PositiveInt | None = None
    """It lies so far at most, in x and y, from where it was taught; None: anywhere, which takes
    longer."""
    min_score: float = Field(default=0.6, gt=0, le=1)
    """Correlation that it must have with the template: 1 is equal."""


FixtureConfig = Annotated[ThresholdFixture | TemplateFixture, Field(discriminator="kind")]
