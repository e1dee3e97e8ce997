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
from pipeline.desk import Desk
from pipeline.journal import Journal, JournalFull
from pipeline.parts import Decided as DecidedPart
from pipeline.parts import PartTable, recover
from pipeline.publish import Publisher, open_gate
from pipeline.stage import WAKE_MS, Stage, drain, main
from pipeline.triggers import TriggerLog
from pipeline.types import PartVerdict, Reason, Verdict


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
                if scribe.waits or not any(desk.behind for desk in desks):
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
