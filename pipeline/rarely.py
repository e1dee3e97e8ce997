"""Logging that a stranger cannot turn into a flood."""

from __future__ import annotations

import time

EVERY_S = 10.0
_SOURCES = 256


class Rarely:
    """Says whether to log: once in EVERY_S for each source, and for all of them past 256 as one."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._next: dict[str, float] = {}

    def due(self, source: str) -> bool:
        now = time.monotonic()
        if source not in self._next and len(self._next) >= _SOURCES:
            self._next = {s: t for s, t in self._next.items() if t > now}
            source = source if len(self._next) < _SOURCES else ""
        if now < self._next.get(source, 0.0):
            return False
        self._next[source] = now + self._every_s
        return True
