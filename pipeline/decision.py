"""Stage: scored frames -> verdicts. The only one that writes them.

1. At its start: what the journal has decided is not decided again; slots of such frames are freed.
2. Every id that a ring's header shows enters the pending table with its deadline.
3. A pending frame is decided when its map is there, when the log says that there will be none, when
   its pixels are torn, or at its deadline: whichever is first.
4. Verdicts of one round are committed together, then published, then noted in the ring; a slot is
   released as soon as no worker can write into it any more.
5. A disk that is full for a while costs time and no verdict: what is decided waits to be written,
   the line is not ready, and nothing more is decided.
6. Frames of one part wait for each other (`pipeline.parts`); a trigger has its part's verdict at
   its deadline, whether frames came or not.
7. When every ring has ended and nothing is pending, decision is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from pipeline.board import CAMERA_READY, CAMERA_STATES, DONE, GO_ON, READY, STARTING
from pipeline.config import CameraConfig
from pipeline.errors import DataError
from pipeline.journal import Journal, JournalFull
from pipeline.judge import Engine, Judge
from pipeline.parts import Decided as DecidedPart
from pipeline.parts import PartTable, recover
from pipeline.prepare.lens import mm_per_px
from pipeline.publish import Publisher, open_gate
from pipeline.ring import ANSWERED, POISONED, RUNNING, Answer, FrameRing
from pipeline.rules import Decision
from pipeline.stage import WAKE_MS, Stage, drain, main
from pipeline.triggers import TriggerLog
from pipeline.types import FrameRef, Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import invalid, utc_ns

_NEVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Pending:
    """A frame without a verdict. `fault`: the log says that there are no pixels."""

    ref: FrameRef
    fault: Reason | None
    deadline_ns: int


class Desk:
    """One camera's pending table."""

    def __init__(self, stage: Stage, ring: FrameRing, config: CameraConfig, done: set[int]) -> None:
        """done: ids over the ring's `decided_id` that have their verdict."""
        self.ring = ring
        self._stage = stage
        self._config = config
        self._deadline_ns = round(config.deadline_ms * 1e6) if config.deadline_ms else None
        self._seen = ring.decided_id
        self._pending: dict[int, Pending] = {}
        self._skip = done
        self._unreleased: list[FrameRef] = []
        self._judges: dict[str, Judge] = {}
        self._mm_per_px = mm_per_px(config)
        self._unexpected: set[int] = set()
        for frame_id, slot, generation in ring.held():
            if frame_id <= self._seen or frame_id in done:
                ref = FrameRef(ring.camera, ring.epoch, frame_id, slot, generation, 0)
                ring.decide(ref)
                self._unreleased.append(ref)

    @property
    def finished(self) -> bool:
        """Whether no frame will come and none is pending."""
        ended = self.ring.ended != RUNNING  # read before last_id: no id follows it
        return ended and self._seen == self.ring.last_id and not self._pending

    @property
    def next_deadline_ns(self) -> int:
        return min((p.deadline_ns for p in self._pending.values()), default=_NEVER)

    def ref(self, frame_id: int) -> FrameRef:
        """Of a pending frame."""
        return self._pending[frame_id].ref

    def admit(self, now_ns: int) -> None:
        """Take in every id that capture has taken since."""
        last = self.ring.last_id
        while self._seen < last:
            self._seen += 1
            if self._seen in self._skip:
                self._skip.remove(self._seen)
                continue
            taken = self.ring.taken(self._seen)
            if taken is None:  # overwritten: decision was away for longer than the log is
                # Its slot may still be held, and must come back.
                held = {n: (slot, generation) for n, slot, generation in self.ring.held()}
                where = held.get(self._seen, (-1, 0))
                ref = FrameRef(self.ring.camera, self.ring.epoch, self._seen, *where, now_ns)
                self._pending[self._seen] = Pending(ref, Reason.UNKNOWN, now_ns)
                continue
            deadline = _NEVER
            if self._deadline_ns is not None:
                deadline = taken.ref.t_capture_ns + self._deadline_ns
            self._pending[self._seen] = Pending(taken.ref, taken.fault, deadline)

    def decide(self, now_ns: int) -> list[Verdict]:
        """Verdicts of all pending frames that can have one now."""
        verdicts: list[Verdict] = []
        in_order = True
        for pending in self._pending.values():
            ref = pending.ref
            if pending.fault is not None:
                verdicts.append(self._invalid(ref, pending.fault, now_ns))
            elif not self.ring.holds(ref):
                # Decision alone frees slots, and has not freed this one.
                verdicts.append(self._invalid(ref, Reason.UNKNOWN, now_ns))
            elif (answer := self.ring.answer(ref)) and answer.t_end_ns <= pending.deadline_ns:
                if in_order:
                    verdicts.append(self._judge(ref, answer))
            elif self.ring.torn(ref):
                verdicts.append(self._invalid(ref, Reason.TORN, now_ns))
            elif now_ns >= pending.deadline_ns:
                verdicts.append(self._invalid(ref, Reason.LATE, now_ns))
            else:
                in_order = False  # what a judge remembers goes by the order of frames
        return verdicts

    def committed(self, verdicts: list[Verdict]) -> None:
        """Strike decided frames from the table and the ring."""
        for verdict in verdicts:
            ref = self._pending.pop(verdict.frame_id).ref
            self._unexpected.discard(verdict.frame_id)
            if ref.slot >= 0:
                self.ring.decide(ref)
                self._unreleased.append(ref)
        for judge in self._judges.values():
            judge.remember()
        self.ring.set_decided_id(min(self._pending, default=self._seen + 1) - 1)
        self.release()

    def release(self) -> None:
        """Give back slots that no worker can write into."""
        held = []
        for ref in self._unreleased:
            if not self.ring.holds(ref):
                continue
            if self.ring.may_release(ref):
                self.ring.release(ref)
            else:
                held.append(ref)
        self._unreleased = held

    def _judge(self, ref: FrameRef, answer: Answer) -> Verdict:
        """The verdict on a frame that the worker has answered."""
        if answer.status == POISONED:
            return self._invalid(ref, Reason.WORKER_DIED, time.monotonic_ns())
        if answer.status != ANSWERED:
            return self._invalid(ref, Reason.INFER_FAILED, time.monotonic_ns())
        try:
            judge = self._judge_of(answer.engine_id)
            found = judge.judge(self.ring.frame(ref.slot), self.ring.map(ref.slot), ref.frame_id)
        except DataError as error:
            self._stage.log.error("%s frame %d: %s", ref.camera, ref.frame_id, error)
            return self._invalid(ref, Reason.INFER_FAILED, time.monotonic_ns())
        except Exception:  # the outermost loop: this frame is `invalid/rule_failed`
            self._stage.log.exception("%s frame %d: the rule failed", ref.camera, ref.frame_id)
            return self._invalid(ref, Reason.RULE_FAILED, time.monotonic_ns())
        if not self.ring.holds(ref):
            return self._invalid(ref, Reason.UNKNOWN, time.monotonic_ns())
        if not found.expected:
            self._unexpected.add(ref.frame_id)
        if found.decision is None:
            return self._invalid(ref, found.reason, time.monotonic_ns(), found.detail)
        return self._valid(ref, answer, judge, found.decision)

    def _judge_of(self, engine_id: str) -> Judge:
        if engine_id not in self._judges:
            engine = Engine.read(self._stage.station.engine)
            if engine.engine_id != engine_id:
                raise DataError(f"a map of {engine_id} found, expected one of {engine.engine_id}")
            self._judges[engine_id] = Judge(
                self.ring.camera,
                engine,
                self._config.recipe,
                self.ring.shape_hwc[:2],
                self._stage.log,
                memory=self._stage.station.judge_memory(self.ring.camera),
            )
        return self._judges[engine_id]

    def shows_a_part(self, frame_id: int) -> bool:
        """Whether a decided frame is one that a part's verdict follows from."""
        return frame_id not in self._unexpected

    def _valid(self, ref: FrameRef, answer: Answer, judge: Judge, decision: Decision) -> Verdict:
        now = time.monotonic_ns()
        engine = judge.engine
        failed = decision.label is Label.FAIL
        return Verdict(
            station=self._stage.station.config.station,
            camera=ref.camera,
            epoch=ref.epoch,
            frame_id=ref.frame_id,
            label=decision.label,
            reason=Reason.DEFECT if failed else Reason.OK,
            image_score=decision.image_score,
            image_threshold=decision.image_threshold,
            raw_peak=decision.raw_peak,
            defects=decision.defects,
            mm_per_px=self._mm_per_px,
            trigger_id=ref.trigger_id,
            part_id=ref.part_id,
            source_pts=ref.source_pts,
            t_capture_utc_ns=utc_ns(ref.t_capture_ns, now),
            latency_ms={
                "capture": (answer.t_filled_ns - ref.t_capture_ns) / 1e6,
                "queue": (answer.t_start_ns - answer.t_filled_ns - answer.waited_ns) / 1e6,
                "batch": answer.waited_ns / 1e6,
                "infer": (answer.t_end_ns - answer.t_start_ns) / 1e6,
                "decide": (now - answer.t_end_ns) / 1e6,
                "total": (now - ref.t_capture_ns) / 1e6,
            },
            bundle_sha256=engine.bundle_sha256,
            recipe_revision=judge.rule.revision,
            engine_id=engine.engine_id,
        )

    def _invalid(self, ref: FrameRef, reason: Reason, now_ns: int, detail: str = "") -> Verdict:
        return invalid(self._stage.station.config.station, ref, reason, now_ns, detail)


