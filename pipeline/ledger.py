"""The last line of the accounting: every id in a ring, and every trigger, has a verdict before
the shared memory goes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from pipeline.journal import Journal
from pipeline.parts import PartTable, recover
from pipeline.ring import FrameRing
from pipeline.ringfile import NotARing
from pipeline.station import Station
from pipeline.triggers import NoTriggers, TriggerLog
from pipeline.types import FrameRef, Label, PartKey, PartVerdict, Reason, Verdict
from pipeline.verdicts import invalid

_BATCH = 500

log = logging.getLogger("supervisor")


def settle(station: Station, journal: Journal) -> int:
    """Give `invalid/line_died` to every undecided id and trigger of the station; unlink its files.

    To be called when no stage lives. Returns how many frames there were. A file that is not one of
    ours is removed as well: nothing can be read from it. Raises `ResourceError` when a ring cannot
    be opened or the journal not be written; what is not accounted for yet stays for the next time.
    """
    if not station.shm_dir.exists():
        return 0
    with contextlib.ExitStack() as opened:
        rings = {}
        for path in sorted(station.shm_dir.glob("*.ring")):
            try:
                ring = FrameRing(path)
            except NotARing as error:
                log.warning("removed: %s", error)
                path.unlink()
                continue
            opened.callback(ring.close)
            rings[ring.camera] = ring
        triggers = _triggers(station)
        if triggers is not None:
            opened.callback(triggers.close)
        parts = PartTable(station.config, triggers, lambda camera: Reason.LINE_DIED)
        for epoch in {ring.epoch for ring in rings.values()}:
            recover(parts, journal, rings, epoch)
        count = 0
        for ring in rings.values():
            left = _left(station, journal, ring)
            while pairs := list(islice(left, _BATCH)):
                journal.commit((verdict, parts.add(verdict, ref)) for verdict, ref in pairs)
                count += len(pairs)
        parts.admit()
        waiting = parts.due(time.monotonic_ns(), all_of_them=True)
        for first in range(0, len(waiting), _BATCH):
            journal.commit([], [_not_passed(*one) for one in waiting[first : first + _BATCH]])
    for path in station.shm_dir.glob("*.ring"):
        path.unlink()
    station.triggers.unlink(missing_ok=True)
    station.board.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files in it stay, and so does it
        station.shm_dir.rmdir()
    return count


def _not_passed(key: PartKey, part: PartVerdict) -> tuple[PartKey, PartVerdict]:
    """A part that decision did not decide never passes: views may be wanted no more by now."""
    if part.label is Label.PASS:
        part = replace(part, label=Label.INVALID, reason=Reason.LINE_DIED)
    return key, part


def _triggers(station: Station) -> TriggerLog | None:
    try:
        return TriggerLog(station.triggers)
    except NoTriggers as error:
        if station.triggers.exists():
            log.warning("removed: %s", error)
        return None


def _left(
    station: Station, journal: Journal, ring: FrameRing
) -> Iterator[tuple[Verdict, FrameRef]]:
    """The ring's ids without a verdict, with the one that they get now."""
    done = journal.decided(ring.camera, ring.epoch, ring.decided_id)
    for frame_id in range(ring.decided_id + 1, ring.last_id + 1):
        if frame_id in done:
            continue
        now = time.monotonic_ns()
        taken = ring.taken(frame_id)
        ref = taken.ref if taken else FrameRef(ring.camera, ring.epoch, frame_id, -1, 0, now)
        reason = (taken.fault if taken else None) or Reason.LINE_DIED
        yield invalid(station.config.station, ref, reason, now), ref
