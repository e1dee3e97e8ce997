"""Has this been seen on good parts before? A search for the same structure in the training images.

A student learns what is frequent on good parts; what is rare there, and still good, it reports as
it reports a defect. Boards, prints and labels repeat exactly, so a place under suspicion can be
looked up: the 24x24 px around it are searched for in all training images.

1. Coarse: the window as 6x6 averages, projected onto their `COMPONENTS` main directions, at 16
   shifts of 2 px, among windows of the training images every 8 px: in the nearest lists of an
   inverted file (Jegou et al., "Product quantization for nearest neighbor search", 2011, sec. 4).
2. Exact: the best hits are laid over it pixel by pixel, at shifts of up to 3 px; d is the lowest
   sum of squared differences.

The map around the place is multiplied by ((d + `SMALL`) / (`USUAL` + `SMALL`)) ^ `POWER`: a place
with a precedent is forgiven, one without counts more. Beside a wide view, whose weights go over
powers of ten, it is `POWER_BESIDE_WIDE`. Of use where structure repeats exactly; on grain nothing
has a precedent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.images import read_image
from models.variants import FRAME_MARGIN_PX, STRIDE

WINDOW_PX = 24
BLOCK_PX = 4
SHIFTS = (-3, -1, 1, 3)
"""In pixels, both ways: together with the bank's 8 px, every window is met within 1 px."""
BANK_PX = 8
COMPONENTS = 24
LISTS = 1024
PROBED = 6
HITS = 3
"""Of each shift."""
COMPARED = 16
REACH_PX = 3
POWER, POWER_BESIDE_WIDE = 0.25, 2.0
SMALL, USUAL = 3.0, 3.0
"""In pixels that went from black to white; `USUAL` is the median of suspicions on good boards."""
AROUND_CELLS = 3
PX_PER_PLACE = 12_800
FEWEST_PLACES = 16
FLAT = 1e-3
"""Windows that vary less are not kept: a mark on plain surface must find no precedent there."""
SAMPLE = 40_000
MOST_PX = 1 << 28
"""Of all images together: 256 MiB of memory on the station if they are grey, and as much again for
the windows; colour takes three times the former.
"""

Image = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Coarse:
    """How windows are described and sorted."""

    mean: NDArray[np.float32]
    """[36]"""
    directions: NDArray[np.float32]
    """[36, COMPONENTS]"""
    centres: NDArray[np.float32]
    """[lists, COMPONENTS]"""


