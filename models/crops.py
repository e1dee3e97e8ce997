"""Random crops of tiles for the student, some of them with drawn defects, and what to ask there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from models.augment import Augmentation, augmented
from models.defects import Spoil, spoil
from models.tiles import TileSet, cells_hw, pixels_of
from models.variants import MARGIN_PX, RECEPTIVE_FIELD_PX, STRIDE

GOOD, UNSURE = 0, -1
"""States of a cell: repeat the teacher; nothing is asked. k > 0: drawn defect k can be seen."""
GATHERED_PER_PX, SCATTERED_PER_PX = 3 / 128**2, 4 / 256**2
"""Drawn defects: see `gathered` and `scattered`."""
SPECKS = 3
"""Defects too small to matter, beside the others."""
NEAR_PX = 4
"""A drawn defect this close to a cell's centre is the cell's own."""
REMEMBERED = 128
"""Places with the highest good map values so far."""
REVISIT_PX = 8
"""A place is seen again shifted by up to so much."""
NO_AUGMENTATION = Augmentation()
_NUMBERS = 1000
"""More than defects in a crop."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of one size."""

    pixels: torch.Tensor
    """uint8 [n, h, w, C]"""
    cells: torch.Tensor
    """int64 [n, rows, columns]: GOOD, UNSURE or the number of a defect, unlike all others'."""
    numbers: list[int]
    """Which of the batch's crops these are."""


@dataclass(frozen=True, slots=True)
class Place:
    """The upper left pixel of a crop in a tile's cut."""

    tile: int
    top: int
    left: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops, grouped by size, and where they are from."""

    groups: list[Crops]
    drawn: list[tuple[Place, bool]]
    """Each crop's place before it was shifted, and whether it has drawn defects."""


Counts = Callable[[np.random.Generator, int], tuple[int, int]]
"""By the pixels of a crop: how many defects and specks to draw into it."""


def gathered(share: float) -> Counts:
    """Many in `share` of the crops, none in the others: for who sees one place at a time."""

    def counts(rng: np.random.Generator, area: int) -> tuple[int, int]:
        if rng.random() >= share:
            return 0, 0
        return max(1, round(GATHERED_PER_PX * area)), SPECKS

    return counts


def scattered(rng: np.random.Generator, area: int) -> tuple[int, int]:
    """Each place as likely as any other, whatever is elsewhere (a Poisson process): for who sees
    far. Else it learns that a lone faint mark is good, since defects come in company."""
    return int(rng.poisson(SCATTERED_PER_PX * area)), int(rng.integers(0, 2 * SPECKS + 1))


