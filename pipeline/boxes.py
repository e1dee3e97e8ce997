"""Anomaly map -> defect boxes: pure functions, shared by the line, calibration and explain.

Cell (i, j) of a map is centred on frame pixel (4i, 4j) and stands for the 4x4 pixels around it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.types import MAP_STRIDE, Defect

CELL_AREA_PX = MAP_STRIDE * MAP_STRIDE


def find_defects(
    flagged: NDArray[np.uint8],
    scores: NDArray[np.float32],
    *,
    frame_hw: tuple[int, int],
    min_area_px: int | NDArray[np.int64],
    merge_px: int,
    box_fraction: float,
    spread_px: int,
    margin_px: int = 0,
) -> list[Defect]:
    """Group flagged cells into defects, strongest first.

    flagged: uint8 (h, w), nonzero where the map is over its threshold.
    scores: float32 (n,), the positive normalised scores of the flagged cells in row-major order.
    merge_px: cells with at most this many unflagged pixels between them are one defect (0: only
        touching ones, diagonally too), rounded down to whole cells.
    box_fraction, spread_px: the network's view smears a defect over the cells around it. A box
        spans the cells above this share of its defect's peak, and each side that is not the frame's
        own moves inwards by so many pixels, as long as a cell's width is left.
    margin_px: what boxes are drawn larger by on every side, as far as the frame goes.

    Defects under `min_area_px` (flagged cells times 16) are left out. As an array (n,), one for
    each flagged cell, that of a defect's peak counts. Ties: in reading order of their first cells.
    """
    where = np.flatnonzero(flagged)
    if where.size == 0:
        return []
    reach = min(merge_px // MAP_STRIDE + 1, max(flagged.shape))
    # Two cells d columns apart touch after a dilation of `reach` cells exactly when d <= reach.
    joined = cv2.dilate(flagged, np.ones((reach, reach), np.uint8)) if reach > 1 else flagged
    count, groups = cv2.connectedComponents(joined, connectivity=8, ltype=cv2.CV_32S)
    group = groups.ravel()[where].astype(np.int64)
    area = np.bincount(group, minlength=count) * CELL_AREA_PX
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, group, scores)

    core = scores >= peak[group] * np.float32(box_fraction)
    rows, columns = np.divmod(where[core], flagged.shape[1])
    member = group[core]
    low = np.full((2, count), np.iinfo(np.int64).max, np.int64)
    high = np.full((2, count), -1, np.int64)
    for axis, values in enumerate((columns, rows)):
        np.minimum.at(low[axis], member, values)
        np.maximum.at(high[axis], member, values)

    height, width = frame_hw
    begin = np.maximum(low * MAP_STRIDE - MAP_STRIDE // 2, 0)
    end = np.minimum(high * MAP_STRIDE + MAP_STRIDE // 2, np.array([[width], [height]]))
    shrink = np.minimum(spread_px, np.maximum(0, (end - begin - MAP_STRIDE) // 2))
    left, top = np.where(begin > 0, begin + shrink, begin)
    right, bottom = np.where(end < np.array([[width], [height]]), end - shrink, end)
    left, top = np.maximum(left - margin_px, 0), np.maximum(top - margin_px, 0)
    right, bottom = np.minimum(right + margin_px, width), np.minimum(bottom + margin_px, height)
    least = np.ones(count, np.int64)
    if not isinstance(min_area_px, int):
        highest = np.flatnonzero(scores == peak[group])[::-1]
        least[group[highest]] = min_area_px[highest]
    else:
        least[:] = min_area_px
    kept = np.flatnonzero(area >= np.maximum(least, 1))
    first = np.empty(count, np.int64)
    first[group[::-1]] = where[::-1]  # of equal indices the last one assigned stays
    kept = kept[np.lexsort((first[kept], -peak[kept]))]
    return [
        Defect(
            box_xyxy=(int(left[g]), int(top[g]), int(right[g]), int(bottom[g])),
            area_px=int(area[g]),
            peak_score=float(peak[g]),
        )
        for g in kept
    ]


def iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over union of two half-open boxes, 0..1; 0 where either is empty."""
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = area_px(a) + area_px(b) - overlap
    return overlap / union if union > 0 else 0.0


def area_px(box_xyxy: tuple[int, int, int, int]) -> int:
    """Pixels in a half-open box; 0 where it is empty."""
    x0, y0, x1, y1 = box_xyxy
    return max(0, x1 - x0) * max(0, y1 - y0)


def finds(found_xyxy: tuple[int, int, int, int], true_xyxy: tuple[int, int, int, int]) -> bool:
    """Whether a found box counts for a true one: not empty, at most four times its area, on it.

    "On it" is a centre inside the true box, or an IoU above 0.1.
    """
    if not 0 < area_px(found_xyxy) <= 4 * area_px(true_xyxy):
        return False
    x = (found_xyxy[0] + found_xyxy[2]) / 2
    y = (found_xyxy[1] + found_xyxy[3]) / 2
    inside = true_xyxy[0] <= x < true_xyxy[2] and true_xyxy[1] <= y < true_xyxy[3]
    return inside or iou(found_xyxy, true_xyxy) > 0.1
