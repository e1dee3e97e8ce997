"""What people ask a journal: rows by time, part, camera and verdict; figures; a smaller file."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ResourceError
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import Heartbeat, decode

PAGE_ROWS = 1000
_COLUMNS = "seq, topic, t_commit_utc_ns, body"
_OF_FRAME = (
    f"SELECT {_COLUMNS} FROM verdict WHERE kind = 'frame' AND camera = ? AND epoch = ? "
    "AND frame_id = ?"
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows: all that fit everything that is said here."""

    kind: str = ""
    """frame or part."""
    camera: str = ""
    label: str = ""
    reason: str = ""
    part_id: str = ""
    """The part's own row, and those of its frames."""
    since_utc_ns: int | None = None
    until_utc_ns: int | None = None
    """Of the commit."""
    limit: int = 0
    """The newest so many; 0: all."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row: when it was committed, and what it says."""

    t_commit_utc_ns: int
    message: Verdict | PartVerdict

    def plain(self) -> dict[str, str | int | float]:
        """One line of a table; `views` as camera/epoch/frame_id."""
        message = self.message
        if isinstance(message, Verdict):
            views = f"{message.camera}/{message.epoch}/{message.frame_id}"
        else:
            views = " ".join("/".join(map(str, view)) for view in message.views)
        return {
            "seq": message.seq,
            "t_commit_utc_ns": self.t_commit_utc_ns,
            "t_capture_utc_ns": message.t_capture_utc_ns,
            "kind": "frame" if isinstance(message, Verdict) else "part",
            "views": views,
            "part_id": message.part_id,
            "trigger_id": message.trigger_id,
            "label": message.label.value,
            "reason": message.reason.value,
            "image_score": message.image_score,
            "image_threshold": message.image_threshold,
            "defects": len(message.defects),
        }


@dataclass(frozen=True, slots=True)
class Statistics:
    """A journal's figures."""

    rows: int
    oldest_seq: int
    newest_seq: int
    first_commit_utc_ns: int
    last_commit_utc_ns: int
    streams: int
    file_bytes: int
    free_bytes: int
    """Of the file: room for further rows; `linewatch journal vacuum` gives it back."""
    labels: dict[str, dict[str, int]]
    """Topic -> `label/reason` -> rows."""


def find(path: Path, wanted: Wanted) -> Iterator[Entry]:
    """Rows, oldest first. Raises `ResourceError`, `WireError` for a row that is not ours.

    Read in pages: as long as a query is open the line's journal cannot begin its log anew, and
    whoever takes the rows may take hours.
    """
    if wanted.part_id:
        yield from _find_part(path, wanted)
        return
    where, values = _where(wanted)
    both = f"{where} AND" if where else " WHERE"
    with _reading(path) as base:
        (newest,) = base.execute("SELECT MAX(seq) FROM verdict").fetchone()
        after = 0
        if wanted.limit:
            query = f"SELECT seq FROM verdict{where} ORDER BY seq DESC LIMIT 1 OFFSET ?"
            first = base.execute(query, (*values, wanted.limit - 1)).fetchone()
            after = first[0] - 1 if first else 0
        query = f"SELECT {_COLUMNS} FROM verdict{both} seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        while page := base.execute(query, (*values, after, newest, PAGE_ROWS)).fetchall():
            for row in page:
                yield _entry(row)
            after = page[-1][0]


def _where(wanted: Wanted) -> tuple[str, list[str | int]]:
    tests = {
        "kind = ?": "frame" if wanted.kind == "frame" else "",
        "kind <> ?": "frame" if wanted.kind == "part" else "",
        "camera = ?": wanted.camera,
        "label = ?": wanted.label,
        "reason = ?": wanted.reason,
        "t_commit_utc_ns >= ?": wanted.since_utc_ns,
        "t_commit_utc_ns < ?": wanted.until_utc_ns,
    }
    given = {test: value for test, value in tests.items() if value is not None and value != ""}
    return (" WHERE " + " AND ".join(given) if given else ""), list(given.values())


def _find_part(path: Path, wanted: Wanted) -> Iterator[Entry]:
    part_query = f"SELECT {_COLUMNS} FROM verdict WHERE kind <> 'frame' AND part_id = ?"
    with _reading(path) as base:
        found = {}
        for row in base.execute(part_query + " ORDER BY seq", (wanted.part_id,)).fetchall():
            entry = found[row[0]] = _entry(row)
            if isinstance(entry.message, PartVerdict):
                for view in entry.message.views:
                    found |= {r[0]: _entry(r) for r in base.execute(_OF_FRAME, view)}
    yield from (found[seq] for seq in sorted(found))


def find_frame(path: Path, camera: str, epoch: int, frame_id: int) -> Verdict | None:
    """A frame's verdict, None where the journal has none. Raises `ResourceError`, `WireError`."""
    with _reading(path) as base:
        row = base.execute(_OF_FRAME, (camera, epoch, frame_id)).fetchone()
    message = _entry(row).message if row else None
    return message if isinstance(message, Verdict) else None


def statistics(path: Path) -> Statistics:
    """Raises `ResourceError`."""
    with _reading(path) as base:

        def one(query: str) -> int:
            return int(base.execute(query).fetchone()[0] or 0)

        labels: dict[str, dict[str, int]] = {}
        grouped = (
            "SELECT topic, label, reason, COUNT(*) FROM verdict "
            "GROUP BY topic, label, reason ORDER BY topic, label, reason"
        )
        for topic, label, reason, count in base.execute(grouped):
            labels.setdefault(topic, {})[f"{label}/{reason}"] = count
        page_bytes = one("PRAGMA page_size")
        return Statistics(
            sum(sum(counts.values()) for counts in labels.values()),
            one("SELECT MIN(seq) FROM verdict"),
            one("SELECT MAX(seq) FROM verdict"),
            one("SELECT MIN(t_commit_utc_ns) FROM verdict"),
            one("SELECT MAX(t_commit_utc_ns) FROM verdict"),
            one("SELECT COUNT(*) FROM stream"),
            one("PRAGMA page_count") * page_bytes,
            one("PRAGMA freelist_count") * page_bytes,
            labels,
        )


def vacuum(path: Path) -> tuple[int, int]:
    """Give free room back to the disk; the file's bytes before and after.

    It takes as much room again while it works, and no line may run. Raises `ResourceError`.
    """
    if not path.exists():
        raise _unreadable(path, "no such file")
    before = path.stat().st_size
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as base:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            base.execute("VACUUM")
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.Error as error:
        raise ResourceError(
            f"{path}: {error}; expected a journal, and room for a second one beside it"
        ) from error
    return before, path.stat().st_size


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True)) as base:
            yield base
    except sqlite3.Error as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> ResourceError:
    return ResourceError(
        f"{path}: {why}; expected the journal of a line: check state_dir in its configuration"
    )


def _entry(row: tuple[int, str, int, bytes]) -> Entry:
    message = decode(row[3])
    if isinstance(message, Heartbeat):
        raise ResourceError(f"seq {row[0]}: a heartbeat found, expected a verdict")
    return Entry(row[2], message)
