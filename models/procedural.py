"""Pictures of nothing in particular, drawn from a seed: what the built-in teacher learns from.

`draw(rng, size)` mixes what surfaces of parts are made of: dead leaves (opaque shapes whose sizes
follow a power law, which gives the statistics of natural images: Lee, Mumford, Huang 2001), noise
with a 1/f spectrum, gratings, lines and scratches, binary patterns of tracks and pads, lettering,
gradients and edges. `photograph` then takes such a picture as a camera would under one light;
`models.defects.spoil` puts small defects into it. Everything is numpy and OpenCV, and no picture is
downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
"""(H, W, 3) or (H, W), about 0..1; may go a little beyond until `photograph` clips it."""
Rng = np.random.Generator


def draw(rng: Rng, size: int) -> Picture:
    """One picture (size, size, 3) in 0..1, of one to three layers. A few ms at 256 px."""
    names, weights = zip(*((draw_layer, weight) for draw_layer, weight in LAYERS), strict=True)
    shares = np.array(weights) / sum(weights)
    picture = names[rng.choice(len(names), p=shares)](rng, size)
    for _ in range(rng.integers(0, 3)):
        layer = names[rng.choice(len(names), p=shares)](rng, size)
        how = rng.integers(0, 3)
        if how == 0:  # beside each other, with a sharp or a soft seam
            mask = _mask(rng, size)
            picture += mask * (layer - picture)
        elif how == 1:  # a texture over the picture
            picture += np.float32(rng.uniform(0.05, 0.5)) * (layer - layer.mean())
        else:
            picture *= 1 + np.float32(rng.uniform(0.1, 0.7)) * (layer - 1)
    if rng.random() < 0.3:  # many surfaces have little contrast in themselves
        picture = picture.mean() + np.float32(rng.uniform(0.05, 0.5)) * (picture - picture.mean())
    if rng.random() < 0.35:
        grey = picture @ np.array([0.299, 0.587, 0.114], np.float32)
        picture = np.repeat(grey[..., None], 3, axis=2)
    if rng.random() < 0.6:
        picture = _blur(picture, float(rng.uniform(0.4, 1.6)))
    drawn: Picture = np.clip(picture, 0, 1)
    return drawn


def dead_leaves(rng: Rng, size: int) -> Picture:
    """Opaque shapes, one over the other; the density of radii falls with their cube."""
    count = int(rng.integers(60, 400))
    smallest, largest = float(rng.uniform(2, 6)), float(rng.uniform(0.15, 0.5)) * size
    # Inverse of the distribution function of r^-3 between the two radii.
    share = rng.random(count)
    radii = (smallest**-2 - share * (smallest**-2 - largest**-2)) ** -0.5
    centres = rng.uniform(-0.1 * size, 1.1 * size, (count, 2))
    colours = _palette(rng, count)
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = colours[0]
    kind = rng.integers(0, 4)
    angles = rng.uniform(0, 180, count)
    squash = rng.uniform(0.3, 1, count) if rng.random() < 0.5 else np.ones(count)
    for k in np.argsort(-radii) if rng.random() < 0.5 else range(count):
        x, y = centres[k]
        r, colour = radii[k], colours[k].tolist()
        if kind == 0 or (kind == 3 and k % 2):
            axes = (max(1, round(r)), max(1, round(r * squash[k])))
            cv2.ellipse(picture, (round(x), round(y)), axes, angles[k], 0, 360, colour, -1)
        else:
            corners = 4 if kind == 1 else 3 + k % 5
            turn = np.deg2rad(angles[k]) + 2 * np.pi * np.arange(corners) / corners
            points = np.stack([x + r * np.cos(turn), y + r * squash[k] * np.sin(turn)], axis=1)
            cv2.fillConvexPoly(picture, np.rint(points).astype(np.int32), colour)
    return picture


def noise(rng: Rng, size: int) -> Picture:
    """Octaves of smooth noise whose amplitudes fall with frequency: a cloudy or grainy surface."""
    persistence = float(rng.uniform(0.3, 1.1))
    stretch = float(rng.choice([1, 1, 1, 2, 4, 8]))  # brushed and rolled surfaces
    field = np.zeros((size, size), np.float32)
    cells, amplitude, total = 2, 1.0, 0.0
    while cells <= size:
        across = max(2, round(cells / stretch))
        coarse = rng.standard_normal((cells, across), np.float32)
        octave = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        field += np.float32(amplitude) * octave
        total += amplitude**2
        amplitude *= persistence
        cells *= 2
    field *= np.float32(rng.uniform(0.08, 0.25) / total**0.5)
    if rng.random() < 0.5:
        field = np.ascontiguousarray(field.T)
    if rng.random() < 0.25:  # ridges: wood, veins, cast iron
        field = np.abs(field) * np.float32(2)
    return _tint(rng, np.float32(rng.uniform(0.25, 0.75)) + field)


def grating(rng: Rng, size: int) -> Picture:
    """A wave of any direction and shape, bent a little: milling marks, cloth, ribs."""
    y, x = _grid(size)
    wave = np.zeros((size, size), np.float32)
    for _ in range(rng.integers(1, 3)):
        angle = rng.uniform(0, np.pi)
        period = float(np.exp(rng.uniform(np.log(3), np.log(60))))
        phase = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period)
        bend = np.sin((np.cos(angle) * y - np.sin(angle) * x) * rng.uniform(0, 0.1))
        phase += rng.uniform(0, 6.3) + rng.uniform(0, 2) * bend
        part = np.sin(phase).astype(np.float32)
        if rng.random() < 0.4:
            part = np.tanh(np.float32(rng.uniform(1, 8)) * part)
        wave += part
    return _tint(rng, np.float32(0.5) + np.float32(rng.uniform(0.05, 0.35)) * wave)


def tracks(rng: Rng, size: int) -> Picture:
    """Two tones: lines with corners, pads and holes, as on circuit boards and printed film."""
    low, high = np.sort(rng.uniform(0, 1, 2))
    picture = np.zeros((size, size), np.float32)
    pitch = int(rng.integers(6, 28))
    width = max(1, round(pitch * rng.uniform(0.2, 0.7)))
    for _ in range(rng.integers(6, 30)):
        point = rng.integers(0, size // pitch + 1, 2) * pitch
        points = [point]
        for _ in range(rng.integers(1, 6)):
            step = int(rng.integers(1, 8)) * pitch
            direction = DIRECTIONS[rng.integers(0, len(DIRECTIONS))]
            points.append(points[-1] + step * direction)
        ink = 1.0 if rng.random() < 0.85 else 0.0
        line = np.array(points, np.int32)
        cv2.polylines(picture, [line], False, ink, width)
        if rng.random() < 0.6:
            for x, y in (line[0].tolist(), line[-1].tolist()):
                radius = round(width * rng.uniform(0.8, 1.8))
                cv2.circle(picture, (x, y), radius, 1.0, -1)
                if rng.random() < 0.5 and radius > 3:
                    cv2.circle(picture, (x, y), radius // 2, 0.0, -1)
    if rng.random() < 0.5:
        for x, y in rng.integers(0, size, (int(rng.integers(1, 6)), 2)).tolist():
            side = rng.integers(4, 50, 2).tolist()
            cv2.rectangle(
                picture, (x, y), (x + side[0], y + side[1]), float(rng.random() < 0.7), -1
            )
    if rng.random() < 0.3:
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(rng.uniform(0, 360)), 1.2)
        picture[:] = cv2.warpAffine(picture, turn, (size, size), borderMode=cv2.BORDER_REFLECT)
    if rng.random() < 0.5:
        picture = 1 - picture
    return _tint(rng, np.float32(low) + np.float32(high - low) * picture)


def strokes(rng: Rng, size: int) -> Picture:
    """Thin lines on a plain or cloudy ground: scratches, fibres, grinding."""
    picture = noise(rng, size) if rng.random() < 0.6 else plain(rng, size)
    base = float(rng.uniform(0, np.pi))
    spread = float(rng.choice([0.05, 0.3, 3.0]))
    for _ in range(rng.integers(5, 120)):
        x, y = rng.uniform(0, size, 2)
        angle = base + rng.normal() * spread
        length = np.exp(rng.uniform(np.log(4), np.log(size)))
        bow = rng.normal(scale=0.15) * length
        t = np.linspace(-0.5, 0.5, 8)
        along, aside = t * length, bow * (0.25 - t**2)
        points = np.stack(
            [
                x + along * np.cos(angle) - aside * np.sin(angle),
                y + along * np.sin(angle) + aside * np.cos(angle),
            ],
            axis=1,
        )
        at = picture[int(y) % size, int(x) % size]
        colour = (at + rng.normal(scale=0.25)).tolist()
        cv2.polylines(
            picture, [np.rint(points).astype(np.int32)], False, colour, int(rng.integers(1, 4))
        )
    return picture


def lettering(rng: Rng, size: int) -> Picture:
    """Printed or engraved characters in several sizes."""
    picture = noise(rng, size) if rng.random() < 0.5 else plain(rng, size)
    for _ in range(rng.integers(2, 12)):
        text = "".join(rng.choice(list(CHARACTERS), rng.integers(1, 9)))
        x, y = rng.integers(-20, size, 2).tolist()
        scale, thickness = float(rng.uniform(0.3, 2.5)), int(rng.integers(1, 5))
        # OpenCV 5 writes on 8-bit pictures alone, and looks antialiased there.
        ink = np.zeros((size, size), np.uint8)
        cv2.putText(ink, text, (x, y), int(rng.integers(0, 8)), scale, 255, thickness)
        colour = rng.uniform(0, 1, 3).astype(np.float32)
        picture += (ink[..., None] / np.float32(255)) * (colour - picture)
    return picture


def specks(rng: Rng, size: int) -> Picture:
    """Grains, pores and dots on a ground, scattered or in a grid."""
    picture = noise(rng, size) if rng.random() < 0.5 else plain(rng, size)
    if rng.random() < 0.4:
        pitch = int(rng.integers(6, 32))
        grid = np.arange(pitch // 2, size, pitch)
        crossings = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        centres = crossings + rng.normal(scale=rng.choice([0, 0.5, 2]), size=crossings.shape)
        radii = np.full(len(centres), float(rng.uniform(1, pitch / 2)))
    else:
        centres = rng.uniform(0, size, (int(rng.integers(20, 400)), 2))
        radii = rng.uniform(0.5, rng.uniform(1, 6), len(centres))
    shade = rng.normal(scale=0.3)
    colour = (picture.mean(axis=(0, 1)) + shade).tolist()
    for (x, y), radius in zip(np.rint(centres).astype(int).tolist(), radii, strict=True):
        cv2.circle(picture, (x, y), round(radius), colour, -1)
    return picture


def plain(rng: Rng, size: int) -> Picture:
    """One tone with a gradient."""
    y, x = _grid(size)
    slope = rng.normal(scale=0.25, size=2) / size
    field = slope[0] * (x - size / 2) + slope[1] * (y - size / 2)
    return _tint(rng, (rng.uniform(0.05, 0.95) + field).astype(np.float32))


LAYERS: tuple[tuple[Callable[[Rng, int], Picture], float], ...] = (
    (dead_leaves, 4),
    (noise, 4),
    (tracks, 3),
    (grating, 2),
    (strokes, 2),
    (specks, 2),
    (plain, 1.5),
    (lettering, 1),
)
"""What `draw` draws, and how often in relation to each other."""

DIRECTIONS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)])
CHARACTERS = "ABCDEFGHKLMNPRSTUVXYZ0123456789-/.+#"


def photograph(rng: Rng, picture: Picture, *, sharp: bool = False) -> NDArray[np.uint8]:
    """The picture as a camera takes it under one light: uint8, the same shape.

    Brightness, contrast, gamma, a gradient of the light, colour cast, a little blur (not when
    `sharp`) and sensor noise differ from call to call. What is where does not.
    """
    size = picture.shape[:2]
    shot = picture
    if rng.random() < 0.3 and not sharp:
        shot = _blur(shot, float(rng.uniform(0.3, 0.8)))
    shot = np.clip(shot, 0, 1) ** np.float32(np.exp(rng.normal(scale=0.2)))
    shot = shot * np.float32(np.exp(rng.normal(scale=0.2)))
    shot = shot + np.float32(rng.normal(scale=0.05))
    if rng.random() < 0.5:
        corners = np.exp(rng.normal(scale=0.12, size=(2, 2))).astype(np.float32)
        light = cv2.resize(corners, size[::-1], interpolation=cv2.INTER_LINEAR)
        shot = shot * (light[..., None] if shot.ndim == 3 else light)
    if rng.random() < 0.3 and shot.ndim == 3:
        shot = shot * np.exp(rng.normal(scale=0.06, size=3)).astype(np.float32)
    level = np.float32(np.exp(rng.uniform(np.log(0.002), np.log(0.03))))
    grain = rng.standard_normal(shot.shape if rng.random() < 0.5 else size, np.float32)
    shot = shot + level * (grain if grain.ndim == shot.ndim else grain[..., None])
    return np.rint(np.clip(shot, 0, 1) * 255).astype(np.uint8)


def _palette(rng: Rng, count: int) -> Picture:
    """`count` colours, either any or around one tone."""
    if rng.random() < 0.5:
        grey = rng.uniform(0, 1, (count, 1))
        spread = rng.uniform(0, 0.3)
    else:
        grey = np.full((count, 1), rng.uniform(0.2, 0.8)) + rng.normal(scale=0.1, size=(count, 1))
        spread = rng.uniform(0, 0.15)
    colours = np.clip(grey + rng.normal(scale=spread, size=(count, 3)), 0, 1)
    return colours.astype(np.float32)


def _tint(rng: Rng, field: NDArray[np.float32]) -> Picture:
    """A grey field (H, W) in one hue, or running between two colours."""
    if rng.random() < 0.5:
        cast = 1 + rng.normal(scale=0.12, size=3)
        return field[..., None] * cast.astype(np.float32)
    ends = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    tinted: Picture = ends[0] + field[..., None] * (ends[1] - ends[0])
    return tinted


def _mask(rng: Rng, size: int) -> Picture:
    """(size, size, 1) in 0..1: a half plane, a disc or clouds."""
    y, x = _grid(size)
    field: Picture
    kind = rng.integers(0, 3)
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        field = np.cos(angle) * (x - size / 2) + np.sin(angle) * (y - size / 2)
    elif kind == 1:
        cx, cy = rng.uniform(0, size, 2)
        field = np.hypot(x - cx, y - cy) - rng.uniform(0.1, 0.6) * size
    else:
        coarse = rng.standard_normal((6, 6), np.float32)
        clouds = cv2.resize(20 * coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        field = np.asarray(clouds, np.float32)
    softness = float(np.exp(rng.uniform(np.log(0.5), np.log(20))))
    mask: Picture = np.clip(field / softness + 0.5, 0, 1).astype(np.float32)
    return mask[..., None]


def _grid(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    axis = np.arange(size, dtype=np.float32)
    return axis[:, None], axis[None, :]


def _blur(picture: Picture, sigma: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