def work(stage: Stage) -> None:
    config = stage.station.config
    inbox = stage.listen()
    journal = _open_journal(stage)
    triggers = TriggerLog(stage.station.triggers)
    try:
        gate = open_gate(stage.context, config.security)
        endpoint, every_ms = config.publish.endpoint, config.publish.heartbeat_ms
        publisher = Publisher(stage.context, endpoint, every_ms, gate)
        try:
            rings = stage.rings()
            desks = [
                Desk(
                    stage,
                    ring,
                    config.cameras[camera],
                    journal.decided(camera, ring.epoch, ring.decided_id),
                )
                for camera, ring in rings.items()
            ]
            parts = PartTable(config, triggers, lambda camera: _why_missing(stage, camera))
            recover(parts, journal, rings, triggers.epoch)
            stage.board.set_state(stage.name, READY)
            scribe = Scribe(journal, publisher, stage.log)
            while not all(desk.finished for desk in desks):
                deadlines = [parts.next_deadline_ns, *(desk.next_deadline_ns for desk in desks)]
                _wait(inbox, [publisher.next_ns, *([] if scribe.waits else deadlines)])
                stage.board.beat(stage.name)
                decide_round(desks, parts, scribe)
                # While verdicts wait for the disk no trigger is taken.
                stage.board.set_state(stage.name, STARTING if scribe.waits else READY)
                why = "the disk takes no results: see the log" if scribe.waits else ""
                _beat(stage, journal, publisher, why)
            end_parts(parts, scribe)
            _beat(stage, journal, publisher, "all cameras have ended", now=True)
        finally:
            publisher.close()
            if gate is not None:
                gate.close()
    finally:
        triggers.close()
        journal.close()
    stage.board.set_state(stage.name, DONE)


