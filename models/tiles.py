"""Tiles of good frames, cut with their real surroundings, and their cache on disk.

1. `tile_grid` lays tiles over a frame. Origins are multiples of the map's stride, so that a tile's
   map is exactly a piece of the frame's map.
2. `cut` takes a tile out of a padded frame: 4 n + 29 px for n cells, which is all that the cells
   see (285 of the 288 px of a tile of 256 with its margins). Only at the frame's border is any of
   it a reflection: padding every tile would teach borders that no frame has.
3. `build_tiles` reads images, keeps the tiles that are inspected enough, and writes them one
   after the other into a file that is then mapped into memory. The cache's name is a hash of all
   that went in (names, sizes and times of the files, and the parameters); it is used again while
   nothing of that changed, and appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.images import read_image
from models.masks import FindObject
from models.shrink import shrunk
from models.variants import MARGIN_PX, RECEPTIVE_FIELD_PX, STRIDE, map_hw

FORMAT = 5
INCOMPLETE = ("shifted", "left_out")
"""What becomes of tiles that would end beyond the frame."""
DATA = "tiles.bin"
INDEX = "index.json"
Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of frame pixels: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int

    @property
    def cells(self) -> tuple[slice, slice]:
        """The part of the frame's map that is the tile's."""
        rows, columns = map_hw(self.height, self.width)
        top, left = self.top // STRIDE, self.left // STRIDE
        return slice(top, top + rows), slice(left, left + columns)


def pad_frame(frame: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """(H, W, C) -> (H + 2 margin, W + 2 margin, C): reflected, the border pixel not repeated."""
    return np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")


def tile_grid(
    height: int,
    width: int,
    tile: int = 256,
    stride: int | None = None,
    incomplete: str = "shifted",
) -> list[Tile]:
    """Tiles that cover every cell of the frame's map, row by row.

    tile, stride: frame pixels, multiples of 4; stride None: tiles side by side. The last row and
    column are shifted inwards, so all tiles have equally many cells; on a frame side that is no
    multiple of 4 the last ones are up to 3 px narrower (the cells are the same). incomplete
    `left_out`: there is no last row or column that would have to be shifted. A side shorter
    than a tile is taken whole. Raises `DataError` for sizes that cannot be tiled.
    """
    stride = tile if stride is None else stride
    if min(height, width) < RECEPTIVE_FIELD_PX:
        raise DataError(
            f"a frame of {width}x{height} found, expected at least "
            f"{RECEPTIVE_FIELD_PX}x{RECEPTIVE_FIELD_PX}"
        )
    if tile % STRIDE or stride % STRIDE or tile <= RECEPTIVE_FIELD_PX or not 0 < stride <= tile:
        raise DataError(
            f"tile {tile} and stride {stride} found, expected multiples of {STRIDE}, the tile "
            f"over {RECEPTIVE_FIELD_PX} and the stride not over the tile"
        )
    return [
        Tile(top, left, min(tile, height - top), min(tile, width - left))
        for top in _starts(height, tile, stride, incomplete)
        for left in _starts(width, tile, stride, incomplete)
    ]


def _starts(side: int, tile: int, stride: int, incomplete: str) -> list[int]:
    last = max(0, -(-(side - tile) // STRIDE) * STRIDE)
    before = [*range(0, last, stride)]
    shifted = bool(before) and last != before[-1] + stride
    return before if shifted and incomplete == "left_out" else [*before, last]


def cut(padded: NDArray[np.uint8], tile: Tile) -> NDArray[np.uint8]:
    """What the tile's cells see, out of the padded frame: (4 rows + 29, 4 columns + 29, C)."""
    rows, columns = map_hw(tile.height, tile.width)
    return padded[tile.top : tile.top + pixels_of(rows), tile.left : tile.left + pixels_of(columns)]


@dataclass(frozen=True, slots=True)
class TileSet:
    """Tiles one after the other in one flat array, which may be mapped from a file."""

    data: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    """(tiles, 3): height, width, channels of each cut."""
    offsets: NDArray[np.int64]
    image: NDArray[np.int64]
    """Which of the images each tile is from."""
    origins: NDArray[np.int64]
    """(tiles, 2): top and left of each tile in its frame."""
    inspected: NDArray[np.bool_] | None = None
    """(H, W) of the frames; None: everything."""

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        shape, start = self.shapes[index], int(self.offsets[index])
        return self.data[start : start + int(shape.prod())].reshape(shape)

    def inspected_cells(
        self, index: int, top: int = 0, left: int = 0, shape: tuple[int, int] | None = None
    ) -> NDArray[np.bool_]:
        """Which cells count of a crop at (top, left) of a tile's cut, by the pixels they centre on.

        shape: rows and columns of the crop's map; None: of the whole tile's.
        """
        if shape is None:
            height, width = (int(side) for side in self.shapes[index, :2])
            shape = cells_hw(height, width)
        if self.inspected is None:
            return np.ones(shape, np.bool_)
        # Cell (0, 0) of a cut is centred on the tile's first pixel: its margin is in the cut.
        rows = int(self.origins[index, 0]) + top + STRIDE * np.arange(shape[0])
        columns = int(self.origins[index, 1]) + left + STRIDE * np.arange(shape[1])
        height, width = self.inspected.shape
        # A crop may end in the margin of the frame itself, by less than a cell.
        return self.inspected[np.ix_(np.minimum(rows, height - 1), np.minimum(columns, width - 1))]


