"""The ring's words: what each stage writes, and what the others make of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ResourceError
from pipeline.margin import fill_margin
from pipeline.ring import (
    ANSWERED,
    END_OF_STREAM,
    FAILED,
    RUNNING,
    SKIPPED,
    FrameRing,
)
from pipeline.ringfile import LOG_RECORDS, create_ring, ring_bytes
from pipeline.types import FrameRef, Reason, map_hw

SHAPE = (40, 50, 1)


def make(folder: Path, shape: tuple[int, int, int] = SHAPE, slots: int = 3) -> FrameRing:
    path = folder / "cam.ring"
    create_ring(path, shape, slots, epoch=7)
    return FrameRing(path)


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[FrameRing]:
    ring = make(tmp_path)
    yield ring
    ring.close()


def capture_one(ring: FrameRing, value: int = 0, index: int = 0) -> FrameRef:
    slot = ring.free_slot()
    assert slot is not None
    ref = ring.begin(t_capture_ns=10, source_index=index, slot=slot)
    ring.frame(slot)[...] = value
    ring.commit(ref, 20)
    return ref


def test_a_new_ring_is_empty(ring: FrameRing) -> None:
    assert (ring.camera, ring.epoch, ring.slots, ring.shape_hwc) == ("cam", 7, 3, SHAPE)
    assert (ring.last_id, ring.decided_id, ring.ended) == (0, 0, RUNNING)
    assert ring.free_slot() == 0
    assert list(ring.waiting()) == []
    assert ring.held() == []
    assert ring.resume() == 0
    assert ring.taken(1) is None


@pytest.mark.parametrize(
    "shape", [(33, 33, 1), (33, 34, 3), (35, 33, 1), (257, 130, 3), (1024, 1280, 3)]
)
def test_frame_map_and_margin_of_every_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    ring = make(tmp_path, shape, slots=2)
    assert (tmp_path / "cam.ring").stat().st_size == ring_bytes(shape, 2)
    assert (tmp_path / "cam.ring").stat().st_mode & 0o777 == 0o600
    rng = np.random.default_rng(3)
    frames, maps = [], []
    for n in range(2):
        slot = ring.free_slot()
        assert slot == n
        ref = ring.begin(t_capture_ns=n, source_index=n, slot=slot)
        frames.append(rng.integers(0, 256, shape, np.uint8))
        maps.append(rng.random(map_hw(*shape[:2]), np.float32))
        ring.frame(slot)[...] = frames[n]
        ring.commit(ref, n)
        ring.map(slot)[...] = maps[n]
    # Only now, so that a slot that reaches into its neighbour shows.
    for n in range(2):
        assert np.array_equal(ring.frame(n), frames[n])
        margins = ((32, 32), (32, 32), (0, 0))
        assert np.array_equal(ring.padded(n), np.pad(frames[n], margins, mode="reflect"))
        assert np.array_equal(ring.map(n), maps[n])
        assert ring.padded(n).flags.c_contiguous
        assert ring.padded(n).ctypes.data % 4096 == 0
        assert ring.map(n).ctypes.data % 4096 == 0
    ring.close()


@pytest.mark.parametrize("side", [33, 34, 48, 49])
def test_margin_equals_reflection(side: int) -> None:
    frame = np.random.default_rng(side).integers(0, 256, (side, 2 * side, 3), np.uint8)
    margins = ((32, 32), (32, 32), (0, 0))
    padded = np.pad(frame, margins, mode="constant", constant_values=99)
    fill_margin(padded)
    assert np.array_equal(padded, np.pad(frame, margins, mode="reflect"))


def test_the_way_of_one_frame(ring: FrameRing) -> None:
    ref = ring.begin(
        t_capture_ns=5, source_index=12, slot=1, source_pts=-3, trigger_id=9, part_id="tray/1 ü"
    )
    assert (ref.frame_id, ref.epoch, ref.camera, ref.slot) == (1, 7, "cam", 1)
    assert list(ring.waiting()) == []  # the pixels are not there yet
    assert ring.held() == [(1, 1, ref.generation)]
    assert ring.answer(ref) is None
    ring.commit(ref, 6)
    assert list(ring.waiting()) == [(1, 1, ref.generation)]
    taken = ring.taken(1)
    assert taken is not None
    assert (taken.ref, taken.fault, taken.source_index) == (ref, None, 12)
    assert ring.take(1, ref.generation) == 0
    assert ring.take(1, ref.generation) == 1
    assert not ring.may_release(ref)
    ring.finish(
        1,
        ref.generation,
        ANSWERED,
        raw_peak=0.25,
        t_start_ns=7,
        t_end_ns=8,
        engine_id="openvino/cpu/f32",
    )
    assert list(ring.waiting()) == []
    answer = ring.answer(ref)
    assert answer is not None
    assert (answer.status, answer.raw_peak, answer.engine_id) == (
        ANSWERED,
        0.25,
        "openvino/cpu/f32",
    )
    assert (answer.t_filled_ns, answer.t_start_ns, answer.t_end_ns) == (6, 7, 8)
    assert ring.wanted(1, ref.generation)
    ring.decide(ref)
    assert not ring.wanted(1, ref.generation)
    assert ring.free_slot() == 0
    assert ring.may_release(ref)
    ring.release(ref)
    assert ring.held() == []
    ring.set_decided_id(1)
    ring.end(END_OF_STREAM)
    assert (ring.decided_id, ring.ended) == (1, END_OF_STREAM)


def test_the_next_frame_of_a_slot_has_no_answer_yet(ring: FrameRing) -> None:
    first = capture_one(ring)
    ring.finish(first.slot, first.generation, ANSWERED, engine_id="x")
    ring.release(first)
    second = capture_one(ring)
    assert second.slot == first.slot
    assert second.generation == first.generation + 1
    assert ring.answer(second) is None
    assert ring.answer(first) is None
    assert not ring.holds(first)
    assert ring.holds(second)
    assert ring.wanted(second.slot, second.generation)
    assert ring.take(second.slot, second.generation) == 0
    assert not ring.may_release(second)


def test_an_answer_without_a_map_has_no_peak(ring: FrameRing) -> None:
    ref = capture_one(ring)
    ring.finish(ref.slot, ref.generation, FAILED)
    answer = ring.answer(ref)
    assert answer is not None
    assert answer.status == FAILED
    assert np.isnan(answer.raw_peak)


@pytest.mark.parametrize("name", ["", "x" * 200, "ü" * 100, "€" * 100])
def test_names_that_are_too_long_are_cut(ring: FrameRing, name: str) -> None:
    """Not raised over: the reader is decision, which would die of it again and again."""
    ref = ring.begin(t_capture_ns=0, source_index=0, slot=0, part_id=name)
    ring.commit(ref, 0)
    ring.finish(0, ref.generation, SKIPPED, engine_id=name)
    taken, answer = ring.taken(1), ring.answer(ref)
    assert taken is not None
    assert answer is not None
    for text, room in ((taken.ref.part_id, 56), (answer.engine_id, 128)):
        assert name.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        assert len(text.encode()) >= min(len(name.encode()), room)


def test_ids_without_a_slot(ring: FrameRing) -> None:
    for n, fault in enumerate((Reason.DROPPED, Reason.BROKEN_FRAME, Reason.WRONG_SIZE)):
        ref = ring.begin(t_capture_ns=n, source_index=n, slot=None, fault=fault)
        assert (ref.frame_id, ref.slot) == (n + 1, -1)
        taken = ring.taken(n + 1)
        assert taken is not None
        assert (taken.fault, taken.ref, taken.source_index) == (fault, ref, n)
    assert ring.held() == []
    assert ring.resume() == 3


def test_every_reason_survives_the_log(ring: FrameRing) -> None:
    for fault in Reason:
        ref = ring.begin(t_capture_ns=0, source_index=0, slot=None, fault=fault)
        taken = ring.taken(ref.frame_id)
        assert taken is not None
        assert taken.fault is fault


def test_free_slots_run_out(ring: FrameRing) -> None:
    refs = [capture_one(ring) for _ in range(3)]
    assert sorted(ref.slot for ref in refs) == [0, 1, 2]
    assert ring.free_slot() is None
    assert [ref.slot for ref in refs] == [slot for _, slot, _ in ring.waiting()]
    ring.finish(refs[1].slot, refs[1].generation, ANSWERED)
    assert ring.free_slot() is None  # an answer is not a release
    ring.release(refs[1])
    assert ring.free_slot() == refs[1].slot


def test_waiting_is_by_age_and_not_by_slot(ring: FrameRing) -> None:
    refs = [capture_one(ring) for _ in range(3)]
    ring.finish(0, refs[0].generation, ANSWERED)
    ring.release(refs[0])
    newest = capture_one(ring)
    assert newest.slot == 0
    assert [frame_id for frame_id, _, _ in ring.waiting()] == [2, 3, 4]


def test_the_log_forgets_what_is_overwritten(ring: FrameRing) -> None:
    for n in range(LOG_RECORDS + 5):
        ring.begin(t_capture_ns=n, source_index=n, slot=None, fault=Reason.DROPPED)
    assert ring.last_id == LOG_RECORDS + 5
    assert [n for n in range(1, ring.last_id + 1) if ring.taken(n) is None] == [1, 2, 3, 4, 5]
    for n in (6, LOG_RECORDS, ring.last_id):
        taken = ring.taken(n)
        assert taken is not None
        assert taken.ref.t_capture_ns == n - 1
    assert ring.resume() == ring.last_id


def test_torn_pixels(ring: FrameRing) -> None:
    ref = ring.begin(t_capture_ns=0, source_index=0, slot=0)
    assert not ring.torn(ref)
    ring.tear(ref)
    assert ring.torn(ref)
    assert list(ring.waiting()) == []
    assert ring.may_release(ref)
    ring.release(ref)
    assert ring.free_slot() == 0


def test_resume_marks_only_what_is_half_written(ring: FrameRing) -> None:
    whole = capture_one(ring, index=0)
    half = ring.begin(t_capture_ns=0, source_index=1, slot=1)
    assert ring.resume() == 2
    assert not ring.torn(whole)
    assert ring.torn(half)
    assert ring.resume() == 2  # and again: killed in the middle of it


def test_a_view_keeps_the_mapping_alive(tmp_path: Path) -> None:
    ring = make(tmp_path)
    capture_one(ring, value=77)
    view = ring.frame(0)
    ring.close()
    assert int(view.min()) == int(view.max()) == 77


def test_closed_twice(tmp_path: Path) -> None:
    ring = make(tmp_path)
    ring.close()
    ring.close()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(20):
        path = tmp_path / f"{n}.ring"
        create_ring(path, SHAPE, 2, 1)
        ring = FrameRing(path)
        ring.close()
        with pytest.raises(ResourceError):
            create_ring(path, SHAPE, 2, 1)
        path.write_bytes(b"short")
        with pytest.raises(ResourceError):
            FrameRing(path)
    assert len(os.listdir("/proc/self/fd")) == before
