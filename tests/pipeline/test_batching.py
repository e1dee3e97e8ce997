"""How long a frame is held for others to share its batch: never longer than it may be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from deaths import SHAPE, decision_stage
from numpy.typing import NDArray

from pipeline.batching import hold
from pipeline.config import CameraConfig, SyntheticSource, WorkerConfig
from pipeline.desk import Desk
from pipeline.ring import END_OF_STREAM, FrameRing
from pipeline.ringfile import create_ring, ring_bytes
from pipeline.types import FrameRef
from pipeline.worker import gather, infer, next_batch

SLOTS = 6
SLACK_MS = 60.0
"""By which a busy machine may be late: the bound below is far over what is held."""
WAIT_MS = 150.0


class Copy:
    """The map is the frame's value; takes some milliseconds."""

    engine_id = "copy"

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        time.sleep(0.003)
        for frame, raw_map in zip(padded, out, strict=True):
            raw_map[...] = frame[0, 0, 0] / 1000
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[list[FrameRing]]:
    made = []
    for camera in ("cam", "right"):
        path = tmp_path / f"{camera}.ring"
        create_ring(path, SHAPE, SLOTS, 1)
        made.append(FrameRing(path))
    yield made
    for ring in made:
        ring.close()


def capture(ring: FrameRing, ago_ms: float = 0.0) -> FrameRef:
    filled = time.monotonic_ns() - round(ago_ms * 1e6)
    ref = ring.begin(t_capture_ns=filled - 1000, source_index=0, slot=ring.free_slot())
    ring.commit(ref, filled)
    return ref


def sleep(seconds: float) -> bool:
    time.sleep(min(seconds, 0.02))
    return True


def never(seconds: float) -> bool:
    raise AssertionError("held")


def then(*frames: Callable[[], object]) -> Callable[[float], bool]:
    """A pause in which one thing after the other happens."""
    left = list(frames)

    def pause(seconds: float) -> bool:
        assert 0 < seconds <= WAIT_MS / 1000
        time.sleep(0.005)
        if left:
            left.pop(0)()
        else:
            time.sleep(seconds)
        return True

    return pause


def test_a_lonely_frame_is_held_so_long_and_no_longer(rings: list[FrameRing]) -> None:
    capture(rings[0])
    start = time.monotonic()
    assert hold(rings, 4, WAIT_MS, sleep) is not None
    assert WAIT_MS - 20 < 1000 * (time.monotonic() - start) < WAIT_MS + SLACK_MS


def test_the_oldest_frame_counts_however_many_come_later(rings: list[FrameRing]) -> None:
    capture(rings[0])
    start = time.monotonic()

    def trickle(seconds: float) -> bool:
        time.sleep(min(seconds, 0.04))
        capture(rings[1])
        return True

    hold(rings, 32, WAIT_MS, trickle)
    assert 1000 * (time.monotonic() - start) < WAIT_MS + SLACK_MS


def test_a_full_batch_goes_at_once(rings: list[FrameRing]) -> None:
    capture(rings[0])
    others = [lambda: capture(rings[1]), lambda: capture(rings[0]), lambda: capture(rings[1])]
    start = time.monotonic()
    assert hold(rings, 4, WAIT_MS, then(*others)) is not None
    assert 1000 * (time.monotonic() - start) < WAIT_MS
    assert len(next_batch(rings, 4)) == 4
    for _ in range(2):
        capture(rings[0])
    assert hold(rings, 4, WAIT_MS, never) is None  # six wait


def test_what_has_waited_while_the_engine_computed_is_not_held_again(
    rings: list[FrameRing],
) -> None:
    capture(rings[0], ago_ms=WAIT_MS + 1)
    capture(rings[1])
    assert hold(rings, 4, WAIT_MS, never) is None


def test_a_clock_from_the_future_holds_nothing_up(rings: list[FrameRing]) -> None:
    capture(rings[0], ago_ms=-60_000)
    start = time.monotonic()
    assert hold(rings, 4, WAIT_MS, sleep) is not None
    assert 1000 * (time.monotonic() - start) < WAIT_MS + SLACK_MS


