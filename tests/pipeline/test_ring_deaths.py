"""Each stage killed at each line of what it does to the ring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deaths import SHAPE, cut_off, decision_stage

from pipeline.desk import MOST_ADMITTED, Desk
from pipeline.ring import ANSWERED, FAILED, Answer, FrameRing
from pipeline.ringfile import LOG_RECORDS, create_ring
from pipeline.types import MARGIN_PX, Reason
from pipeline.worker import next_batch

MS = 1_000_000


@pytest.mark.parametrize("at_line", range(80))
def test_capture_killed_at_each_line_of_a_frame(tmp_path: Path, at_line: int) -> None:
    """The id exists with its log record, or it does not exist at all; its slot is never lost."""
    path = tmp_path / "cam.ring"
    create_ring(path, SHAPE, 2, 1)
    ring = FrameRing(path)
    ring.release(ring.begin(t_capture_ns=1, source_index=0, slot=0))

    def call() -> None:
        ref = ring.begin(t_capture_ns=2, source_index=1, slot=0)
        ring.frame(0)[...] = np.arange(36)[None, :, None]
        ring.commit(ref, 3)

    killed = cut_off(at_line, call)
    reader = FrameRing(path)
    assert reader.last_id in (1, 2)
    if (exists := reader.last_id == 2) or not killed:
        taken = reader.taken(2)
        assert taken is not None
        assert (taken.source_index, taken.ref.t_capture_ns, taken.ref.slot) == (1, 2, 0)
        assert reader.holds(taken.ref)
    # Decision may start before the next capture has put the slot in order.
    assert [frame_id for frame_id, _, _ in reader.held()] == ([2] if exists else [])
    assert reader.resume() == (2 if exists else 1)
    waiting = list(reader.waiting())
    assert [frame_id for frame_id, _, _ in waiting] in ([], [2])
    if waiting:
        margins = ((MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX), (0, 0))
        whole = np.pad(reader.frame(0), margins, mode="reflect")
        assert np.array_equal(reader.padded(0), whole)
    assert waiting or reader.free_slot() == (1 if exists else 0)
    assert [frame_id for frame_id, _, _ in reader.held()] == ([2] if exists else [])
    ring.close()
    reader.close()


@pytest.mark.parametrize("at_line", range(16))
def test_worker_killed_at_each_line_of_an_answer(tmp_path: Path, at_line: int) -> None:
    """The answer is there as a whole, or not at all."""
    path = tmp_path / "cam.ring"
    create_ring(path, SHAPE, 2, 1)
    ring = FrameRing(path)
    for turn in range(2):
        ref = ring.begin(t_capture_ns=1, source_index=turn, slot=0)
        ring.commit(ref, 3)
        if turn == 0:
            ring.finish(0, ref.generation, FAILED, engine_id="old", t_start_ns=1, t_end_ns=2)
            ring.release(ref)
    answer = (0, ref.generation, ANSWERED)

    def call() -> None:
        ring.finish(*answer, raw_peak=5.0, t_start_ns=8, t_end_ns=9, engine_id="new")

    killed = cut_off(at_line, call)
    reader = FrameRing(path)
    found = reader.answer(ref)
    if not killed or found is not None:
        assert found == Answer(ANSWERED, 5.0, 3, 8, 9, "new")
    if killed:
        assert found is None
        assert [slot for _, slot, _ in reader.waiting()] == [0]
    assert reader.may_release(ref) == (not killed)
    ring.close()
    reader.close()


def test_decision_away_for_longer_than_the_log_is(tmp_path: Path) -> None:
    """The log has forgotten frames that still hold slots: the slots must come back all the same."""
    path = tmp_path / "cam.ring"
    create_ring(path, SHAPE, 2, 1)
    ring = FrameRing(path)
    for slot in range(2):
        ring.commit(ring.begin(t_capture_ns=1, source_index=slot, slot=slot), 2)
    for n in range(LOG_RECORDS):
        ring.begin(t_capture_ns=1, source_index=2 + n, slot=None, fault=Reason.DROPPED)
    with decision_stage() as stage:
        config = stage.station.config.cameras["cam"]
        desk = Desk(stage, FrameRing(path), config, set())
        verdicts: dict[int, Reason] = {}
        while desk.behind:
            desk.admit(MS)
            found = desk.decide(MS)
            assert 0 < len(found) <= MOST_ADMITTED  # no round, and no commit, is without end
            assert not verdicts.keys() & {verdict.frame_id for verdict in found}
            verdicts |= {verdict.frame_id: verdict.reason for verdict in found}
            desk.committed(found)
            assert ring.decided_id == len(verdicts)
        assert [verdicts.pop(1), verdicts.pop(2)] == [Reason.UNKNOWN] * 2
        assert set(verdicts.values()) == {Reason.DROPPED}
        assert ring.decided_id == ring.last_id == LOG_RECORDS + 2
        assert next_batch([ring], 4) == []  # the worker is told that nobody waits
        desk.release()
        assert ring.held() == []
        ring.close()
        desk.ring.close()
