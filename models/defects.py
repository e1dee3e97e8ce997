"""Small defects drawn into a picture: what a student must not learn to repeat.

`spoil(rng, picture, count)` draws spots, scratches, chips, smears, blobs and bars; as a change of
brightness, a dent (a bright and a dark flank), a tone that the picture has elsewhere, or a piece
of the picture moved. Half of them lie at edges, where parts break and prints smear. Most are faint,
but none so faint that nobody could tell it from grain (A. Rose, 1948): the root of its summed
squares is at least `VISIBILITY` deviations of the grain. A picture of few tones (binarised boards,
masks) keeps its tones. Specks that are too small to matter may be drawn as well: they are good.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
"""(H, W, 3) or (H, W), 0..1."""
Rng = np.random.Generator

SMALLEST_PX = 6.0
LARGEST_PX = 48.0
"""Longer side of a drawn defect; scratches may be half as long again."""
LEAST_SIGMA, MOST_SIGMA = 2.0, 8.0
"""Contrast, in standard deviations of the surroundings; half of them below 2.8, and more for the
smallest."""
VISIBILITY = 20.0
GRAIN_SIGMA_PX = 2.0
"""Grain is what a blur of this size takes away."""
LEAST_GRAIN = 0.004
"""A grey level: pictures without grain are rounded."""
AT_STRUCTURE = 0.5
FEW_TONES = 8
SEEN_SIGMA, MOVED_SIGMA = 0.4, 1.0
"""A change is seen when a little blur leaves this many deviations of it. A moved piece must differ
by more: grain changed for other grain is no defect."""
SEEN = 0.015
RING_PX = 6
"""Inside of a larger change there may be nothing to see, so nothing is asked there."""
BRIGHTEN, DENT, TONE, MOVE = range(4)
KINDS = (0.4, 0.15, 0.25, 0.2)


def spoil(
    rng: Rng, picture: Picture, count: int, *, specks: int = 0
) -> tuple[Picture, NDArray[np.int16]]:
    """A copy with up to `count` drawn defects and `specks` too small ones, and what is where.

    The second result, (H, W): k > 0 where defect k can be seen, -1 where a picture was changed and
    nothing is asked (a change that cannot be seen, or the inside of a large one), else 0.
    """
    original, picture = picture, picture.copy()
    height, width = picture.shape[:2]
    tones = few_tones(original)
    places = structure(original)
    defects = np.zeros((height, width), np.int16)
    for number in range(specks + count):
        speck = number < specks
        low, high = (0.5, SMALLEST_PX / 4) if speck else (SMALLEST_PX / 2, LARGEST_PX / 2)
        radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        side = 2 * int(1.6 * radius + 4) + 1
        if side >= min(height, width):
            continue
        spot = _place(rng, places, radius, side, (height, width))
        window = picture[spot]
        before = window.copy()
        mask = _disc(side, radius) if speck else _shape(rng, side, radius)
        kind = TONE if speck else int(rng.choice(len(KINDS), p=KINDS))
        _change(rng, window, kind, mask, radius=radius, original=original, spot=spot)
        np.clip(window, 0, 1, out=window)
        if tones is not None:
            to_tones(window, tones)
        if speck:
            continue
        seen, changed = seen_change(before, window, MOVED_SIGMA if kind == MOVE else SEEN_SIGMA)
        region = defects[spot]
        region[changed] = -1
        if seen.sum() >= SMALLEST_PX**2 / 4:
            inside = cv2.erode(
                np.pad(seen, 1).astype(np.uint8), np.ones((2 * RING_PX + 1,) * 2, np.uint8)
            )[1:-1, 1:-1]
            region[seen] = -1
            region[seen & (inside == 0)] = number + 1
    return picture, defects


Spot = tuple[slice, slice]
Spoil = Callable[..., tuple[Picture, NDArray[np.int16]]]
"""`spoil`, and what takes its arguments."""


def _change(
    rng: Rng,
    window: Picture,
    kind: int,
    mask: NDArray[np.float32],
    *,
    radius: float,
    original: Picture,
    spot: Spot,
) -> None:
    """Draw one defect into `window`, which is the picture at `spot`, in place."""
    deviation = max(0.01, float(window.std(axis=(0, 1)).mean()))
    contrast = LEAST_SIGMA * (MOST_SIGMA / LEAST_SIGMA) ** float(rng.random() ** 2)
    contrast *= max(1.0, 3 / radius)
    strength = np.float32(max(contrast * deviation, 0.03) * rng.choice([-1, 1]))
    side = len(mask)
    if kind in (BRIGHTEN, DENT) and rng.random() < 0.4:  # mottled
        blotches = blurred(rng.standard_normal((side, side), np.float32), 2.0)
        mask = mask * np.clip(1 + np.float32(3) * blotches, 0.2, 1.8)
    if kind == DENT:
        turn = rng.uniform(0, 2 * np.pi)
        y, x = (axis / np.float32(radius) for axis in _axes(side))
        mask = mask * (np.cos(turn) * x + np.sin(turn) * y).astype(np.float32)
    alpha = mask if window.ndim == 2 else mask[..., None]
    height, width = original.shape[:2]
    if kind in (BRIGHTEN, DENT):
        visible = VISIBILITY * grain(window) / max(1.0, float(np.linalg.norm(mask)))
        window += np.copysign(np.maximum(abs(strength), np.float32(visible)), strength) * alpha
    elif kind == TONE:
        tone = original[rng.integers(0, height), rng.integers(0, width)]
        window += alpha * (tone - window)
    else:
        top, left = spot[0].start, spot[1].start
        if rng.random() < 0.5:  # from anywhere, else from beside
            top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        else:
            top = int(np.clip(top + rng.integers(-12, 13), 0, height - side))
            left = int(np.clip(left + rng.integers(-12, 13), 0, width - side))
        piece = original[top : top + side, left : left + side]
        window += alpha * (np.rot90(piece, int(rng.integers(0, 4))) - window)


def seen_change(
    before: Picture, after: Picture, sigmas: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the change can be seen among its surroundings, and where there is one at all."""
    change = after - before
    size = float(np.linalg.norm(change, axis=(0, 1)).max())
    if size < 0.9 * VISIBILITY * grain(before):  # it was clipped
        sigmas = np.inf
    deviation = max(0.01, float(before.std(axis=(0, 1)).mean()))
    seen, changed = np.abs(blurred(change, 1.5)), np.abs(change)
    if change.ndim == 3:
        seen, changed = seen.max(axis=2), changed.max(axis=2)
    return seen > max(SEEN, sigmas * deviation), changed > 1 / 255


