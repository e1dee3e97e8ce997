"""The gate at load: an engine must reproduce the bundle's reference maps, or it is refused.

1. The reference crops are laid side by side into padded frames of the very shape that will run, at
   origins on multiples of 8: a cell sees a crop's pixels only, so the crop's map is the same
   anywhere.
2. The engine infers those frames.
3. Each cell may differ from the reference by the tolerance of the precision, as a share of the
   larger of two values: the raw map value at the image threshold, and the reference itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, Reference
from models.errors import ParityError
from models.runtimes.base import Runtime
from models.variants import FRAME_MARGIN_PX, GRID_PX, STRIDE, map_hw

TOLERANCE = {"f32": 0.002, "bf16": 0.1}
"""By precision. Measured: f32 under 0.0001, bf16 0.02 to 0.05."""
OTHER_TOLERANCE = 0.1
"""For precisions of users' own runtimes."""


def check_parity(
    runtime: Runtime,
    bundle: Bundle,
    shapes: Sequence[tuple[int, int, int]] = (),
    references: Sequence[Reference] | None = None,
) -> float:
    """The largest deviation over all shapes (crops' own where none are given), as in step 3.

    references: other ones than the bundle's.

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
        remaining = list(references)
        while remaining:
            frame, placed = _lay_out(remaining, (height, width))
            remaining = remaining[len(placed) :]
            raw_map = np.full(map_hw(height, width), np.nan, np.float32)
            runtime.infer([frame], [raw_map])
            for expected, (row, column) in placed:
                rows, columns = expected.shape
                found = raw_map[row : row + rows, column : column + columns]
                share = np.abs(found - expected) / np.maximum(scale, expected)
                worst = max(worst, float(np.nan_to_num(share, nan=np.inf).max()))
                if not worst <= tolerance:
                    at = np.unravel_index(
                        int(np.nan_to_num(share, nan=np.inf).argmax()), share.shape
                    )
                    raise ParityError(
                        f"{runtime.engine_id}: a reference map of {bundle.path.name} is off by "
                        f"{worst:.4g} of {np.maximum(scale, expected)[at]:.4g} (found "
                        f"{found[at]:.6g}, expected {expected[at]:.6g}), at most {tolerance:g} is "
                        f"allowed for {precision}: this engine does not compute what was "
                        "calibrated; use another runtime or precision, clear the engine cache, or "
                        "report it"
                    )
    return worst


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
    return height - 2 * FRAME_MARGIN_PX, width - 2 * FRAME_MARGIN_PX


def _lay_out(
    references: Sequence[Reference], frame_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], list[tuple[NDArray[np.float32], tuple[int, int]]]]:
    """A padded frame with as many leading crops as fit, and each one's map with its first cell.

    A crop larger than the frame is cut at its lower and right side. At least one crop is placed.
    """
    height, width = frame_hw[0] + 2 * FRAME_MARGIN_PX, frame_hw[1] + 2 * FRAME_MARGIN_PX
    frame = np.zeros((height, width, references[0].padded.shape[2]), np.uint8)
    placed = []
    top = left = shelf = 0
    for reference in references:
        crop = reference.padded[:height, :width]
        rows, columns = crop.shape[:2]
        if left + columns > width:
            top, left, shelf = top + shelf, 0, 0
        if top + rows > height:
            break
        frame[top : top + rows, left : left + columns] = crop
        inner = rows - 2 * FRAME_MARGIN_PX, columns - 2 * FRAME_MARGIN_PX
        cells = [n - _unsure(side) for n, side in zip(map_hw(*inner), inner, strict=True)]
        placed.append((reference.raw_map[: cells[0], : cells[1]], (top // STRIDE, left // STRIDE)))
        left += -(-columns // GRID_PX) * GRID_PX
        shelf = max(shelf, -(-rows // GRID_PX) * GRID_PX)
    return frame, placed
