"""A rendered inspection line: frames of cast covers on a belt, and every defect known.

`SyntheticLine(...).render(index)` depends on seed and index alone, so any frame can be had at any
time. What varies from frame to frame, defects aside: place (up to 6 px) and angle (up to 2 degrees)
of the part, its grain and brightness, the belt under it, the lamp (slow gain and gradient over the
frames, a little flicker), focus, and the sensor's shot and read noise.

Defects have 6 to 60 px (scratches 16 to 60) and a contrast of 2 to 8 standard deviations of the
clean pixels that they cover, half of them in the lowest quarter of each scale. Small ones need more
contrast to be seen at all (A. Rose, 1948): contrast times the square root of the area is at least
`visibility`. Around 5 nobody could tell a defect from grain, even if he knew the part's place to
the pixel. The frame's number stands in its upper left corner (`stamp.py`); `inspected_zones()`
leaves that corner out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Zone
from pipeline.sources import flaws
from pipeline.sources.housing import PART_HALF, Housing, render_housing
from pipeline.sources.stamp import STAMP_HEIGHT_PX, STAMP_WIDTH_PX, write_stamp
from pipeline.sources.truth import TrueDefect
from pipeline.types import MARGIN_PX

Plane = NDArray[np.float32]
Bank = NDArray[np.int8]
"""A prepared texture, larger than a frame; each frame takes a window of it."""

MAX_SHIFT_PX: Final = 6.0
MAX_TURN_DEGREES: Final = 2.0
MIN_CONTRAST_SIGMA: Final = 2.0
MAX_CONTRAST_SIGMA: Final = 8.0
MIN_VISIBILITY: Final = 30.0
_STAMP_GUARD_PX: Final = MARGIN_PX + 8
"""A cell of the map sees so far around its centre, and at half the frame's size is 8 px wide."""
_PART_GUARD_PX: Final = 4
"""Beyond the part: a chip of its edge shows there."""
_SPARE_PX: Final = 192
"""How far the windows on the prepared noise may wander."""
_TRIES: Final = 60
"""Places that are tried for one defect."""
_DRAWS: Final = 12
"""Defects that are tried for one frame; a large one may find no place on a small part."""
_SHOT_NOISE: Final = 0.028
"""Variance of the noise per grey level; a sensor of some 9,000 electrons full well."""
_READ_NOISE: Final = 1.25
_STEP: Final = 1 / 28
"""Of a bank of mean 0 and deviation 1, which it clips at 4.5 deviations."""
_BELT_STEP: Final = 1 / 500
_BORE_LIGHT: Final = 0.07
"""Darker is the inside of a bore, where a defect would not be one."""
_BELT_TINT: Final = (0.80, 1.03, 0.95)


@dataclass(frozen=True, slots=True)
class _Scene:
    """The clean frame and what is needed to place defects on it."""

    clean: Plane
    """(H, W) or (H, W, 3), with its noise, not rounded."""
    part: NDArray[np.bool_]
    turn: NDArray[np.float64]
    """2x3: upright part -> frame."""