def grain(window: Picture) -> float:
    """Standard deviation of the grain, whatever edges there are: by the median (Huber 1981)."""
    grey = window if window.ndim == 2 else window.mean(axis=2)
    return max(LEAST_GRAIN, 1.5 * float(np.median(np.abs(grey - blurred(grey, GRAIN_SIGMA_PX)))))


def few_tones(picture: Picture) -> Picture | None:
    """All tones of the picture when they are few, in rising order."""
    if len(np.unique(picture[::7, ::5])) > FEW_TONES:
        return None
    tones = np.unique(picture)
    return tones if len(tones) <= FEW_TONES else None


def to_tones(window: Picture, tones: Picture) -> None:
    """Make each value the nearest of the tones, in place."""
    window[...] = tones[np.searchsorted((tones[1:] + tones[:-1]) / 2, window)]


def structure(picture: Picture) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows and columns of the pixels at edges, if there are any."""
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    rise = cv2.morphologyEx(blurred(grey, 1.0), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(rise > max(0.05, float(rise.mean() + rise.std())))
    return (rows, columns) if len(rows) else None


def _place(
    rng: Rng,
    places: tuple[NDArray[np.int64], NDArray[np.int64]] | None,
    radius: float,
    side: int,
    shape: tuple[int, int],
) -> Spot:
    """A window of the picture, anywhere or about a pixel of its structure."""
    origin = [int(rng.integers(0, whole - side)) for whole in shape]
    if places is not None and rng.random() < AT_STRUCTURE:
        chosen = int(rng.integers(len(places[0])))
        about = [axis[chosen] - side // 2 + rng.normal(scale=radius) for axis in places]
        origin = [int(np.clip(at, 0, whole - side)) for at, whole in zip(about, shape, strict=True)]
    top, left = origin
    return slice(top, top + side), slice(left, left + side)


def _disc(side: int, radius: float) -> NDArray[np.float32]:
    y, x = _axes(side)
    disc: NDArray[np.float32] = (x**2 + y**2 <= radius**2).astype(np.float32)
    return disc


def _shape(rng: Rng, side: int, radius: float) -> NDArray[np.float32]:
    """The outline of one defect in the middle of a square, 0..1, often with soft edges."""
    mask = np.zeros((side, side), np.float32)
    middle = side // 2
    angle = float(rng.uniform(0, 360))
    turn = np.deg2rad(angle)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    kind = rng.integers(0, 6)
    if kind == 0:  # a spot
        axes = (max(1, round(radius)), max(1, round(radius * rng.uniform(0.4, 1))))
        cv2.ellipse(mask, (middle, middle), axes, angle, 0, 360, 1.0, -1)
    elif kind == 1:  # a scratch, bent
        reach = min(1.5 * radius + 4, middle - 1)
        t = np.linspace(-1, 1, 12)[:, None]
        bow = rng.normal(scale=0.2) * (1 - t**2)
        line = middle + reach * (t * along + bow * across)
        cv2.polylines(mask, [np.rint(line).astype(np.int32)], False, 1.0, int(rng.integers(1, 4)))
    elif kind == 2:  # a chip with corners
        angles = np.sort(rng.uniform(0, 2 * np.pi, 6))[:, None]
        reaches = radius * rng.uniform(0.5, 1.3, 6)[:, None]
        _fill(mask, middle + reaches * np.hstack([np.cos(angles), np.sin(angles)]))
    elif kind == 3:  # a smear
        y, x = _axes(side)
        mask = np.exp(-(x**2 + y**2) / np.float32(0.4 * radius**2))
    elif kind == 4:  # a blob
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)[:, None]
        reaches = np.ones((48, 1))
        for wave in range(2, 6):
            size = rng.normal(scale=0.35 / wave)
            reaches += size * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
        reaches = radius * np.clip(reaches, 0.3, 1.6)
        flat = rng.uniform(0.5, 1) * np.sin(angles)
        _fill(mask, middle + reaches * (np.cos(angles) * along + flat * across))
    else:  # a bar, most often along the axes
        if rng.random() < 0.6:
            eighth = np.pi / 4 * rng.integers(0, 4)
            along = np.array([np.cos(eighth), np.sin(eighth)])
        reach = min(rng.uniform(0.6, 1.5) * radius + 2, middle - 1)
        ends = np.rint(middle + reach * np.stack([-along, along])).astype(int).tolist()
        thickness = int(rng.integers(2, max(3, min(12, round(radius))) + 1))
        cv2.line(mask, ends[0], ends[1], 1.0, thickness)
    sigma = float(rng.uniform(0, 1.2))
    if sigma > 0.3:
        mask = blurred(mask, sigma)
    return (mask > 0.5).astype(np.float32) if rng.random() < 0.3 else mask


def _fill(mask: NDArray[np.float32], points: NDArray[np.float64]) -> None:
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1.0)


def _axes(side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows and columns of a square, counted from its middle."""
    axis = np.arange(side, dtype=np.float32) - side // 2
    return axis[:, None], axis[None, :]


def blurred(picture: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """By a Gaussian."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
