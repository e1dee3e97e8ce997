"""Random crops of tiles for the student, some of them with drawn defects, and what to ask there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.procedural import spoil
from models.tiles import TileSet, cells_hw
from models.variants import MARGIN_PX, RECEPTIVE_FIELD_PX, STRIDE

GOOD, UNSURE, SPOILED = 0, 1, 2
"""States of a cell: repeat the teacher; nothing is asked; keep away from the teacher."""
DEFECTS_PER_PX = 3 / 128**2
NEAR_PX = 4
"""A drawn defect this close to a cell's centre is the cell's own."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of one size."""

    pixels: torch.Tensor
    """uint8 [n, h, w, C]"""
    cells: torch.Tensor
    """uint8 [n, rows, columns]: GOOD, UNSURE or SPOILED."""


def random_crops(
    tiles: TileSet, rng: np.random.Generator, *, steps: int, batch: int, crop_px: int, share: float
) -> Iterator[list[Crops]]:
    """For every step its crops, grouped by size; `share` of them with drawn defects.

    Crops lie anywhere, in the tiles' real surroundings too; each pixel counts alike, however small
    its image. Crops of tiles smaller than `crop_px` have the tile's size.
    """
    areas = tiles.shapes[:, 0] * tiles.shapes[:, 1]
    shares = areas / areas.sum()
    for _ in range(steps):
        by_shape: dict[tuple[int, ...], list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]] = {}
        for index in rng.choice(len(tiles), batch, p=shares):
            tile = tiles[int(index)]
            rows, columns = (min(crop_px, side) for side in tile.shape[:2])
            top = int(rng.integers(0, tile.shape[0] - rows + 1))
            left = int(rng.integers(0, tile.shape[1] - columns + 1))
            crop = tile[top : top + rows, left : left + columns]
            defects = DEFECTS_PER_PX * rows * columns * (rng.random() < share)
            pixels, cells = spoiled(crop, rng, max(1, round(defects)) if defects else 0)
            cells[~tiles.inspected_cells(int(index), top, left, cells.shape)] = UNSURE
            by_shape.setdefault(crop.shape, []).append((pixels, cells))
        yield [
            Crops(*(torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True)))
            for pairs in by_shape.values()
        ]


def spoiled(
    crop: NDArray[np.uint8], rng: np.random.Generator, defects: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The crop with drawn defects, and which cells see them: GOOD, UNSURE or SPOILED."""
    rows, columns = cells_hw(crop.shape[0], crop.shape[1])
    cells: NDArray[np.uint8] = np.full((rows, columns), GOOD, np.uint8)
    if not defects:
        return crop, cells
    scene = crop[..., 0] if crop.shape[2] == 1 else crop
    marred, taken = spoil(rng, np.asarray(scene / np.float32(255), np.float32), defects)
    touched = (taken > 0).astype(np.uint8)
    visible = (taken == 1).astype(np.uint8)
    for mask, reach, state in (
        (touched, RECEPTIVE_FIELD_PX // 2, UNSURE),
        (visible, NEAR_PX, SPOILED),
    ):
        seen = cv2.dilate(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
        centres = seen[MARGIN_PX::STRIDE, MARGIN_PX::STRIDE][:rows, :columns]
        cells[centres > 0] = state
    return np.rint(marred * 255).astype(np.uint8).reshape(crop.shape), cells
