"""Stage: scored frames -> verdicts. The only one that writes them.

1. At its start: what the journal has decided is not decided again; slots of such frames are freed.
2. Every id that a ring's header shows enters the pending table with its deadline.
3. A pending frame is decided when its map is there, when the log says that there will be none, when
   its pixels are torn, or at its deadline: whichever is first.
4. Verdicts of one round are committed together, then published, then noted in the ring; a slot is
   released as soon as no worker can write into it any more.
5. When every ring has ended and nothing is pending, decision is done.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import zmq

from pipeline.board import DONE, READY
from pipeline.config import CameraConfig
from pipeline.errors import DataError
from pipeline.journal import Journal
from pipeline.publish import Publisher
from pipeline.ring import ANSWERED, POISONED, RUNNING, Answer, FrameRing
from pipeline.rules import Decision, DecisionRule, Thresholds
from pipeline.stage import WAKE_MS, Stage, drain, main
from pipeline.tolerance import Tolerance, from_text
from pipeline.types import FrameRef, Label, Reason, Verdict
from pipeline.verdicts import invalid, part_of, utc_ns

_NEVER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Engine:
    """What the worker left of its engine."""

    engine_id: str
    bundle_sha256: str
    thresholds: Thresholds
    tolerance: Tolerance | None

    @classmethod
    def read(cls, path: Path) -> Engine:
        found = json.loads(path.read_text())
        return cls(
            found["engine_id"],
            found["bundle_sha256"],
            Thresholds(**found["thresholds"]),
            from_text(found["tolerance"]),
        )


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
        self._rules: dict[str, tuple[Engine, DecisionRule]] = {}
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
        for pending in self._pending.values():
            ref = pending.ref
            if pending.fault is not None:
                verdicts.append(self._invalid(ref, pending.fault, now_ns))
            elif not self.ring.holds(ref):
                # Decision alone frees slots, and has not freed this one.
                verdicts.append(self._invalid(ref, Reason.UNKNOWN, now_ns))
            elif (answer := self.ring.answer(ref)) and answer.t_end_ns <= pending.deadline_ns:
                verdicts.append(self._judge(ref, answer))
            elif self.ring.torn(ref):
                verdicts.append(self._invalid(ref, Reason.TORN, now_ns))
            elif now_ns >= pending.deadline_ns:
                verdicts.append(self._invalid(ref, Reason.LATE, now_ns))
        return verdicts

    def committed(self, verdicts: list[Verdict]) -> None:
        """Strike decided frames from the table and the ring."""
        for verdict in verdicts:
            ref = self._pending.pop(verdict.frame_id).ref
            if ref.slot >= 0:
                self.ring.decide(ref)
                self._unreleased.append(ref)
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
            engine, rule = self._rule(answer.engine_id)
            decision = rule.decide(self.ring.map(ref.slot))
        except DataError as error:
            self._stage.log.error("%s frame %d: %s", ref.camera, ref.frame_id, error)
            return self._invalid(ref, Reason.INFER_FAILED, time.monotonic_ns())
        except Exception:  # the outermost loop: this frame is `invalid/rule_failed`
            self._stage.log.exception("%s frame %d: the rule failed", ref.camera, ref.frame_id)
            return self._invalid(ref, Reason.RULE_FAILED, time.monotonic_ns())
        if not self.ring.holds(ref):
            return self._invalid(ref, Reason.UNKNOWN, time.monotonic_ns())
        return self._valid(ref, answer, engine, rule, decision)

    def _rule(self, engine_id: str) -> tuple[Engine, DecisionRule]:
        if engine_id not in self._rules:
            engine = Engine.read(self._stage.station.engine)
            if engine.engine_id != engine_id:
                raise DataError(f"a map of {engine_id} found, expected one of {engine.engine_id}")
            shape = self.ring.shape_hwc[:2]
            rule = DecisionRule(engine.thresholds, self._config.recipe, shape, engine.tolerance)
            self._rules[engine_id] = (engine, rule)
        return self._rules[engine_id]

    def _valid(
        self,
        ref: FrameRef,
        answer: Answer,
        engine: Engine,
        rule: DecisionRule,
        decision: Decision,
    ) -> Verdict:
        now = time.monotonic_ns()
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
            recipe_revision=rule.revision,
            engine_id=engine.engine_id,
        )

    def _invalid(self, ref: FrameRef, reason: Reason, now_ns: int) -> Verdict:
        return invalid(self._stage.station.config.station, ref, reason, now_ns)


def work(stage: Stage) -> None:
    config = stage.station.config
    inbox = stage.listen()
    journal = Journal(stage.station.journal)
    try:
        publisher = Publisher(stage.context, config.publish.endpoint, config.publish.heartbeat_ms)
        try:
            desks = [
                Desk(
                    stage,
                    ring,
                    config.cameras[camera],
                    journal.decided(camera, ring.epoch, ring.decided_id),
                )
                for camera, ring in stage.rings().items()
            ]
            stage.board.set_state(stage.name, READY)
            while not all(desk.finished for desk in desks):
                _wait(inbox, desks)
                stage.board.beat(stage.name)
                decide_round(desks, journal, publisher)
                ready = stage.board.state("worker") == READY
                publisher.heartbeat(journal.stream_id, journal.last, ready=ready)
            publisher.heartbeat(journal.stream_id, journal.last, ready=False, now=True)
        finally:
            publisher.close()
    finally:
        journal.close()
    stage.board.set_state(stage.name, DONE)


def _wait(inbox: zmq.Socket[bytes], desks: list[Desk]) -> None:
    """Until a stage wakes this one, the next deadline, or WAKE_MS."""
    until = min(desk.next_deadline_ns for desk in desks) - time.monotonic_ns()
    inbox.poll(max(0, min(WAKE_MS, until // 1_000_000)))
    drain(inbox)


def decide_round(desks: list[Desk], journal: Journal, publisher: Publisher) -> None:
    """Decide, commit, publish and release whatever is ripe."""
    now = time.monotonic_ns()
    rounds = []
    for desk in desks:
        desk.admit(now)
        rounds.append(desk.decide(now))
    ripe = [verdict for verdicts in rounds for verdict in verdicts]
    if ripe:
        publisher.publish(journal.commit((verdict, part_of(verdict)) for verdict in ripe))
    for desk, verdicts in zip(desks, rounds, strict=True):
        desk.committed(verdicts) if verdicts else desk.release()


if __name__ == "__main__":
    main("decision", work)
