"""Frame slots in shared memory: one ring per camera, and the line's accounting.

The file lies under /dev/shm, is created and unlinked by the supervisor alone, and holds

    header | log of taken ids | slot headers | slots: padded frame, anomaly map

Everything but pixels and maps is a 64 bit word with one writer, stored after all that it vouches
for. Messages between stages are wake-ups; these words are the truth, so that a stage that was
killed goes on from here. The life of a frame:

1. capture picks a free slot (`generation == released`, or empty) or none;
2. `begin`: it writes the log record of the next id, sets the slot to WRITING and raises its
   generation, and then stores `last_id`: from now on the frame exists and will have a verdict;
3. it writes the pixels, fills the margin and sets the slot to FILLED (`commit`);
4. the worker takes the slot (`take`), writes the map, and stores `done = generation` (`finish`);
5. decision sees `last_id` grow, reads the log, and waits for `done` or the deadline. Once the
   verdict is committed it stores `decided = generation`, and `released = generation` as soon as the
   worker has answered: not earlier, so that a worker that was stopped and wakes can never write an
   old map into a slot with a new frame. A dead worker's slots are answered by the next worker,
   which the supervisor starts only when the old one is reaped.

An id without a slot (dropped, broken, of another size) has a log record and nothing else. A slot
that a killed capture left WRITING is TORN by its successor; an id that it had not stored yet
never existed.

Stores are ordered as x86-64 orders them; each Python statement is far wider than a store buffer.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.margin import fill_margin
from pipeline.ringfile import (
    HEAD_WORDS,
    LOG_RECORDS,
    LOG_WORDS,
    PAGE,
    SLOT_WORDS,
    frame_bytes,
    map_ring,
    slot_bytes,
    slots_at,
)
from pipeline.types import MARGIN_PX, FrameRef, Reason, map_hw

# Words of the ring's header after those of `ringfile`. Writer: capture until ENDED, then decision.
_LAST_ID, _ENDED, _DECIDED_ID = range(HEAD_WORDS, HEAD_WORDS + 3)
_TRIGGERED = HEAD_WORDS + 3  # capture's
# Words of a log record (writer: capture); the last eight hold the part id.
_ID, _T_CAPTURE, _PTS, _TRIGGER, _SLOT, _SLOT_GENERATION, _FAULT, _SOURCE_INDEX = range(8)
_TRIGGER_INDEX, _PART = 8, 9
# Words of a slot's header. Writers: capture, then worker from ATTEMPTS, then decision from DECIDED.
_GENERATION, _FRAME_ID, _STATE, _T_FILLED = range(4)
_ATTEMPTS, _STATUS, _T_START, _T_END, _RAW_PEAK, _DONE = range(4, 10)
_DECIDED, _RELEASED = 10, 11
_WAITED = 12  # the worker's again
_ENGINE = 16

EMPTY, WRITING, FILLED, TORN = range(4)
RUNNING, END_OF_STREAM, STOPPED, LOST = range(4)
ANSWERED, FAILED, SKIPPED, POISONED = range(4)

_REASONS = tuple(Reason)


@dataclass(frozen=True, slots=True)
class Taken:
    """The log's record of one id. `fault` is None for a frame that has a slot."""

    ref: FrameRef
    fault: Reason | None
    source_index: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What the worker left in a slot's header. `status`: ANSWERED, FAILED, SKIPPED, POISONED."""

    status: int
    raw_peak: float
    t_filled_ns: int
    t_start_ns: int
    t_end_ns: int
    engine_id: str
    waited_ns: int = 0
    """Of the time before `t_start_ns`, what it waited for others to share its batch."""


