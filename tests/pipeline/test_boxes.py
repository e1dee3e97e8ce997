"""Boxes: against a slow reference that can be seen to be right, and case by case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.boxes import area_px, find_defects, finds, iou
from pipeline.types import Defect, map_hw

Box = tuple[int, int, int, int]


def find(
    scores: NDArray[np.float32],
    *,
    frame_hw: tuple[int, int] | None = None,
    min_area_px: int = 0,
    merge_px: int = 0,
    box_fraction: float = 0.5,
    spread_px: int = 0,
    margin_px: int = 0,
) -> list[Defect]:
    """`find_defects` of a map in which everything positive is flagged."""
    flagged = scores > 0
    return find_defects(
        flagged.view(np.uint8),
        scores[flagged],
        frame_hw=frame_hw or (scores.shape[0] * 4, scores.shape[1] * 4),
        min_area_px=min_area_px,
        merge_px=merge_px,
        box_fraction=box_fraction,
        spread_px=spread_px,
        margin_px=margin_px,
    )


def reference(
    scores: NDArray[np.float32],
    *,
    frame_hw: tuple[int, int],
    min_area_px: int,
    merge_px: int,
    box_fraction: float,
    spread_px: int,
    margin_px: int,
) -> list[Defect]:
    """The same by flood fill, cell by cell."""
    left = [(int(i), int(j)) for i, j in np.argwhere(scores > 0)]
    found: list[Defect] = []
    while left:
        cells = [left.pop(0)]
        for i, j in cells:  # grows while it is walked
            near = [
                (k, m)
                for k, m in left
                if (abs(k - i) - 1) * 4 <= merge_px and (abs(m - j) - 1) * 4 <= merge_px
            ]
            cells += near
            left = [cell for cell in left if cell not in near]
        peak = max(scores[cell] for cell in cells)
        core = [cell for cell in cells if scores[cell] >= peak * np.float32(box_fraction)]
        rows, columns = [i for i, _ in core], [j for _, j in core]
        box = (
            max(min(columns) * 4 - 2, 0),
            max(min(rows) * 4 - 2, 0),
            min(max(columns) * 4 + 2, frame_hw[1]),
            min(max(rows) * 4 + 2, frame_hw[0]),
        )
        x = inwards(box[0], box[2], frame_hw[1], spread_px)
        y = inwards(box[1], box[3], frame_hw[0], spread_px)
        box = (
            max(0, x[0] - margin_px),
            max(0, y[0] - margin_px),
            min(frame_hw[1], x[1] + margin_px),
            min(frame_hw[0], y[1] + margin_px),
        )
        if len(cells) * 16 >= min_area_px:
            found.append(Defect(box, len(cells) * 16, float(peak)))
    return sorted(found, key=lambda defect: -defect.peak_score)  # stable: ties in reading order


def inwards(begin: int, end: int, side: int, spread_px: int) -> tuple[int, int]:
    """Both ends pixel by pixel towards each other, but not from the frame's border."""
    first, last = begin, end
    for _ in range(spread_px):
        if last - first < 4 + 2:
            break
        first, last = first + 1, last - 1
    return (first if begin > 0 else begin), (last if end < side else end)


