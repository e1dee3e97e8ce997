"""A picture of what a detector learns from: frames with their tiles, learnt or left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.images import read_image
from models.masks import object_finder
from models.settings import TrainingSettings
from models.tiles import Tile, kept_tiles, what_counts

FRAMES = 12
COLUMNS = 4
SIDE_PX = 360
LEARNT, LEFT_OUT, OUTLINE = (60, 200, 60), (230, 60, 60), (255, 200, 0)
"""RGB."""


def montage(
    paths: Sequence[Path],
    settings: TrainingSettings,
    inspected: NDArray[np.bool_] | None = None,
    *,
    frames: int = FRAMES,
) -> NDArray[np.uint8]:
    """Up to `frames` of the images, evenly chosen, as RGB (H, W, 3).

    Tiles that are learnt from have a green frame, those left out are crossed out in red; the
    yellow line goes around what counts (the object, the inspected zones).
    """
    find_object = object_finder(settings.mask, settings.mask_threshold, paths)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(frames, len(paths))).astype(int))
    pictures = []
    for index in chosen.tolist():
        frame = read_image(paths[index], 3)
        counted = what_counts(frame, inspected, find_object)
        scale = settings.scales[0]
        tiles = kept_tiles(
            frame,
            counted,
            tile=settings.tile * scale,
            stride=settings.stride * scale or None,
            incomplete=settings.incomplete,
            least=settings.least_object,
        )
        pictures.append(_picture(frame, counted, tiles))
    columns = min(COLUMNS, len(pictures))
    blank = np.zeros_like(pictures[0])
    pictures += [blank] * (-len(pictures) % columns)
    rows = [np.hstack(pictures[k : k + columns]) for k in range(0, len(pictures), columns)]
    return np.asarray(np.vstack(rows), np.uint8)


def _picture(
    frame: NDArray[np.uint8],
    counted: NDArray[np.bool_] | None,
    tiles: Sequence[tuple[Tile, bool]],
) -> NDArray[np.uint8]:
    height, width = frame.shape[:2]
    shrink = (SIDE_PX - 8) / max(height, width)
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    how = cv2.INTER_AREA if shrink < 1 else cv2.INTER_NEAREST
    small = np.asarray(cv2.resize(frame, size, interpolation=how), np.uint8)
    if counted is not None:
        edges, _ = cv2.findContours(
            cv2.resize(counted.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST),
            cv2.RETR_LIST,
            cv2.CHAIN_APPROX_NONE,
        )
        cv2.drawContours(small, edges, -1, OUTLINE, 1)
    for tile, kept in tiles:
        left, top = round(tile.left * shrink) + 1, round(tile.top * shrink) + 1
        right = round((tile.left + tile.width) * shrink) - 2
        bottom = round((tile.top + tile.height) * shrink) - 2
        cv2.rectangle(small, (left, top), (right, bottom), LEARNT if kept else LEFT_OUT, 1)
        if not kept:
            cv2.line(small, (left, top), (right, bottom), LEFT_OUT, 1)
            cv2.line(small, (left, bottom), (right, top), LEFT_OUT, 1)
    picture = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    picture[: small.shape[0], : small.shape[1]] = small
    return picture