class FrameRing:
    """One camera's ring, mapped into this process. Which methods a stage may call is named."""

    def __init__(self, path: Path) -> None:
        """Map an existing ring. Raises `ResourceError` when there is none, or not one of ours."""
        self.camera = path.stem
        self._map, shape, self.slots, self.epoch = map_ring(path)
        self.shape_hwc = shape
        whole = memoryview(self._map)
        self._head = whole[:PAGE].cast("q")
        log_end = PAGE + LOG_RECORDS * LOG_WORDS * 8
        self._log = whole[PAGE:log_end].cast("q")
        self._log_bytes = whole[PAGE:log_end]
        headers = whole[log_end : log_end + self.slots * SLOT_WORDS * 8]
        self._slot = headers.cast("q")
        self._slot_bytes = headers
        self._table = np.frombuffer(headers, np.int64).reshape(self.slots, SLOT_WORDS)
        height, width, channels = shape
        padded = (height + 2 * MARGIN_PX, width + 2 * MARGIN_PX, channels)
        # `frombuffer`, because what `np.ndarray` makes of a buffer does not keep it mapped.
        self._padded: list[NDArray[np.uint8]] = []
        self._maps: list[NDArray[np.float32]] = []
        for slot in range(self.slots):
            at = slots_at(self.slots) + slot * slot_bytes(shape)
            pixels = np.frombuffer(whole, np.uint8, math.prod(padded), at)
            self._padded.append(pixels.reshape(padded))
            rows, columns = map_hw(height, width)
            cells = np.frombuffer(whole, np.float32, rows * columns, at + frame_bytes(shape))
            self._maps.append(cells.reshape(rows, columns))

    def close(self) -> None:
        """Unmap. Views into slots must be gone; those that are not keep the mapping alive."""
        self._padded.clear()
        self._maps.clear()
        self._table = np.empty((0, SLOT_WORDS), np.int64)
        for view in (self._head, self._log, self._log_bytes, self._slot, self._slot_bytes):
            view.release()
        with contextlib.suppress(BufferError):
            self._map.close()

    # Everybody

    @property
    def last_id(self) -> int:
        """The last id that capture took; ids begin at 1."""
        return self._head[_LAST_ID]

    @property
    def ended(self) -> int:
        """RUNNING, END_OF_STREAM, STOPPED or LOST."""
        return self._head[_ENDED]

    @property
    def decided_id(self) -> int:
        """Every id up to this one has its verdict."""
        return self._head[_DECIDED_ID]

    def padded(self, slot: int) -> NDArray[np.uint8]:
        """uint8 (H + 64, W + 64, C): the slot's frame with its margin, no copy."""
        return self._padded[slot]

    @property
    def memory(self) -> NDArray[np.uint8]:
        """uint8 (bytes,): the whole mapping, in which all slots lie, no copy."""
        return np.frombuffer(self._map, np.uint8)

    def frame(self, slot: int) -> NDArray[np.uint8]:
        """uint8 (H, W, C): the slot's frame without margin, a strided view."""
        return self._padded[slot][MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]

    def map(self, slot: int) -> NDArray[np.float32]:
        """float32 (ceil(H / 4), ceil(W / 4)): the slot's raw anomaly map, no copy."""
        return self._maps[slot]

    def taken(self, frame_id: int) -> Taken | None:
        """The log's record of an id up to `last_id`; None where newer ids have overwritten it."""
        at = frame_id % LOG_RECORDS * LOG_WORDS
        words = self._log[at : at + LOG_WORDS].tolist()
        part = bytes(self._log_bytes[(at + _PART) * 8 : (at + LOG_WORDS) * 8])
        # After the last of it was read: capture clears the id before it writes another record.
        if words[_ID] != frame_id or self._log[at + _ID] != frame_id:
            return None
        ref = FrameRef(
            camera=self.camera,
            epoch=self.epoch,
            frame_id=frame_id,
            slot=words[_SLOT],
            generation=words[_SLOT_GENERATION],
            t_capture_ns=words[_T_CAPTURE],
            trigger_id=words[_TRIGGER],
            part_id=part.rstrip(b"\0").decode(errors="replace"),
            source_pts=words[_PTS],
            trigger_index=words[_TRIGGER_INDEX],
        )
        fault = _REASONS[words[_FAULT]] if words[_FAULT] >= 0 else None
        return Taken(ref, fault, words[_SOURCE_INDEX])

    def holds(self, ref: FrameRef) -> bool:
        """Whether the slot still has this very frame: check before and after reading it."""
        at = ref.slot * SLOT_WORDS
        return (
            self._slot[at + _GENERATION] == ref.generation
            and self._slot[at + _FRAME_ID] == ref.frame_id
        )

    def torn(self, ref: FrameRef) -> bool:
        return self.holds(ref) and self._slot[ref.slot * SLOT_WORDS + _STATE] == TORN

    # Capture

    def resume(self) -> int:
        """Capture, at its start: mark half-written slots; the source index to go on from."""
        for slot in range(self.slots):
            at = slot * SLOT_WORDS
            if self._slot[at + _STATE] == WRITING:
                admitted = self._slot[at + _FRAME_ID] <= self.last_id
                self._slot[at + _STATE] = TORN if admitted else EMPTY
        last = self.taken(self.last_id) if self.last_id else None
        return last.source_index + 1 if last else 0

    def free_slot(self) -> int | None:
        """Capture: a slot that nobody holds."""
        table = self._table
        free = (table[:, _GENERATION] == table[:, _RELEASED]) | (table[:, _STATE] == EMPTY)
        first = int(free.argmax())
        return first if free[first] else None

    def begin(
        self,
        *,
        t_capture_ns: int,
        source_index: int,
        slot: int | None,
        fault: Reason | None = None,
        source_pts: int = -1,
        trigger_id: int = 0,
        part_id: str = "",
        trigger_index: int = 0,
    ) -> FrameRef:
        """Capture: take the next id. Without a slot `fault` says why there is no frame."""
        frame_id = self.last_id + 1
        generation = self._slot[slot * SLOT_WORDS + _GENERATION] + 1 if slot is not None else 0
        at = frame_id % LOG_RECORDS * LOG_WORDS
        self._log[at + _ID] = 0
        part = part_id.encode()[: (LOG_WORDS - _PART) * 8].ljust((LOG_WORDS - _PART) * 8, b"\0")
        self._log_bytes[(at + _PART) * 8 : (at + LOG_WORDS) * 8] = part
        for word, value in (
            (_T_CAPTURE, t_capture_ns),
            (_PTS, source_pts),
            (_TRIGGER, trigger_id),
            (_SLOT, -1 if slot is None else slot),
            (_SLOT_GENERATION, generation),
            (_FAULT, -1 if fault is None else _REASONS.index(fault)),
            (_SOURCE_INDEX, source_index),
            (_TRIGGER_INDEX, trigger_index),
            (_ID, frame_id),
        ):
            self._log[at + word] = value
        if slot is not None:
            header = slot * SLOT_WORDS
            self._slot[header + _STATE] = WRITING
            self._slot[header + _FRAME_ID] = frame_id
            self._slot[header + _ATTEMPTS] = 0
            self._slot[header + _GENERATION] = generation
        self._head[_LAST_ID] = frame_id
        return FrameRef(
            self.camera,
            self.epoch,
            frame_id,
            -1 if slot is None else slot,
            generation,
            t_capture_ns,
            trigger_id,
            part_id,
            source_pts,
            trigger_index,
        )

    def commit(
        self,
        ref: FrameRef,
        t_filled_ns: int,
        fill: Callable[[NDArray[np.uint8]], None] | None = None,
    ) -> None:
        """Capture: the pixels are there; fill the margin and hand the slot to the worker.

        fill: fills the padded frame's margin, in the place of `fill_margin`.
        """
        (fill or fill_margin)(self._padded[ref.slot])
        at = ref.slot * SLOT_WORDS
        self._slot[at + _T_FILLED] = t_filled_ns
        self._slot[at + _STATE] = FILLED

    def tear(self, ref: FrameRef) -> None:
        """Capture: the pixels could not be written after all."""
        self._slot[ref.slot * SLOT_WORDS + _STATE] = TORN

    @property
    def triggered(self) -> int:
        """Capture: the last trigger's index (`pipeline.triggers`) that it has seen to."""
        return self._head[_TRIGGERED]

    def set_triggered(self, index: int) -> None:
        self._head[_TRIGGERED] = index

    def end(self, how: int) -> None:
        """Capture, or the supervisor for a capture that is dead: no id will follow."""
        self._head[_ENDED] = how

    # Worker

    def waiting(self) -> Iterator[tuple[int, int, int]]:
        """Worker: (frame_id, slot, generation) of filled slots without an answer, oldest first."""
        table = self._table
        open_ = (
            (table[:, _STATE] == FILLED)
            & (table[:, _DONE] != table[:, _GENERATION])
            & (table[:, _RELEASED] != table[:, _GENERATION])
        )
        slots = np.flatnonzero(open_)
        for slot in slots[np.argsort(table[slots, _FRAME_ID], kind="stable")].tolist():
            at = slot * SLOT_WORDS
            generation = self._slot[at + _GENERATION]
            frame_id = self._slot[at + _FRAME_ID]
            # The columns above were not read in one instant: believe only a settled header.
            if self._slot[at + _STATE] == FILLED and self._slot[at + _GENERATION] == generation:
                yield frame_id, slot, generation

    def take(self, slot: int, generation: int) -> int:
        """Worker: begin with a slot of `waiting`. Returns how often that was done before."""
        at = slot * SLOT_WORDS + _ATTEMPTS
        attempts = self._slot[at]
        self._slot[at] = attempts + 1
        return attempts

    def attempts(self, slot: int) -> int:
        """Worker: how often a slot of `waiting` was begun with by workers that did not answer."""
        return self._slot[slot * SLOT_WORDS + _ATTEMPTS]

    def filled_ns(self, slot: int) -> int:
        """Worker: when the pixels of a slot of `waiting` were there."""
        return self._slot[slot * SLOT_WORDS + _T_FILLED]

    def wanted(self, slot: int, generation: int) -> bool:
        """Worker: whether a map is still of use (no verdict yet)."""
        return self._slot[slot * SLOT_WORDS + _DECIDED] != generation

    def finish(
        self,
        slot: int,
        generation: int,
        status: int,
        *,
        raw_peak: float = float("nan"),
        t_start_ns: int = 0,
        t_end_ns: int = 0,
        engine_id: str = "",
        waited_ns: int = 0,
    ) -> None:
        """Worker: answer. For ANSWERED the map is in the slot."""
        at = slot * SLOT_WORDS
        room = (SLOT_WORDS - _ENGINE) * 8
        engine = engine_id.encode()[:room].ljust(room, b"\0")
        self._slot_bytes[(at + _ENGINE) * 8 : (at + SLOT_WORDS) * 8] = engine
        self._slot[at + _STATUS] = status
        self._slot[at + _T_START] = t_start_ns
        self._slot[at + _T_END] = t_end_ns
        self._slot[at + _WAITED] = waited_ns
        self._slot[at + _RAW_PEAK] = struct.unpack("<q", struct.pack("<d", raw_peak))[0]
        self._slot[at + _DONE] = generation

    # Decision

    def answer(self, ref: FrameRef) -> Answer | None:
        """Decision: what the worker said of this frame, None as long as it has not."""
        at = ref.slot * SLOT_WORDS
        if self._slot[at + _DONE] != ref.generation or not self.holds(ref):
            return None
        engine = bytes(self._slot_bytes[(at + _ENGINE) * 8 : (at + SLOT_WORDS) * 8])
        return Answer(
            self._slot[at + _STATUS],
            struct.unpack("<d", struct.pack("<q", self._slot[at + _RAW_PEAK]))[0],
            self._slot[at + _T_FILLED],
            self._slot[at + _T_START],
            self._slot[at + _T_END],
            engine.rstrip(b"\0").decode(errors="replace"),
            self._slot[at + _WAITED],
        )

    def decide(self, ref: FrameRef) -> None:
        """Decision: the verdict is committed; the worker need not look any more."""
        self._slot[ref.slot * SLOT_WORDS + _DECIDED] = ref.generation

    def may_release(self, ref: FrameRef) -> bool:
        """Decision: whether no worker can still write into this slot."""
        at = ref.slot * SLOT_WORDS
        return self._slot[at + _STATE] == TORN or self._slot[at + _DONE] == ref.generation

    def release(self, ref: FrameRef) -> None:
        """Decision: give the slot back to capture."""
        self._slot[ref.slot * SLOT_WORDS + _RELEASED] = ref.generation

    def set_decided_id(self, frame_id: int) -> None:
        """Decision: every id up to this one has its verdict."""
        self._head[_DECIDED_ID] = frame_id

    def held(self) -> list[tuple[int, int, int]]:
        """Decision, at its start: (frame_id, slot, generation) of slots that are not free."""
        table = self._table
        busy = (table[:, _GENERATION] != table[:, _RELEASED]) & (table[:, _STATE] != EMPTY)
        rows = np.flatnonzero(busy).tolist()
        return [
            (int(table[s, _FRAME_ID]), s, int(table[s, _GENERATION]))
            for s in rows
            if table[s, _FRAME_ID] <= self.last_id
        ]