def _open_journal(stage: Stage) -> Journal:
    """Waits while the disk is full, as long as the line is to go on."""
    said = False
    while True:
        try:
            return Journal(stage.station.journal, stage.station.config.publish)
        except JournalFull as error:
            if stage.board.order != GO_ON:
                raise
            if not said:
                stage.log.error("%s; decision waits until there is room", error)
            said = True
            stage.board.beat(stage.name)
            time.sleep(WAKE_MS / 1000)


def _why_missing(stage: Stage, camera: str) -> Reason:
    there = stage.board.camera(f"capture.{camera}") == CAMERA_READY
    return Reason.NO_FRAME if there else Reason.CAMERA_LOST


def _beat(
    stage: Stage, journal: Journal, publisher: Publisher, why: str, *, now: bool = False
) -> None:
    """A heartbeat, when it is time for one, or now. why: decision itself is not ready; empty: it
    is."""
    if now or time.monotonic_ns() >= publisher.next_ns:
        cameras = {
            camera: CAMERA_STATES[stage.board.camera(f"capture.{camera}")]
            for camera in stage.station.config.cameras
        }
        why = _why_not_ready(stage) or why
        publisher.heartbeat(
            journal.stream_id, journal.last, ready=not why, cameras=cameras, why=why
        )


def _why_not_ready(stage: Stage) -> str:
    """What the line waits for beside decision. Empty: for nothing."""
    if stage.board.order != GO_ON:
        return "the line is being stopped"
    if stage.board.state("worker") != READY:
        return stage.board.note("worker") or "the worker starts"
    return ""


