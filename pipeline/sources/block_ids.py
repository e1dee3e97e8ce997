"""A camera's numbers of its frames, which wrap and may be missing, as an index that does not."""

from __future__ import annotations

from typing import Final

_GIGE_IDS: Final = 65535
"""GigE Vision counts 1 to 65535 and starts over, unless its extended ids are on."""


class FrameCounter:
    """Of one camera, from its opening on."""

    def __init__(self) -> None:
        self._id: int | None = None
        self._index = -1

    def index(self, frame_id: int) -> int:
        """Position, from 0, of the frame that the camera numbers so.

        Ids ahead of their turn are gaps. An id that does not move, or moves by so much that the
        camera cannot have meant it, counts as the next one.
        """
        ahead = 1
        if self._id is not None:
            ahead = frame_id - self._id
            if ahead < 0 and self._id <= _GIGE_IDS:
                ahead += _GIGE_IDS
            if not 0 < ahead <= _GIGE_IDS // 2:
                ahead = 1
        self._id = frame_id
        self._index += ahead
        return self._index

    def next(self) -> int:
        """Of a frame that came without its number: it is the one after the last one."""
        if self._id is not None:
            self._id = self._id + 1 if self._id != _GIGE_IDS else 1
        self._index += 1
        return self._index
