"""Frames out of a ring's slots: what is copied, and what is missed and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.record import RecordingConfig
from pipeline.record.evidence import Evidence
from pipeline.record.follower import Follower
from pipeline.record.recordings import read_evidence, stored
from pipeline.ring import LOST, FrameRing
from pipeline.ringfile import LOG_RECORDS, create_ring
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.sidecar import RecordedFrame, read_side
from pipeline.types import FrameRef, Label, Reason, Verdict

SHAPE = (64, 80, 1)
OFFSET_NS = 1_700_000_000_000_000_000


class Bench:
    """A ring of two slots, filled and released by the test, and its follower."""

    def __init__(self, folder: Path, buffers: int = 100, record: str = "all", **options: object):
        create_ring(folder / "left.ring", SHAPE, 2, 3)
        self.ring = FrameRing(folder / "left.ring")
        self.folder = folder / "recordings"
        config = RecordingConfig.model_validate({"record": record, "keep_free_gb": 0.0} | options)
        self.evidence = Evidence(
            self.folder,
            config,
            {"left": SHAPE},
            head=lambda camera: RecordingHead(),
            done=self._done,
        )
        self.follower = Follower(
            self.ring,
            config,
            self.evidence,
            buffers,
            offset_ns=OFFSET_NS,
            continuous=False,
            labelled=True,
            start=0,
            known=frozenset(),
        )

    def _done(self, copy: object) -> None:
        """The buffer never comes back: what a buffer holds is then easily counted."""

    def begin(self) -> FrameRef:
        now = 1000 * (self.ring.last_id + 1)
        return self.ring.begin(
            t_capture_ns=now, source_index=0, slot=self.ring.free_slot(), trigger_id=7, part_id="p"
        )

    def fill(self, ref: FrameRef) -> None:
        self.ring.frame(ref.slot)[...] = ref.frame_id % 256
        self.ring.commit(ref, ref.t_capture_ns + 1)

    def take(self) -> FrameRef:
        ref = self.begin()
        self.fill(ref)
        return ref

    def judge(self, upto: int, label: Label = Label.PASS) -> None:
        reason = Reason.OK if label is Label.PASS else Reason.DEFECT
        ids = range(self.follower.resolved + 1, upto + 1)
        self.follower.resolve([Verdict("s", "left", 3, n, label, reason, 0.5, 1.0) for n in ids])

    def end(self) -> tuple[list[RecordedFrame], dict[int, str]]:
        """Recorded frames, and the reasons of those that were lost."""
        self.follower.end()
        self.evidence.end()
        while not self.evidence.ended:
            pass
        sides = [read_side(one.path) for one in stored(self.folder)]
        frames = [frame for side in sides for frame in side.frames.values()]
        return frames, {frame.frame_id: why for side in sides for frame, why in side.lost}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.ring.close()


def test_frames_are_copied_once_they_are_there_and_released(bench: Bench) -> None:
    for number in range(1, 6):
        ref = bench.begin()
        bench.follower.follow()  # nothing yet
        bench.fill(ref)
        bench.follower.follow()
        bench.judge(number)
        bench.ring.release(ref)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [1, 2, 3, 4, 5]
    assert lost == {}
    assert frames[1] == RecordedFrame(
        "left", 3, 2, OFFSET_NS + 2000, 7, "p", "pass", "ok", 0.5, 1.0
    )  # the ring's own clock: one that jumps moves no frame


def test_a_verdict_before_the_pixels_waits_for_them(bench: Bench) -> None:
    ref = bench.begin()
    bench.follower.follow()
    bench.judge(1)
    assert bench.follower.resolved == 0
    bench.fill(ref)
    bench.follower.follow()
    bench.judge(1)
    assert [f.frame_id for f in bench.end()[0]] == [1]


def test_a_slot_that_was_filled_again_is_a_frame_lost(bench: Bench) -> None:
    bench.ring.release(bench.take())
    bench.ring.release(bench.take())
    bench.follower.follow()
    bench.judge(2)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [2]
    assert lost == {1: "overwritten before it was copied"}


def test_frames_without_pixels_are_no_loss(bench: Bench) -> None:
    bench.ring.begin(t_capture_ns=5, source_index=0, slot=None, fault=Reason.DROPPED)
    bench.ring.tear(bench.begin())
    bench.take()
    bench.follower.follow()
    bench.judge(3)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [3]
    assert lost == {}


def test_a_capture_that_died_while_it_wrote_holds_up_nothing(bench: Bench) -> None:
    bench.begin()
    bench.follower.follow()
    bench.judge(1)
    assert not bench.follower.finished
    bench.ring.end(LOST)
    bench.follower.follow()
    bench.judge(1)
    assert bench.follower.finished


def test_a_recorder_that_was_away_for_longer_than_the_log_is(bench: Bench) -> None:
    for _ in range(LOG_RECORDS + 3):
        bench.ring.release(bench.take())
    bench.follower.follow()
    bench.judge(LOG_RECORDS + 3)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [LOG_RECORDS + 3]
    # The index names the last thousand that are lost before there is a file; the counter all.
    assert set(lost.values()) == {"overwritten before it was copied"}
    assert len(lost) == 1000
    assert bench.evidence.lost["left"] == LOG_RECORDS + 2


def test_full_buffers_lose_frames_of_the_recording_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, buffers=2)
    for _ in range(4):
        ref = bench.take()
        bench.follower.follow()
        bench.ring.release(ref)
    bench.judge(4)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [1, 2]
    assert lost == {3: "buffer_mb is full", 4: "buffer_mb is full"}
    bench.ring.close()


def test_a_loss_that_nobody_would_have_kept_is_none(tmp_path: Path) -> None:
    bench = Bench(tmp_path, buffers=1, record="evidence", sample_passes=0.0)
    for label in (Label.FAIL, Label.PASS, Label.FAIL):
        ref = bench.take()
        bench.follower.follow()
        bench.judge(ref.frame_id, label)
        bench.ring.release(ref)
    frames, lost = bench.end()
    assert [f.frame_id for f in frames] == [1]
    assert list(lost) == [3]
    bench.ring.close()


def test_frames_without_a_verdict_are_kept_where_all_are(bench: Bench) -> None:
    bench.take()
    bench.follower.follow()
    (frame,) = bench.end()[0]
    assert (frame.frame_id, frame.label) == (1, "")


def test_a_block_of_a_web_is_recorded_as_it_came(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    config = RecordingConfig(record="all", keep_free_gb=0.0)
    follower = Follower(
        bench.ring,
        config,
        bench.evidence,
        4,
        offset_ns=0,
        continuous=True,
        labelled=True,
        start=0,
        known=frozenset(),
    )
    ref = bench.begin()
    padded = bench.ring.padded(ref.slot)
    padded[...] = 0
    padded[64:, 32:-32] = np.arange(64, dtype=np.uint8)[:, None, None]
    bench.ring.commit(ref, ref.t_capture_ns + 1, lambda frame: None)
    follower.follow()
    follower.resolve([Verdict("s", "left", 3, 1, Label.PASS, Reason.OK)])
    bench.evidence.end()
    while not bench.evidence.ended:
        pass
    (one,) = stored(bench.folder)
    assert np.array_equal(read_evidence(one.path, 0)[:, 0, 0], np.arange(64))
    del padded
    bench.ring.close()
