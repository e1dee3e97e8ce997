"""Capture's loop over a camera: whatever goes wrong, no frame is taken for another part's.

In the tests of hardware triggers part k has trigger k, and pixels of the value k.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from live_bench import Bench, until


def go_on_until_a_picture(bench: Bench, pause_s: float) -> None:
    """Parts pass by, far enough from each other, until one has a picture again."""
    before = bench.triggers.last
    for _ in range(20):
        time.sleep(pause_s)
        index = bench.announce()
        bench.give(index)
        bench.answered(index)
        until(lambda: not bench.script.frames, "its frame was read")
        if bench.pictures()[-1:] == [index]:
            return
    pytest.fail(f"no picture of any of the parts from {before + 1} to {bench.triggers.last}")


def own_pictures(bench: Bench) -> None:
    """Every trigger was answered once, and a picture is that of its part."""
    taken = bench.taken()
    answered = sorted(t.index for t in taken if t.index)
    assert answered == list(range(1, bench.triggers.last + 1))
    assert all(t.value == t.index for t in taken if t.index and not t.fault)


def test_a_camera_that_is_slow_to_open_comes_back_while_triggers_keep_coming(
    tmp_path: Path,
) -> None:
    """It opens for longer than a trigger waits: what came meanwhile is not asked of it."""
    with Bench(tmp_path, "software", timeout_ms=100.0) as bench:
        bench.script.open_s, bench.script.exposure_s = 0.3, 0.005
        bench.start()
        for _ in range(150):
            bench.announce()
            if bench.pictures():
                break
            time.sleep(0.06)
        assert bench.pictures()


def test_a_pulse_that_the_camera_missed(tmp_path: Path) -> None:
    """The word of part 4 comes while part 3's frame is outstanding: nobody knows whose is next."""
    limit_ms = 300.0
    with Bench(tmp_path, "hardware", timeout_ms=limit_ms) as bench:
        bench.start()
        bench.ready()
        for _ in range(2):
            bench.give(bench.announce())
            bench.answered(bench.triggers.last)
        bench.announce()
        bench.give(bench.announce())
        bench.ready(opened=2)
        go_on_until_a_picture(bench, 1.2 * limit_ms / 1000)
        bench.stop()
        own_pictures(bench)
        assert {3, 4}.isdisjoint(bench.pictures())


def test_a_pulse_while_the_camera_is_being_opened(tmp_path: Path) -> None:
    """It meets no camera, and the next part's frame is not its frame."""
    with Bench(tmp_path, "hardware", timeout_ms=10_000.0) as bench:
        bench.script.gate.clear()
        bench.start()
        until(lambda: bench.script.opening, "it is being opened")
        bench.announce()
        bench.script.gate.set()
        bench.ready()
        bench.give(bench.announce())
        bench.answered(2)
        bench.stop()
        assert [(t.index, t.fault, t.value) for t in bench.taken()] == [
            (1, "camera_lost", None),
            (2, "", 2),
        ]


def test_a_word_that_comes_after_its_frame(tmp_path: Path) -> None:
    """The frame is nobody's by then, and the word is not that of the next frame."""
    limit_ms = 300.0
    with Bench(tmp_path, "hardware", timeout_ms=limit_ms) as bench:
        bench.start()
        bench.ready()
        bench.give(1)
        until(lambda: bench.ring.last_id == 1, "the frame without a word")
        bench.announce()
        bench.give(bench.announce())
        go_on_until_a_picture(bench, 1.2 * limit_ms / 1000)
        bench.stop()
        own_pictures(bench)
        assert 1 not in bench.pictures()


@pytest.mark.parametrize(("views", "before"), [(1, 1), (2, 1), (2, 2)])
def test_a_capture_that_was_killed_after_a_frame_and_before_it_could_say_so(
    tmp_path: Path, views: int, before: int
) -> None:
    """The trigger's frames are in the ring, `triggered` is not yet there: no view is made twice."""
    parts = {"box": {"views": {"a": views}}}
    with Bench(tmp_path, "software", parts=parts, timeout_ms=10_000.0) as bench:
        first = bench.announce("box")
        for number in range(before):
            ref = bench.ring.begin(
                t_capture_ns=time.monotonic_ns(),
                source_index=number,
                slot=bench.ring.free_slot(),
                trigger_index=first,
            )
            bench.ring.commit(ref, time.monotonic_ns())
        bench.start()
        bench.ready()
        bench.announce("box")
        until(lambda: bench.ring.triggered == 2, "the second trigger is done")
        bench.stop()
        assert [t.index for t in bench.taken()] == [1] * views + [2] * views


@pytest.mark.parametrize("lost", [False, True])
def test_blocks_of_a_web_are_joined_unless_the_camera_was_lost_between(
    tmp_path: Path, lost: bool
) -> None:
    """A block's margin above is the end of the block before, or its own first line repeated."""
    with Bench(tmp_path, "free", continuous=True) as bench:
        bench.start()
        until(lambda: bench.script.opened == 1, "it is open")
        bench.give(50)
        until(lambda: bench.ring.last_id == 1, "the first block")
        if lost:
            bench.script.lost = True
            until(lambda: bench.script.opened == 2, "it is open again")
        bench.give(200)
        until(lambda: bench.ring.last_id == 2, "the second block")
        bench.stop()
        second = bench.ring.taken(2)
        assert second is not None
        assert bench.ring.padded(second.ref.slot)[10, 40, 0] == (200 if lost else 50)


@pytest.mark.parametrize("mode", ["hardware", "every"])
def test_numbers_of_frames_go_on_after_a_loss(tmp_path: Path, mode: str) -> None:
    """A number that came twice would be two parts under one name."""
    with Bench(tmp_path, mode) as bench:
        bench.start()
        until(lambda: bench.script.opened == 1, "it is open")
        for value in range(3):
            bench.give(value)
        until(lambda: bench.ring.last_id == 3, "three frames")
        bench.script.lost = True
        until(lambda: bench.script.opened == 2, "it is open again")
        bench.give(9)
        until(lambda: bench.ring.last_id == 4, "one more")
        bench.stop()
        assert [t.trigger_id for t in bench.taken()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("parts", "numbers"), [({}, [1, 2, 3]), ({"box": {"views": {"a": 1}}}, [0, 0, 0])]
)
def test_a_cameras_own_count_joins_it_to_no_other_camera(
    tmp_path: Path, parts: dict[str, object], numbers: list[int]
) -> None:
    """Two cameras of a part that were opened at different times count differently."""
    with Bench(tmp_path, "hardware", parts=parts) as bench:
        bench.start()
        bench.ready()
        for value in (1, 2, 3):
            bench.give(value)
        until(lambda: bench.ring.last_id == 3, "three frames")
        bench.stop()
        assert [t.trigger_id for t in bench.taken()] == numbers
