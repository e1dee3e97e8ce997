"""The last line of the accounting: every id in a ring has a verdict before the ring goes."""

from __future__ import annotations

import contextlib
import logging
import time

from pipeline.journal import Journal
from pipeline.ring import FrameRing
from pipeline.ringfile import NotARing
from pipeline.station import Station
from pipeline.types import FrameRef, Reason
from pipeline.verdicts import invalid, part_of

_BATCH = 500

log = logging.getLogger("supervisor")


def settle(station: Station, journal: Journal) -> int:
    """Give `invalid/line_died` to every undecided id in the station's rings; unlink them.

    To be called when no stage lives. Returns how many there were. A file that is not a ring of
    ours is removed as well: nothing can be read from it. Raises `ResourceError` when a ring cannot
    be opened or the journal not be written; what is not accounted for yet stays for the next time.
    """
    count = 0
    if not station.shm_dir.exists():
        return 0
    for path in sorted(station.shm_dir.glob("*.ring")):
        try:
            ring = FrameRing(path)
        except NotARing as error:
            log.warning("removed: %s", error)
            path.unlink()
            continue
        try:
            count += _settle_ring(station, journal, ring)
        finally:
            ring.close()
        path.unlink()
    station.board.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody else's files in it stay, and so does it
        station.shm_dir.rmdir()
    return count


def _settle_ring(station: Station, journal: Journal, ring: FrameRing) -> int:
    done = journal.decided(ring.camera, ring.epoch, ring.decided_id)
    left = [n for n in range(ring.decided_id + 1, ring.last_id + 1) if n not in done]
    for first in range(0, len(left), _BATCH):
        now = time.monotonic_ns()
        verdicts = []
        for frame_id in left[first : first + _BATCH]:
            taken = ring.taken(frame_id)
            ref = taken.ref if taken else FrameRef(ring.camera, ring.epoch, frame_id, -1, 0, now)
            reason = (taken.fault if taken else None) or Reason.LINE_DIED
            verdicts.append(invalid(station.config.station, ref, reason, now))
        journal.commit((verdict, part_of(verdict)) for verdict in verdicts)
    return len(left)
