"""Defects of surfaces that reach far: cracks, shades and patches, beside those of `models.defects`.

A crack wanders off, often from a side of the picture; a shade is a part of the surface that is
lighter, darker or of another grain, often up to a line across all of it; a patch is surface from
elsewhere, blended in (Schlüter et al., "Natural synthetic anomalies", 2022).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models.defects import SEEN, Picture, Rng, Spot, blurred, grain

Mask = NDArray[np.float32]
Flags = NDArray[np.bool_]

SHORTEST_CRACK_PX = 16.0
CRACK_LENGTH = (0.15, 1.1)
"""Of the picture's longer side."""
CRACK_CONTRAST = (1.2, 4.0)
"""In deviations of what is beside the line, shading left out."""
BESIDE_PX, SHADING_PX = 9, 6.0
SEEN_LINE = 0.3
LEFT_OF_IT = 0.5
"""So much of a crack's contrast must be left after clipping."""
CRACK_STEP_PX = 5.0
FINE = 4
"""Cracks are drawn so much larger, then shrunk: thinner than a pixel they are fainter lines."""
SHADE_RIM_PX = 8.0
"""Which side of a line across the surface is the defect nobody can say: its rim is."""
SMALLEST_PATCH_PX, LARGEST_PATCH = 6.0, 0.35
"""The latter: share of the picture's side."""
NEAR_CHANGE_PX = 4
"""Nothing is asked of a shade's pixel where nothing changed so near to it."""
FAINTEST_SHADE, FAINTEST_PATCH = 0.35, 1.0
"""In deviations of the grain: what is fainter is not asked for."""
LEAST_DEVIATION, LEAST_CONTRAST = 0.01, 0.03
LEAST_CHANGE = 1 / 255


@dataclass(frozen=True, slots=True)
class Drawn:
    """A defect that was drawn."""

    spot: Spot
    seen: Flags
    """Which of its pixels are the defect."""
    unsure: Flags
    """Which were changed, so that nothing is asked there unless they are seen."""