@st.composite
def score_maps(draw: st.DrawFn) -> tuple[NDArray[np.float32], tuple[int, int]]:
    frame_hw = draw(st.tuples(st.integers(33, 90), st.integers(33, 90)))
    rows, columns = map_hw(*frame_hw)
    scores = np.zeros((rows, columns), np.float32)
    cells = st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1))
    # Few values, so that there are ties, and cells at exactly a fraction of the peak.
    values = st.sampled_from([0.25, 0.5, 1.0, 2.0, 0.1, 3.3])
    for cell, value in draw(st.lists(st.tuples(cells, values), max_size=25)):
        scores[cell] = value
    for (i, j), (k, m), value in draw(st.lists(st.tuples(cells, cells, values), max_size=2)):
        scores[min(i, k) : max(i, k) + 1, min(j, m) : max(j, m) + 1] = value
    return scores, frame_hw


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    made=score_maps(),
    min_area_px=st.sampled_from([0, 1, 16, 17, 32, 200]),
    merge_px=st.one_of(st.integers(0, 30), st.sampled_from([1000, 10**9])),
    box_fraction=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.99]),
    in_and_out_px=st.tuples(st.sampled_from([0, 1, 5, 6, 1000]), st.sampled_from([0, 1, 7, 1000])),
)
def test_equals_the_flood_fill(
    made: tuple[NDArray[np.float32], tuple[int, int]],
    min_area_px: int,
    merge_px: int,
    box_fraction: float,
    in_and_out_px: tuple[int, int],
) -> None:
    scores, frame_hw = made
    spread_px, margin_px = in_and_out_px
    found = find(
        scores,
        frame_hw=frame_hw,
        min_area_px=min_area_px,
        merge_px=merge_px,
        box_fraction=box_fraction,
        spread_px=spread_px,
        margin_px=margin_px,
    )
    assert found == reference(
        scores,
        frame_hw=frame_hw,
        min_area_px=min_area_px,
        merge_px=merge_px,
        box_fraction=box_fraction,
        spread_px=spread_px,
        margin_px=margin_px,
    )
    for x0, y0, x1, y1 in (defect.box_xyxy for defect in found):
        assert 0 <= x0 < x1 <= frame_hw[1]
        assert 0 <= y0 < y1 <= frame_hw[0]


def test_nothing_flagged() -> None:
    assert find(np.zeros((9, 12), np.float32)) == []


def test_everything_flagged() -> None:
    found = find(np.full((9, 12), 2, np.float32), frame_hw=(33, 45))
    assert found == [Defect((0, 0, 45, 33), 9 * 12 * 16, 2.0)]


@pytest.mark.parametrize(
    ("cell", "box"),
    [
        ((0, 0), (0, 0, 2, 2)),
        ((0, 5), (18, 0, 22, 2)),
        ((4, 0), (0, 14, 2, 18)),
        ((4, 5), (18, 14, 22, 18)),
        ((8, 11), (42, 30, 45, 33)),  # a frame of 45x33: its last cell is cut
    ],
)
def test_one_cell(cell: tuple[int, int], box: Box) -> None:
    scores = np.zeros((9, 12), np.float32)
    scores[cell] = 1.5
    assert find(scores, frame_hw=(33, 45)) == [Defect(box, 16, 1.5)]


@pytest.mark.parametrize("frame_hw", [(33, 33), (34, 35), (35, 36), (36, 37), (130, 257)])
def test_the_last_cell_of_any_frame_has_a_box(frame_hw: tuple[int, int]) -> None:
    scores = np.zeros(map_hw(*frame_hw), np.float32)
    scores[-1, -1] = 1
    x0, y0, x1, y1 = find(scores, frame_hw=frame_hw)[0].box_xyxy
    assert x0 < x1 <= frame_hw[1]
    assert y0 < y1 <= frame_hw[0]


@pytest.mark.parametrize("axis", ["row", "column", "diagonal"])
@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize(
    ("merge_px", "reach"), [(0, 1), (3, 1), (4, 2), (7, 2), (8, 3), (11, 3), (12, 4), (40, 11)]
)
def test_merge_distance(axis: str, start: int, merge_px: int, reach: int) -> None:
    """`reach` cells apart there are (reach - 1) * 4 pixels between two cells."""
    step = {"row": (0, 1), "column": (1, 0), "diagonal": (1, 1)}[axis]
    for apart, defects in ((reach, 1), (reach + 1, 2)):
        scores = np.zeros((20, 20), np.float32)
        scores[start, start] = scores[start + step[0] * apart, start + step[1] * apart] = 1
        assert len(find(scores, merge_px=merge_px)) == defects


def test_merging_goes_on_through_a_chain() -> None:
    scores = np.zeros((9, 40), np.float32)
    scores[4, ::3] = 1
    assert len(find(scores, merge_px=4)) == 14
    found = find(scores, merge_px=8)
    assert [(d.area_px, d.box_xyxy) for d in found] == [(14 * 16, (0, 14, 158, 18))]


@pytest.mark.parametrize(("min_area_px", "found"), [(0, 2), (16, 2), (17, 1), (32, 1), (33, 0)])
def test_minimum_area(min_area_px: int, found: int) -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[1, 1] = 5
    scores[5, 5:7] = 1
    assert len(find(scores, min_area_px=min_area_px)) == found


