"""The gate at load: an engine must reproduce the bundle's reference maps, or it is refused.

1. The reference crops are laid side by side, again and again, into padded frames of the very shape
   that will run, at origins on multiples of 8: a cell sees a crop's pixels only, so the crop's map
   is the same anywhere.
2. A crop's last cells hang on what lies beside it. So its columns begin at four heights, counted
   from the frame's top or from its end, that together compare each row of the map: the seams of a
   frame that goes through in strips lie within crops. The last column ends where the frame ends.
3. The engine infers as many such frames as it takes to show every crop and compare every row: one,
   if it is large.
4. Each cell may differ from the reference by the tolerance of the precision, as a share of the
   larger of two values: the raw map value at the image threshold, and the reference itself.

Where a frame goes through in pieces, the seams between columns lie where they lie: a fault in them
alone may be missed. Of a frame whose side is no multiple of 8, up to two of the last cells cannot
be compared: the frame ends there within a square of pixels, and the crop did not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import cycle, product

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, Reference
from models.errors import ParityError
from models.runtimes.base import Runtime
from models.variants import FRAME_MARGIN_PX, GRID_PX, STRIDE, map_hw

TOLERANCE = {"f32": 0.002, "fp16": 0.02, "bf16": 0.1, "int8": 0.35}
"""By precision. Measured: f32 under 0.0001, bf16 0.02 to 0.05; int8 up to 0.23 on two data sets.

int8 is no small error of one engine but another one: whether it still finds what it should,
calibration decides, with thresholds of its own; the gate only catches an engine that is broken.
"""
OTHER_TOLERANCE = 0.1
"""For precisions of users' own runtimes."""
BOTH_PX = 2 * FRAME_MARGIN_PX
STAGGER_PX = BOTH_PX + GRID_PX
"""The rows at a crop's lower end that cannot be compared, up to the next origin after them."""


def check_parity(
    runtime: Runtime,
    bundle: Bundle,
    shapes: Sequence[tuple[int, int, int]] = (),
    references: Sequence[Reference] | None = None,
    batches: Sequence[int] = (1,),
) -> float:
    """The largest deviation over all shapes (crops' own where none are given), as in step 4.

    references: other ones than the bundle's. batches: so many frames together, one after the other:
    a graph that was compiled for two is another one than that for one.

    Raises `ParityError`, with the numbers, when it exceeds the tolerance or is not finite.
    """
    references = bundle.references() if references is None else references
    name, precision = runtime.engine_id.split("/")[:2]
    engine = f"{name}/{precision}"
    thresholds = bundle.calibration.engines.get(engine)
    # Before calibration the upper quantile stands in: 0.1 is the score of q_b.
    scale = bundle.calibration.raw(thresholds.image_threshold if thresholds else 0.1)
    tolerance = TOLERANCE.get(precision, OTHER_TOLERANCE)
    sizes = sorted({(height, width) for height, width, _ in shapes})
    worst = 0.0
    for height, width in sizes or sorted({_frame_hw(r) for r in references}):
        for frame, placed in _frames(references, (height, width)):
            maps: list[NDArray[np.float32]] = []
            for count in batches:
                together = [
                    np.full(map_hw(height, width), np.nan, np.float32) for _ in range(count)
                ]
                runtime.infer([frame] * count, together)
                maps += together
            for raw_map, (expected, (row, column)) in product(maps, placed):
                rows, columns = expected.shape
                found = raw_map[row : row + rows, column : column + columns]
                share = np.abs(found - expected) / np.maximum(scale, expected)
                share = np.nan_to_num(share, nan=np.inf)
                worst = max(worst, float(share.max()))
                if not worst <= tolerance:
                    at = np.unravel_index(int(share.argmax()), share.shape)
                    raise ParityError(
                        f"{runtime.engine_id}: a reference map of {bundle.path.name} is off by "
                        f"{worst:.4g} of {np.maximum(scale, expected)[at]:.4g} (found "
                        f"{found[at]:.6g}, expected {expected[at]:.6g}) in row {row + at[0]}, "
                        f"column {column + at[1]} of a {height}x{width} frame's map, at most "
                        f"{tolerance:g} is allowed for {precision}: this engine does not compute "
                        "what was calibrated; use another runtime or precision, clear the engine "
                        "cache, or report it"
                    )
    return worst


