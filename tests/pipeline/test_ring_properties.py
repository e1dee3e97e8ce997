"""Capture, worker and decision on one ring, in any order, each killed at any line.

The machine below plays the three stages step by step with their own code (`FrameRing`,
`next_batch`, `Desk`), each with its own mapping of the file, on a clock of its own. "Killed" means
that the call is cut off before some line of it, and the stage starts anew from the file, as after
`kill -9`. The journal alone is a dict: it has tests of its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from deaths import DEADLINE_MS, SHAPE, cut_off, decision_stage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.desk import Desk
from pipeline.ring import ANSWERED, END_OF_STREAM, FAILED, FrameRing
from pipeline.ringfile import create_ring
from pipeline.stage import Stage
from pipeline.types import FrameRef, Label, Reason, Verdict
from pipeline.worker import MAX_ATTEMPTS, Job, next_batch

MS = 1_000_000

AT_LINE = st.one_of(*[st.none()] * 6, st.integers(0, 60), st.integers(0, 200))
"""Before which line of the call its process is killed; None: it is not."""


@dataclass
class Fate:
    """What the machine knows of an id."""

    ref: FrameRef
    source_index: int
    fault: Reason | None
    whole: bool = False
    lost: bool = False
    """Capture died, or tore it, before the pixels were whole."""
    answered: bool = False
    engine_failed: bool = False
    worker_kills: int = 0
    """How often a worker had been killed before this frame was taken."""


class Line(RuleBasedStateMachine):
    stage: Stage  # set by the test: one for all examples

    @initialize(slots=st.integers(2, 4))
    def make(self, slots: int) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=self.stage.station.shm_dir)
        self.path = Path(self.folder.name) / "cam.ring"
        create_ring(self.path, SHAPE, slots, 3)
        self.config = self.stage.station.config.cameras["cam"]
        self.now = 1000 * MS
        self.journal: dict[int, Verdict] = {}
        self.fates: dict[int, Fate] = {}
        self.next_index = 0
        self.writing: FrameRef | None = None
        self.jobs: list[Job] = []
        self.worker_kills = 0
        self.capture = FrameRing(self.path)
        self.capture_lives = False
        self.worker = FrameRing(self.path)
        self.start_decision()

    # Capture

    def kill_capture(self) -> None:
        if self.writing is not None:
            self.fates[self.writing.frame_id].lost = True
            self.writing = None
        self.capture.close()
        self.capture = FrameRing(self.path)
        self.capture_lives = False

    @precondition(lambda self: not self.capture_lives)
    @rule(at_line=AT_LINE)
    def start_capture(self, at_line: int | None) -> None:
        self.capture_lives = not cut_off(at_line, self.capture.resume)
        if self.capture_lives:
            assert self.capture.resume() == self.next_index

    def begin(self, fault: Reason | None, slot: int | None, at_line: int | None) -> None:
        if slot is not None:
            held = [job.slot for job in self.jobs]
            held += [f.ref.slot for n, f in self.fates.items() if n not in self.journal]
            assert slot not in held
        last, index, now = self.capture.last_id, self.next_index, self.now
        refs: list[FrameRef] = []

        def call() -> None:
            refs.append(
                self.capture.begin(
                    t_capture_ns=now,
                    source_index=index,
                    slot=slot,
                    fault=fault,
                    source_pts=index * 7,
                    trigger_id=index * 3,
                    part_id=f"part {index}",
                )
            )

        killed = cut_off(at_line, call)
        if self.capture.last_id > last:
            assert self.capture.last_id == last + 1
            taken = self.capture.taken(last + 1)
            assert taken is not None
            assert killed or taken.ref == refs[0]
            self.fates[last + 1] = Fate(taken.ref, index, fault, worker_kills=self.worker_kills)
            self.next_index += 1
            if slot is not None:
                self.writing = taken.ref
        if killed:
            self.kill_capture()

    @precondition(lambda self: self.capture_lives and self.writing is None)
    @rule(at_line=AT_LINE, drops=st.booleans())
    def take_a_frame(self, at_line: int | None, drops: bool) -> None:
        slot = self.capture.free_slot()
        if slot is not None:
            self.begin(None, slot, at_line)
        elif drops:
            self.begin(Reason.DROPPED, None, at_line)

    @precondition(lambda self: self.capture_lives and self.writing is None)
    @rule(at_line=AT_LINE, fault=st.sampled_from([Reason.BROKEN_FRAME, Reason.WRONG_SIZE]))
    def take_a_faulty_frame(self, at_line: int | None, fault: Reason) -> None:
        self.begin(fault, None, at_line)

    @precondition(lambda self: self.writing is not None)
    @rule()
    def write_half_of_the_pixels(self) -> None:
        assert self.writing is not None
        self.capture.frame(self.writing.slot)[:17] = self.writing.frame_id

    @precondition(lambda self: self.writing is not None)
    @rule(at_line=AT_LINE)
    def write_all_pixels(self, at_line: int | None) -> None:
        ref = self.writing
        assert ref is not None
        self.capture.frame(ref.slot)[...] = ref.frame_id
        if cut_off(at_line, lambda: self.capture.commit(ref, self.now)):
            # Killed within; the last store may have been made or not.
            self.fates[ref.frame_id].lost = True
            self.kill_capture()
        else:
            self.writing = None
        self.fates[ref.frame_id].whole = True

    @precondition(lambda self: self.writing is not None)
    @rule()
    def tear(self) -> None:
        assert self.writing is not None
        self.capture.tear(self.writing)
        self.fates[self.writing.frame_id].lost = True
        self.writing = None

    @precondition(lambda self: self.capture_lives and self.writing is None)
    @rule()
    def take_a_whole_frame(self) -> None:
        self.take_a_frame(None, False)
        if self.writing is not None:
            self.write_all_pixels(None)

    # Worker

    def kill_worker(self) -> None:
        self.worker_kills += 1
        self.jobs = []
        self.worker.close()
        self.worker = FrameRing(self.path)

    @precondition(lambda self: not self.jobs)
    @rule(at_line=AT_LINE, limit=st.integers(1, 4))
    def worker_looks(self, at_line: int | None, limit: int) -> None:
        if cut_off(at_line, lambda: self.jobs.extend(next_batch([self.worker], limit))):
            self.kill_worker()
        for job in self.jobs:
            fate = next(f for f in self.fates.values() if f.ref.slot == job.slot and self.is_in(f))
            assert fate.whole
            assert not fate.answered
            assert fate.ref.frame_id not in self.journal

    def is_in(self, fate: Fate) -> bool:
        return self.worker.holds(fate.ref)

    @precondition(lambda self: self.jobs)
    @rule(at_line=AT_LINE, fails=st.sampled_from([False, False, False, True]))
    def worker_answers(self, at_line: int | None, fails: bool) -> None:
        """However long the worker was away since it took the slot: the slot is still its own."""
        job = self.jobs.pop(0)
        fate = next(f for f in self.fates.values() if f.ref.slot == job.slot and self.is_in(f))
        assert fate.ref.generation == job.generation
        pixels = job.ring.padded(job.slot)
        assert int(pixels.min()) == int(pixels.max()) == fate.ref.frame_id
        # A map of an engine that raised is never looked at.
        job.ring.map(job.slot)[...] = 255 if fails else pixels[0, 0, 0]
        fate.engine_failed = fails

        def call() -> None:
            job.ring.finish(
                job.slot,
                job.generation,
                FAILED if fails else ANSWERED,
                raw_peak=float(fate.ref.frame_id),
                t_start_ns=self.now,
                t_end_ns=self.now,
                engine_id="copy",
            )

        if cut_off(at_line, call):
            self.kill_worker()
        else:
            fate.answered = True

    # Decision

    def start_decision(self) -> None:
        ring = FrameRing(self.path)
        done = {n for n in self.journal if n > ring.decided_id}
        self.desk = Desk(self.stage, ring, self.config, done)

    @rule(at_line=AT_LINE, waited_ms=st.sampled_from([0, 0, 0, 0, 1, DEADLINE_MS // 2]))
    def decide(self, at_line: int | None, waited_ms: int) -> None:
        self.now += waited_ms * MS
        if cut_off(at_line, self.decide_round):
            self.kill_decision()

    def decide_round(self) -> None:
        self.desk.admit(self.now)
        verdicts = self.desk.decide(self.now)
        for verdict in verdicts:
            self.check(verdict)
        # One transaction: the journal has all of them or none.
        self.journal.update({verdict.frame_id: verdict for verdict in verdicts})
        self.desk.committed(verdicts)

    def check(self, verdict: Verdict) -> None:
        assert verdict.frame_id not in self.journal
        fate = self.fates[verdict.frame_id]
        index = fate.source_index
        assert (verdict.epoch, verdict.camera) == (3, "cam")
        assert (verdict.source_pts, verdict.trigger_id) == (index * 7, index * 3)
        assert verdict.part_id == f"part {index}"
        late = self.now >= fate.ref.t_capture_ns + DEADLINE_MS * MS
        assert verdict.reason not in (Reason.UNKNOWN, Reason.RULE_FAILED, Reason.LINE_DIED)
        if fate.fault is not None:
            assert verdict.reason is fate.fault
        elif verdict.label is not Label.INVALID:
            # The map is this very frame's: its pixels hold its id, the map is a copy of a pixel.
            assert fate.whole
            assert verdict.raw_peak == verdict.frame_id
            assert not fate.engine_failed
        elif verdict.reason is Reason.TORN:
            assert fate.lost
        elif verdict.reason is Reason.LATE:
            assert late
        elif verdict.reason is Reason.INFER_FAILED:
            assert fate.engine_failed
        else:
            assert verdict.reason is Reason.WORKER_DIED
            assert self.worker_kills >= fate.worker_kills + MAX_ATTEMPTS

    def kill_decision(self) -> None:
        self.desk.ring.close()
        self.start_decision()

    @rule(who=st.sampled_from(["capture", "worker", "decision"]))
    def dies_between_two_steps(self, who: str) -> None:
        {
            "capture": self.kill_capture,
            "worker": self.kill_worker,
            "decision": self.kill_decision,
        }[who]()

    # What holds at every moment

    @invariant()
    def every_id_up_to_the_last_is_known(self) -> None:
        assert sorted(self.fates) == list(range(1, self.capture.last_id + 1))
        for frame_id, fate in self.fates.items():
            taken = self.desk.ring.taken(frame_id)
            assert taken is not None
            assert (taken.ref, taken.fault) == (fate.ref, fate.fault)
            assert taken.source_index == fate.source_index == frame_id - 1

    @invariant()
    def what_the_header_calls_decided_is_in_the_journal(self) -> None:
        assert set(range(1, self.capture.decided_id + 1)) <= set(self.journal)
        assert set(self.journal) <= set(self.fates)

    def teardown(self) -> None:
        if not hasattr(self, "desk"):
            return
        if self.writing is not None:
            self.kill_capture()
        self.capture.resume()
        self.capture.end(END_OF_STREAM)
        for _ in range(4 * self.capture.slots):
            while self.jobs:
                self.worker_answers(None, False)
            self.worker_looks(None, 2)
            self.decide(None, 0)
        assert self.desk.finished
        # Every id has one verdict, whatever happened, and no slot is lost for ever.
        assert sorted(self.journal) == list(range(1, self.capture.last_id + 1))
        assert self.capture.decided_id == self.capture.last_id
        assert self.capture.held() == []
        for _ in range(self.capture.slots):
            slot = self.capture.free_slot()
            assert slot is not None
            self.capture.begin(t_capture_ns=0, source_index=0, slot=slot)
        assert self.capture.free_slot() is None
        for ring in (self.capture, self.worker, self.desk.ring):
            ring.close()
        self.folder.cleanup()


def test_any_order_and_any_death() -> None:
    with decision_stage() as stage:
        run_state_machine_as_test(
            type("Line", (Line,), {"stage": stage}),
            settings=settings(
                max_examples=60, stateful_step_count=60, deadline=None, derandomize=True
            ),
        )