def _wait(inbox: zmq.Socket[bytes], deadlines_ns: Sequence[int]) -> None:
    """Until a stage wakes this one, or something is due."""
    until = min(deadlines_ns) - time.monotonic_ns()
    # Rounded up: rounded down, the last millisecond would be spent asking again and again.
    inbox.poll(max(0, min(WAKE_MS, -(-until // 1_000_000))))
    drain(inbox)


class Scribe:
    """Commits what is decided, and publishes it; waits where the disk is full."""

    def __init__(self, journal: Journal, publisher: Publisher, log: logging.Logger) -> None:
        self._journal = journal
        self._publisher = publisher
        self._log = log
        self._waiting: Decided | None = None

    @property
    def waits(self) -> bool:
        return self._waiting is not None

    def write(self, decided: Decided) -> bool:
        """Whether it is in the journal, and published. If not it waits for `again`."""
        if decided.frames or decided.parts:
            try:
                rows = self._journal.commit(decided.frames, decided.parts)
            except JournalFull as error:
                if self._waiting is None:
                    self._log.error("%s; verdicts wait until there is room", error)
                self._waiting = decided
                return False
            self._publisher.publish(rows)
        if self._waiting is not None:
            self._waiting = None
            self._log.warning("there is room for verdicts again")
        for desk, verdicts in decided.rounds:
            desk.committed(verdicts) if verdicts else desk.release()
        return True

    def again(self) -> bool:
        """Try what waits once more: whether nothing waits now."""
        return self._waiting is None or self.write(self._waiting)


@dataclass(frozen=True, slots=True)
class Decided:
    """What one round has decided: frames with their own parts, parts of several views."""

    frames: list[tuple[Verdict, PartVerdict | None]]
    parts: list[DecidedPart]
    rounds: list[tuple[Desk, list[Verdict]]]


def decide_round(desks: list[Desk], parts: PartTable, scribe: Scribe) -> None:
    """Decide, commit, publish and release whatever is ripe."""
    if not scribe.again():
        return
    now = time.monotonic_ns()
    parts.admit()
    rounds = []
    for desk in desks:
        desk.admit(now)
        rounds.append((desk, desk.decide(now)))
    frames = [
        (verdict, _part(parts, desk, verdict)) for desk, verdicts in rounds for verdict in verdicts
    ]
    if scribe.write(Decided(frames, parts.due(now), rounds)):
        parts.committed()


def _part(parts: PartTable, desk: Desk, verdict: Verdict) -> PartVerdict | None:
    """Of a frame that is a part of its own; a belt's gap is none."""
    ref = desk.ref(verdict.frame_id)
    if not parts.joins(ref) and not desk.shows_a_part(verdict.frame_id):
        return None
    return parts.add(verdict, ref)


def end_parts(parts: PartTable, scribe: Scribe) -> None:
    """No frame will follow: what still waits for one is decided now."""
    if not scribe.again():
        return  # the supervisor settles it, once there is room
    parts.admit()
    scribe.write(Decided([], parts.due(time.monotonic_ns(), all_of_them=True), []))


if __name__ == "__main__":
    main("decision", work)
