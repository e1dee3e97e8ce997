"""The durable record of all verdicts: SQLite in WAL mode, one writer (decision), many readers.

`seq` counts every row of the stream, without gaps, across restarts. A frame has at most one row:
`UNIQUE (kind, camera, epoch, frame_id)` holds even when a stage was killed between its commit and
its next step. A commit survives `kill -9` at once, and a power cut from SYNC_S later on: a thread
of its own syncs and checkpoints, so that no verdict waits for the disk. With durability `power`
each commit waits for it.

The oldest rows go when the journal is over its limits: each commit deletes at most twice as many as
it writes, so that none takes long, and the room is used again. The file does not shrink by itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import PublishConfig
from pipeline.errors import ResourceError
from pipeline.journal_schema import CREATE, INSERT, LAST_OF_TOPICS, SCHEMA
from pipeline.types import PartKey, PartVerdict, Verdict
from pipeline.wire import decode, encode

SYNC_S = 0.1
CHECKPOINT_BYTES = 4 * 2**20
CROWDED_BYTES = 64 * 2**20
"""Commits follow each other so closely that the WAL never begins anew: one does it itself."""
PAGE_ROWS = 1000
CLOCK_JUMP_NS = 3600 * 10**9
KEEP_ROWS = 20_000
"""Newest rows that stay whatever the limits are: what is still being decided is among them."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published message."""

    seq: int
    topic: str
    body: bytes