def test_area_is_counted_after_merging() -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[1, 1] = scores[1, 4] = 1
    assert find(scores, min_area_px=32) == []
    assert [d.area_px for d in find(scores, min_area_px=32, merge_px=8)] == [32]


@pytest.mark.parametrize(
    ("fraction", "box"), [(0.0, (2, 14, 30, 18)), (0.5, (6, 14, 22, 18)), (0.51, (10, 14, 18, 18))]
)
def test_a_box_leaves_out_the_faint_rim(fraction: float, box: Box) -> None:
    scores = np.zeros((9, 9), np.float32)
    scores[4, 1:8] = [1, 2, 4, 4, 2, 1, 1]
    assert find(scores, box_fraction=fraction) == [Defect(box, 7 * 16, 4.0)]


def test_strongest_first_and_ties_in_reading_order() -> None:
    scores = np.zeros((12, 12), np.float32)
    scores[0, 8] = scores[1, 0] = scores[1, 4] = scores[9, 1] = 2
    scores[6, 6] = 3
    scores[3, 11] = 1
    boxes = [defect.box_xyxy[:2] for defect in find(scores)]
    assert boxes == [(22, 22), (30, 0), (0, 2), (14, 2), (2, 34), (42, 10)]


def test_a_thousand_defects() -> None:
    scores = np.zeros((128, 128), np.float32)
    scores[::4, ::4] = np.arange(1, 1025, dtype=np.float32).reshape(32, 32)
    found = find(scores)
    assert [d.peak_score for d in found] == list(range(1024, 0, -1))


# Comparing boxes

boxes_xyxy = st.tuples(*[st.integers(-5, 20)] * 4)


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


@settings(deadline=None, max_examples=200, derandomize=True)
@given(a=boxes_xyxy, b=boxes_xyxy)
@example(a=(0, 0, 0, 0), b=(0, 0, 0, 0))
@example(a=(0, 0, 4, 4), b=(4, 0, 8, 4))
def test_areas_are_counts_of_pixels(a: Box, b: Box) -> None:
    assert area_px(a) == len(pixels(a))
    union = len(pixels(a) | pixels(b))
    assert iou(a, b) == iou(b, a)
    assert iou(a, b) == pytest.approx(len(pixels(a) & pixels(b)) / union if union else 0.0)


@pytest.mark.parametrize(
    ("found", "true", "counts"),
    [
        ((10, 10, 20, 20), (10, 10, 20, 20), True),
        ((10, 10, 30, 30), (10, 10, 20, 20), True),  # four times its area
        ((10, 10, 30, 31), (10, 10, 20, 20), False),  # and a little more
        ((14, 14, 16, 16), (10, 10, 20, 20), True),  # however small, with its centre inside
        ((10, 10, 10, 10), (10, 10, 20, 20), False),  # nothing is not a find
        ((15, 10, 15, 20), (10, 10, 20, 20), False),
        ((20, 20, 10, 10), (10, 10, 20, 20), False),
        ((10, 10, 11, 11), (15, 15, 15, 15), False),
        ((15, 15, 15, 15), (15, 15, 15, 15), False),
        ((20, 10, 30, 20), (10, 10, 20, 20), False),  # beside it
        ((19, 10, 29, 20), (10, 10, 20, 20), False),  # IoU 0.053
        ((18, 10, 28, 20), (10, 10, 20, 20), True),  # IoU 0.111
        ((15, 10, 25, 20), (10, 10, 20, 20), True),  # its centre on the edge that is outside
        ((9, 9, 11, 11), (10, 10, 20, 20), True),  # its centre on the corner that is inside
        ((19, 19, 21, 21), (10, 10, 20, 20), False),  # its centre on the corner that is outside
    ],
)
def test_finds(found: Box, true: Box, counts: bool) -> None:
    assert finds(found, true) is counts


@settings(deadline=None, max_examples=200, derandomize=True)
@given(found=boxes_xyxy, true=boxes_xyxy)
def test_what_finds_has_pixels_near_the_true_box(found: Box, true: Box) -> None:
    if finds(found, true):
        assert 0 < area_px(found) <= 4 * area_px(true)
        x, y = (found[0] + found[2]) / 2, (found[1] + found[3]) / 2
        inside = true[0] <= x < true[2] and true[1] <= y < true[3]
        assert inside or pixels(found) & pixels(true)
