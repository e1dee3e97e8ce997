"""The ring's file and its words: sizes, refusals, the log, and two processes on one ring."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ResourceError
from pipeline.ring import (
    ANSWERED,
    END_OF_STREAM,
    FAILED,
    RUNNING,
    SKIPPED,
    FrameRing,
    fill_margin,
)
from pipeline.ringfile import LOG_RECORDS, MAGIC, create_ring, ring_bytes
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
        margins = ((16, 16), (16, 16), (0, 0))
        assert np.array_equal(ring.padded(n), np.pad(frames[n], margins, mode="reflect"))
        assert np.array_equal(ring.map(n), maps[n])
        assert ring.padded(n).flags.c_contiguous
        assert ring.padded(n).ctypes.data % 4096 == 0
        assert ring.map(n).ctypes.data % 4096 == 0
    ring.close()


@pytest.mark.parametrize("side", [33, 34, 48, 49])
def test_margin_equals_reflection(side: int) -> None:
    frame = np.random.default_rng(side).integers(0, 256, (side, 2 * side, 3), np.uint8)
    margins = ((16, 16), (16, 16), (0, 0))
    padded = np.pad(frame, margins, mode="constant", constant_values=99)
    fill_margin(padded)
    assert np.array_equal(padded, np.pad(frame, margins, mode="reflect"))


def test_one_frame_s_way(ring: FrameRing) -> None:
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


def test_a_slot_s_next_frame_has_no_answer_yet(ring: FrameRing) -> None:
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


# What is refused


@pytest.mark.parametrize(
    "shape", [(32, 100, 1), (100, 32, 3), (0, 0, 1), (100, 100, 2), (100, 100, 4), (-40, 40, 1)]
)
def test_frames_that_no_engine_can_look_at(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ResourceError, match="expected sides of at least 33"):
        create_ring(tmp_path / "cam.ring", shape, 2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_ring_is_never_made_over_another(tmp_path: Path) -> None:
    ring = make(tmp_path)
    capture_one(ring)
    with pytest.raises(ResourceError, match="File exists"):
        create_ring(tmp_path / "cam.ring", SHAPE, 3, 8)
    assert ring.last_id == 1
    ring.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        create_ring(tmp_path / "none" / "cam.ring", SHAPE, 3, 1)


def header(*words: int) -> bytes:
    return struct.pack("<6q", *words)


SIZE = ring_bytes(SHAPE, 3)
OF_OURS = (MAGIC, 3, *SHAPE, 7)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"", 0),
        (b"x", 1),
        (b"not a ring at all" * 300, 5100),
        (header(*OF_OURS), SIZE - 1),
        (header(*OF_OURS), SIZE + 1),
        (header(*OF_OURS), 48),
        (header(*OF_OURS)[:40], 40),
        (header(0, *OF_OURS[1:]), SIZE),
        (header(MAGIC + 1, *OF_OURS[1:]), SIZE),  # the next version
        (header(MAGIC, 4, *SHAPE, 7), SIZE),
        (header(MAGIC, 3, 5000, 50, 1, 7), SIZE),
        (header(MAGIC, 0, *SHAPE, 7), ring_bytes(SHAPE, 0)),
        (header(MAGIC, 2, -40, -50, 1, 7), ring_bytes((-40, -50, 1), 2)),
        (header(MAGIC, 2, 40, 50, 0, 7), ring_bytes((40, 50, 0), 2)),
        (header(MAGIC, 2**62, 2**62, 2**62, 3, 7), SIZE),
        (header(MAGIC, -1, *SHAPE, 7), SIZE),
    ],
)
def test_files_that_are_not_rings_of_this_version(tmp_path: Path, head: bytes, size: int) -> None:
    path = tmp_path / "cam.ring"
    path.write_bytes(head)
    os.truncate(path, size)
    with pytest.raises(ResourceError, match="not a ring of this version"):
        FrameRing(path)


def test_places_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="is the line running"):
        FrameRing(tmp_path / "cam.ring")
    with pytest.raises(ResourceError):
        FrameRing(tmp_path)
    os.mkfifo(tmp_path / "fifo.ring")
    with pytest.raises(ResourceError):
        FrameRing(tmp_path / "fifo.ring")


LIMITED = """
    import resource, sys
    from pathlib import Path
    from pipeline.errors import ResourceError
    from pipeline.ringfile import create_ring, ring_bytes

    folder, room = Path(sys.argv[1]), int(sys.argv[2])
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        create_ring(folder / "cam.ring", (1024, 1280, 1), 4, 1)
    except ResourceError as error:
        print(error)
        sys.exit(error.exit_code)
