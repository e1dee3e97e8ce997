"""The line's notice board in shared memory: who lives, who is ready, who must stop.

One small file beside the rings, made and unlinked by the supervisor. A row per stage, in the order
of the station's stages; every word has one writer: the supervisor its first three, the stage the
others. Heartbeats are stores of the monotonic clock, so that no message can be lost or late. The
rest of a row is a sentence for people: what the stage is busy with, while it is not ready.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import ResourceError

_ROW_WORDS = 64
_STOPPING, _MAKER = range(2)  # words of the board's own row
_PID, _INCARNATION, _CAMERA, _HEARTBEAT, _STATE, _BUSY_LIMIT = range(6)
_NOTE = 8  # to the end of the row
_NOTE_BYTES = (_ROW_WORDS - _NOTE) * 8

STARTING, READY, DONE = range(3)
"""States of a stage: it loads, it works, it has done all there is to do."""
CAMERA_STATES = ("connecting", "ready", "lost", "frozen")
CONNECTING, CAMERA_READY, CAMERA_LOST, CAMERA_FROZEN = range(4)
"""What a capture says of its camera; of one that hangs in `read` the supervisor says it."""
GO_ON, DRAIN, QUIT = range(3)
"""What the supervisor asks of all stages: work; take no more frames; leave."""


class Board:
    """The mapped board. `names` must be the same in every process of the line."""

    def __init__(self, path: Path, names: Sequence[str], *, create: bool = False) -> None:
        """Raises `ResourceError` when the board is not there, or not of these stages."""
        size = (len(names) + 1) * _ROW_WORDS * 8
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        expected = "no board yet" if create else "the board of a line that runs"
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise ResourceError(f"{path}: {error.strerror}; expected {expected}") from error
        try:
            if create:
                os.posix_fallocate(descriptor, 0, size)
            if (found := os.fstat(descriptor).st_size) != size:
                raise ResourceError(f"{path}: {found} bytes found, expected {size}: another line?")
            self._map = mmap.mmap(descriptor, size)
        except OSError as error:
            if create:
                path.unlink()
            raise ResourceError(f"{path}: {error.strerror}; free some of {path.parent}") from error
        finally:
            os.close(descriptor)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("q")
        self._row = {name: (n + 1) * _ROW_WORDS for n, name in enumerate(names)}
        if create:
            self._words[_MAKER] = os.getpid()

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._map.close()

    @property
    def order(self) -> int:
        """GO_ON, DRAIN or QUIT."""
        return self._words[_STOPPING]

    def set_order(self, order: int) -> None:
        """Supervisor: tell every stage."""
        self._words[_STOPPING] = order

    @property
    def maker(self) -> int:
        """The supervisor's process id."""
        return self._words[_MAKER]

    def set_starting(self, name: str, incarnation: int) -> None:
        """Supervisor, before it starts a stage (again): a store after that could undo its own."""
        row = self._row[name]
        self._words[row + _STATE] = STARTING
        self._words[row + _HEARTBEAT] = time.monotonic_ns()
        self._words[row + _BUSY_LIMIT] = 0
        self.set_note(name, "")
        self._words[row + _PID] = 0
        self._words[row + _INCARNATION] = incarnation

    def set_camera(self, name: str, state: int) -> None:
        """Capture, or the supervisor for one that it has killed: how the camera is."""
        self._words[self._row[name] + _CAMERA] = state

    def camera(self, name: str) -> int:
        """CONNECTING, CAMERA_READY, CAMERA_LOST or CAMERA_FROZEN, by the stage's name."""
        return self._words[self._row[name] + _CAMERA]

    def set_pid(self, name: str, pid: int) -> None:
        """Supervisor: the stage's process."""
        self._words[self._row[name] + _PID] = pid

    def pid(self, name: str) -> int:
        return self._words[self._row[name] + _PID]

    def incarnation(self, name: str) -> int:
        """How often the stage has been started, from 1."""
        return self._words[self._row[name] + _INCARNATION]

    def state(self, name: str) -> int:
        """STARTING, READY or DONE."""
        return self._words[self._row[name] + _STATE]

    def set_state(self, name: str, state: int) -> None:
        """Stage: where it is."""
        self.beat(name)
        self._words[self._row[name] + _STATE] = state

    def beat(self, name: str) -> None:
        """Stage: alive, and getting on."""
        self._words[self._row[name] + _HEARTBEAT] = time.monotonic_ns()

    def silent_ms(self, name: str) -> float:
        """Time since the last heartbeat."""
        return (time.monotonic_ns() - self._words[self._row[name] + _HEARTBEAT]) / 1e6

    def set_busy_limit_ms(self, name: str, limit_ms: float) -> None:
        """Stage: it may be silent for so long, because one step of its work takes that time."""
        self._words[self._row[name] + _BUSY_LIMIT] = round(limit_ms)

    def busy_limit_ms(self, name: str) -> int:
        return self._words[self._row[name] + _BUSY_LIMIT]

    def set_note(self, name: str, text: str) -> None:
        """Stage: a sentence for people, cut where the row ends."""
        at = (self._row[name] + _NOTE) * 8
        note = text.encode()[:_NOTE_BYTES].ljust(_NOTE_BYTES, b"\0")
        self._bytes[at : at + _NOTE_BYTES] = note

    def note(self, name: str) -> str:
        """The last sentence of a stage, empty when it has none."""
        at = (self._row[name] + _NOTE) * 8
        return bytes(self._bytes[at : at + _NOTE_BYTES]).rstrip(b"\0").decode(errors="replace")