class Precedents:
    """The training images, uint8 (H, W, C), searchable."""

    def __init__(self, images: Sequence[Image], coarse: Coarse) -> None:
        self.images, self.coarse = list(images), coarse
        described, owners = [], []
        for number, image in enumerate(self.images):
            blocks, corners = bank_windows(image)
            described.append((blocks - coarse.mean) @ coarse.directions)
            owners.append(np.column_stack([np.full(len(corners), number, np.int32), corners]))
        windows = np.concatenate(described).astype(np.float32)
        lists = nearest_lists(windows, coarse.centres, 1)[:, 0]
        order = np.argsort(lists, kind="stable")
        self._windows = windows[order].astype(np.float16)
        self._owners = np.concatenate(owners)[order]
        counts = np.bincount(lists, minlength=len(coarse.centres))
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a file: the images as PNG, one after the other, and how windows are described."""
        encoded = [_png(image) for image in self.images]
        return {
            "png": np.concatenate(encoded),
            "ends": np.cumsum([len(data) for data in encoded]),
            "mean": self.coarse.mean,
            "directions": self.coarse.directions,
            "centres": self.coarse.centres,
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Precedents:
        """Read what `arrays` gave. Raises `ValueError` for anything else."""
        names = {"png", "ends", "mean", "directions", "centres"}
        if set(arrays) != names:
            raise ValueError(f"{sorted(arrays)} found, expected {sorted(names)}")
        cells = (WINDOW_PX // BLOCK_PX) ** 2
        components = arrays["centres"].shape[-1]
        shapes = {"mean": (cells,), "directions": (cells, components)}
        for name in ("mean", "directions", "centres"):
            found = arrays[name]
            if found.shape != shapes.get(name, found.shape) or found.ndim > 2:
                raise ValueError(f"{name} {found.shape} found, expected {shapes.get(name)}")
            if found.dtype != np.float32 or not np.isfinite(found).all():
                raise ValueError(f"{name}: {found.dtype} found, expected finite float32")
        coarse = Coarse(arrays["mean"], arrays["directions"], arrays["centres"])
        images: list[Image] = []
        begin = 0
        for end in arrays["ends"].tolist():
            png = arrays["png"][begin:end]
            image = cv2.imdecode(png, cv2.IMREAD_UNCHANGED) if png.size else None
            if image is None or image.dtype != np.uint8:
                raise ValueError(f"image {len(images)} is no PNG of 8 bits")
            image = image[..., None] if image.ndim == 2 else image[..., ::-1]
            images.append(np.ascontiguousarray(image, np.uint8))
            begin = end
        return cls(images, coarse)

    def differences(
        self, frame: Image, centres: NDArray[np.int64], margin: int = 0
    ) -> NDArray[np.float32]:
        """d of the windows about pixels (row, column), [n, 2], of a frame (H, W, C).

        margin: pixels at the frame's sides that are no part of it; windows keep off them.
        """
        corners = window_corners(frame.shape, centres, margin)
        queries = np.concatenate([_shifted_blocks(frame, corner) for corner in corners])
        queries = (queries - self.coarse.mean) @ self.coarse.directions
        distances, hits = self._nearest(queries)
        each = len(SHIFTS) ** 2
        shifts = np.array([(dy, dx) for dy in SHIFTS for dx in SHIFTS], np.int32)
        found = np.empty(len(corners), np.float32)
        for k, corner in enumerate(corners):
            rows = slice(k * each, (k + 1) * each)
            best = np.argsort(distances[rows], axis=None, kind="stable")[:COMPARED]
            shift, column = np.unravel_index(best, (each, HITS))
            chosen = hits[rows][shift, column]
            places = self._owners[chosen[chosen >= 0]].copy()
            places[:, 1:] -= shifts[shift][chosen >= 0]
            window = frame[corner[0] : corner[0] + WINDOW_PX, corner[1] : corner[1] + WINDOW_PX]
            found[k] = min(
                (self._compare(window, *place) for place in np.unique(places, axis=0).tolist()),
                default=float(WINDOW_PX**2),
            )
        return found

    def weigh(
        self,
        padded: Image,
        raw_map: NDArray[np.float32],
        level: float,
        power: float = POWER,
    ) -> None:
        """Change a frame's map in place where it is over `level`, the highest places first.

        padded: (H + 64, W + 64, C). What is left when there are too many places stays as it is.
        """
        most = max(FEWEST_PLACES, raw_map.size * STRIDE**2 // PX_PER_PLACE)
        cells = highest_places(raw_map, level, most)
        if not len(cells):
            return
        centres = np.array(cells, np.int64) * STRIDE + FRAME_MARGIN_PX
        differences = self.differences(padded, centres, FRAME_MARGIN_PX)
        factors = ((differences + SMALL) / (USUAL + SMALL)) ** power
        weights = np.ones_like(raw_map)
        for (row, column), factor in reversed(list(zip(cells, factors.tolist(), strict=True))):
            weights[around(row), around(column)] = factor
        raw_map *= weights

    def _nearest(
        self, queries: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Squared distances and indices [n, HITS] of the nearest windows; -1: fewer were there."""
        lists = nearest_lists(queries, self.coarse.centres, PROBED)
        distances = np.full((len(queries), HITS), np.inf, np.float32)
        indices = np.full((len(queries), HITS), -1, np.int64)
        lengths = (queries**2).sum(axis=1)
        flat = lists.ravel()
        order = np.argsort(flat, kind="stable")
        ends = np.searchsorted(flat[order], np.arange(len(self.coarse.centres) + 1))
        for number in np.unique(flat).tolist():
            asking = order[ends[number] : ends[number + 1]] // lists.shape[1]
            start, end = self._starts[number], self._starts[number + 1]
            if start == end:
                continue
            windows = self._windows[start:end].astype(np.float32)
            apart = (windows**2).sum(axis=1) - 2 * queries[asking] @ windows.T
            apart += lengths[asking, None]
            best, nearest = _lowest(apart, min(HITS, end - start))
            both = np.concatenate([distances[asking], best], axis=1)
            which = np.concatenate([indices[asking], nearest + start], axis=1)
            keep = np.argsort(both, axis=1, kind="stable")[:, :HITS]
            distances[asking] = np.take_along_axis(both, keep, axis=1)
            indices[asking] = np.take_along_axis(which, keep, axis=1)
        return distances, indices

    def _compare(self, window: Image, number: int, top: int, left: int) -> float:
        image = self.images[number]
        bottom = min(top + WINDOW_PX + REACH_PX, image.shape[0])
        right = min(left + WINDOW_PX + REACH_PX, image.shape[1])
        region = image[
            max(0, min(top - REACH_PX, bottom - WINDOW_PX)) : bottom,
            max(0, min(left - REACH_PX, right - WINDOW_PX)) : right,
        ]
        window = np.ascontiguousarray(window)
        squares = cv2.matchTemplate(region, window, cv2.TM_SQDIFF)
        least = max(0.0, float(squares.min()))
        return least / (255.0**2 * int(window.shape[2]))