"""


def limited(folder: Path, room: int = 0, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(LIMITED), str(folder), str(room)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("missing", [1, 2**20])
def test_no_room_for_the_ring(tmp_path: Path, missing: int) -> None:
    """The file-size limit stands for a full tmpfs; no half ring is left behind."""
    needed = ring_bytes((1024, 1280, 1), 4)
    code, said = limited(tmp_path, needed - missing)
    assert code == ResourceError.exit_code
    assert "a ring of 4 slots needs 7 MiB" in said
    assert "lower `slots`" in said
    assert list(tmp_path.iterdir()) == []
    assert limited(tmp_path, needed) == (0, "")


def test_a_tmpfs_that_is_too_small(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the machine lets us make one; else by file size."""
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh")
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    check = f'"$@"; code=$?; ls -A {tmp_path}; exit $code'
    code, said = limited(
        tmp_path, 0 if allowed else 2**20, (*(prefix if allowed else ()), "sh", "-c", check, "sh")
    )
    assert code == ResourceError.exit_code
    assert "needs 7 MiB" in said
    assert ("1 MiB free (No space left" in said) == allowed
    assert len(said.splitlines()) == 1  # `ls` found nothing left behind


# Two processes on one ring


WRITER = """
    import sys, time
    from pathlib import Path
    from pipeline.ring import END_OF_STREAM, FrameRing
    from pipeline.types import Reason

    ring = FrameRing(Path(sys.argv[1]))
    index = ring.resume()
    while index < int(sys.argv[2]):
        slot = ring.free_slot()
        if slot is None:
            time.sleep(0)
            continue
        ref = ring.begin(t_capture_ns=index, source_index=index, slot=slot)
        # Half now and half later: a reader that looks too early sees two values.
        ring.frame(slot)[:20] = ref.frame_id % 251
        ring.frame(slot)[20:] = ref.frame_id % 251
        ring.commit(ref, ref.generation)
        index += 1
    ring.end(END_OF_STREAM)
"""


def writer(path: Path, frames: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(path), str(frames)])


def answer_all(ring: FrameRing, refs: dict[int, FrameRef]) -> None:
    """Worker and decision in one: look at every waiting slot, keep what is seen, give it back."""
    for frame_id, slot, generation in ring.waiting():
        assert ring.take(slot, generation) == 0
        taken = ring.taken(frame_id)
        assert taken is not None
        assert (taken.ref.slot, taken.ref.generation) == (slot, generation)
        assert taken.ref.t_capture_ns == taken.source_index
        pixels = ring.padded(slot).copy()
        assert ring.holds(taken.ref)
        assert int(pixels.min()) == int(pixels.max()) == frame_id % 251
        ring.map(slot)[...] = frame_id
        ring.finish(slot, generation, ANSWERED, raw_peak=float(frame_id))
        answer = ring.answer(taken.ref)
        assert answer is not None
        assert (answer.raw_peak, answer.t_filled_ns) == (frame_id, generation)
        assert frame_id not in refs
        refs[frame_id] = taken.ref
        ring.decide(taken.ref)
        ring.release(taken.ref)


def test_another_process_writes_and_this_one_reads(tmp_path: Path) -> None:
    ring = make(tmp_path, slots=4)
    frames = 3000
    process = writer(tmp_path / "cam.ring", frames)
    refs: dict[int, FrameRef] = {}
    try:
        while ring.ended == RUNNING or len(refs) < ring.last_id:
            answer_all(ring, refs)
            assert process.poll() in (None, 0)
    finally:
        process.kill()
        process.wait()
    assert sorted(refs) == list(range(1, frames + 1))
    assert [refs[n].t_capture_ns for n in sorted(refs)] == list(range(frames))
    assert ring.held() == []
    ring.close()


def test_the_writing_process_is_killed_again_and_again(tmp_path: Path) -> None:
    ring = make(tmp_path, slots=4)
    frames, kills = 3000, 5
    refs: dict[int, FrameRef] = {}
    torn = 0
    for start in range(kills + 1):
        process = writer(tmp_path / "cam.ring", frames)
        try:
            until = (start + 1) * frames // (kills + 1)
            while len(refs) + torn < until and process.poll() is None:
                answer_all(ring, refs)
            if start == kills:
                assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
        answer_all(ring, refs)
        ring.resume()  # what the next writer does first
        for frame_id, _, _ in ring.held():
            taken = ring.taken(frame_id)
            assert taken is not None
            assert ring.torn(taken.ref)
            ring.release(taken.ref)
            refs[frame_id] = taken.ref
            torn += 1
    assert ring.ended == END_OF_STREAM
    assert torn <= kills
    # Every frame of the source has one id, whoever was killed when.
    assert sorted(refs) == list(range(1, frames + 1))
    assert [refs[n].t_capture_ns for n in sorted(refs)] == list(range(frames))
    ring.close()
