"""One camera's ring, followed by the recorder: copies of its frames, until they have a verdict."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.record import RecordingConfig
from pipeline.record.evidence import Evidence
from pipeline.record.keeping import Copy, Keeper
from pipeline.ring import RUNNING, FrameRing, Taken
from pipeline.sources.sidecar import RecordedFrame
from pipeline.types import MARGIN_PX, Verdict
from pipeline.wire import decode

_MOST_ROWS: Final = 200


class VerdictReader:
    """Verdicts of the station's journal, by camera and id."""

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)

    def between(self, camera: str, epoch: int, after: int, upto: int) -> list[Verdict]:
        """Those of ids over `after` up to `upto`, in order, a limited number. May raise
        `sqlite3.Error`."""
        rows = self._base.execute(
            "SELECT body FROM verdict WHERE kind = 'frame' AND camera = ? AND epoch = ? "
            "AND frame_id > ? AND frame_id <= ? ORDER BY frame_id LIMIT ?",
            (camera, epoch, after, upto, _MOST_ROWS),
        )
        found = [decode(body) for (body,) in rows]
        return [message for message in found if isinstance(message, Verdict)]

    def close(self) -> None:
        self._base.close()


class Follower:
    """One camera's ring, followed."""

    def __init__(
        self,
        ring: FrameRing,
        config: RecordingConfig,
        evidence: Evidence,
        buffers: int,
        *,
        offset_ns: int,
        continuous: bool,
        labelled: bool,
        start: int,
        known: frozenset[int],
    ) -> None:
        """offset_ns: from the monotonic clock to UTC. labelled: whether verdicts mean anything.

        start: ids up to this one have been dealt with. known: ids over it that are recorded.
        """
        self.ring = ring
        self.resolved = start
        """Ids up to this one have been dealt with."""
        self._evidence = evidence
        self._keeper = Keeper(config)
        self._offset_ns = offset_ns
        self._labelled = labelled
        self._known = known
        self._seen = start
        self._copies: dict[int, Copy] = {}
        self._missing: dict[int, tuple[RecordedFrame, str]] = {}
        self._free: deque[NDArray[np.uint8]] = deque()
        self._unmade = buffers
        self._row = slice(2 * MARGIN_PX, None) if continuous else slice(MARGIN_PX, -MARGIN_PX)

    @property
    def finished(self) -> bool:
        return self.ring.ended != RUNNING and self.resolved == self.ring.last_id

    def give_back(self, copy: Copy) -> None:
        """From any thread: the copy's buffer can be used again."""
        self._free.append(copy.pixels)

    def follow(self) -> None:
        """Copy what has come since the last look."""
        while self._seen < self.ring.last_id:
            taken = self.ring.taken(self._seen + 1)
            if taken is None:
                self._miss(self._away(self._seen + 1), "the recorder was away")
            elif taken.fault is None and not self._copied(taken):
                return  # the pixels are still being written
            self._seen += 1

    def resolve(self, verdicts: Sequence[Verdict]) -> None:
        """Deal with decided ids, in their order."""
        for verdict in verdicts:
            if verdict.frame_id > self._seen:
                return  # its pixels are not there yet
            self.resolved = verdict.frame_id
            copy = self._copies.pop(verdict.frame_id, None)
            missing = self._missing.pop(verdict.frame_id, None)
            if copy is not None:
                kept, forgotten = self._keeper.add(
                    Copy(self._judged(copy.frame, verdict), copy.pixels)
                )
                self._dispose(kept, forgotten)
            elif missing is not None:
                frame = self._judged(missing[0], verdict)
                if self._keeper.wants(frame):
                    self._evidence.lose(frame, missing[1])

    def end(self) -> None:
        """No verdict will follow: frames without one are kept where all are."""
        self._dispose(*self._keeper.end())
        for frame_id in sorted(self._copies):
            copy = self._copies.pop(frame_id)
            if self._keeper.wants(copy.frame):
                self._evidence.write(copy)

    def _copied(self, taken: Taken) -> bool:
        """Whether nothing more is to be done for this frame: copied, gone, or without pixels."""
        ref, ring = taken.ref, self.ring
        if ref.frame_id in self._known or ring.torn(ref):
            return True
        frame = self._frame(taken)
        if not ring.holds(ref):
            self._miss(frame, "overwritten before it was copied")
            return True
        if ring.filled_ns(ref.slot) < ref.t_capture_ns:
            return ring.ended != RUNNING  # whoever wrote it is dead
        if self._evidence.paused:
            self._miss(frame, self._evidence.paused)
            return True
        pixels = self._buffer()
        if pixels is None:
            self._miss(frame, "buffer_mb is full")
            return True
        np.copyto(pixels, ring.padded(ref.slot)[self._row, MARGIN_PX:-MARGIN_PX])
        if ring.holds(ref):
            self._copies[ref.frame_id] = Copy(frame, pixels)
        else:
            self._free.append(pixels)
            self._miss(frame, "overwritten while it was copied")
        return True

    def _buffer(self) -> NDArray[np.uint8] | None:
        if self._free:
            return self._free.popleft()
        if self._unmade:
            self._unmade -= 1
            return np.empty(self.ring.shape_hwc, np.uint8)
        copy = self._keeper.shrink()
        return copy.pixels if copy is not None else None

    def _dispose(self, kept: Sequence[Copy], forgotten: Sequence[Copy]) -> None:
        for copy in kept:
            self._evidence.write(copy)
        for copy in forgotten:
            self.give_back(copy)

    def _miss(self, frame: RecordedFrame, why: str) -> None:
        if frame.frame_id not in self._known:
            self._missing[frame.frame_id] = (frame, why)

    def _away(self, frame_id: int) -> RecordedFrame:
        return RecordedFrame(self.ring.camera, self.ring.epoch, frame_id)

    def _frame(self, taken: Taken) -> RecordedFrame:
        ref = taken.ref
        return RecordedFrame(
            ref.camera,
            ref.epoch,
            ref.frame_id,
            ref.t_capture_ns + self._offset_ns,
            ref.trigger_id,
            ref.part_id,
        )

    def _judged(self, frame: RecordedFrame, verdict: Verdict) -> RecordedFrame:
        if not self._labelled:
            return frame
        return replace(
            frame,
            label=verdict.label.value,
            reason=verdict.reason.value,
            image_score=verdict.image_score,
            image_threshold=verdict.image_threshold,
        )
