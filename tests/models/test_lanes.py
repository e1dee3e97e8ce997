"""Lanes: what goes together, in which order they are filled and emptied, what an error leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import DataError
from models.fused import FusedGraph, fuse
from models.references import weights_of
from models.runtimes.base import EngineOptions
from models.runtimes.lanes import KEPT, Frames, LaneRuntime, Shape
from models.runtimes.torch_ import TorchRuntime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.variants import FRAME_MARGIN_PX, STRIDE, map_hw

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]
LARGE = 1 << 40
"""Bytes: no strips, and no batch that is too large."""


class Shop:
    """Makes lanes, and notes what is done with them."""

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad
        """Lanes raise for a frame of this value."""
        self.lanes: list[FakeLane] = []
        self.done: list[tuple[str, int, int]] = []
        """`start` or `finish`, the lane's number, the number of its frames."""

    def open(self, shape: Shape) -> FakeLane:
        self.lanes.append(FakeLane(self, len(self.lanes), shape))
        return self.lanes[-1]

    def shapes(self) -> list[Shape]:
        """Of the lanes made, each pair once."""
        assert [lane.shape for lane in self.lanes[::2]] == [lane.shape for lane in self.lanes[1::2]]
        return [lane.shape for lane in self.lanes[::2]]


class FakeLane:
    """Its map is the pixel in the middle of each cell, computed when it is finished.

    It has one buffer, and no memory of frames that were begun before: what is not finished in time
    is lost, and what is read too late is wrong.
    """

    def __init__(self, shop: Shop, number: int, shape: Shape) -> None:
        self.shape = shape
        self._shop, self._number = shop, number
        self._frames: Frames | None = None
        count, rows, columns, _ = shape
        both = 2 * FRAME_MARGIN_PX
        self._found = np.empty((count, *map_hw(rows - both, columns - both)), np.float32)

    def start(self, frames: Frames) -> None:
        assert self._frames is None, "begun twice"
        assert (len(frames), *frames[0].shape) == self.shape
        if any(int(frame.max()) == self._shop.bad for frame in frames):
            raise MemoryError("told to fail")
        self._shop.done.append(("start", self._number, len(frames)))
        self._frames = frames

    def finish(self) -> Map:
        assert self._frames is not None, "finished before it was begun"
        self._shop.done.append(("finish", self._number, len(self._frames)))
        m = FRAME_MARGIN_PX
        for found, frame in zip(self._found, self._frames, strict=True):
            found[...] = frame[m:-m:STRIDE, m:-m:STRIDE, 0]
        self._frames = None
        return self._found


@pytest.fixture(scope="module")
def graph() -> FusedGraph:
    return fuse(weights_of(untrained_model("pdn_tiny")), "pdn_tiny", 1)


def flat(value: int, height: int = 40, width: int = 48) -> Pixels:
    """A padded frame of one value."""
    both = 2 * FRAME_MARGIN_PX
    return np.full((height + both, width + both, 1), value, np.uint8)


def room_for(padded: Sequence[Pixels]) -> list[Map]:
    both = 2 * FRAME_MARGIN_PX
    return [
        np.full(map_hw(frame.shape[0] - both, frame.shape[1] - both), np.nan, np.float32)
        for frame in padded
    ]


def expected_of(padded: Pixels) -> Map:
    m = FRAME_MARGIN_PX
    return padded[m:-m:STRIDE, m:-m:STRIDE, 0].astype(np.float32)


def runtime_of(
    graph: FusedGraph,
    shop: Shop,
    *,
    shapes: Sequence[tuple[int, int, int]] = (),
    strip_bytes: int = LARGE,
    max_batch: int = 1,
) -> LaneRuntime:
    return LaneRuntime(
        "fake/none/none",
        graph,
        shop.open,
        shapes=shapes,
        strip_bytes=strip_bytes,
        max_batch=max_batch,
    )


def infer(runtime: LaneRuntime, padded: Sequence[Pixels]) -> list[Map]:
    out = room_for(padded)
    assert runtime.infer(padded, out) == [float(raw_map.max()) for raw_map in out]
    return out


@pytest.mark.parametrize(
    ("frames", "max_batch", "batches"),
    [
        (0, 4, []),
        (1, 4, [1]),
        (3, 4, [2, 1]),
        (7, 4, [4, 2, 1]),
        (8, 8, [8]),
        (9, 8, [8, 1]),
        (6, 7, [4, 2]),
        (5, 1, [1] * 5),
    ],
)
def test_batches_are_powers_of_two(
    graph: FusedGraph, frames: int, max_batch: int, batches: list[int]
) -> None:
    shop = Shop()
    runtime = runtime_of(graph, shop, max_batch=max_batch)
    padded = [flat(value) for value in range(frames)]
    for value, raw_map in enumerate(infer(runtime, padded)):
        assert (raw_map == value).all()
    assert [count for what, _, count in shop.done if what == "start"] == batches
    assert sorted({shape[0] for shape in shop.shapes()}) == sorted(set(batches))