def _frames(
    references: Sequence[Reference], frame_hw: tuple[int, int]
) -> Iterator[tuple[NDArray[np.uint8], list[tuple[NDArray[np.float32], tuple[int, int]]]]]:
    """Padded frames full of crops, and the maps in each with the cell where they begin.

    Every crop lies in one of them, as far as the frame has room for it; and every row of the map
    that can be, is compared in one of them. Crops of different sizes do not share a frame.
    """
    height, width = frame_hw[0] + BOTH_PX, frame_hw[1] + BOTH_PX
    groups: dict[tuple[int, int], list[Reference]] = {}
    for reference in references:
        groups.setdefault(_frame_hw(reference), []).append(reference)
    for (crop_height, crop_width), group in groups.items():
        unseen, again = deque(group), cycle(group)
        heights = _heights(height, crop_height)
        uncompared = {
            n for tops in heights for top in tops for n in _span(height, crop_height, top)
        }
        turn = 0
        while unseen or uncompared:
            frame = np.zeros((height, width, group[0].padded.shape[2]), np.uint8)
            placed = []
            useful = bool(unseen)
            for number, left in enumerate(_lefts(width, crop_width, turn)):
                for top in heights[(number + turn) % len(heights)]:
                    reference = unseen.popleft() if unseen else next(again)
                    part = frame[
                        top : top + BOTH_PX + crop_height, left : left + BOTH_PX + crop_width
                    ]
                    part[...] = reference.padded[: part.shape[0], : part.shape[1]]
                    rows, columns = _span(height, crop_height, top), _span(width, crop_width, left)
                    useful = useful or not uncompared.isdisjoint(rows)
                    uncompared.difference_update(rows)
                    cells = reference.raw_map[: len(rows), : len(columns)]
                    placed.append((cells, (rows.start, columns.start)))
            if useful and placed:
                yield frame, placed
            turn += 1


def _heights(side: int, crop: int) -> list[list[int]]:
    """Origins of the crops of a column, one under the other: four ways, those without any left out.

    side: of the padded frame. crop: of the crop, without margin.
    """
    last, pitch = _last(side, crop), _on_grid(crop + BOTH_PX)
    down = [list(range(first, last + 1, pitch)) for first in (0, STAGGER_PX)]
    up = [list(range(first, -1, -pitch)) for first in (last, last - pitch + STAGGER_PX)]
    return [tops for tops in (down[0], up[0], down[1], up[1]) if tops]


def _lefts(side: int, crop: int, turn: int) -> list[int]:
    """Origins of the columns, the last one second, so that it is one that ends with the frame.

    Where there is room for one only, it is at the frame's left and right side by turns.
    """
    last, pitch = _last(side, crop), _on_grid(crop + BOTH_PX)
    if last < pitch:
        return [0 if turn % 2 else last]
    return list(dict.fromkeys([0, last, *range(0, last - pitch + 1, pitch)]))


def _last(side: int, crop: int) -> int:
    """The origin with which a crop ends where the frame ends, or up to 7 pixels beyond."""
    return max(0, _on_grid(side - crop - BOTH_PX))


def _on_grid(length: int) -> int:
    return -(-length // GRID_PX) * GRID_PX


def _span(side: int, crop: int, origin: int) -> range:
    """The cells of a frame's map along one side that are compared with those of a crop's."""
    inner = min(crop, side - BOTH_PX - origin)
    # Where frame and crop end together, all is as it was.
    unsure = 0 if origin + crop + BOTH_PX == side else _unsure(inner)
    first = origin // STRIDE
    return range(first, first + map_hw(inner, inner)[0] - unsure)


def _unsure(side: int) -> int:
    """How many of a crop's last cells hang on what lies beside it.

    At half the size an odd last pixel is averaged with it; and the odd cells of a map are
    interpolated with the next one.
    """
    if side % GRID_PX == 1:
        return 2
    return 0 if side % GRID_PX in range(2, STRIDE + 1) else 1


def _frame_hw(reference: Reference) -> tuple[int, int]:
    height, width = reference.padded.shape[:2]
    return height - BOTH_PX, width - BOTH_PX
