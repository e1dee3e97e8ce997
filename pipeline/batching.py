"""When the worker starts a batch: at once, or a little later and with more frames.

A GPU computes four frames in little more time than one, so it can pay to hold the first back until
others have come. A frame is never held longer than `max_wait_ms` after its pixels were there: one
that has lain waiting while the engine computed has had its wait. And nothing is held for frames
that cannot come: when the batch is full, and when no camera has both frames to come and a free slot
for one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pipeline.ring import RUNNING, FrameRing


def hold(
    rings: Sequence[FrameRing],
    limit: int,
    max_wait_ms: float,
    pause: Callable[[float], bool],
) -> int | None:
    """Wait until a batch is to be started. Since when frames were held for it; None: none was.

    limit: frames of a full batch. pause: waits for so many seconds at most, less when a frame may
    have come; false when the worker is to go on with what there is. Monotonic nanoseconds.
    """
    if limit == 1 or max_wait_ms == 0:
        return None
    begun = time.monotonic_ns()
    held = False
    while (left := _until(rings, limit, begun, max_wait_ms) - time.monotonic_ns()) > 0:
        held = True
        if not pause(left / 1e9):
            break
    return begun if held else None


def _until(rings: Sequence[FrameRing], limit: int, begun: int, max_wait_ms: float) -> int:
    """Until when the frames that wait now may be held; 0: not at all."""
    waiting = [(ring, slot) for ring in rings for _, slot, _ in ring.waiting()]
    # Frames that a worker died on go alone, and at once.
    if not 0 < len(waiting) < limit or any(ring.attempts(slot) for ring, slot in waiting):
        return 0
    if not any(ring.ended == RUNNING and ring.free_slot() is not None for ring in rings):
        return 0
    oldest = min(ring.filled_ns(slot) for ring, slot in waiting)
    # A clock is not trusted to have stamped the future: seen is seen.
    return min(oldest, begun) + round(max_wait_ms * 1e6)
