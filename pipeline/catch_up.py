"""Stage: subscribers fetch from the journal what they have not received.

A process of its own beside decision: however many ask, and however much, no verdict waits for them,
and it answers while decision is away. It reads the journal and writes nothing.

1. A ROUTER socket on `publish.replay_endpoint` takes one `Ask` per message (`pipeline.wire`).
2. The answer is `Rows` and the rows' bodies as they were published, 500 or half a MiB of them at
   most; a row can always be had once it was published, as it is in the journal first.
3. What is no `Ask` is answered by `Refused`, counted, and logged rarely.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import zmq

from pipeline.board import DONE, QUIT, READY
from pipeline.errors import WireError
from pipeline.keys import Context, Gate
from pipeline.publish import bind, open_gate
from pipeline.rarely import Rarely
from pipeline.stage import WAKE_MS, Stage, main
from pipeline.wire import MAX_BYTES, Ask, Refused, Rows, decode_ask, encode

ANSWER_BYTES = MAX_BYTES // 2
"""Of rows in one answer; the first one always goes."""
MAX_MESSAGE_BYTES = 2**16
"""Whoever sends more is cut off at once; what is larger than an `Ask` is refused in words."""
_ENVELOPES = 4
_WAITING = 64
"""Answers that may wait for one who does not take them; further ones are lost: it may ask again."""

log = logging.getLogger("catch_up")


class CatchUp:
    """The socket; `answer` serves it. Not thread-safe."""

    def __init__(self, context: Context, endpoint: str, journal: Path, gate: Gate | None) -> None:
        """Raises `StationBusy` when the endpoint is taken, `ConfigError` when it cannot be used."""
        self.refused = 0
        self.answered = 0
        self._reader = JournalReader(journal)
        self._rarely = Rarely()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _WAITING)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        bind(self._socket, endpoint, "publish.replay_endpoint", gate)

    def answer(self, timeout_ms: int) -> None:
        """Answer those who ask, until nobody waits, or a hundred were answered."""
        if not self._socket.poll(timeout_ms):
            return
        for _ in range(100):
            try:
                *envelope, body = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._socket.send_multipart([*envelope[:_ENVELOPES], *self._parts(envelope, body)])

    def _parts(self, envelope: list[bytes], body: bytes) -> list[bytes]:
        """The parts of the answer to one message."""
        try:
            if len(envelope) > _ENVELOPES or any(len(each) > 256 for each in envelope):
                raise WireError(f"{len(envelope)} parts found, expected an ask and no more")
            rows, bodies = self._reader.rows(decode_ask(body))
        except WireError as error:
            self.refused += 1
            if self._rarely.due("refused"):
                log.warning("refused: %s (%d so far)", error, self.refused)
            return [encode(Refused(str(error)[:400]))]
        except sqlite3.Error as error:
            if self._rarely.due("journal"):
                log.error("%s: %s", self._reader.path, error)
            return [encode(Refused(f"the journal cannot be read now: {error}"))]
        self.answered += 1
        return [encode(rows), *bodies]

    def close(self) -> None:
        self._socket.close(0)
        self._reader.close()


class JournalReader:
    """Rows of a journal that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._base: sqlite3.Connection | None = None

    def rows(self, ask: Ask) -> tuple[Rows, list[bytes]]:
        """Raises `sqlite3.Error` when the journal cannot be read, or is not there yet."""
        try:
            if self._base is None:
                uri = f"{self.path.absolute().as_uri()}?mode=ro"
                self._base = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=1.0)
            self._base.execute("BEGIN")  # one moment of the journal for all that follows
            try:
                return _rows(self._base, ask)
            finally:
                self._base.execute("ROLLBACK")
        except sqlite3.Error:
            self.close()  # the next one opens it anew
            raise

    def close(self) -> None:
        if self._base is not None:
            self._base.close()
            self._base = None


def _rows(base: sqlite3.Connection, ask: Ask) -> tuple[Rows, list[bytes]]:
    streams = base.execute("SELECT stream_id, first_seq FROM stream ORDER BY number").fetchall()
    if not streams:
        raise sqlite3.OperationalError("no stream yet")
    current = str(streams[-1][0])
    stream_id = ask.stream_id or current
    ends = [*(first for _, first in streams[1:]), 2**63 - 1]
    spans = {name: (first, end) for (name, first), end in zip(streams, ends, strict=True)}
    if stream_id not in spans:
        return Rows(stream_id, ask.topic, ask.after, False, current, 0, 0, 0, False), []
    began, end = spans[stream_id]
    found = base.execute(
        "SELECT body FROM verdict WHERE topic = ? AND seq > ? AND seq < ? ORDER BY seq LIMIT ?",
        (ask.topic, max(ask.after, began - 1), end, ask.limit),
    )
    bodies: list[bytes] = []
    size = 0
    with contextlib.closing(found):
        for (body,) in found:
            size += len(body)
            if bodies and size > ANSWER_BYTES:
                break
            bodies.append(body)
    (newest,) = base.execute(
        "SELECT MAX(seq) FROM verdict WHERE topic = ? AND seq >= ? AND seq < ?",
        (ask.topic, began, end),
    ).fetchone()
    row = base.execute("SELECT value FROM meta WHERE name = 'oldest'").fetchone()
    oldest = max(began, int(row[0]) if row else 1)
    gone = max(began, ask.after + 1) < oldest
    return (
        Rows(stream_id, ask.topic, ask.after, True, current, began, oldest, newest or 0, gone),
        bodies,
    )


def work(stage: Stage) -> None:
    config = stage.station.config
    gate = open_gate(stage.context, config.security)
    try:
        catch_up = CatchUp(stage.context, config.publish.replay, stage.station.journal, gate)
        try:
            stage.board.set_state(stage.name, READY)
            while stage.board.order != QUIT:
                catch_up.answer(WAKE_MS)
                stage.board.beat(stage.name)
        finally:
            catch_up.close()
    finally:
        if gate is not None:
            gate.close()
    stage.board.set_state(stage.name, DONE)


if __name__ == "__main__":
    main("catch_up", work)