def least_side(scale: int) -> int:
    """Pixels that a frame's sides must have at this scale, before it is shrunk."""
    return (RECEPTIVE_FIELD_PX - 1) * scale + 1


def cells_hw(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the map of so many padded pixels."""
    reach = RECEPTIVE_FIELD_PX - STRIDE
    return (height - reach) // STRIDE, (width - reach) // STRIDE


def pixels_of(cells: int) -> int:
    """Padded pixels that so many cells in a row see: 4 n + 29."""
    return STRIDE * cells + RECEPTIVE_FIELD_PX - STRIDE


def build_tiles(
    paths: Sequence[Path],
    channels: int,
    *,
    scale: int = 1,
    tile: int = 256,
    stride: int | None = None,
    incomplete: str = "shifted",
    inspected: NDArray[np.bool_] | None = None,
    min_inspected: float = 0.25,
    find_object: FindObject | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> TileSet:
    """Cut all images into tiles, or take them from the cache.

    channels: 1 or 3. scale: images are shrunk so many times first; tile and stride are pixels of
    what is left, incomplete is `tile_grid`'s. inspected: bool (H, W), for images that all have this
    size. find_object: see `models.masks`; None: everything is object. A tile is kept when at least
    `min_inspected` of it is object and inspected. cache_dir None keeps the tiles in memory.
    Raises `DataError` for images that cannot be read or have another size than the mask, and when
    no tile is left.
    """
    pieces = _pieces(
        paths,
        channels,
        scale=scale,
        tile=tile,
        stride=stride,
        incomplete=incomplete,
        inspected=inspected,
        min_inspected=min_inspected,
        find_object=find_object,
        progress=progress,
    )
    inspected = _mask_at(inspected, scale)
    if cache_dir is None:
        return _in_memory(pieces, inspected)
    finder = None if find_object is None else [find_object.level]
    about = [channels, scale, tile, stride, incomplete, min_inspected, finder]
    key = _key(paths, about, inspected)
    final = cache_dir / f"tiles-{key[:20]}"
    found = _open(final, inspected)
    if found is not None:
        return found
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tiles-", dir=cache_dir))
    except OSError as error:
        raise DataError(f"{cache_dir}: no folder for tiles ({error.strerror or error})") from error
    try:
        rows = _write(work, pieces)
        _check_any(len(rows))
        (work / INDEX).write_text(json.dumps(rows))
        shutil.rmtree(final, ignore_errors=True)  # there, but damaged: `_open` refused it
        try:
            work.rename(final)
        except OSError:
            if not final.is_dir():  # else another process wrote the same tiles just now
                raise
    except OSError as error:
        raise DataError(
            f"{cache_dir}: tiles cannot be written ({error.strerror or error}): is the disk full? "
            "Make room, or name another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    opened = _open(final, inspected)
    if opened is None:
        raise DataError(f"{final}: damaged while it was written: is the disk full or failing?")
    return opened


_Piece = tuple[int, Tile, NDArray[np.uint8]]
"""Number of the image, place in it, and the cut."""


def _pieces(
    paths: Sequence[Path],
    channels: int,
    *,
    scale: int,
    tile: int,
    stride: int | None,
    incomplete: str,
    inspected: NDArray[np.bool_] | None,
    min_inspected: float,
    find_object: FindObject | None,
    progress: Progress | None,
) -> Iterator[_Piece]:
    for number, path in enumerate(paths):
        frame = read_image(path, channels)
        height, width = frame.shape[:2]
        if least_side(scale) > min(height, width):
            raise DataError(
                f"{path}: {width}x{height} found, expected at least {least_side(scale)}x"
                f"{least_side(scale)} at scale {scale}"
            )
        if inspected is not None and inspected.shape != (height, width):
            raise DataError(
                f"{path}: {width}x{height} found, expected {inspected.shape[1]}x"
                f"{inspected.shape[0]} as the mask of what is inspected"
            )
        counted = what_counts(frame, inspected, find_object)
        frame, counted = shrunk(frame, scale), _mask_at(counted, scale)
        padded = pad_frame(frame, MARGIN_PX)
        for place, kept in kept_tiles(
            frame, counted, tile=tile, stride=stride, incomplete=incomplete, least=min_inspected
        ):
            if kept:
                yield number, place, cut(padded, place)
        if progress is not None:
            progress(number + 1, len(paths))


def what_counts(
    frame: NDArray[np.uint8], inspected: NDArray[np.bool_] | None, find_object: FindObject | None
) -> NDArray[np.bool_] | None:
    """Pixels (H, W) that are inspected and object; None: all."""
    if find_object is None:
        return inspected
    found = find_object(frame)
    return found if inspected is None else found & inspected


def kept_tiles(
    frame: NDArray[np.uint8],
    counted: NDArray[np.bool_] | None,
    *,
    tile: int,
    stride: int | None,
    incomplete: str,
    least: float,
) -> list[tuple[Tile, bool]]:
    """All tiles of a frame, and whether they are learnt from."""
    return [
        (place, counted is None or _share(counted, place) >= least)
        for place in tile_grid(frame.shape[0], frame.shape[1], tile, stride, incomplete)
    ]


def _mask_at(inspected: NDArray[np.bool_] | None, scale: int) -> NDArray[np.bool_] | None:
    """A mask of frame pixels at `scale`: what is inspected there is so entirely."""
    if inspected is None or scale == 1:
        return inspected
    spare = [(0, -side % scale) for side in inspected.shape]
    even = np.pad(inspected, spare, mode="edge")
    squares = even.reshape(even.shape[0] // scale, scale, -1, scale)
    return np.asarray(squares.all(axis=(1, 3)), np.bool_)


def _share(inspected: NDArray[np.bool_], tile: Tile) -> float:
    rows, columns = (
        slice(tile.top, tile.top + tile.height),
        slice(tile.left, tile.left + tile.width),
    )
    return float(inspected[rows, columns].mean())


def _in_memory(pieces: Iterator[_Piece], inspected: NDArray[np.bool_] | None) -> TileSet:
    kept = [(number, place, np.ascontiguousarray(piece)) for number, place, piece in pieces]
    _check_any(len(kept))
    data = np.concatenate([piece.ravel() for _, _, piece in kept])
    return _tile_set(data, [_row(*each) for each in kept], inspected)


def _write(folder: Path, pieces: Iterator[_Piece]) -> list[list[int]]:
    rows = []
    with (folder / DATA).open("xb") as file:
        for number, place, piece in pieces:
            file.write(np.ascontiguousarray(piece).data)
            rows.append(_row(number, place, piece))
        file.flush()
        os.fsync(file.fileno())
    return rows


def _open(folder: Path, inspected: NDArray[np.bool_] | None) -> TileSet | None:
    """The tiles of a cache, or None when it is not there or not whole."""
    try:
        rows = json.loads((folder / INDEX).read_text())
        data = np.memmap(folder / DATA, np.uint8, mode="r")
        tiles = _tile_set(data, rows, inspected)
    except (OSError, ValueError, TypeError):
        return None
    return tiles if int(tiles.shapes.prod(axis=1).sum()) == data.size else None


def _row(number: int, place: Tile, piece: NDArray[np.uint8]) -> list[int]:
    return [number, place.top, place.left, *piece.shape]


def _tile_set(
    data: NDArray[np.uint8], rows: Sequence[Sequence[int]], inspected: NDArray[np.bool_] | None
) -> TileSet:
    table = np.array(rows, np.int64).reshape(-1, 6)
    shapes = table[:, 3:]
    ends = np.cumsum(shapes.prod(axis=1))
    return TileSet(data, shapes, ends - shapes.prod(axis=1), table[:, 0], table[:, 1:3], inspected)


def _check_any(tiles: int) -> None:
    if not tiles:
        raise DataError(
            "no tile found that is inspected enough, expected at least one: make the inspected "
            "zones larger, or lower the share of a tile that must be inspected"
        )


def _key(paths: Sequence[Path], parameters: list[Any], inspected: NDArray[np.bool_] | None) -> str:
    files = []
    for path in paths:
        try:
            about = path.stat()
        except OSError as error:
            raise DataError(f"{path}: unreadable ({error.strerror})") from error
        files.append([str(path.absolute()), about.st_size, about.st_mtime_ns])
    mask = None
    if inspected is not None:
        mask = [inspected.shape, hashlib.sha256(np.packbits(inspected).tobytes()).hexdigest()]
    text = json.dumps([FORMAT, MARGIN_PX, STRIDE, parameters, mask, files])
    return hashlib.sha256(text.encode()).hexdigest()
