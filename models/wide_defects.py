"""Defects that only a wide view can tell from good structure, beside those of `models.defects`.

On pictures of few tones (boards, masks) bridges and blots. A bridge goes from an edge to the next
one, in the tone that lies behind the first; a short between two tracks, a cut through one. A blot
lies by itself in the midst of a tone, and its uneven outline is all that tells it from a bore or a
pad. On others bridges and what reaches far over a surface (`models.surface_defects`).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from models.defects import (
    SEEN_SIGMA,
    Picture,
    Rng,
    Spot,
    few_tones,
    seen_change,
    spoil,
    structure,
    to_tones,
)
from models.surface_defects import Drawn, Flags, draw_crack, draw_patch, draw_shade

TONES_SHARES = {"bridge": 0.28, "blot": 0.2}
"""Of the drawn defects on pictures of few tones; the others are those of `models.defects`."""
SHARES = {"bridge": 0.05, "crack": 0.25, "shade": 0.15, "patch": 0.15}
"""On others."""
BRIDGE_PX = 80
"""At most so far from an edge to the next."""
CLEAN = 0.5
"""Share of the bridges that are straight, even and at right angles to the edge, as if drawn on
purpose: the hardest to tell from what belongs there."""
BRIDGE_WIDTH_PX, CLEAN_WIDTH_PX = (3, 18), (3, 9)
LEAST_EDGE = 0.1
"""Of the grey range."""
BLOT_PX = (2.5, 12.0)
"""Radius."""
AROUND_BLOT = 0.97
"""Share of its surroundings that is of one tone."""
TRIES = 16
LEAST_SEEN_PX = 9
Places = tuple[NDArray[np.int64], NDArray[np.int64]]


def spoil_wide(
    rng: Rng, picture: Picture, count: int, *, specks: int = 0
) -> tuple[Picture, NDArray[np.int16]]:
    """As `models.defects.spoil`, with defects that reach far among them; at most one shade."""
    tones, places = few_tones(picture), structure(picture)
    shares = TONES_SHARES if tones is not None else SHARES
    kinds = [*shares, "plain"]
    chosen = rng.multinomial(count, [*shares.values(), 1 - sum(shares.values())])
    counts = dict(zip(kinds, chosen.tolist(), strict=True))
    spare = max(0, counts.get("shade", 0) - 1)
    marred, first = picture.copy(), None
    if counts.get("shade"):
        first = draw_shade(rng, marred)
    marred, where = spoil(rng, marred, counts["plain"] + spare, specks=specks)
    number = specks + counts["plain"] + spare
    if first is not None:
        number += 1
        region = np.where(first.unsure, np.int16(-1), np.int16(0))
        region[first.seen] = number
        where = np.where(where == 0, region, where)
    draws: dict[str, Callable[[], Drawn | None]] = {
        "bridge": lambda: _bridge(rng, marred, places, tones),
        "blot": lambda: _blot(rng, marred),
        "crack": lambda: draw_crack(rng, marred),
        "patch": lambda: draw_patch(rng, marred),
    }
    for kind, draw in draws.items():
        for _ in range(counts.get(kind, 0)):
            drawn = draw()
            if drawn is None:
                continue
            number += 1
            region = where[drawn.spot]
            region[drawn.unsure] = -1
            if np.count_nonzero(drawn.seen) >= LEAST_SEEN_PX:
                region[drawn.seen] = number
    return marred, where


def _bridge(
    rng: Rng, picture: Picture, places: Places | None, tones: Picture | None
) -> Drawn | None:
    """Draw one in place, a short or a cut as often. None: no two edges were met."""
    if places is None:
        return None
    clean, sign = rng.random() < CLEAN, int(rng.choice([-1, 1]))
    for _ in range(TRIES):
        chosen = int(rng.integers(len(places[0])))
        turn = 0.0 if clean else float(rng.normal(scale=0.35))
        ends = _ends(picture, np.array([places[0][chosen], places[1][chosen]]), sign, turn)
        if ends is None:
            continue
        begin, end, tone = ends
        low, high = CLEAN_WIDTH_PX if clean else BRIDGE_WIDTH_PX
        thickness = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        along = end - begin
        across = np.array([-along[1], along[0]]) / max(1e-6, float(np.linalg.norm(along)))
        t = np.linspace(0, 1, 7)
        bend, rough = (0.0, 0.0) if clean else (rng.normal(scale=0.15), rng.uniform(0, 0.6))
        bow = bend * float(np.linalg.norm(along)) * 4 * t * (1 - t)
        middle = begin + along * t[:, None] + bow[:, None] * across
        sides = [thickness / 2 * (1 + rough * rng.uniform(-1, 1, (7, 1))) for _ in range(2)]
        outline = np.concatenate([middle + sides[0] * across, (middle - sides[1] * across)[::-1]])
        spot = _spot(outline, picture.shape)
        mask = np.zeros(picture[spot].shape[:2], np.float32)
        corner = np.array([spot[0].start, spot[1].start])
        cv2.fillPoly(mask, [np.rint((outline - corner)[:, ::-1]).astype(np.int32)], 1.0)
        window = picture[spot]
        before = window.copy()
        alpha = mask if window.ndim == 2 else mask[..., None]
        window += alpha * (tone - window)
        np.clip(window, 0, 1, out=window)
        if tones is not None:
            to_tones(window, tones)
        return Drawn(spot, *seen_change(before, window, SEEN_SIGMA))
    return None


def _blot(rng: Rng, picture: Picture) -> Drawn | None:
    """Draw one in place. None: no room, or no other tone was met."""
    low, high = BLOT_PX
    radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    reach = int(2 * radius) + 4
    height, width = picture.shape[:2]
    if min(height, width) <= 2 * reach + 1:
        return None
    mask = _uneven_disc(rng, radius, reach)
    for _ in range(TRIES):
        row, column = (int(rng.integers(reach, side - reach)) for side in (height, width))
        spot = (slice(row - reach, row + reach + 1), slice(column - reach, column + reach + 1))
        window, ground = picture[spot], picture[row, column].copy()
        same = np.abs(window - ground).reshape(*mask.shape, -1).max(axis=2) < LEAST_EDGE
        tone = picture[int(rng.integers(height)), int(rng.integers(width))].copy()
        if same.mean() < AROUND_BLOT or np.abs(tone - ground).max() < LEAST_EDGE:
            continue
        before = window.copy()
        window[mask] = tone
        return Drawn(spot, *seen_change(before, window, SEEN_SIGMA))
    return None


def _uneven_disc(rng: Rng, radius: float, reach: int) -> Flags:
    """In the middle of a square of 2 reach + 1 pixels."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    unevenness, away = rng.uniform(0.2, 1), np.ones(64)
    for wave in range(2, 7):
        phase = rng.uniform(0, 2 * np.pi)
        away += rng.normal(scale=unevenness / wave) * np.cos(wave * angle + phase)
    away = radius * np.clip(away, 0.35, 1.8)
    along, beside = away * np.cos(angle), away * np.sin(angle) * rng.uniform(0.6, 1)
    turn = rng.uniform(0, np.pi)
    x = along * np.cos(turn) - beside * np.sin(turn)
    y = along * np.sin(turn) + beside * np.cos(turn)
    disc = np.zeros((2 * reach + 1,) * 2, np.uint8)
    outline = np.rint(16 * (reach + np.stack([x, y], axis=1))).astype(np.int32)
    cv2.fillPoly(disc, [outline], 1, shift=4)
    return disc > 0


