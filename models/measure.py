"""What is measured on good images: the teacher's channel statistics, and the map's quantiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.efficientad import Detector, StudentTeacher
from models.errors import DataError
from models.images import read_image
from models.masks import FindObject
from models.settings import TrainingSettings
from models.tiles import Tile, TileSet, kept_tiles, pad_frame, what_counts
from models.variants import FRAME_MARGIN_PX, STRIDE

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""
MAX_STATISTICS_TILES = 256
MAX_QUANTILE_TILES = 64
MAX_QUANTILE_VALUES = 1 << 22


@torch.inference_mode()
def measure_teacher(model: StudentTeacher, tiles: TileSet, seed: int, report: Progress) -> None:
    """Set `feature_mean` and `feature_std` to those of the teacher over the training tiles.

    Each tile's mean and squared deviations from it, in float64, merged exactly (Chan, Golub and
    LeVeque 1979). Of all tiles; of more than 256, so many of them, drawn by the seed.
    """
    count = 0
    device = model.feature_mean.device
    mean = torch.zeros(model.feature_mean.shape, dtype=torch.float64, device=device)
    squares = torch.zeros_like(mean)
    chosen = some(len(tiles), MAX_STATISTICS_TILES, seed)
    for done, index in enumerate(chosen, start=1):
        counted = torch.from_numpy(tiles.inspected_cells(int(index)))
        if not bool(counted.any()):
            continue
        x = model.normalise(as_batch(tiles[index]).to(device))
        features = model.teacher(x)[0, :, counted.to(device)].double()
        cells, tile_mean = features.shape[1], features.mean(dim=1)
        gap = tile_mean - mean
        squares += ((features - tile_mean[:, None]) ** 2).sum(dim=1)
        squares += gap**2 * (count * cells / (count + cells))
        mean += gap * (cells / (count + cells))
        count += cells
        report("measure teacher", done, len(chosen))
    if not count:
        raise DataError(
            "tiles of which nothing is inspected found, expected some that are: look at the mask, "
            "or raise least_object"
        )
    deviation = (squares / count).sqrt()
    if not bool(torch.isfinite(deviation).all()) or float(deviation.max()) == 0.0:
        raise DataError(
            "a teacher whose outputs do not vary over the good images found, expected textured "
            "images: are they all of one flat tone?"
        )
    model.feature_mean.copy_(mean)
    # A channel that hardly varies on good images must not turn rounding into anomalies.
    model.feature_std.copy_(deviation.clamp_min(0.05 * float(deviation.median())))


@torch.inference_mode()
def map_quantiles(
    model: Detector,
    images: Sequence[Path],
    inspected: NDArray[np.bool_] | None,
    settings: TrainingSettings,
    report: Progress,
    *,
    find_object: FindObject | None = None,
) -> tuple[float, float]:
    """The local map's values at `q_a` and `q_b` over tiles of held-out images, where inspected.

    find_object: tiles with too little of it count as little as in training; None: all count. At
    most 64 tiles and 2^22 values, as many of each, drawn by the seed.
    """
    device = next(model.parameters()).device
    places = []
    for path in images:
        frame = read_image(path, model.in_channels)
        counted = None if find_object is None else what_counts(frame, inspected, find_object)
        for tile, kept in kept_tiles(
            frame,
            counted,
            tile=settings.tile,
            stride=None,
            incomplete="shifted",
            least=settings.least_object,
        ):
            if kept and _inspected_cells(inspected, tile).any():
                places.append((path, tile))
    if not places:
        raise DataError(
            "held-out images of which nothing is inspected found, expected tiles as those learnt "
            "from: look at the mask, or hold out more"
        )
    chosen = some(len(places), MAX_QUANTILE_TILES, settings.seed)
    maps, at_hand = [], None
    for done, index in enumerate(chosen, start=1):
        path, tile = places[index]
        cells = _inspected_cells(inspected, tile)
        if path != at_hand:  # in rising order: one image's tiles follow one another
            padded = pad_frame(read_image(path, model.in_channels), FRAME_MARGIN_PX)
            at_hand = path
        both = 2 * FRAME_MARGIN_PX
        rows, columns = tile.top + tile.height + both, tile.left + tile.width + both
        piece = as_batch(padded[tile.top : rows, tile.left : columns])
        values = model.local_map(piece.to(device))[0].cpu().numpy()[cells]
        maps.append(values[some(values.size, MAX_QUANTILE_VALUES // len(chosen), settings.seed)])
        report("measure quantiles", done, len(chosen))
    values = np.concatenate(maps)
    low, high = np.quantile(values, [settings.q_a, settings.q_b])
    return float(low), float(high)


def _inspected_cells(inspected: NDArray[np.bool_] | None, tile: Tile) -> NDArray[np.bool_]:
    rows, columns = (slice(place.start, place.stop) for place in tile.cells)
    if inspected is None:
        return np.ones((rows.stop - rows.start, columns.stop - columns.start), np.bool_)
    return inspected[::STRIDE, ::STRIDE][rows, columns]


def as_batch(tile: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.array(tile)[None])  # a copy: torch wants to own writable memory


def some(total: int, at_most: int, seed: int) -> NDArray[np.int64]:
    """All indices, or `at_most` of them by the seed, in rising order."""
    if total <= at_most:
        return np.arange(total)
    rng = np.random.default_rng([seed, 2])
    return np.sort(rng.choice(total, at_most, replace=False))
