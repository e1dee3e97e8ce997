"""The durable record of all verdicts: SQLite in WAL mode, one writer (decision), many readers.

`seq` counts every row of the stream, without gaps, across restarts. A frame has at most one row:
`UNIQUE (kind, camera, epoch, frame_id)` holds even when a stage was killed between its commit and
its next step. A commit survives `kill -9` at once, and a power cut from SYNC_S later on: a thread
of its own syncs and checkpoints, so that no verdict waits for the disk.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ResourceError
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import decode, encode

SYNC_S = 0.1
CHECKPOINT_BYTES = 4 * 2**20
SCHEMA = 1

_CREATE = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdict (
    seq INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    kind TEXT NOT NULL,
    camera TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    frame_id INTEGER NOT NULL,
    label TEXT NOT NULL,
    reason TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (kind, camera, epoch, frame_id)
);
CREATE INDEX IF NOT EXISTS verdict_topic ON verdict (topic, seq);
"""
# From topic to topic along the index: a GROUP BY would read all of it, millions of rows a day.
_LAST_OF_TOPICS = """
WITH RECURSIVE found (topic) AS (
    SELECT MIN(topic) FROM verdict
    UNION ALL
    SELECT (SELECT MIN(topic) FROM verdict WHERE topic > found.topic)
    FROM found WHERE found.topic IS NOT NULL
)
SELECT topic, (SELECT MAX(seq) FROM verdict WHERE verdict.topic = found.topic)
FROM found WHERE topic IS NOT NULL
"""
# A seq that is taken already is an error; a frame that has its verdict is not.
_INSERT = """
INSERT INTO verdict VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (kind, camera, epoch, frame_id) DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One published message."""

    seq: int
    topic: str
    body: bytes


