"""The line's triggers in shared memory: who was asked for a frame, when, and as which part.

One file beside the rings, made and unlinked by the supervisor, whose control socket is its only
writer: a head with the last index, and the last `RECORDS` triggers. Captures read from it what
their camera has to take, decision which parts are to have a verdict; messages are wake-ups.

    1. the writer clears the record's index, writes the record, its index, and then the last index;
    2. a reader takes the record, and believes it when its index is still the one it asked for.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ResourceError

RECORDS = 4096
PART_ID_BYTES = 64
TARGET_BYTES = 48
TRIGGER_LIMIT = 2**32
_MAGIC = 0x4C57_5452_4947_0001  # "LWTRIG", version 1
_PAGE = 4096
_WORDS = 24
_INDEX, _T, _TRIGGER = range(3)
_TARGET, _PART = 4, 12
_LAST, _EPOCH, _DECIDED = 1, 2, 3


class NoTriggers(ResourceError):
    """No file, or one in which there is nothing of ours to be read."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """index: the line's own count, from 1. target: a part's or a camera's name."""

    index: int
    t_ns: int
    target: str
    trigger_id: int
    part_id: str


class TriggerLog:
    """The mapped file. Raises `NoTriggers` when it is not there, or not one of ours."""

    def __init__(self, path: Path, *, create_epoch: int = 0) -> None:
        """create_epoch: makes the file, for this run of the line."""
        size = _PAGE + RECORDS * _WORDS * 8
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create_epoch else 0)
        try:
            descriptor = os.open(path, flags, 0o600)
            try:
                if create_epoch:
                    os.posix_fallocate(descriptor, 0, size)
                found = os.fstat(descriptor).st_size
                if found != size:
                    raise NoTriggers(f"{path}: {found} bytes found, expected {size}")
                self._map = mmap.mmap(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise NoTriggers(f"{path}: {error.strerror}; expected a log of triggers") from error
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("q")
        if create_epoch:
            self._words[_EPOCH] = create_epoch
            self._words[0] = _MAGIC
        elif self._words[0] != _MAGIC:
            self.close()
            raise NoTriggers(f"{path}: no log of triggers found")

    def close(self) -> None:
        self._words.release()
        self._bytes.release()
        self._map.close()

    @property
    def epoch(self) -> int:
        return self._words[_EPOCH]

    @property
    def last(self) -> int:
        """The last trigger's index; 0: there was none."""
        return self._words[_LAST]

    @property
    def decided(self) -> int:
        """Every trigger up to this one has its part's verdict."""
        return self._words[_DECIDED]

    def set_decided(self, index: int) -> None:
        """Decision, once that is in the journal."""
        self._words[_DECIDED] = index

    def add(self, target: str, t_ns: int, *, trigger_id: int = 0, part_id: str = "") -> Trigger:
        """Control socket: a new trigger. Its texts fit (`TARGET_BYTES`, `PART_ID_BYTES`)."""
        index = self.last + 1
        at = self._at(index)
        self._words[at + _INDEX] = 0
        self._words[at + _T] = t_ns
        self._words[at + _TRIGGER] = trigger_id
        self._put(at + _TARGET, target, TARGET_BYTES)
        self._put(at + _PART, part_id, PART_ID_BYTES)
        self._words[at + _INDEX] = index
        self._words[_LAST] = index
        return Trigger(index, t_ns, target, trigger_id, part_id)

    def get(self, index: int) -> Trigger | None:
        """A trigger up to `last`; None where newer ones have overwritten it."""
        at = self._at(index)
        t_ns, trigger_id = self._words[at + _T], self._words[at + _TRIGGER]
        target = self._text(at + _TARGET, TARGET_BYTES)
        part_id = self._text(at + _PART, PART_ID_BYTES)
        if index < 1 or self._words[at + _INDEX] != index:
            return None
        return Trigger(index, t_ns, target, trigger_id, part_id)

    def _at(self, index: int) -> int:
        return _PAGE // 8 + index % RECORDS * _WORDS

    def _put(self, word: int, text: str, room: int) -> None:
        raw = text.encode()
        assert len(raw) <= room, f"{text!r} has {len(raw)} bytes, expected at most {room}"
        self._bytes[word * 8 : word * 8 + room] = raw.ljust(room, b"\0")

    def _text(self, word: int, room: int) -> str:
        return bytes(self._bytes[word * 8 : word * 8 + room]).rstrip(b"\0").decode(errors="replace")
