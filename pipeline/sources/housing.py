"""The part on the rendered conveyor: a die-cast cover with a machined rim, drawn from heights.

A height map (bosses, ribs, chamfers, holes, raised letters) is lit by a lamp from the upper left
and as much again from a dome, as stations do to keep relief from drowning defects; a printed plate
and the marks of the milling cutter lie on it. Everything is made once; frames only move it and
give each part its own grain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

PART_HALF: Final = (0.40, 0.385)
"""Half of the part's width and height, as shares of the frame's."""
_LAMP: Final = np.array([-0.52, -0.60, 0.61], np.float32)
_TINTS: Final = {"metal": (0.97, 1.0, 1.03), "plate": (1.10, 1.02, 0.62)}


@dataclass(frozen=True, slots=True)
class Housing:
    """Planes of one shape (H, W), the part upright in the middle of the frame."""

    light: Plane
    """What the camera sees of a part without grain: 0 black .. 1 white."""
    cover: Plane
    """1 on the part, 0 beside it, in between at its edge and 0 in the through holes."""
    shadow: Plane
    """How much of the light the part takes from the belt around it, 0 .. 1."""
    cast: Plane
    """Amplitude of the as-cast grain, as a share of the light."""
    brushed: Plane
    """Amplitude of the brushed streaks, as a share of the light."""
    tint: NDArray[np.float32]
    """(H, W, 3): RGB over grey; (0, 0, 3) for a grey camera."""
    edge: NDArray[np.bool_]
    """Where chips break off: along the outline and around the holes."""


def render_housing(height: int, width: int, color: bool) -> Housing:
    """Draw the part for frames of `height` x `width` px; its details scale with the frame."""
    drawing = _Drawing(height, width)
    drawing.body()
    drawing.bosses()
    drawing.rim_holes()
    drawing.letters()
    return drawing.lit(color)


def _ramp(distance: Plane, width: float) -> Plane:
    """0 outside, 1 from `width` px inside on; `distance` is negative inside."""
    t = np.clip(-distance / max(width, 1.0) + 0.5, 0.0, 1.0)
    smooth: Plane = t * t * (3.0 - 2.0 * t)
    return smooth


def _plane(found: object) -> Plane:
    return np.asarray(found, np.float32)


class _Drawing:
    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width)
        self.scale = min(width / 1024, height / 768)
        self.half = (PART_HALF[0] * width, PART_HALF[1] * height)
        self.x: Plane = np.arange(width, dtype=np.float32)[None, :] - np.float32((width - 1) / 2)
        self.y: Plane = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
        self.height: Plane = np.zeros(self.shape, np.float32)
        self.albedo: Plane = np.full(self.shape, 0.50, np.float32)
        self.cover: Plane = np.ones(self.shape, np.float32)
        self.polish: Plane = np.zeros(self.shape, np.float32)
        self.plate: Plane = np.zeros(self.shape, np.float32)
        self.turned: Plane = np.zeros(self.shape, np.float32)

    def _box(self, cx: float, cy: float, half: tuple[float, float], radius: float) -> Plane:
        """Signed distance to a rectangle with round corners."""
        dx = np.abs(self.x - cx) - (half[0] - radius)
        dy = np.abs(self.y - cy) - (half[1] - radius)
        outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
        return _plane(outside + np.minimum(np.maximum(dx, dy), 0) - radius)

    def _circle(self, cx: float, cy: float, radius: float) -> Plane:
        return _plane(np.hypot(self.x - cx, self.y - cy) - radius)

    def _px(self, length: float) -> float:
        return length * self.scale

    def body(self) -> None:
        hx, hy = self.half
        px = self._px
        outline = self._box(0, 0, (hx, hy), px(58))
        self.cover = _ramp(outline, 1.6)
        self.height = 20 * _ramp(outline + px(4), px(9))
        rim = self._box(0, 0, (hx - px(74), hy - px(74)), px(40))
        floor = _ramp(rim + px(3), px(10))
        self.height -= 13 * floor
        # A groove for the seal runs around the rim.
        seal = _plane(np.abs(self._box(0, 0, (hx - px(56), hy - px(56)), px(52))) - px(4.5))
        self.height -= 4 * _ramp(seal, px(3))
        self.polish = _ramp(outline + px(8), 2) * (1 - _ramp(rim, 2))
        # Ribs on the floor.
        for cx, cy, half in (
            (-0.50 * hx, 0.0, (px(7), hy - px(80))),
            (0.38 * hx, -0.40 * hy, (px(7), 0.38 * hy)),
            (0.0, 0.46 * hy, (hx - px(80), px(7))),
        ):
            rib = self._box(cx, cy, half, px(6))
            self.height = np.maximum(self.height, 7 + 8 * _ramp(rib, px(9)) * floor)

    def bosses(self) -> None:
        hx, hy = self.half
        px = self._px
        floors = (
            # x, y, outer radius, bore radius, height
            (-0.06 * hx, 0.02 * hy, px(88), px(42), 19.0),
            (0.66 * hx, 0.18 * hy, px(40), px(15), 16.0),
            (-0.685 * hx, -0.36 * hy, px(34), px(12), 16.0),
            (0.66 * hx, -0.52 * hy, px(34), px(12), 16.0),
        )
        for cx, cy, outer, bore, top in floors:
            ring = self._circle(cx, cy, outer)
            self.height = np.maximum(self.height, 7 + (top - 7) * _ramp(ring, px(8)))
            hole = self._circle(cx, cy, bore)
            self.height -= 3.5 * _ramp(hole - px(5), px(5))
            inside = _ramp(hole, 1.8)
            self.height -= 14 * inside
            self.albedo *= 1 - 0.62 * inside
            face = _ramp(ring + px(6), 2) * (1 - inside)
            self.polish = np.maximum(self.polish * (1 - _ramp(ring, 2)), face)
            # The marks of the turning tool: rings, finer than the part's other details.
            radius = np.hypot(self.x - cx, self.y - cy)
            self.turned += face * np.sin(radius * np.float32(2 * np.pi / 4.6))

    def rim_holes(self) -> None:
        hx, hy = self.half
        px = self._px
        for sx, sy in ((-1, -1), (0, -1), (1, -1), (-1, 1), (0, 1), (1, 1)):
            cx, cy = sx * (hx - px(38)), sy * (hy - px(35))
            if sx:
                cy = sy * (hy - px(38))
            through = self._circle(cx, cy, px(13))
            sink = self._circle(cx, cy, px(22))
            self.height -= 8 * _ramp(sink, px(12))
            self.cover *= 1 - _ramp(through, 2.4)

    def letters(self) -> None:
        hx, hy = self.half
        # Raised letters, cast with the part.
        raised = self._text("LINEWATCH 4711", 0.17 * hx, 0.63 * hy, 34, 3.4)
        self.height += 3.2 * cv2.GaussianBlur(raised, (0, 0), max(0.6, self._px(1.1)))
        # A printed plate.
        cx, cy = -0.20 * hx, -0.555 * hy
        half = (self._px(86), self._px(30))
        plate = _ramp(self._box(cx, cy, half, self._px(5)), 1.6)
        lines = self._text("HOUSING", cx, cy - self._px(11), 18, 2.2)
        lines += self._text("LOT 0427-B", cx, cy + self._px(13), 16, 1.8)
        lines = _plane(cv2.GaussianBlur(lines, (0, 0), max(0.5, 0.9 * self.scale)))
        self.plate = plate
        self.albedo = self.albedo * (1 - plate) + plate * (0.72 - 0.40 * np.clip(lines, 0, 1))
        self.height += 1.0 * plate
        self.polish *= 1 - plate

    def _text(self, text: str, cx: float, cy: float, size: float, weight: float) -> Plane:
        """`text` centred at (cx, cy), capitals of `size` px at full scale: 0 .. 1."""
        zoom = 4
        size, weight = self._px(size) * zoom, max(1, round(self._px(weight) * zoom))
        font = cv2.FONT_HERSHEY_SIMPLEX
        factor = size / 22.0
        (wide, high), _ = cv2.getTextSize(text, font, factor, weight)
        canvas = np.zeros((high + 8 * zoom, wide + 8 * zoom), np.uint8)
        cv2.putText(
            canvas, text, (4 * zoom, high + 4 * zoom), font, factor, 255, weight, cv2.LINE_AA
        )
        small = cv2.resize(
            canvas,
            (max(1, canvas.shape[1] // zoom), max(1, canvas.shape[0] // zoom)),
            interpolation=cv2.INTER_AREA,
        )
        out: Plane = np.zeros(self.shape, np.float32)
        top = round(cy + (self.shape[0] - small.shape[0]) / 2)
        left = round(cx + (self.shape[1] - small.shape[1]) / 2)
        y0, x0 = max(0, top), max(0, left)
        y1, x1 = min(self.shape[0], top + small.shape[0]), min(self.shape[1], left + small.shape[1])
        if y0 < y1 and x0 < x1:
            out[y0:y1, x0:x1] = small[y0 - top : y1 - top, x0 - left : x1 - left] / 255.0
        return out

    def lit(self, color: bool) -> Housing:
        relief = _plane(cv2.GaussianBlur(self.height, (0, 0), max(0.7, 1.6 * self.scale)))
        slope_x = cv2.Scharr(relief, cv2.CV_32F, 1, 0, scale=1 / 32)
        slope_y = cv2.Scharr(relief, cv2.CV_32F, 0, 1, scale=1 / 32)
        inverse = 1 / np.sqrt(slope_x**2 + slope_y**2 + 1)
        facing = (-slope_x * _LAMP[0] - slope_y * _LAMP[1] + _LAMP[2]) * inverse
        half = _LAMP + np.array([0, 0, 1], np.float32)
        half /= np.linalg.norm(half)
        mirror = np.clip((-slope_x * half[0] - slope_y * half[1] + half[2]) * inverse, 0, 1)
        wide = cv2.GaussianBlur(relief, (0, 0), max(1.0, 11 * self.scale))
        hidden = np.clip(1 - 0.045 * np.maximum(wide - relief, 0), 0.4, 1)
        lit = self._unshaded(relief)
        gloss = 0.06 + 0.10 * self.polish
        light = self.albedo * (0.56 * hidden + 0.50 * np.clip(facing, 0, 1) * lit)
        light += self.albedo * gloss * mirror**24 * lit
        light *= 1 + 0.20 * self.polish + 0.035 * self.turned
        cover8 = (self.cover * 255).astype(np.uint8)
        around = cv2.GaussianBlur(
            np.roll(self.cover, (round(self._px(9)), round(self._px(8))), (0, 1)),
            (0, 0),
            max(1.0, 9 * self.scale),
        )
        ring = cv2.morphologyEx(cover8, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 60
        metal, tag = np.array(_TINTS["metal"]), np.array(_TINTS["plate"])
        printed = self.plate[:, :, None] if color else np.zeros((0, 0, 1), np.float32)
        tint = metal + printed * (tag - metal)
        cast = 0.075 * (1 - self.polish) * (1 - 0.75 * self.plate)
        return Housing(
            light=np.clip(light, 0.01, 1).astype(np.float32),
            cover=self.cover.astype(np.float32),
            shadow=(0.62 * around).astype(np.float32),
            cast=cast.astype(np.float32),
            brushed=(0.062 * self.polish).astype(np.float32),
            tint=tint.astype(np.float32),
            edge=ring,
        )

    def _unshaded(self, relief: Plane) -> Plane:
        """1 where the lamp reaches, less in the shadow of what stands between."""
        steps = 14
        reach = 1.3 * self.scale
        blocked: Plane = np.zeros(self.shape, np.float32)
        rise = _LAMP[2] / np.hypot(_LAMP[0], _LAMP[1])
        direction = _LAMP[:2] / np.hypot(_LAMP[0], _LAMP[1])
        for step in range(1, steps + 1):
            run = step * reach
            moved = np.array([[1, 0, -direction[0] * run], [0, 1, -direction[1] * run]], np.float64)
            size = (self.shape[1], self.shape[0])
            there = _plane(cv2.warpAffine(relief, moved, size, borderMode=cv2.BORDER_REPLICATE))
            blocked = np.maximum(blocked, there - relief - np.float32(rise * run))
        soft: Plane = 1 - 0.6 * np.clip(blocked / 3.0, 0, 1)
        return _plane(cv2.GaussianBlur(soft, (0, 0), max(0.6, self.scale)))