class CropSource:
    """Draws batches of crops, and comes back to places that are hard to learn.

    Crops lie anywhere, in the tiles' real surroundings too; each pixel counts alike, however small
    its image. Crops of tiles smaller than `crop_px` have the tile's size. Rare but good structure
    (a label's corner, a print) would be met too seldom at random, and then decide the threshold:
    `revisited` of the crops are drawn from the places where `report` was given the highest values.
    counts: how many defects and specks each crop gets. fades: what is left of a hard place's value
    when it was seen with drawn defects, which may have covered it. short_px: crops that end where
    their tile does, below or at the right, may be smaller by up to so much.
    """

    def __init__(
        self,
        tiles: TileSet,
        rng: np.random.Generator,
        *,
        batch: int,
        crop_px: int,
        counts: Counts,
        revisited: float,
        fades: float = 1.0,
        short_px: int = 0,
        augmentation: Augmentation = NO_AUGMENTATION,
        draw_defects: Spoil = spoil,
    ) -> None:
        self._tiles, self._rng = tiles, rng
        self._batch, self._crop_px, self._short_px = batch, crop_px, short_px
        self._counts, self._revisited, self._fades = counts, revisited, fades
        self._augmentation = augmentation
        self._spoil = draw_defects
        areas = tiles.shapes[:, 0] * tiles.shapes[:, 1]
        self._shares = areas / areas.sum()
        self._hardest: dict[Place, float] = {}

    def draw(self) -> Batch:
        """The next batch."""
        drawn: list[tuple[Place, bool]] = []
        groups: dict[tuple[int, ...], list[tuple[NDArray[np.uint8], NDArray[np.int64], int]]] = {}
        for number in range(self._batch):
            place, at = self._choose()
            crop, inspected = self._crop(at)
            defects, specks = self._counts(self._rng, crop.shape[0] * crop.shape[1])
            pixels, cells = spoiled_crop(crop, self._rng, defects, specks, draw_defects=self._spoil)
            cells[cells > 0] += _NUMBERS * number
            cells[~inspected] = UNSURE
            groups.setdefault(crop.shape, []).append((pixels, cells, number))
            drawn.append((place, defects > 0))
        crops = [
            Crops(
                torch.from_numpy(np.stack([pixels for pixels, _, _ in group])),
                torch.from_numpy(np.stack([cells for _, cells, _ in group])),
                [number for _, _, number in group],
            )
            for group in groups.values()
        ]
        return Batch(crops, drawn)

    def report(self, batch: Batch, highest: Sequence[float]) -> None:
        """The highest map value on good cells of each crop of a batch, in its order."""
        for (place, marred), value in zip(batch.drawn, highest, strict=True):
            before = self._fades * self._hardest.get(place, 0.0) if marred else 0.0
            self._hardest[place] = max(value, before)
        ranked = sorted(self._hardest.items(), key=lambda item: -item[1])
        self._hardest = dict(ranked[:REMEMBERED])

    def remembered(self) -> list[list[float]]:
        """The hard places as plain numbers, for a state on disk."""
        return [[p.tile, p.top, p.left, value] for p, value in self._hardest.items()]

    def remember(self, places: Sequence[Sequence[float]]) -> None:
        """Take up what `remembered` gave."""
        self._hardest = {
            Place(int(tile), int(top), int(left)): value for tile, top, left, value in places
        }

    def _crop(self, at: Place) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Pixels and which cells count of what lies at `at`, perhaps mirrored, turned or relit."""
        tile = self._tiles[at.tile]
        rest = (side - begin for side, begin in zip(tile.shape[:2], (at.top, at.left), strict=True))
        rows, columns = cells_hw(*(min(self._crop_px, side) for side in rest))
        height, width = pixels_of(rows), pixels_of(columns)
        crop = tile[at.top : at.top + height, at.left : at.left + width]
        inspected = self._tiles.inspected_cells(at.tile, at.top, at.left, (rows, columns))
        if not self._augmentation.any:
            return crop, inspected
        return augmented(crop, inspected, self._augmentation, self._rng)

    def _choose(self) -> tuple[Place, Place]:
        """A place, and where exactly to look this time."""
        if self._hardest and self._rng.random() < self._revisited:
            values = np.array(list(self._hardest.values())) + 1e-9
            place = list(self._hardest)[self._rng.choice(len(values), p=values / values.sum())]
            shift = self._rng.integers(-REVISIT_PX, REVISIT_PX + 1, 2)
        else:
            index = int(self._rng.choice(len(self._tiles), p=self._shares))
            place = Place(index, *(self._origin(room) for room in self._rooms(index)))
            shift = np.zeros(2, np.int64)
        top, left = (
            min(max(at + int(by), 0), room)
            for at, by, room in zip(
                (place.top, place.left), shift, self._rooms(place.tile), strict=True
            )
        )
        return place, Place(place.tile, top, left)

    def _origin(self, room: int) -> int:
        """Where a crop begins that has `room` to move: beyond either end means at the end.

        Else the cells at the sides of a tile, and with them a frame's border, were hardly ever met.
        """
        reach, whole = self._crop_px // 2, max(0, room - self._short_px)
        at = max(int(self._rng.integers(-reach, whole + reach + 1)), 0)
        if at <= whole or room == whole:
            return min(at, whole)
        return int(self._rng.integers(whole, room + 1))

    def _rooms(self, tile: int) -> tuple[int, int]:
        """How far down and right a crop of the tile may begin."""
        height, width = (
            side - self._crop_px + self._short_px if side > self._crop_px else 0
            for side in map(int, self._tiles.shapes[tile, :2])
        )
        return height, width


def spoiled_crop(
    crop: NDArray[np.uint8],
    rng: np.random.Generator,
    defects: int,
    specks: int = SPECKS,
    draw_defects: Spoil = spoil,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The crop with drawn defects, and each cell's state."""
    rows, columns = cells_hw(crop.shape[0], crop.shape[1])
    cells: NDArray[np.int64] = np.full((rows, columns), GOOD, np.int64)
    if not defects + specks:
        return crop, cells
    scene = crop[..., 0] if crop.shape[2] == 1 else crop
    marred, where = draw_defects(
        rng, np.asarray(scene / np.float32(255), np.float32), defects, specks=specks
    )
    cells[_centres(where != 0, RECEPTIVE_FIELD_PX // 2, rows, columns) > 0] = UNSURE
    own = _centres(np.maximum(where, 0), NEAR_PX, rows, columns)
    cells[own > 0] = own[own > 0]
    return np.rint(marred * 255).astype(np.uint8).reshape(crop.shape), cells


def _centres(
    pixels: NDArray[np.int16] | NDArray[np.bool_], reach: int, rows: int, columns: int
) -> NDArray[np.uint16]:
    """The highest value within `reach` pixels of each cell's centre."""
    seen = cv2.dilate(pixels.astype(np.uint16), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    return np.asarray(seen, np.uint16)[MARGIN_PX::STRIDE, MARGIN_PX::STRIDE][:rows, :columns]
