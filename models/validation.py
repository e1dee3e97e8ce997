"""How good a student is on the way: AUROC over images that it is not trained on.

With defective images: of full-size good ones against them, by the map's maximum. Without: drawn
defects (pasted pieces, scratches, spots; `models.defects`) on held-out good images, each defect's
peak against the peaks of the same crops as they are. Drawn ones are easier than real ones, so only
the order of two students counts, not the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.compute import compute_type
from models.crops import GOOD, spoiled_crop
from models.efficientad import StudentTeacher
from models.errors import DataError
from models.images import read_image
from models.masks import FindObject
from models.settings import TrainingSettings
from models.shrink import shrunk
from models.tiles import (
    TileSet,
    build_tiles,
    cells_hw,
    cut,
    pad_frame,
    pixels_of,
    tile_grid,
)
from models.variants import MARGIN_PX, STRIDE

MOST_IMAGES = 50
"""Of each kind: a validation must not take longer than the training."""
SYNTHETIC_CROPS = 24
SYNTHETIC_PX = 253
"""56 cells: 4 n + 29."""
DEFECTS_PER_CROP = 3
PIECE_PX = 768


@dataclass(frozen=True, slots=True)
class ValidationImages:
    """Full-size images that nothing is learnt from and no threshold is set by."""

    good: Sequence[Path]
    bad: Sequence[Path]


Validate = Callable[[StudentTeacher], float]


@dataclass(frozen=True, slots=True)
class DrawnCrop:
    """A padded crop uint8 (rows, columns, C) before and after defects were drawn into it."""

    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    cells: NDArray[np.int64]
    """(h, w): k > 0 where defect k can be seen."""
    counted: NDArray[np.bool_]
    """(h, w): what is inspected."""


def on_images(
    images: ValidationImages, scale: int, inspected: NDArray[np.bool_] | None, seed: int
) -> Validate:
    """AUROC of whole images, at most 50 good and 50 defective ones, drawn by the seed."""
    good, bad = (_some(paths, seed) for paths in (images.good, images.bad))
    check_sizes([*good, *bad], inspected)

    def validate(model: StudentTeacher) -> float:
        peaks = [
            [image_peak(model, path, scale, inspected) for path in paths] for paths in (good, bad)
        ]
        return auroc(np.array(peaks[0]), np.array(peaks[1]))

    return validate


def check_sizes(paths: Sequence[Path], inspected: NDArray[np.bool_] | None) -> None:
    """Raise `DataError` for an image of another size than the mask of what is inspected."""
    for path in paths if inspected is not None else []:
        height, width = read_image(path).shape[:2]
        if inspected is not None and (height, width) != inspected.shape:
            raise DataError(
                f"{path}: {width}x{height} found, expected {inspected.shape[1]}x"
                f"{inspected.shape[0]} as the mask of what is inspected"
            )


def drawn_crops(
    held_out: Sequence[Path],
    channels: int,
    scale: int,
    settings: TrainingSettings,
    *,
    inspected: NDArray[np.bool_] | None = None,
    find_object: FindObject | None = None,
    cache_dir: Path | None = None,
) -> list[DrawnCrop]:
    """At most 24 crops of held-out good images; the same each time.

    inspected, find_object, cache_dir: as of `build_tiles`, which cuts them.
    """
    tiles = build_tiles(
        held_out,
        channels,
        scale=scale,
        inspected=inspected,
        min_inspected=settings.least_object,
        find_object=find_object,
        cache_dir=cache_dir,
    )
    return _drawn(tiles, np.random.default_rng([settings.seed, 3]))


def on_drawn_defects(crops: Sequence[DrawnCrop]) -> Validate:
    """AUROC of drawn defects among good crops."""

    def validate(model: StudentTeacher) -> float:
        good, bad = [], []
        for crop in crops:
            plain, marred = (_raw_map(model, pixels) for pixels in (crop.before, crop.after))
            good.append(float(plain[crop.counted].max()))
            numbers = np.unique(crop.cells[crop.cells > GOOD])
            bad += [float(marred[crop.cells == number].max()) for number in numbers]
        return auroc(np.array(good), np.array(bad))

    return validate


def auroc(good: NDArray[np.float64], bad: NDArray[np.float64]) -> float:
    """Share of pairs in which the bad one is higher; ties count half. 0.5 without pairs."""
    if not good.size or not bad.size:
        return 0.5
    ranked = np.sort(good)
    below = np.searchsorted(ranked, bad, "left") + np.searchsorted(ranked, bad, "right")
    return float(below.mean() / 2 / len(ranked))


def _drawn(tiles: TileSet, rng: np.random.Generator) -> list[DrawnCrop]:
    crops: list[DrawnCrop] = []
    for index in rng.permutation(len(tiles))[:SYNTHETIC_CROPS].tolist():
        tile = tiles[index]
        rows, columns = cells_hw(*(min(SYNTHETIC_PX, side) for side in tile.shape[:2]))
        crop = tile[: pixels_of(rows), : pixels_of(columns)].copy()  # the tiles are let go
        counted = tiles.inspected_cells(index, 0, 0, (rows, columns))
        marred, cells = spoiled_crop(crop, rng, DEFECTS_PER_CROP)
        cells[~counted] = GOOD
        if counted.any():
            crops.append(DrawnCrop(crop, marred, cells, counted))
    return crops


def image_peak(
    model: StudentTeacher,
    path: Path,
    scale: int = 1,
    inspected: NDArray[np.bool_] | None = None,
    piece_px: int = PIECE_PX,
) -> float:
    """The map's maximum where inspected; in pieces, so that memory does not grow with the image."""
    frame = shrunk(read_image(path, model.in_channels), scale)
    padded = pad_frame(frame, MARGIN_PX)
    peak = 0.0
    for tile in tile_grid(frame.shape[0], frame.shape[1], piece_px):
        raw_map = _raw_map(model, cut(padded, tile))
        if inspected is not None:
            step = scale * STRIDE
            raw_map = raw_map[inspected[::step, ::step][tile.cells]]
        peak = max(peak, float(raw_map.max(initial=0.0)))
    return peak


@torch.no_grad()
def _raw_map(model: StudentTeacher, padded: NDArray[np.uint8]) -> NDArray[np.float32]:
    device = next(model.parameters()).device
    half = compute_type(device)
    with torch.autocast(device.type, half, enabled=half != torch.float32):
        x = model.normalise(torch.from_numpy(np.array(padded)[None]).to(device))
        raw_map = model.raw_map(x).float()[0]
    found: NDArray[np.float32] = raw_map.cpu().numpy()
    return found


def _some(paths: Sequence[Path], seed: int) -> list[Path]:
    chosen = np.random.default_rng([seed, 4]).permutation(len(paths))[:MOST_IMAGES]
    return [paths[k] for k in sorted(chosen.tolist())]