def draw_crack(rng: Rng, picture: Picture) -> Drawn | None:
    """A thin line that wanders; None: too little of it lies in the picture."""
    points = _walk(rng, picture.shape[:2])
    low = np.maximum(np.floor(points.min(axis=0)).astype(int) - 8, 0)
    high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 9, picture.shape[:2])
    if (high - low < 6).any():
        return None
    spot = (slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    line = _line(rng, points - low, (int(high[0] - low[0]), int(high[1] - low[1])))
    seen = line > SEEN_LINE
    if not seen.any():
        return None
    window = picture[spot]
    before = window.copy()
    beside = cv2.dilate(seen.astype(np.uint8), np.ones((BESIDE_PX, BESIDE_PX), np.uint8)) > 0
    low_contrast, high_contrast = CRACK_CONTRAST
    contrast = low_contrast * (high_contrast / low_contrast) ** rng.random()
    deviation = (before - blurred(before, SHADING_PX))[beside].std(axis=0).mean()
    strength = max(contrast * max(LEAST_DEVIATION, float(deviation)), LEAST_CONTRAST)
    window += np.float32(strength * (-1 if rng.random() < 0.85 else 1)) * _over(line, window)
    np.clip(window, 0, 1, out=window)
    change = _size(window - before)
    seen &= change >= LEFT_OF_IT * strength * line  # black does not get darker
    return Drawn(spot, seen, change > LEAST_CHANGE)


def draw_shade(rng: Rng, picture: Picture) -> Drawn | None:
    """A part of the surface in another tone or grain; None: nearly nothing or nearly all of it."""
    height, width = picture.shape[:2]
    across = rng.random() < 0.6
    inwards = _across(rng, height, width) if across else _blob(rng, height, width)
    softness = float(np.exp(rng.uniform(np.log(0.7), np.log(6 if across else 20))))
    mask = (1 / (1 + np.exp(-np.clip(inwards / softness, -30, 30)))).astype(np.float32)
    if not 0.01 <= float((mask > 0.5).mean()) <= 0.95:
        return None
    before = picture.copy()
    picture += _over(mask, picture) * _other_surface(rng, before)
    np.clip(picture, 0, 1, out=picture)
    seen = np.abs(inwards) < SHADE_RIM_PX if across else mask > 0.5
    strength = float(np.sqrt(np.mean((picture - before)[seen] ** 2))) if seen.any() else 0.0
    changed = (_size(picture - before) > LEAST_CHANGE).astype(np.uint8)
    near = 2 * round(SHADE_RIM_PX if across else NEAR_CHANGE_PX) + 1
    seen &= cv2.dilate(changed, np.ones((near, near), np.uint8)) > 0
    unsure = (mask > 0.03) & (mask < 0.97)
    if strength <= FAINTEST_SHADE * grain(before):
        seen, unsure = np.zeros_like(seen), mask > 0.03
    return Drawn((slice(0, height), slice(0, width)), seen, unsure)


def draw_patch(rng: Rng, picture: Picture) -> Drawn | None:
    """Surface from another place, mirrored or turned, its tone mostly adapted; None: no room."""
    sides = [
        int(np.exp(rng.uniform(np.log(SMALLEST_PATCH_PX), np.log(LARGEST_PATCH * side))))
        for side in (max(length, 20) for length in picture.shape[:2])
    ]
    rooms = [length - side for length, side in zip(picture.shape[:2], sides, strict=True)]
    if min(rooms) < 4:
        return None
    to = [int(rng.integers(0, room)) for room in rooms]
    source = [int(rng.integers(0, room)) for room in rooms]
    if rng.random() < 0.4:  # from beside
        shifts = rng.integers(-16, 17, 2)
        source = [
            int(np.clip(at + by, 0, room)) for at, by, room in zip(to, shifts, rooms, strict=True)
        ]
    spot, other = (
        (slice(top, top + sides[0]), slice(left, left + sides[1])) for top, left in (to, source)
    )
    piece = picture[other].copy()
    if rng.random() < 0.5:
        piece = piece[::-1]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    if rng.random() < 0.3:
        piece = np.asarray(
            cv2.resize(np.ascontiguousarray(np.rot90(piece)), (sides[1], sides[0])), np.float32
        )
    window = picture[spot]
    before = window.copy()
    if rng.random() < 0.6:
        piece = piece + (before.mean(axis=(0, 1)) - piece.mean(axis=(0, 1)))
    y, x = np.ogrid[-1 : 1 : sides[0] * 1j, -1 : 1 : sides[1] * 1j]
    corners = float(rng.choice([2, 2, 4, 8]))  # an ellipse, or nearly a rectangle
    inside = 1 - np.abs(y) ** corners - np.abs(x) ** corners
    mask: Mask = np.clip(inside * rng.uniform(2, 12), 0, 1).astype(np.float32)
    window += _over(mask, window) * (piece - window)
    np.clip(window, 0, 1, out=window)
    change = window - before
    strong = _size(blurred(change, 1.5)) > max(SEEN, FAINTEST_PATCH * grain(before))
    seen = cv2.dilate(((mask > 0.5) & strong).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return Drawn(spot, seen, _size(change) > LEAST_CHANGE)


def _walk(rng: Rng, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Points (row, column) along a line that keeps its direction more or less."""
    height, width = shape[:2]
    length = max(SHORTEST_CRACK_PX, max(height, width) * float(rng.uniform(*CRACK_LENGTH)))
    begin = np.array([rng.uniform(0, height), rng.uniform(0, width)])
    if rng.random() < 0.4:  # from a side
        axis = int(rng.integers(2))
        begin[axis] = rng.choice([0, shape[axis] - 1])
        begin += rng.normal(scale=6, size=2)
    heading = float(rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.8:  # along the sides, as grain and stress are
        heading = float(np.pi / 2 * rng.integers(4) + rng.normal(scale=0.15))
    restless = float(np.exp(rng.uniform(np.log(0.04), np.log(0.25))))
    points, angle = [begin], heading
    steps = max(4, int(length / CRACK_STEP_PX))
    for _ in range(steps):
        angle += rng.normal(scale=restless) - 0.1 * (angle - heading)
        points.append(points[-1] + length / steps * np.array([np.sin(angle), np.cos(angle)]))
    return np.array(points)


def _line(rng: Rng, points: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """0..1: a line through points of a window, of uneven width, often thinner to its end."""
    thickness = float(np.exp(rng.uniform(np.log(0.8), np.log(5))))
    tapers = rng.random() < 0.6
    fine = np.zeros((FINE * shape[0], FINE * shape[1]), np.float32)
    corners = np.rint(FINE * points[:, ::-1]).astype(int).tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(corners)):
        width = thickness * rng.uniform(0.7, 1.3) * (1 - number / len(corners) if tapers else 1)
        cv2.line(fine, begin, end, float(rng.uniform(0.7, 1)), max(1, round(FINE * width)))
    line = cv2.resize(fine, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return blurred(np.asarray(line, np.float32), float(rng.uniform(0.3, 1.0)))


def _across(rng: Rng, height: int, width: int) -> Mask:
    """Distance from a wavy line across the picture, mostly along its sides; or within a band."""
    y, x = _axes(height, width)
    turn = float(np.pi / 2 * rng.integers(4) + rng.normal(scale=0.12))
    sine, cosine = np.float32(np.sin(turn)), np.float32(np.cos(turn))
    away = (y - height * rng.uniform(0.1, 0.9)) * sine + (
        x - width * rng.uniform(0.1, 0.9)
    ) * cosine
    along = (x * sine - y * cosine) * np.float32(2 * np.pi / max(height, width))
    for wave in range(1, 4):
        size, pitch = rng.normal(scale=4 / wave), wave * rng.uniform(0.5, 1.5)
        away += np.float32(size) * np.sin(np.float32(pitch) * along + rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.4:
        np.minimum(away, np.float32(rng.uniform(10, 60)) - away, out=away)
    return away


def _blob(rng: Rng, height: int, width: int) -> Mask:
    """Distance inwards from the outline of a large blob."""
    largest = max(24.0, 0.45 * max(height, width))
    radius = float(np.exp(rng.uniform(np.log(12), np.log(largest))))
    y, x = _axes(height, width)
    y, x = y - np.float32(rng.uniform(0, height)), x - np.float32(rng.uniform(0, width))
    turn, flat = rng.uniform(0, np.pi), rng.uniform(0.3, 1)
    along = np.cos(turn) * x + np.sin(turn) * y
    beside = (np.cos(turn) * y - np.sin(turn) * x) / flat
    angle = np.arctan2(beside, along)
    reach = np.ones_like(angle)
    for wave in range(2, 5):
        size = rng.normal(scale=0.25 / wave)
        reach += size * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    inwards = radius * np.clip(reach, 0.3, 2) - np.sqrt(along**2 + beside**2)
    return np.asarray(inwards, np.float32)


def _axes(height: int, width: int) -> tuple[Mask, Mask]:
    """Row and column of each pixel."""
    y, x = np.mgrid[0:height, 0:width]
    return y.astype(np.float32), x.astype(np.float32)


def _other_surface(rng: Rng, picture: Picture) -> Picture:
    """What to add to a surface for another one."""
    deviation = max(LEAST_DEVIATION, float((picture - blurred(picture, 12)).std()))
    sign = rng.choice([-1, 1])
    kind = int(rng.integers(4))
    if kind <= 1:  # another tone
        tone = sign * max(0.012, deviation * rng.uniform(0.5, 2.5))
        return np.full_like(picture, tone)
    if kind == 2:  # smoother or rougher
        fine = picture - blurred(picture, float(rng.uniform(3, 10)))
        return fine * np.float32(rng.choice([-0.7, 1.2]) * rng.uniform(0.6, 1))
    height, width = picture.shape[:2]  # the grain of another place
    others = (
        picture[::-1],
        picture[:, ::-1],
        np.roll(picture, (height // 3, width // 3), (0, 1)),
    )
    other = np.ascontiguousarray(others[int(rng.integers(len(others)))])
    fine = (other - blurred(other, 15)) - (picture - blurred(picture, 15))
    return fine + np.float32(sign * max(0.008, deviation * rng.uniform(0.2, 1.5)))


def _size(change: Picture) -> Mask:
    """Of a change, whatever the channel: (h, w)."""
    size = np.abs(change)
    return size if size.ndim == 2 else size.max(axis=2)


def _over(mask: Mask, picture: Picture) -> Mask:
    """The mask for all channels of a picture."""
    return mask if picture.ndim == 2 else mask[..., None]