@pytest.mark.parametrize(("limit", "wait_ms"), [(1, WAIT_MS), (4, 0.0)])
def test_who_does_not_ask_for_it_is_not_held(
    rings: list[FrameRing], limit: int, wait_ms: float
) -> None:
    capture(rings[0])
    assert hold(rings, limit, wait_ms, never) is None


def test_nothing_is_held_where_nothing_waits_or_can_come(rings: list[FrameRing]) -> None:
    assert hold(rings, 4, WAIT_MS, never) is None
    capture(rings[0])
    rings[0].end(END_OF_STREAM)
    for _ in range(SLOTS):
        capture(rings[1])
    assert hold(rings, 32, WAIT_MS, never) is None  # one camera has ended, one has no free slot
    rings[1].end(END_OF_STREAM)
    assert hold(rings, 32, WAIT_MS, never) is None


def test_a_camera_that_ends_ends_the_wait(rings: list[FrameRing]) -> None:
    capture(rings[0])
    rings[1].end(END_OF_STREAM)
    start = time.monotonic()
    hold(rings, 4, WAIT_MS, then(lambda: rings[0].end(END_OF_STREAM)))
    assert 1000 * (time.monotonic() - start) < WAIT_MS


def test_a_frame_that_a_worker_died_on_is_not_held(rings: list[FrameRing]) -> None:
    ref = capture(rings[0])
    rings[0].take(ref.slot, ref.generation)
    assert hold(rings, 4, WAIT_MS, never) is None


def test_a_worker_that_is_to_quit_does_not_wait(rings: list[FrameRing]) -> None:
    capture(rings[0])
    start = time.monotonic()
    hold(rings, 4, 60_000, lambda seconds: False)
    assert time.monotonic() - start < 1


def test_the_wait_stands_in_the_verdict_and_is_counted_once(rings: list[FrameRing]) -> None:
    config = WorkerConfig(max_batch=3, max_wait_ms=WAIT_MS)
    camera = CameraConfig(source=SyntheticSource(kind="synthetic"), deadline_ms=None)
    with decision_stage() as stage:
        desk = Desk(stage, rings[0], camera, set())
        early = capture(rings[0], ago_ms=40)
        time.sleep(0.001)
        jobs = gather(rings, config, then(lambda: capture(rings[0])))
        late = capture(rings[0])
        infer(stage, Copy(), jobs)
        infer(stage, Copy(), gather(rings, WorkerConfig(max_batch=3), never))
        desk.admit(time.monotonic_ns())
        verdicts = {verdict.frame_id: verdict for verdict in desk.decide(time.monotonic_ns())}
    assert len(jobs) == 2
    for verdict in verdicts.values():
        latency = dict(verdict.latency_ms)
        total = latency.pop("total")
        assert list(latency) == ["capture", "queue", "batch", "infer", "decide"]
        assert sum(latency.values()) == pytest.approx(total)
        assert min(latency.values()) >= 0
    # What it lay before it was seen is queue: held for the rest of the time that it may wait.
    first = verdicts[early.frame_id].latency_ms
    assert first["queue"] >= 40
    assert 40 < first["batch"] < WAIT_MS - 40 + SLACK_MS
    assert 0 < verdicts[early.frame_id + 1].latency_ms["batch"] < first["batch"]
    assert verdicts[late.frame_id].latency_ms["batch"] == 0.0
    assert all(verdict.latency_ms["infer"] < WAIT_MS / 2 for verdict in verdicts.values())


def test_the_whole_ring_is_one_piece_of_memory(rings: list[FrameRing]) -> None:
    memory = rings[0].memory
    assert memory.dtype == np.uint8
    assert memory.shape == (ring_bytes(SHAPE, SLOTS),)
    assert memory.flags.writeable
    first, end = memory.ctypes.data, memory.ctypes.data + memory.nbytes
    assert memory.ctypes.data % 4096 == 0
    for slot in range(SLOTS):
        for view in (rings[0].padded(slot), rings[0].map(slot)):
            assert first <= view.ctypes.data
            assert view.ctypes.data + view.nbytes <= end
