"""Says when a camera's picture is no longer the one that was calibrated: see `measure`.

1. Each frame's figures become deviations: 1 is at calibration's limit. They are averaged over some
   frames, each deviation counted as `MOST` at most, so that one odd frame changes little.
2. An average beyond `warn_at` is a warning, beyond `invalid_at` makes frames invalid; it ends when
   the average comes back under `RELEASE` of that.
3. The scores of passing frames are averaged likewise, and over more frames: their limits are the
   scores that one in ten good images was beyond, on either side.
4. A picture that is all but gone (lamp out, cap on the lens, far out of focus) is invalid at once.

Frames are to be given in the order in which they were taken. A defect changes little of a picture,
and for a single frame: it is no matter of the optics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pipeline.config.optics import OpticsConfig
from pipeline.optics.measure import FIGURES, PLACES_WH, Floats, OpticsFigures, OpticsLimits

MOST = 8.0
RELEASE = 0.8
SCORE_FRAMES = 5
"""So many times as many frames count in the average of scores."""
GONE = (0.33, 0.25, 0.35)
"""Exposure, spread, and detail or sharpness under these shares of the least good image's: the
picture is gone."""
NO_SHARPNESS = 0.25
"""Of a slope, where pixels four apart differ by four times as much as neighbours."""
SHIFT_SHARE = 0.3
"""A picture that lies elsewhere puts some of its places further off than it is itself."""
_SHIFTS = FIGURES.index("shift x"), FIGURES.index("shift y")
LEAST_LEVELS = 8.0
"""Grey levels that an exposure must be short of to be called gone."""


class Level(IntEnum):
    OK = 0
    WARNING = 1
    INVALID = 2


@dataclass(frozen=True, slots=True)
class Sight:
    """What the guard says of the optics now; `sentence` is empty with `OK`."""

    level: Level
    sentence: str = ""


FINE = Sight(Level.OK)


def open_guard(
    found: Mapping[str, Any],
    camera: str,
    frame_hw: tuple[int, int],
    config: OpticsConfig,
    engine: str = "",
) -> tuple[OpticsGuard | None, str]:
    """The guard of a camera, or why there is none.

    found: the calibration's limits by camera, "" for all that have none of their own.

    Raises `ConfigError` for damaged limits.
    """
    if config.watch == "off":
        return None, "optics are not watched: the recipe says so"
    plain = found.get(camera, found.get(""))
    if plain is None:
        return None, (
            "optics are not watched: the bundle has no limits for them, calibrate it again with "
            "ten good images of this camera or more"
        )
    limits = OpticsLimits.of_plain(plain)
    if not limits.fits(frame_hw):
        return None, (
            f"optics are not watched: the bundle's limits are for frames of {limits.size}, not of "
            f"{frame_hw[1]}x{frame_hw[0]}: calibrate with this camera's own frames"
        )
    return OpticsGuard(limits, config, engine), ""


class OpticsGuard:
    """One camera's."""

    def __init__(self, limits: OpticsLimits, config: OpticsConfig, engine: str = "") -> None:
        """engine: `runtime/precision`, whose scores are watched if calibration knows them."""
        self._limits = limits
        self._config = config
        self._scores = limits.scores.get(engine)
        self._share = 1.0 / config.average_frames
        self._average = np.zeros_like(limits.middle)
        self._values = limits.middle.copy()
        self._score_average = 0.0
        self._level = Level.OK

    def see(self, figures: OpticsFigures, score: float | None = None) -> Sight:
        """Take in a frame. score: `score_of` one that passes, None for others.

        Raises `DataError` for a frame of another size.
        """
        if self._config.watch == "off":
            return FINE
        values = self._limits.values(figures)
        gone = self._gone(figures)
        self._average += self._share * (
            np.clip(self._limits.deviations(values), -MOST, MOST) - self._average
        )
        self._values += self._share * (values - self._values)
        if score is not None and self._scores is not None and not gone:
            low, middle, high = self._scores
            side = high - middle if score > middle else middle - low
            off = float(np.clip((score - middle) / max(side, 1e-6), -MOST, MOST))
            self._score_average += self._share / SCORE_FRAMES * (off - self._score_average)
        if gone:
            return self._capped(Level.INVALID, gone)
        at, worst = self._worst()
        self._level = self._level_of(worst)
        if self._level is Level.OK:
            return FINE
        return self._capped(self._level, self._sentence(at, values))

    def memory(self) -> dict[str, Any]:
        """What goes on in another process, with `recall`: plain numbers."""
        return {
            "average": self._average.tolist(),
            "values": self._values.tolist(),
            "scores": self._score_average,
            "level": int(self._level),
        }

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Go on where the guard was that gave this `memory`, with the same limits."""
        self._average[:] = memory["average"]
        self._values[:] = memory["values"]
        self._score_average = float(memory["scores"])
        self._level = Level(memory["level"])

    def _capped(self, level: Level, sentence: str) -> Sight:
        most = Level.WARNING if self._config.watch == "warn" else Level.INVALID
        return Sight(min(level, most), sentence)

    def _worst(self) -> tuple[int, float]:
        """Which average is to be named, -1 for the scores; and how far off the furthest one is.

        A figure of the whole picture goes before its places, which follow from it.
        """
        far = np.abs(self._average)
        whole = int(far[: len(FIGURES)].argmax())
        place = len(FIGURES) + int(far[len(FIGURES) :].argmax())
        found = [(whole, float(far[whole])), (place, float(far[place]))]
        found.append((-1, abs(self._score_average)))
        top = max(self._level_of(amount) for _, amount in found)
        at, amount = next(each for each in found if self._level_of(each[1]) == top)
        shift = max(_SHIFTS, key=lambda axis: far[axis])
        moved = at == place and far[shift] >= SHIFT_SHARE * amount
        return (shift if moved else at), amount

    def _level_of(self, amount: float) -> Level:
        for level, limit in (
            (Level.INVALID, self._config.invalid_at),
            (Level.WARNING, self._config.warn_at),
        ):
            if amount >= limit * (RELEASE if self._level >= level else 1.0):
                return level
        return Level.OK

    def _gone(self, figures: OpticsFigures) -> str:
        exposure, spread, detail, sharpness = self._limits.least
        if figures.exposure < min(GONE[0] * exposure, exposure - LEAST_LEVELS):
            return (
                f"the picture is dark: a mean of {figures.exposure:.3g} grey levels, and no good "
                f"image has less than {exposure:.3g}: look at lamp, lens cap and exposure time"
            )
        if figures.spread < GONE[1] * spread:
            return (
                f"the picture is empty: {figures.spread:.3g} grey levels of contrast, and no good "
                f"image has less than {spread:.3g}: look at lamp, lens and exposure time"
            )
        # Where a good image has none of it, there is nothing to lose.
        left = figures.detail / detail if detail > 0 else 1.0
        if sharpness > NO_SHARPNESS:
            left = min(left, (figures.sharpness - NO_SHARPNESS) / (sharpness - NO_SHARPNESS))
        if left < GONE[2] and figures.sharpness == 0:
            return (
                f"the picture is empty: no pixel differs from its neighbours around "
                f"{figures.exposure:.3g} grey levels, and every good image has some that do: look "
                "at lamp, lens and exposure time, or calibrate with empty images among the good"
            )
        if left < GONE[2]:
            return (
                f"the picture is blurred: {max(left, 0):.0%} of the detail of the softest good "
                "image: focus the lens, and look whether it is clean"
            )
        return ""

    def _sentence(self, at: int, values: Floats) -> str:
        if at < 0:
            more = self._score_average > 0
            return (
                f"scores of good parts are {'higher' if more else 'lower'} than those of "
                f"calibration's {self._limits.images} good images: parts, light or lens have "
                "changed; look at some frames, and calibrate again if they are as they should be"
            )
        value, low, high = (
            float(some[at]) for some in (self._values, self._limits.low, self._limits.high)
        )
        if at >= len(FIGURES):
            return self._of_place(at - len(FIGURES), value)
        return _of_figure(FIGURES[at], value, low, high)

    def _of_place(self, place: int, value: float) -> str:
        reference = self._limits.reference
        height, width = reference.thumb.shape
        columns, rows = min(PLACES_WH[0], width), min(PLACES_WH[1], height)
        y, x = divmod(place, columns)
        middle = float(self._limits.middle[len(FIGURES) + place])
        change = value / max(middle, 1e-3) - 1
        found = f"{abs(change):.0%} {'brighter' if change > 0 else 'darker'}"
        around = ((x + 0.5) * width / columns, (y + 0.5) * height / rows)
        where = ", ".join(f"{round(each * reference.px)}" for each in around)
        return (
            f"around pixel ({where}) the picture stays {found} than in good images: look for dirt "
            "on lens or window, and for a lamp that has failed in part"
        )


def _of_figure(name: str, value: float, low: float, high: float) -> str:
    less = value - low < high - value
    usual = f"good images have {low:.3g} to {high:.3g}"
    if name == "exposure":
        do = "a dying or dirty lamp, or the exposure time" if less else "stray light, or exposure"
        return f"exposure {value:.3g} grey levels, {usual}: {do}"
    if name == "clipped":
        what = "a dying lamp" if less else "too much light, or a reflex"
        usual = f"good images have {max(low, 0):.1%} to {min(high, 1):.1%}"
        return f"{value:.1%} of the pixels are white, {usual}: {what}"
    if name == "contrast":
        do = "mist or dirt on the lens, or stray light" if less else "a lamp that is out in part"
        return f"contrast {value:.3g} of the mean, {usual}: {do}"
    if name in ("sharpness", "detail"):
        do = "out of focus, a dirty lens, or motion" if less else "more noise: too little light"
        return f"{name} {value:.3g}, {usual}: {do}"
    if name == "match":
        return (
            f"the picture matches the reference by {value:.2f}, good images by {low:.2f} and more: "
            "the camera is turned or tilted, or this is another scene"
        )
    side = {"shift x": ("left", "right"), "shift y": ("up", "down")}[name][value > 0]
    return (
        f"the picture lies {abs(value):.1f} px to the {side} of the reference, good images from "
        f"{low:.1f} to {high:.1f}: camera, lens or fixture were moved"
    )