def _lowest(
    values: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The lowest `count` of each row and their columns. Ten times as fast as `argpartition`.

    `values` is used up.
    """
    rows = np.arange(len(values))
    best = np.empty((len(values), count), np.float32)
    columns = np.empty((len(values), count), np.int64)
    for k in range(count):
        columns[:, k] = values.argmin(axis=1)
        best[:, k] = values[rows, columns[:, k]]
        values[rows, columns[:, k]] = np.inf
    return best, columns


def choose_images(paths: Sequence[Path], channels: int, most_px: int = MOST_PX) -> list[Image]:
    """All of the images, or evenly so many that they fit, if they are all as large as the first."""
    first = read_image(paths[0], channels)
    step = max(1, -(-first.shape[0] * first.shape[1] * len(paths) // most_px))
    return [read_image(path, channels) for path in paths[::step]]


def _png(image: Image) -> NDArray[np.uint8]:
    plain = image[..., 0] if image.shape[2] == 1 else image[..., ::-1]
    return np.asarray(cv2.imencode(".png", plain)[1], np.uint8).ravel()


def around(cell: int) -> slice:
    """The cells in a row or column that a place speaks for."""
    return slice(max(0, cell - AROUND_CELLS), cell + AROUND_CELLS + 1)


def highest_places(raw_map: NDArray[np.float32], level: float, most: int) -> list[tuple[int, int]]:
    """Cells over `level`, the highest first, none in the surroundings of a higher one."""
    over = np.flatnonzero(raw_map >= level)
    over = over[np.argsort(-raw_map.ravel()[over], kind="stable")]
    taken = np.zeros(raw_map.shape, np.bool_)
    cells: list[tuple[int, int]] = []
    for cell in over.tolist():
        row, column = divmod(cell, raw_map.shape[1])
        if not taken[row, column]:
            cells.append((row, column))
            taken[around(row), around(column)] = True
            if len(cells) == most:
                break
    return cells


def window_corners(
    shape: tuple[int, ...], centres: NDArray[np.int64], margin: int
) -> NDArray[np.int64]:
    """Upper left pixels of the windows about `centres`, moved inwards where they would leave."""
    reach = max(SHIFTS)
    corners = centres - WINDOW_PX // 2
    for axis in (0, 1):
        last = shape[axis] - margin - WINDOW_PX - reach
        corners[:, axis] = np.clip(corners[:, axis], margin + reach, max(margin + reach, last))
    return corners


def bank_windows(image: Image) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """6x6 averages [n, 36] of an image's windows every 8 px, and their corners [n, 2]."""
    grey = image.mean(axis=2, dtype=np.float32) / np.float32(255)
    height, width = (side // BLOCK_PX for side in grey.shape)
    small = cv2.resize(
        grey[: height * BLOCK_PX, : width * BLOCK_PX], (width, height), interpolation=cv2.INTER_AREA
    )
    side = WINDOW_PX // BLOCK_PX
    if min(height, width) < side:
        return np.zeros((0, side * side), np.float32), np.zeros((0, 2), np.int32)
    step = BANK_PX // BLOCK_PX
    windows = np.lib.stride_tricks.sliding_window_view(small, (side, side))[::step, ::step]
    rows, columns = np.indices(windows.shape[:2]).reshape(2, -1) * BANK_PX
    blocks = windows.reshape(-1, side * side)
    kept = blocks.std(axis=1) > FLAT
    return blocks[kept], np.column_stack([rows, columns]).astype(np.int32)[kept]


def _shifted_blocks(frame: Image, corner: NDArray[np.int64]) -> NDArray[np.float32]:
    """6x6 averages [16, 36] of a window at all shifts."""
    reach = max(SHIFTS)
    top, left = (int(at) - reach for at in corner)
    side = WINDOW_PX + 2 * reach
    grey = frame[top : top + side, left : left + side].mean(axis=2, dtype=np.float32)
    means = cv2.blur(grey / np.float32(255), (BLOCK_PX, BLOCK_PX), anchor=(0, 0))
    count = WINDOW_PX // BLOCK_PX
    return np.stack(
        [
            means[dy + reach :: BLOCK_PX, dx + reach :: BLOCK_PX][:count, :count].ravel()
            for dy in SHIFTS
            for dx in SHIFTS
        ]
    )


def nearest_lists(
    windows: NDArray[np.float32], centres: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Indices [n, count] of the nearest centres."""
    lengths = (centres**2).sum(axis=1)
    count = min(count, len(centres))
    found = []
    for begin in range(0, len(windows), 1 << 15):
        apart = lengths - 2 * windows[begin : begin + (1 << 15)] @ centres.T
        if count == 1:
            found.append(apart.argmin(axis=1)[:, None])
        else:
            found.append(np.argpartition(apart, count - 1, axis=1)[:, :count])
    return np.concatenate(found) if found else np.zeros((0, count), np.int64)


def learn_coarse(images: Sequence[Image], seed: int) -> Coarse:
    """Main directions and centres of the images' windows, from a sample of them."""
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng([seed, 5])
    each = max(1, SAMPLE // len(images))
    sample = []
    for image in images:
        blocks, _ = bank_windows(image)
        sample.append(blocks[rng.permutation(len(blocks))[:each]])
    windows = np.concatenate(sample)
    mean = windows.mean(axis=0)
    _, _, directions = np.linalg.svd(windows - mean, full_matrices=False)
    directions = np.ascontiguousarray(directions[:COMPONENTS].T)
    described = (windows - mean) @ directions
    lists = max(1, min(LISTS, len(described) // 32))
    clusters = MiniBatchKMeans(lists, random_state=seed, n_init=1, batch_size=4096)
    centres = clusters.fit(described).cluster_centers_
    return Coarse(mean, directions, np.asarray(centres, np.float32))