def _ends(
    picture: Picture, at: NDArray[np.int64], sign: int, turn: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], Picture] | None:
    """From an edge at (row, column) across what lies before it to the next: both ends, and the
    tone behind the first. sign: 1 from dark to bright, -1 from bright to dark. turn: away from the
    right angle, in radians."""
    height, width = picture.shape[:2]
    row, column = (int(value) for value in at)
    if not (4 <= row < height - 4 and 4 <= column < width - 4):
        return None
    near = picture[row - 4 : row + 5, column - 4 : column + 5]
    grey = near if near.ndim == 2 else near.mean(axis=2)
    rise = np.array(
        [grey[6:8, 4].mean() - grey[1:3, 4].mean(), grey[4, 6:8].mean() - grey[4, 1:3].mean()]
    )
    height_of_edge = float(np.linalg.norm(rise))
    if height_of_edge < LEAST_EDGE:
        return None
    forward = rise / height_of_edge * sign
    cosine, sine = np.cos(turn), np.sin(turn)
    forward = np.array([[cosine, -sine], [sine, cosine]]) @ forward
    behind = np.rint(at - 4 * forward).astype(int)
    tone = picture[min(max(behind[0], 0), height - 1), min(max(behind[1], 0), width - 1)].copy()
    for distance in range(5, BRIDGE_PX):
        ahead = np.rint(at + distance * forward).astype(int)
        if not (0 <= ahead[0] < height and 0 <= ahead[1] < width):
            return None
        if abs(float((picture[ahead[0], ahead[1]] - tone).mean())) < 0.5 * height_of_edge:
            return at - 2 * forward, at + (distance + 2) * forward, tone
    return None


def _spot(points: NDArray[np.float64], shape: tuple[int, ...]) -> Spot:
    """The window of a picture that holds all points (row, column), as far as it goes."""
    low = np.clip(np.floor(points.min(axis=0)).astype(int) - 1, 0, np.array(shape[:2]) - 1)
    high = np.clip(np.ceil(points.max(axis=0)).astype(int) + 2, low + 1, np.array(shape[:2]))
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))
