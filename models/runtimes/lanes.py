"""How torch's runtimes (CPU, CUDA, TensorRT) serve a batch: lanes, strips and double buffering.

A lane is a compiled graph for one shape of batch, with buffers of its own. There are two of each
shape: while one computes, the other is filled.

1. Each frame is one piece, or several where its largest tensor would pass the limit.
2. Pieces of one shape go together, as many as a lane takes: powers of two, so that few are made.
3. A lane is emptied before it is filled again, in the order in which lanes were begun.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.fused import FusedGraph
from models.runtimes.base import check_batch
from models.variants import FRAME_MARGIN_PX, map_hw

Frames = Sequence[NDArray[np.uint8]]
Maps = Sequence[NDArray[np.float32]]
Shape = tuple[int, int, int, int]
"""(N, rows, columns, C) of padded frames or strips."""
KEPT = 16
"""Shapes whose lanes are kept beyond those that were asked for at the start."""


class Lane(Protocol):
    """One graph with its buffers."""

    def start(self, frames: Frames) -> None:
        """Begin with N frames uint8 (rows, columns, C); they stay as they are until `finish`.

        When it raises, nothing reads them any more.
        """

    def finish(self) -> NDArray[np.float32]:
        """Wait for what was begun: float32 [N, h, w], good until the next `start`."""


@dataclass(slots=True)
class _Pair:
    lanes: tuple[Lane, Lane]
    turn: int = 0


@dataclass(frozen=True, slots=True)
class _Piece:
    rows: NDArray[np.uint8]
    part: NDArray[np.float32]


class LaneRuntime:
    """A runtime over lanes: see `models.runtimes.base.Runtime`.

    open_lane: makes a lane. strip_bytes: bound of the largest tensor in float32, for strips and
    for batches alike. max_batch: frames that may go through a lane together.
    """

    def __init__(
        self,
        engine_id: str,
        graph: FusedGraph,
        open_lane: Callable[[Shape], Lane],
        *,
        shapes: Sequence[tuple[int, int, int]] = (),
        strip_bytes: int,
        max_batch: int = 1,
    ) -> None:
        self.engine_id = engine_id
        self._graph, self._open, self._strip_bytes = graph, open_lane, strip_bytes
        self._max_batch = max_batch
        self._pairs: OrderedDict[Shape, _Pair] = OrderedDict()
        self._pinned: set[Shape] = set()
        for height, width, channels in shapes:
            first = graph.pieces(map_hw(height, width), strip_bytes)[0]
            both = 2 * FRAME_MARGIN_PX
            rows, columns = first.padded_hw((height + both, width + both))
            count = 1
            while count <= self._most(rows, columns):  # none is to be made while parts pass
                shape = (count, rows, columns, channels)
                self._pinned.add(shape)
                self._pair(shape)
                count *= 2

    def infer(self, padded: Frames, out: Maps) -> list[float]:
        """See `Runtime.infer`. Raises `DataError` for shapes that do not fit."""
        check_batch(padded, out, self._graph.in_channels)
        begun: deque[tuple[Lane, list[_Piece]]] = deque()
        try:
            for pieces in self._batches(padded, out):
                pair = self._pair((len(pieces), *pieces[0].rows.shape))
                lane = pair.lanes[pair.turn]
                pair.turn ^= 1
                while len(begun) > 1 or any(lane is other for other, _ in begun):
                    self._write(*begun.popleft())
                lane.start([piece.rows for piece in pieces])
                begun.append((lane, pieces))
            while begun:
                self._write(*begun.popleft())
        finally:
            # After an error nothing may go on reading the caller's frames.
            for lane, _ in begun:
                lane.finish()
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        self._pairs.clear()

    @staticmethod
    def _write(lane: Lane, pieces: list[_Piece]) -> None:
        for piece, found in zip(pieces, lane.finish(), strict=True):
            piece.part[...] = found

    def _batches(self, padded: Frames, out: Maps) -> Iterator[list[_Piece]]:
        waiting: list[_Piece] = []
        for frame, raw_map in zip(padded, out, strict=True):
            size = (raw_map.shape[0], raw_map.shape[1])
            for part in self._graph.pieces(size, self._strip_bytes):
                piece = _Piece(frame[part.pixels], raw_map[part.cells])
                if waiting and waiting[0].rows.shape != piece.rows.shape:
                    yield from self._in_powers(waiting)
                    waiting = []
                waiting.append(piece)
        yield from self._in_powers(waiting)

    def _in_powers(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        while pieces:
            most = min(len(pieces), self._most(*pieces[0].rows.shape[:2]))
            count = 1 << (most.bit_length() - 1)
            yield pieces[:count]
            pieces = pieces[count:]

    def _most(self, rows: int, columns: int) -> int:
        """Pieces of so many padded pixels that go through a lane together."""
        room = self._strip_bytes // self._graph.largest_tensor_bytes(rows, columns)
        return max(1, min(self._max_batch, room))

    def _pair(self, shape: Shape) -> _Pair:
        pair = self._pairs.get(shape)
        if pair is None:
            pair = self._pairs[shape] = _Pair((self._open(shape), self._open(shape)))
            spare = [key for key in self._pairs if key not in self._pinned]
            for old in spare[: max(0, len(spare) - KEPT)]:
                del self._pairs[old]
        self._pairs.move_to_end(shape)
        return pair