class SyntheticLine:
    """Frames uint8 (height, width, 1), or RGB (height, width, 3) with `color`.

    defect_share: the share of frames with one to three defects.
    visibility: contrast in deviations, times the square root of the core's area in pixels.
    """

    def __init__(
        self,
        width: int = 1024,
        height: int = 768,
        color: bool = False,
        seed: int = 1,
        defect_share: float = 0.2,
        *,
        visibility: float = MIN_VISIBILITY,
    ) -> None:
        self.width, self.height, self.color = width, height, color
        self.seed, self.defect_share, self.visibility = seed, defect_share, visibility
        rng = np.random.default_rng([seed, 0])
        shape = (height + _SPARE_PX, width + _SPARE_PX)
        self._housing: Housing = render_housing(height, width, color)
        self._noise = _bank(rng.standard_normal(shape, np.float32))
        self._grain = _bank(_unit(_blurred(rng, shape, 0.75) + 0.25 * _blurred(rng, shape, 2.0)))
        streaks = cv2.blur(rng.standard_normal(shape, np.float32), (61, 1))
        self._streaks = _bank(_unit(cv2.GaussianBlur(streaks, (1, 3), 0, sigmaY=0.6)))
        self._belt = _belt(shape, rng)
        xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        self._vignette: Plane = np.float32(255 * 1.12) * (1 - np.float32(0.13) * (xs**2 + ys**2))
        self._across, self._down = xs, ys
        self._phases = rng.uniform(0, 2 * np.pi, 6)
        self._edge_yx = np.argwhere(self._housing.edge)

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self.height, self.width, 3 if self.color else 1

    def inspected_zones(self) -> tuple[Zone, ...]:
        """The zones for a recipe: all but the stamped corner and what sees it."""
        if not self._has_stamp:
            return ()
        right, below = STAMP_WIDTH_PX + _STAMP_GUARD_PX, STAMP_HEIGHT_PX + _STAMP_GUARD_PX
        return (Zone(name="stamp", polygon=((0, 0), (right, 0), (right, below), (0, below))),)

    def part_zones(self) -> tuple[Zone, ...]:
        """The zones for a recipe that inspects the part alone, however it is shifted and turned."""
        half = (PART_HALF[0] * self.width, PART_HALF[1] * self.height)
        tilt = np.sin(np.deg2rad(MAX_TURN_DEGREES))
        x, y = (
            round(here + other * tilt + MAX_SHIFT_PX + _PART_GUARD_PX)
            for here, other in zip(half, reversed(half), strict=True)
        )
        middle_x, middle_y = self.width // 2, self.height // 2
        left, right = max(0, middle_x - x), min(self.width - 1, middle_x + x)
        top, bottom = max(0, middle_y - y), min(self.height - 1, middle_y + y)
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        part = Zone(name="part", mode="include", polygon=corners)
        return (part, *self.inspected_zones())

    @property
    def _has_stamp(self) -> bool:
        return self.width >= STAMP_WIDTH_PX and self.height >= STAMP_HEIGHT_PX

    def render(
        self, index: int, good: bool = False
    ) -> tuple[NDArray[np.uint8], tuple[TrueDefect, ...]]:
        """Frame `index` and its true defects; with `good`, the same frame without them.

        A frame too small for the stamp (under 256 px wide) goes without it.
        """
        # Apart, so that a frame's defects do not change what else is in it.
        scene = self._scene(index, np.random.default_rng([self.seed, 1, index]))
        defects: list[TrueDefect] = []
        rng = np.random.default_rng([self.seed, 2, index])
        if rng.random() < self.defect_share and not good:
            wanted = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
            for _ in range(_DRAWS):
                defect = self._add_defect(scene, rng, defects)
                if defect is not None:
                    defects.append(defect)
                if len(defects) == wanted:
                    break
        levels = np.clip(np.rint(scene.clean, out=scene.clean), 0, 255, out=scene.clean)
        frame = levels.astype(np.uint8).reshape(self.shape_hwc)
        if self._has_stamp:
            write_stamp(frame, index % 2**32)
        return frame, tuple(defects)

    def _scene(self, index: int, rng: np.random.Generator) -> _Scene:
        part = self._housing
        # A part of its own grain and brightness.
        light = part.cast * self._window(self._grain, _STEP, rng)
        light += part.brushed * self._window(self._streaks, _STEP, rng)
        light += np.float32(np.clip(rng.normal(1.0, 0.015), 0.96, 1.04))
        light *= part.light
        # In its place.
        middle = ((self.width - 1) / 2, (self.height - 1) / 2)
        angle = float(rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES))
        turn = np.asarray(cv2.getRotationMatrix2D(middle, angle, 1.0), np.float64)
        turn[:, 2] += rng.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, 2)
        light = self._moved(light, turn)
        cover = self._moved(part.cover, turn)
        solid = (cover > 0.99) & (light > _BORE_LIGHT)
        picture = self._window(self._belt, _BELT_STEP, rng) * (1 - self._moved(part.shadow, turn))
        light -= picture
        light *= cover
        picture += light
        lamp = self._lamp(index, rng)
        if self.color:
            tint = self._moved(part.tint, turn) * cover[:, :, None]
            tint += np.array(_BELT_TINT, np.float32) * (1 - cover)[:, :, None]
            picture, lamp = picture[:, :, None] * tint, lamp[:, :, None]
        # Under the lamp of this moment, through the lens, onto the sensor.
        picture *= lamp
        clean = _plane(cv2.GaussianBlur(picture, (5, 5), float(rng.uniform(0.55, 0.85))))
        spread = np.sqrt(np.float32(_SHOT_NOISE) * clean + np.float32(_READ_NOISE**2))
        if self.color:
            noise = [self._window(self._noise, _STEP, rng) for _ in range(3)]
            clean += spread * np.stack(noise, axis=2)
        else:
            clean += spread * self._window(self._noise, _STEP, rng)
        return _Scene(clean, solid, turn)

    def _moved(self, plane: Plane, turn: NDArray[np.float64]) -> Plane:
        return _plane(cv2.warpAffine(plane, turn, (self.width, self.height)))

    def _lamp(self, index: int, rng: np.random.Generator) -> Plane:
        """Grey levels of a white surface: vignette, and a drift of periods 240 and 61 frames."""
        slow, fast = 2 * np.pi * index / 240, 2 * np.pi * index / 61
        phase = self._phases
        gain = 1 + 0.05 * np.sin(slow + phase[0]) + 0.02 * np.sin(fast + phase[1])
        gain += rng.uniform(-0.006, 0.006)
        across = 0.05 * np.sin(slow + phase[2]) + 0.015 * np.sin(fast + phase[3])
        down = 0.04 * np.sin(slow + phase[4]) + 0.015 * np.sin(fast + phase[5])
        tilt = np.float32(gain) + np.float32(across) * self._across
        return self._vignette * (tilt + np.float32(down) * self._down)

    def _window(self, bank: Bank, scale: float, rng: np.random.Generator) -> Plane:
        """A random window of a bank, times `scale`."""
        top, left = rng.integers(0, _SPARE_PX, 2)
        return bank[top : top + self.height, left : left + self.width] * np.float32(scale)

    # Defects.

    def _add_defect(
        self, scene: _Scene, rng: np.random.Generator, others: list[TrueDefect]
    ) -> TrueDefect | None:
        """Put one defect onto the scene; None where the frame is too small for it."""
        kind = str(rng.choice(list(flaws.SHAPES)))
        smallest = 16.0 if kind == "scratch" else flaws.MIN_SIZE_PX
        size = _low_heavy(rng, smallest, flaws.MAX_SIZE_PX)
        patch = flaws.draw(kind, size, rng)
        core = flaws.core_of(patch)
        lowest = max(MIN_CONTRAST_SIGMA, self.visibility / float(np.sqrt(core.sum())))
        contrast = _low_heavy(rng, lowest, max(lowest, MAX_CONTRAST_SIGMA))
        x0, y0, x1, y1 = flaws.box_of(patch)
        rows, columns = patch.shape
        if rows >= self.height or columns >= self.width:
            return None
        for _ in range(_TRIES):
            top, left = self._place(kind, scene, rng, rows, columns)
            box = (left + x0, top + y0, left + x1, top + y1)
            if not self._is_free(box, others):
                continue
            spot = (slice(top, top + rows), slice(left, left + columns))
            if not scene.part[spot][core].all():
                continue
            clean = scene.clean[spot]
            grey = clean if clean.ndim == 2 else clean.mean(axis=2)
            inside = (slice(y0, y1), slice(x0, x1))
            sigma = float(grey[inside].std())
            scale = contrast * sigma / float(np.abs(patch[core]).mean())
            delta = np.float32(scale) * patch
            after = np.clip(grey + delta, 0, 255)
            achieved = float(np.abs(after - grey)[core].mean()) / sigma
            if achieved < max(MIN_CONTRAST_SIGMA, 0.9 * contrast):
                continue  # black cannot become darker
            clean += delta if clean.ndim == 2 else delta[:, :, None]
            return TrueDefect(box_xyxy=box, type=kind, contrast_sigma=round(achieved, 2))
        return None

    def _place(
        self, kind: str, scene: _Scene, rng: np.random.Generator, rows: int, columns: int
    ) -> tuple[int, int]:
        if kind == "chip" and len(self._edge_yx):
            y, x = self._edge_yx[rng.integers(len(self._edge_yx))]
            x, y = scene.turn @ (x, y, 1.0)
            # The middle of the chip lies inside of the edge, half of it at most beside.
            x += rng.uniform(-0.5, 0.5) * columns
            y += rng.uniform(-0.5, 0.5) * rows
            top, left = round(y - rows / 2), round(x - columns / 2)
        else:
            top = int(rng.integers(0, self.height - rows))
            left = int(rng.integers(0, self.width - columns))
        return min(max(top, 0), self.height - rows), min(max(left, 0), self.width - columns)

    def _is_free(self, box: tuple[int, int, int, int], others: list[TrueDefect]) -> bool:
        """Off the stamp, and off other defects by more than the network's view."""
        gap = 2 * MARGIN_PX
        taken = [other.box_xyxy for other in others]
        if self._has_stamp:
            taken.append((0, 0, STAMP_WIDTH_PX, STAMP_HEIGHT_PX))
        return all(
            box[0] >= x1 + gap or box[2] <= x0 - gap or box[1] >= y1 + gap or box[3] <= y0 - gap
            for x0, y0, x1, y1 in taken
        )