class Journal:
    """The writer's side. Raises `ResourceError` when the disk or the file refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sync_error: OSError | sqlite3.Error | None = None
        with contextlib.ExitStack() as on_error:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._base = _connect(path)
                on_error.callback(self._base.close)
                self._check_schema()
                self._base.executescript(_CREATE)
                self.stream_id = self._continue_stream()
                self._last = {
                    str(topic): int(seq) for topic, seq in self._base.execute(_LAST_OF_TOPICS)
                }
            except (OSError, sqlite3.Error) as error:
                raise self._refused(error) from error
            on_error.pop_all()
        self._seq = max(self._last.values(), default=0)
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._syncer = threading.Thread(target=self._sync, name="journal-sync", daemon=True)
        self._syncer.start()

    @property
    def last(self) -> dict[str, int]:
        """The last seq of each topic."""
        return dict(self._last)

    def next_epoch(self) -> int:
        """A number that no earlier run of this station had."""
        try:
            with self._base:
                row = self._base.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
                epoch = int(row[0]) + 1 if row else 1
                self._set("epoch", str(epoch))
        except sqlite3.Error as error:
            raise self._refused(error) from error
        return epoch

    def decided(self, camera: str, epoch: int, after: int = 0) -> set[int]:
        """Ids over `after` of frames that have their verdict."""
        query = (
            "SELECT frame_id FROM verdict WHERE kind = 'frame' AND camera = ? AND epoch = ? "
            "AND frame_id > ?"
        )
        try:
            return {int(n) for (n,) in self._base.execute(query, (camera, epoch, after))}
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def commit(self, verdicts: Iterable[tuple[Verdict, PartVerdict | None]]) -> list[Row]:
        """Write verdicts, each with its part's, in one transaction; the rows to publish.

        `seq`, `prev_seq` and `stream_id` are given here. A frame that has its verdict is passed
        over with its part. After an error nothing is written and nothing has changed.

        Raises `ResourceError` also when an earlier commit could not be synced to the disk.
        """
        if self._sync_error is not None:
            raise self._refused(self._sync_error) from self._sync_error
        rows: list[Row] = []
        last, seq = dict(self._last), self._seq
        try:
            with self._base:
                for verdict, part in verdicts:
                    key = (verdict.camera, verdict.epoch, verdict.frame_id)
                    pair: Sequence[Verdict | PartVerdict] = (
                        (verdict,) if part is None else (verdict, part)
                    )
                    for message in pair:
                        stamped = replace(
                            message,
                            seq=seq + 1,
                            prev_seq=last.get(message.topic, 0),
                            stream_id=self.stream_id,
                        )
                        row = Row(seq + 1, message.topic, encode(stamped))
                        kind = "frame" if isinstance(message, Verdict) else "part"
                        done = self._base.execute(
                            _INSERT,
                            (
                                row.seq,
                                row.topic,
                                kind,
                                *key,
                                message.label,
                                message.reason,
                                row.body,
                            ),
                        )
                        if done.rowcount == 0:
                            break
                        rows.append(row)
                        seq += 1
                        last[row.topic] = seq
        except sqlite3.Error as error:
            raise self._refused(error) from error
        self._last, self._seq = last, seq
        self._dirty.set()
        return rows

    def close(self) -> None:
        """Sync, note the clean end and close. What could not be synced is not noted as clean."""
        self._closing.set()
        self._syncer.join()
        # Without the note the next boot begins a new stream, which is what a full disk asks for.
        with contextlib.suppress(sqlite3.Error):
            if self._sync_error is None:
                with self._base:
                    self._set("clean", "yes")
        self._base.close()

    def _set(self, name: str, value: str) -> None:
        self._base.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _check_schema(self) -> None:
        if not self._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            return
        row = self._base.execute("SELECT value FROM meta WHERE name = 'schema'").fetchone()
        if row is not None and row[0] != str(SCHEMA):
            raise ResourceError(
                f"{self.path}: a journal of schema {row[0]} found, expected {SCHEMA}; "
                "move it away or use the linewatch that wrote it"
            )

    def _continue_stream(self) -> str:
        """The stream's id: a new one after an unclean boot, which may have cost rows."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # On disk before the first verdict: else a power cut could bring back the "clean" of the
        # last end, and the seqs of lost rows would be given out again in the same stream.
        self._base.execute("PRAGMA synchronous = FULL")
        with self._base:
            meta = dict(self._base.execute("SELECT name, value FROM meta"))
            lost = meta.get("boot") != boot and meta.get("clean") != "yes"
            stream_id = uuid.uuid4().hex if lost else str(meta["stream_id"])
            for name, value in (
                ("schema", str(SCHEMA)),
                ("boot", boot),
                ("clean", "no"),
                ("stream_id", stream_id),
            ):
                self._set(name, value)
        self._base.execute("PRAGMA synchronous = NORMAL")
        return stream_id

    def _sync(self) -> None:
        """The syncing thread."""
        try:
            self._sync_until_closed()
        except (OSError, sqlite3.Error) as error:
            self._sync_error = error  # the next commit raises it

    def _sync_until_closed(self) -> None:
        """The WAL to disk within SYNC_S of a commit; checkpoints aside."""
        base = _connect(self.path)
        wal = -1
        try:
            wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            while not self._closing.wait(SYNC_S / 2):
                if not self._dirty.is_set():
                    continue
                self._dirty.clear()
                os.fdatasync(wal)
                if os.fstat(wal).st_size > CHECKPOINT_BYTES:
                    base.execute("PRAGMA wal_checkpoint(PASSIVE)")
            os.fdatasync(wal)
        finally:
            if wal >= 0:
                os.close(wal)
            base.close()

    def _refused(self, error: OSError | sqlite3.Error) -> ResourceError:
        if isinstance(error, sqlite3.IntegrityError):
            return ResourceError(
                f"{self.path}: {error}; expected to be its only writer: is another line running "
                "with the same state_dir?"
            )
        return ResourceError(
            f"{self.path}: {error}; expected a journal that can be written: "
            "check the disk's space and rights"
        )


def read_verdicts(path: Path, *, epoch: int | None = None) -> Iterator[Verdict]:
    """All frame verdicts of a journal (of one epoch), by camera and frame id.

    A journal that is being made at this moment has none. Raises `ResourceError` for a file that
    cannot be read, `WireError` for a row that is not ours.
    """
    query = "SELECT body FROM verdict WHERE kind = 'frame'"
    if epoch is not None:
        query += f" AND epoch = {int(epoch)}"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as base:
            if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdict'").fetchone():
                return
            for (body,) in base.execute(query + " ORDER BY camera, epoch, frame_id"):
                message = decode(body)
                if isinstance(message, Verdict):
                    yield message
    except sqlite3.Error as error:
        raise ResourceError(
            f"{path}: {error}; expected the journal of a line: check state_dir"
        ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """A connection of the writer's process. Raises `sqlite3.Error`."""
    base = sqlite3.connect(path, timeout=5.0)
    try:
        (mode,) = base.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":  # a file system without shared memory says so in this way
            raise sqlite3.OperationalError(f"write-ahead log refused ({mode})")
        base.execute("PRAGMA synchronous = NORMAL")
        base.execute("PRAGMA wal_autocheckpoint = 0")
    except sqlite3.Error:
        base.close()
        raise
    return base