@pytest.mark.parametrize(("room", "batches"), [(5, [4, 4]), (2, [2] * 4), (1, [1] * 8)])
def test_a_batch_stays_within_the_bound_of_the_largest_tensor(
    graph: FusedGraph, room: int, batches: list[int]
) -> None:
    """room: frames whose largest tensors the bound holds."""
    shop = Shop()
    one = graph.largest_tensor_bytes(*flat(0).shape[:2])
    runtime = runtime_of(graph, shop, strip_bytes=room * one, max_batch=8)
    infer(runtime, [flat(n) for n in range(8)])
    assert [count for what, _, count in shop.done if what == "start"] == batches


def test_one_lane_computes_while_the_other_is_filled(graph: FusedGraph) -> None:
    shop = Shop()
    runtime = runtime_of(graph, shop)
    infer(runtime, [flat(value) for value in range(4)])
    assert shop.done == [
        ("start", 0, 1),
        ("start", 1, 1),
        ("finish", 0, 1),
        ("start", 0, 1),
        ("finish", 1, 1),
        ("start", 1, 1),
        ("finish", 0, 1),
        ("finish", 1, 1),
    ]
    # And the next call begins with the lane whose turn it is.
    infer(runtime, [flat(9)])
    infer(runtime, [flat(9)])
    assert [number for what, number, _ in shop.done[8:] if what == "start"] == [0, 1]


def test_no_more_than_two_are_begun_at_once_whatever_the_shapes(graph: FusedGraph) -> None:
    shop = Shop()
    padded = [flat(n, 40, 40 + 4 * (n % 3)) for n in range(9)]
    infer(runtime_of(graph, shop), padded)
    begun: list[int] = []
    for what, number, _ in shop.done:
        if what == "start":
            begun.append(number)
            assert len(begun) <= 2
        else:
            assert begun.pop(0) == number  # in the order in which they were begun
    assert not begun


