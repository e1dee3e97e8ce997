"""One camera's frames between ring and journal: which have no verdict yet, and which verdict."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.config import CameraConfig
from pipeline.errors import DataError
from pipeline.judge import Engine, Judge
from pipeline.prepare.lens import mm_per_px
from pipeline.ring import ANSWERED, POISONED, RUNNING, Answer, FrameRing
from pipeline.rules import Decision
from pipeline.stage import Stage
from pipeline.types import FrameRef, Label, Reason, Verdict
from pipeline.verdicts import invalid, utc_ns

_NEVER = 2**63 - 1
MOST_ADMITTED = 1000
"""Ids of a camera in one round, and in one commit: after a long full disk there may be millions."""


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
    def behind(self) -> bool:
        """Whether ids that capture has taken are still to be taken in."""
        return self._seen < self.ring.last_id

    @property
    def next_deadline_ns(self) -> int:
        return min((p.deadline_ns for p in self._pending.values()), default=_NEVER)

    def ref(self, frame_id: int) -> FrameRef:
        """Of a pending frame."""
        return self._pending[frame_id].ref

    def admit(self, now_ns: int) -> None:
        """Take in the ids that capture has taken since, as many as a round may have."""
        last = min(self.ring.last_id, self._seen + MOST_ADMITTED)
        held: dict[int, tuple[int, int]] | None = None
        while self._seen < last:
            self._seen += 1
            if self._seen in self._skip:
                self._skip.remove(self._seen)
                continue
            taken = self.ring.taken(self._seen)
            if taken is None:  # overwritten: decision was away for longer than the log is
                # Its slot may still be held, and must come back.
                if held is None:
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
