"""Defects for rendered frames: scratches, spots, dents and chips as changes of grey.

Each shape is a patch of values between -1 and 1, its core at 1; the line scales it to the contrast
that it wants over the texture it lands on. Sizes are those of the core's longer side; the true box
spans every pixel that is changed by more than a tenth of the greatest change, soft edge included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

MIN_SIZE_PX: Final = 6.0
MAX_SIZE_PX: Final = 60.0
_EDGE_PX: Final = 5
"""Room around a shape for its soft edge."""
_BOX_SHARE: Final = 0.1


def draw(kind: str, size_px: float, rng: np.random.Generator) -> Plane:
    """A patch (h, w) of a defect of this kind and size, dark or bright, signed, peak near 1."""
    return SHAPES[kind](size_px, rng)


def core_of(patch: Plane) -> NDArray[np.bool_]:
    """Where the change is at least half of its peak: what the contrast is measured over."""
    size = np.abs(patch)
    core: NDArray[np.bool_] = size >= 0.5 * size.max()
    return core


def box_of(patch: Plane) -> tuple[int, int, int, int]:
    """Half-open box in the patch, of all that is changed by over a tenth of the peak."""
    size = np.abs(patch)
    ys, xs = np.nonzero(size > _BOX_SHARE * size.max())
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def _canvas(size_px: float) -> Plane:
    side = math.ceil(size_px) + 2 * _EDGE_PX
    return np.zeros((side, side), np.float32)


def _finish(patch: Plane, sigma: float) -> Plane:
    soft = np.asarray(cv2.GaussianBlur(patch, (0, 0), sigma), np.float32)
    soft /= np.abs(soft).max()
    return soft


def _noise(patch: Plane, rng: np.random.Generator, sigma: float) -> Plane:
    """Smooth noise of the patch's shape, standard deviation 1."""
    white = rng.standard_normal(patch.shape, np.float32)
    soft = np.asarray(cv2.GaussianBlur(white, (0, 0), sigma), np.float32)
    soft /= soft.std()
    return soft


def _sign(rng: np.random.Generator) -> np.float32:
    return np.float32(1.0 if rng.random() < 0.5 else -1.0)


def _outline(
    size_px: float, rng: np.random.Generator, rough: float, corners: int
) -> NDArray[np.int32]:
    """A closed irregular line around the middle of the canvas, in 1/16 px for cv2."""
    angles = (np.arange(corners) + rough * rng.uniform(-1, 1, corners)) * (2 * np.pi / corners)
    radii = 1 + rough * rng.uniform(-1, 1, corners)
    stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    x, y = radii * np.cos(angles), stretch * radii * np.sin(angles)
    x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    reach = max(np.ptp(x), np.ptp(y)) or 1.0
    x, y = (x - (x.max() + x.min()) / 2) / reach, (y - (y.max() + y.min()) / 2) / reach
    middle = (math.ceil(size_px) + 2 * _EDGE_PX - 1) / 2
    points = np.stack([middle + x * size_px, middle + y * size_px], axis=1)
    return np.round(points * 16).astype(np.int32)


def _spot(size_px: float, rng: np.random.Generator) -> Plane:
    """A stain or an inclusion: a filled, uneven disc."""
    patch = _canvas(size_px)
    cv2.fillPoly(patch, [_outline(size_px - 0.5, rng, 0.18, 14)], 1.0, cv2.LINE_8, 4)
    mottle = _noise(patch, rng, 2.0)
    patch *= 1 + 0.25 * mottle
    return _finish(patch, 0.9) * _sign(rng)


def _scratch(size_px: float, rng: np.random.Generator) -> Plane:
    """A slightly bent stroke, with a raised lip of the other sign along one side."""
    patch = _canvas(size_px)
    lip = _canvas(size_px)
    middle = (patch.shape[0] - 1) / 2
    # Across the machine direction rather than along it, as handling scratches are.
    turn = rng.uniform(0.30, 1.27) * rng.choice([-1, 1])
    t = np.linspace(-0.5, 0.5, 24)
    length, bend = size_px - 2.0, rng.uniform(-0.16, 0.16) * size_px
    along, across = t * length, bend * (0.25 - t * t) * 2
    x = middle + along * np.cos(turn) - across * np.sin(turn)
    y = middle + along * np.sin(turn) + across * np.cos(turn)
    width = 2 if size_px < 20 or rng.random() < 0.5 else 3
    points = np.stack([x, y], axis=1)
    cv2.polylines(patch, [np.round(points * 16).astype(np.int32)], False, 1.0, width, cv2.LINE_8, 4)
    beside = points + (np.array([-np.sin(turn), np.cos(turn)]) * (0.5 + width / 2))
    cv2.polylines(lip, [np.round(beside * 16).astype(np.int32)], False, 1.0, 1, cv2.LINE_8, 4)
    return _finish(patch - 0.45 * lip * (1 - patch), 0.75) * _sign(rng)


def _dent(size_px: float, rng: np.random.Generator) -> Plane:
    """A shallow hollow under the lamp at the upper left: dark on the lamp's side, bright beyond."""
    patch = _canvas(size_px)
    middle = (patch.shape[0] - 1) / 2
    ys, xs = np.mgrid[0 : patch.shape[0], 0 : patch.shape[1]].astype(np.float32) - np.float32(
        middle
    )
    stretch, turn = rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
    u = xs * np.float32(np.cos(turn)) + ys * np.float32(np.sin(turn))
    v = (ys * np.float32(np.cos(turn)) - xs * np.float32(np.sin(turn))) / np.float32(stretch)
    radius = np.float32(size_px / 3.4)
    hollow = np.exp(-(u * u + v * v) / (2 * (0.62 * radius) ** 2))
    slope = (xs * np.float32(0.66) + ys * np.float32(0.75)) * hollow
    return _finish(slope.astype(np.float32), 0.6)


def _chip(size_px: float, rng: np.random.Generator) -> Plane:
    """A broken-off piece: angular, with a rough fracture face."""
    patch = _canvas(size_px)
    cv2.fillPoly(patch, [_outline(size_px - 0.5, rng, 0.45, 8)], 1.0, cv2.LINE_8, 4)
    face = _noise(patch, rng, 1.3)
    patch *= 1 + 0.35 * face
    return _finish(patch, 0.7) * _sign(rng)


SHAPES: Final[dict[str, Callable[[float, np.random.Generator], Plane]]] = {
    "scratch": _scratch,
    "spot": _spot,
    "dent": _dent,
    "chip": _chip,
}