def test_shapes_in_any_order_go_back_to_their_own_maps(graph: FusedGraph) -> None:
    shop = Shop()
    rng = np.random.default_rng(5)
    sizes = [(40, 48), (40, 48), (33, 33), (40, 48), (120, 36), (120, 36), (120, 36), (33, 33)]
    padded = [rng.integers(0, 256, flat(0, *hw).shape, np.uint8) for hw in sizes]
    found = infer(runtime_of(graph, shop, max_batch=4), padded)
    for frame, raw_map in zip(padded, found, strict=True):
        assert np.array_equal(raw_map, expected_of(frame))
    assert [count for what, _, count in shop.done if what == "start"] == [2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("max_batch", [1, 4])
def test_strips_are_put_together_again(graph: FusedGraph, max_batch: int) -> None:
    """Strips of one height overlap; the maps are those of the whole frames."""
    shop = Shop()
    rng = np.random.default_rng(6)
    padded = [rng.integers(0, 256, flat(0, 333, 50).shape, np.uint8) for _ in range(2)]
    strip_bytes = 16 * STRIDE * graph.largest_tensor_bytes(1, padded[0].shape[1])
    pieces = graph.pieces((84, 13), strip_bytes)
    assert len(pieces) > 4
    runtime = runtime_of(graph, shop, strip_bytes=strip_bytes, max_batch=max_batch)
    for frame, raw_map in zip(padded, infer(runtime, padded), strict=True):
        assert np.array_equal(raw_map, expected_of(frame))
    starts = [count for what, _, count in shop.done if what == "start"]
    assert sum(starts) == 2 * len(pieces)


def test_a_pinned_shape_is_that_of_its_strips(graph: FusedGraph) -> None:
    shop = Shop()
    strip_bytes = 16 * STRIDE * graph.largest_tensor_bytes(1, 50 + 2 * FRAME_MARGIN_PX)
    runtime = runtime_of(graph, shop, shapes=[(333, 50, 1)], strip_bytes=strip_bytes)
    [shape] = shop.shapes()
    piece = graph.pieces((84, 13), strip_bytes)[0]
    assert shape == (1, *piece.padded_hw((333 + 64, 114)), 1)
    infer(runtime, [flat(3, 333, 50)])
    # The last strip may be a row short where the height is odd; all others are as they were made.
    assert shop.shapes()[0] == shape
    assert len(shop.shapes()) <= 2


def test_all_sizes_of_batches_are_made_at_the_start_and_stay(graph: FusedGraph) -> None:
    """None is to be captured or compiled while parts pass, however many cameras there are."""
    shop = Shop()
    sizes = [(40, 48 + 4 * n) for n in range(KEPT)]
    runtime = runtime_of(graph, shop, shapes=[(*size, 1) for size in sizes], max_batch=5)
    made = len(shop.shapes())
    assert made == 3 * KEPT  # 1, 2 and 4
    for size in sizes * 2:
        for count in (1, 2, 4, 5, 7):
            infer(runtime, [flat(k, *size) for k in range(count)])
    assert len(shop.shapes()) == made


def test_batches_that_do_not_fit_are_not_made(graph: FusedGraph) -> None:
    shop = Shop()
    both = 2 * FRAME_MARGIN_PX
    room = 3 * graph.largest_tensor_bytes(40 + both, 48 + both)
    runtime_of(graph, shop, shapes=[(40, 48, 1)], max_batch=8, strip_bytes=room)
    assert [shape[0] for shape in shop.shapes()] == [1, 2]


def test_shapes_beyond_those_kept_are_forgotten_and_pinned_ones_are_not(graph: FusedGraph) -> None:
    shop = Shop()
    runtime = runtime_of(graph, shop, shapes=[(40, 48, 1)])
    widths = range(52, 52 + 4 * (KEPT + 2), 4)
    for width in widths:
        infer(runtime, [flat(1, 40, width)])
    made = len(shop.shapes())
    assert made == 1 + len(widths)
    infer(runtime, [flat(1)])  # pinned: the oldest of all, and still there
    infer(runtime, [flat(1, 40, widths[-1])])
    infer(runtime, [flat(1, 40, widths[2])])  # the oldest that is kept
    assert len(shop.shapes()) == made
    infer(runtime, [flat(1, 40, widths[0])])  # forgotten
    assert len(shop.shapes()) == made + 1
    infer(runtime, [flat(1, 40, widths[2])])  # was used since then: another one went
    assert len(shop.shapes()) == made + 1
    runtime.close()


def test_more_shapes_in_one_batch_than_are_kept(graph: FusedGraph) -> None:
    """A lane may be forgotten while it computes: its map arrives all the same."""
    shop = Shop()
    padded = [flat(n, 40, 48 + 4 * n) for n in range(2 * KEPT)]
    for value, raw_map in enumerate(infer(runtime_of(graph, shop), padded)):
        assert (raw_map == value).all()


@pytest.mark.parametrize("at", [0, 1, 2, 5, 6])
def test_an_error_in_the_middle_leaves_the_runtime_usable(graph: FusedGraph, at: int) -> None:
    shop = Shop(bad=99)
    runtime = runtime_of(graph, shop, max_batch=2)
    padded = [flat(n, 40, 48 if n % 4 < 2 else 60) for n in range(7)]
    padded[at][...] = 99
    with pytest.raises(MemoryError, match="told to fail"):
        runtime.infer(padded, room_for(padded))
    # Nothing goes on reading the caller's frames.
    starts = [number for what, number, _ in shop.done if what == "start"]
    finishes = [number for what, number, _ in shop.done if what == "finish"]
    assert sorted(starts) == sorted(finishes)
    padded[at][...] = at
    for value, raw_map in enumerate(infer(runtime, padded)):
        assert (raw_map == value).all()


def test_what_does_not_fit_is_refused_before_anything_begins(graph: FusedGraph) -> None:
    shop = Shop()
    runtime = runtime_of(graph, shop)
    with pytest.raises(DataError, match="1 frames and 0 maps"):
        runtime.infer([flat(1)], [])
    colours = np.zeros((104, 112, 3), np.uint8)
    with pytest.raises(DataError, match="channels"):
        runtime.infer([flat(1), colours], room_for([flat(1), colours]))
    assert shop.done == []


def test_torch_in_strips_and_batches_equals_torch_whole(graph: FusedGraph) -> None:
    frames = [textured_frame(301, 90, 1, seed=seed) for seed in range(3)]
    frames.insert(1, textured_frame(64, 50, 1, seed=9))
    padded = [pad_frame(frame, FRAME_MARGIN_PX) for frame in frames]
    found = []
    for strip_bytes, max_batch in ((1 << 30, 1), (1 << 30, 4), (1 << 20, 1), (1 << 22, 4)):
        options = EngineOptions(threads=1, max_batch=max_batch)
        runtime = TorchRuntime(graph, options, strip_bytes=strip_bytes)
        found.append(infer(runtime, padded))
        runtime.close()
    for maps in found[1:]:
        for raw_map, whole in zip(maps, found[0], strict=True):
            np.testing.assert_allclose(raw_map, whole, rtol=1e-5, atol=1e-6 * whole.max())
