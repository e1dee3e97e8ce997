"""Which frames of one camera are kept: all, or evidence. Knows no disk and no shared memory."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config.record import RecordingConfig
from pipeline.sources.sidecar import RecordedFrame
from pipeline.types import Label

_HASH_LIMIT = 2**64


@dataclass(frozen=True, slots=True)
class Copy:
    """A frame that was copied out of its slot, with what its verdict says."""

    frame: RecordedFrame
    pixels: NDArray[np.uint8]


def sampled(frame: RecordedFrame, share: float) -> bool:
    """Whether a pass belongs to the sample: the same frame, the same answer."""
    name = f"{frame.camera}/{frame.epoch}/{frame.frame_id}".encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * _HASH_LIMIT


class Keeper:
    """Takes decided frames in the order of their ids; says what to write, and what to forget."""

    def __init__(self, config: RecordingConfig) -> None:
        self._config = config
        self._window: deque[tuple[Copy, bool]] = deque()
        """Frames that a later one may still ask for, and whether they are kept anyway."""
        self._after = 0

    def wants(self, frame: RecordedFrame) -> bool:
        """Whether a frame is kept for its own sake."""
        if self._config.record == "all" or frame.label in (Label.FAIL, Label.INVALID):
            return True
        return sampled(frame, self._config.sample_passes)

    def add(self, copy: Copy) -> tuple[list[Copy], list[Copy]]:
        """The next decided frame; copies to write, in order, and copies to forget."""
        keep = self.wants(copy.frame) or self._after > 0
        self._after = max(0, self._after - 1)
        if copy.frame.label in (Label.FAIL, Label.INVALID):
            self._after = self._config.after
            self._window = deque((one, True) for one, _ in self._window)
        self._window.append((copy, keep))
        return self._leave(self._config.before)

    def shrink(self) -> Copy | None:
        """Give up the oldest frame that only a later one would ask for: memory is short."""
        for place, (copy, keep) in enumerate(self._window):
            if not keep:
                del self._window[place]
                return copy
        return None

    def end(self) -> tuple[list[Copy], list[Copy]]:
        """No frame will follow."""
        return self._leave(0)

    def _leave(self, stay: int) -> tuple[list[Copy], list[Copy]]:
        kept: list[Copy] = []
        forgotten: list[Copy] = []
        while len(self._window) > stay:
            copy, keep = self._window.popleft()
            (kept if keep else forgotten).append(copy)
        return kept, forgotten