def _plane(found: object) -> Plane:
    """What OpenCV gave back, as the float32 array that it is."""
    return np.asarray(found, np.float32)


def _unit(found: object) -> Plane:
    """Mean 0, standard deviation 1."""
    plane = _plane(found)
    plane -= plane.mean()
    plane /= plane.std()
    return plane


def _bank(plane: Plane, step: float = _STEP) -> Bank:
    bank: Bank = np.clip(np.rint(plane / np.float32(step)), -127, 127).astype(np.int8)
    return bank


def _blurred(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> Plane:
    return _unit(cv2.GaussianBlur(rng.standard_normal(shape, np.float32), (0, 0), sigma))


def _low_heavy(rng: np.random.Generator, low: float, high: float) -> float:
    """Half of the values in the lowest quarter, the rest spread evenly above it."""
    knee = low + (high - low) / 4
    if rng.random() < 0.5:
        return float(rng.uniform(low, knee))
    return float(rng.uniform(knee, high))


def _belt(shape: tuple[int, int], rng: np.random.Generator) -> Bank:
    """Dark woven rubber with scuffs along its way."""
    ys, xs = (axis * np.float32(2 * np.pi / 7) for axis in np.ogrid[: shape[0], : shape[1]])
    belt: Plane = np.float32(0.010) * (np.sin(xs) * np.sin(ys))
    belt += np.float32(0.004) * np.sin((xs + ys) / np.float32(2))
    belt += np.float32(0.007) * _blurred(rng, shape, 1.0)
    belt += np.float32(0.006) * _unit(cv2.blur(rng.standard_normal(shape, np.float32), (181, 3)))
    belt += np.float32(0.006) * _blurred(rng, shape, 30.0)
    return _bank(belt + np.float32(0.125), _BELT_STEP)
