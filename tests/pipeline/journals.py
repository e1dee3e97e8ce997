"""For tests of the journal: verdicts to write, and a look into the file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.journal import Journal, Row
from pipeline.types import Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import decode

Pairs = Sequence[tuple[Verdict, PartVerdict | None]]


def verdict(frame_id: int, camera: str = "left", epoch: int = 1, **values: Any) -> Verdict:
    made = {"label": Label.PASS, "reason": Reason.OK, **values}
    return Verdict("station", camera, epoch, frame_id, **made)


def pairs(*frame_ids: int, camera: str = "left", epoch: int = 1) -> Pairs:
    verdicts = [verdict(n, camera, epoch) for n in frame_ids]
    return [(v, part_of(v)) for v in verdicts]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Journal]:
    journal = Journal(path)
    try:
        yield journal
    finally:
        journal.close()


def rows(path: Path) -> list[Row]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        query = "SELECT seq, topic, body FROM verdict ORDER BY seq"
        return [Row(*found) for found in base.execute(query)]


def check(found: Sequence[Row]) -> None:
    """No gap in seq; each row names the one before it in its topic."""
    assert [row.seq for row in found] == list(range(1, len(found) + 1))
    last: dict[str, int] = {}
    for row in found:
        message = decode(row.body)
        assert isinstance(message, Verdict | PartVerdict)
        assert (message.seq, message.topic) == (row.seq, row.topic)
        assert message.prev_seq == last.get(row.topic, 0)
        last[row.topic] = row.seq


def set_meta(path: Path, name: str, value: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))


def meta(path: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        return dict(base.execute("SELECT name, value FROM meta"))
