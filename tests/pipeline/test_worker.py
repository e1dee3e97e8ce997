"""The worker's batches: a frame that breaks the engine costs no other frame its verdict."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from deaths import SHAPE, decision_stage
from numpy.typing import NDArray

from pipeline.errors import BundleError
from pipeline.ring import ANSWERED, FAILED, POISONED, SKIPPED, FrameRing
from pipeline.ringfile import create_ring
from pipeline.types import FrameRef
from pipeline.worker import MAX_ATTEMPTS, Job, check_same_bundle, infer, next_batch

SLOTS = 6


class Echo:
    """The map is the frame's value; raises where the batch has a frame of the value `bad`."""

    engine_id = "echo"

    def __init__(self, bad: int = -1) -> None:
        self.bad = bad
        self.batches: list[list[int]] = []

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        values = [int(frame[0, 0, 0]) for frame in padded]
        self.batches.append(values)
        if self.bad in values:
            raise RuntimeError("told to fail")
        for value, raw_map in zip(values, out, strict=True):
            raw_map[...] = value
        return [float(value) for value in values]

    def close(self) -> None:
        return


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[list[FrameRing]]:
    made = []
    for camera in ("left", "right"):
        path = tmp_path / f"{camera}.ring"
        create_ring(path, SHAPE, SLOTS, 1)
        made.append(FrameRing(path))
    yield made
    for ring in made:
        ring.close()


def fill(ring: FrameRing, count: int = SLOTS) -> list[FrameRef]:
    refs = []
    for _ in range(count):
        ref = ring.begin(t_capture_ns=1, source_index=0, slot=ring.free_slot())
        ring.frame(ref.slot)[...] = ref.frame_id
        ring.commit(ref, 2)
        refs.append(ref)
    return refs


def ids(jobs: Sequence[Job], rings: list[FrameRing]) -> list[tuple[str, int]]:
    wanted = {(ring.camera, s, g): n for ring in rings for n, s, g in ring.waiting()}
    return [(j.ring.camera, wanted[j.ring.camera, j.slot, j.generation]) for j in jobs]


def statuses(ring: FrameRing, refs: list[FrameRef]) -> list[int | None]:
    answers = [ring.answer(ref) for ref in refs]
    return [answer.status if answer else None for answer in answers]


def test_cameras_in_turn_oldest_first(rings: list[FrameRing]) -> None:
    fill(rings[0], 4)
    fill(rings[1], 2)
    batch = next_batch(rings, 5)
    expected = [("left", 1), ("right", 1), ("left", 2), ("right", 2), ("left", 3)]
    assert ids(batch, rings) == expected


def test_what_was_filled_first_goes_first_whichever_camera_it_is(rings: list[FrameRing]) -> None:
    """Else, with more cameras than the worker can serve, the last ones never had a turn."""
    for filled_ns, ring in enumerate([rings[1], rings[0], rings[0], rings[1], rings[0]], start=1):
        ref = ring.begin(t_capture_ns=1, source_index=0, slot=ring.free_slot())
        ring.commit(ref, filled_ns)
    served = [ids(next_batch(rings, 1), rings)]
    assert served == [[("right", 1)]]
    rings[1].finish(*next((slot, g) for _, slot, g in rings[1].waiting()), ANSWERED)
    assert ids(next_batch(rings, 3), rings) == [("left", 1), ("left", 2), ("right", 2)]


@pytest.mark.parametrize("before", [None, "", "a" * 64])
@pytest.mark.parametrize("now", ["", "a" * 64, "b" * 64])
def test_a_bundle_is_not_replaced_while_the_line_runs(
    before: str | None, now: str, tmp_path: Path
) -> None:
    path = tmp_path / "engine.json"
    if before is not None:
        path.write_text(json.dumps({"bundle_sha256": before}))
    if before in (None, now):
        check_same_bundle(path, now)
    else:
        with pytest.raises(BundleError, match="start the line again"):
            check_same_bundle(path, now)


def test_nothing_waits(rings: list[FrameRing]) -> None:
    assert next_batch(rings, 4) == []


def test_a_frame_that_fails_fails_alone(rings: list[FrameRing]) -> None:
    refs = fill(rings[0], 4)
    engine = Echo(bad=2)
    with decision_stage() as stage:
        assert infer(stage, engine, next_batch(rings, 4))
        fill(rings[1], 1)
        assert not infer(stage, Echo(bad=1), next_batch(rings, 4))
    assert engine.batches == [[1, 2, 3, 4], [1], [2], [3], [4]]
    assert statuses(rings[0], refs) == [ANSWERED, FAILED, ANSWERED, ANSWERED]
    assert [float(rings[0].map(ref.slot).max()) for ref in refs if ref.frame_id != 2] == [1, 3, 4]


def test_a_frame_that_kills_workers_is_the_only_one_given_up(rings: list[FrameRing]) -> None:
    """Frame 2 of the left camera takes every worker with it that looks at it."""
    left, right = fill(rings[0], 4), fill(rings[1], 3)
    deaths = 0
    with decision_stage() as stage:
        while batch := next_batch(rings, 4):
            if ("left", 2) in ids(batch, rings):
                deaths += 1  # and the next worker looks at the ring
            else:
                infer(stage, Echo(), batch)
    assert deaths == MAX_ATTEMPTS
    assert statuses(rings[0], left) == [ANSWERED, POISONED, ANSWERED, ANSWERED]
    assert statuses(rings[1], right) == [ANSWERED] * 3


def test_frames_that_were_tried_do_not_wait_behind_a_stream(rings: list[FrameRing]) -> None:
    fill(rings[0], 3)
    assert len(next_batch(rings, 2)) == 2  # by a worker that dies
    fill(rings[1])
    batches = [ids(next_batch(rings, 4), rings)]
    for _ in range(2):
        for ring in rings:
            for _, slot, generation in list(ring.waiting()):
                if ring.attempts(slot) == 2:
                    ring.finish(slot, generation, ANSWERED)
        batches.append(ids(next_batch(rings, 4), rings))
    assert batches[:2] == [[("left", 1)], [("left", 2)]]
    assert batches[2] == [("left", 3), *(("right", n) for n in (1, 2, 3))]


def test_frames_that_nobody_waits_for_are_answered_unseen(rings: list[FrameRing]) -> None:
    refs = fill(rings[0], 3)
    rings[0].decide(refs[0])
    rings[0].decide(refs[2])
    assert ids(next_batch(rings, 4), rings) == [("left", 2)]
    assert statuses(rings[0], refs) == [SKIPPED, None, SKIPPED]
