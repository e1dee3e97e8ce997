"""Two processes on one ring: one writes, this one reads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from pipeline.ring import ANSWERED, END_OF_STREAM, RUNNING, FrameRing
from pipeline.ringfile import create_ring
from pipeline.types import FrameRef


def make(folder: Path) -> FrameRing:
    path = folder / "cam.ring"
    create_ring(path, (40, 50, 1), 4, epoch=7)
    return FrameRing(path)


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
    ring = make(tmp_path)
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
    ring = make(tmp_path)
    frames, kills = 3000, 5
    refs: dict[int, FrameRef] = {}
    torn = 0
    for start in range(kills + 1):
        process = writer(tmp_path / "cam.ring", frames)
        try:
            until = (start + 1) * frames // (kills + 1)
            while len(refs) < until and process.poll() is None:
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