class Journal:
    """The writer's side. Raises `ResourceError` when the disk or the file refuses."""

    def __init__(
        self,
        path: Path,
        settings: PublishConfig | None = None,
        *,
        utc_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """settings: durability and limits; None: `process`, and nothing is ever deleted. utc_ns:
        the clock."""
        self.path = path
        self._utc_ns = utc_ns
        self._settings = settings
        self._power = settings is not None and settings.durability == "power"
        self._sync_error: OSError | sqlite3.Error | None = None
        with contextlib.ExitStack() as on_error:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._base = _connect(path)
                on_error.callback(self._base.close)
                self._check_schema()
                self._base.executescript(CREATE)
                self._last = {
                    str(topic): int(seq) for topic, seq in self._base.execute(LAST_OF_TOPICS)
                }
                self._seq = max(self._last.values(), default=0)
                self._first_own = self._seq + 1
                self._clock_ns = self._utc_ns() - time.monotonic_ns()
                self.stream_id = self._continue_stream()
                self._oldest = self._tidy()
            except (OSError, sqlite3.Error) as error:
                raise self._refused(error) from error
            on_error.pop_all()
        self._dirty = threading.Event()
        self._crowded = threading.Event()
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

    def decided_triggers(self, epoch: int, after: int = 0) -> set[int]:
        """Indices over `after` of triggers whose part has its verdict."""
        query = "SELECT frame_id FROM verdict WHERE kind = 'trigger' AND epoch = ? AND frame_id > ?"
        try:
            return {int(n) for (n,) in self._base.execute(query, (epoch, after))}
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def recent(self, epoch: int, limit: int) -> list[Verdict | PartVerdict]:
        """The epoch's messages among the last `limit` rows, oldest first."""
        query = "SELECT epoch, body FROM verdict WHERE seq > ? ORDER BY seq"
        try:
            bodies = list(self._base.execute(query, (self._seq - limit,)))
        except sqlite3.Error as error:
            raise self._refused(error) from error
        messages = [decode(body) for found, body in bodies if found == epoch]
        return [message for message in messages if isinstance(message, Verdict | PartVerdict)]

    def commit(
        self,
        verdicts: Iterable[tuple[Verdict, PartVerdict | None]],
        parts: Iterable[tuple[PartKey, PartVerdict]] = (),
    ) -> list[Row]:
        """Write verdicts, each with its part's, in one transaction; the rows to publish.

        parts: of several views; they follow the frames. `seq`, `prev_seq` and `stream_id` are given
        here. A frame that has its verdict is passed over with its part, a part likewise. After an
        error nothing is written and nothing has changed.

        Raises `ResourceError` also when an earlier commit could not be synced to the disk.
        """
        if self._sync_error is not None:
            raise self._refused(self._sync_error) from self._sync_error
        if self._crowded.is_set():
            self._crowded.clear()
            with contextlib.suppress(sqlite3.OperationalError):  # the syncing thread finds it too
                self._base.execute("PRAGMA wal_checkpoint(PASSIVE)")
        rows: list[Row] = []
        last, seq = dict(self._last), self._seq
        now = self._utc_ns()
        try:
            with self._base:
                for key, messages in _keyed(verdicts, parts):
                    for kind, message in messages:
                        stamped = replace(
                            message,
                            seq=seq + 1,
                            prev_seq=last.get(message.topic, 0),
                            stream_id=self.stream_id,
                        )
                        row = Row(seq + 1, message.topic, encode(stamped))
                        done = self._base.execute(
                            INSERT,
                            (
                                row.seq,
                                row.topic,
                                kind,
                                *key,
                                message.label,
                                message.reason,
                                message.part_id,
                                now,
                                row.body,
                            ),
                        )
                        if done.rowcount == 0:
                            break
                        rows.append(row)
                        seq += 1
                        last[row.topic] = seq
                oldest = self._trim(len(rows), last, seq, now)
        except sqlite3.Error as error:
            raise self._refused(error) from error
        self._last, self._seq, self._oldest = last, seq, oldest
        self._dirty.set()
        return rows

    def _trim(self, added: int, last: Mapping[str, int], newest: int, now_ns: int) -> int:
        """Delete the oldest rows over the limits; the seq from which on none is missing.

        The last row of each topic stays: seq and prev_seq go on from it.
        """
        oldest, upto = self._oldest, min(self._oldest + 2 * added, newest - KEEP_ROWS)
        if self._settings is None or upto <= oldest:
            return oldest
        (pages,) = self._base.execute("PRAGMA page_count").fetchone()
        (free,) = self._base.execute("PRAGMA freelist_count").fetchone()
        if (pages - free) * self._page_bytes <= self._settings.keep_mb * 2**20:
            # The `+` keeps SQLite on the few rows from `oldest` on, away from the index of times.
            # A clock that was set makes rows of a minute ago look months old: these stay.
            jumped = abs(now_ns - time.monotonic_ns() - self._clock_ns) > CLOCK_JUMP_NS
            upto = min(upto, self._first_own) if jumped else upto
            (aged,) = self._base.execute(
                "SELECT MAX(seq) FROM verdict WHERE seq >= ? AND seq < ? AND +t_commit_utc_ns < ?",
                (oldest, upto, now_ns - round(self._settings.keep_days * 86400e9)),
            ).fetchone()
            if aged is None:
                return oldest
            upto = int(aged) + 1
        stay = [seq for seq in last.values() if oldest <= seq < upto]
        marks = ", ".join("?" * len(stay))
        self._base.execute(
            f"DELETE FROM verdict WHERE seq >= ? AND seq < ? AND seq NOT IN ({marks})",
            (oldest, upto, *stay),
        )
        self._set("oldest", str(upto))
        return upto

    def _tidy(self) -> int:
        """At the start: where rows begin to be whole; last rows of topics that went on may go."""
        (self._page_bytes,) = self._base.execute("PRAGMA page_size").fetchone()
        row = self._base.execute("SELECT value FROM meta WHERE name = 'oldest'").fetchone()
        oldest = int(row[0]) if row else 1
        last = set(self._last.values())
        with self._base:
            kept = self._base.execute("SELECT seq FROM verdict WHERE seq < ?", (oldest,)).fetchall()
            for (seq,) in kept:
                if seq not in last:
                    self._base.execute("DELETE FROM verdict WHERE seq = ?", (seq,))
        return oldest

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
            self._base.execute(
                "INSERT OR IGNORE INTO stream (stream_id, first_seq) VALUES (?, ?)",
                (stream_id, self._seq + 1),
            )
        if not self._power:
            self._base.execute("PRAGMA synchronous = NORMAL")
        return stream_id

    def _sync(self) -> None:
        """The syncing thread."""
        try:
            self._sync_until_closed()
        except (OSError, sqlite3.Error) as error:
            self._sync_error = error  # every commit from now on raises it

    def _sync_until_closed(self) -> None:
        """The WAL to disk within SYNC_S of a commit; checkpoints aside.

        A checkpoint that finds no room is tried again: the WAL has all of it meanwhile.
        """
        base = _connect(self.path)
        wal = -1
        try:
            wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            while not self._closing.wait(SYNC_S / 2):
                if not self._dirty.is_set():
                    continue
                self._dirty.clear()
                if not self._power:
                    os.fdatasync(wal)
                if os.fstat(wal).st_size <= CHECKPOINT_BYTES and self._sync_error is None:
                    continue
                try:
                    base.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    self._sync_error = None
                    if os.fstat(wal).st_size > CROWDED_BYTES:
                        self._crowded.set()
                except sqlite3.OperationalError as error:
                    self._sync_error = error  # commits raise it until there is room again
                    self._dirty.set()
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
        kind = JournalFull if _is_full(error) else ResourceError
        return kind(
            f"{self.path}: {error}; expected a journal that can be written: "
            "check the disk's space and rights"
        )


class JournalFull(ResourceError):
    """No room for now: nothing was written, and another try may do."""


def _is_full(error: OSError | sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _keyed(
    verdicts: Iterable[tuple[Verdict, PartVerdict | None]],
    parts: Iterable[tuple[PartKey, PartVerdict]],
) -> Iterator[tuple[tuple[str, int, int], list[tuple[str, Verdict | PartVerdict]]]]:
    """Messages of one key each, with their kinds; of a key that is taken none is written."""
    for verdict, part in verdicts:
        both: list[tuple[str, Verdict | PartVerdict]] = [("frame", verdict)]
        if part is not None:
            both.append(("part", part))
        yield (verdict.camera, verdict.epoch, verdict.frame_id), both
    for key, part in parts:
        yield (key.camera, key.epoch, key.number), [(key.kind, part)]


def read_verdicts(path: Path, *, epoch: int | None = None) -> Iterator[Verdict]:
    """All frame verdicts of a journal (of one epoch), by camera and frame id.

    A journal that is being made at this moment has none. Raises `ResourceError` for a file that
    cannot be read, `WireError` for a row that is not ours.
    """
    only = "" if epoch is None else f"AND epoch = {int(epoch)}"
    query = (
        f"SELECT camera, epoch, frame_id, body FROM verdict WHERE kind = 'frame' {only} "
        "AND (camera, epoch, frame_id) > (?, ?, ?) ORDER BY camera, epoch, frame_id LIMIT ?"
    )
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as base:
            if not base.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdict'").fetchone():
                return
            last: tuple[str, int, int] = ("", -1, -1)
            # In pages: see `journal_queries.find`.
            while page := base.execute(query, (*last, PAGE_ROWS)).fetchall():
                for _, _, _, body in page:
                    message = decode(body)
                    if isinstance(message, Verdict):
                        yield message
                last = page[-1][:3]
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
        # A WAL that begins anew is cut to this size, however long it has been.
        base.execute(f"PRAGMA journal_size_limit = {CHECKPOINT_BYTES}")
    except sqlite3.Error:
        base.close()
        raise
    return base
