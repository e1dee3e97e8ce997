"""The client's side of the stream. Needs pyzmq and msgpack alone.

    with Subscriber("tcp://127.0.0.1:5601", topics=["part/"]) as stream:
        while True:
            event = stream.receive(timeout_ms=500)

`receive` gives verdicts in order, a `Missed` wherever some of a topic were not received, or None
when the time was up; `stream.silent_ms` tells how long nothing at all has come.

With a cursor nothing is missed: what was not received is fetched from the line's journal, also what
was published while the application was away. It says what it is done with:

    with Subscriber("tcp://127.0.0.1:5601", topics=["part/"], cursor=Path("mes.cursor")) as stream:
        while True:
            if (event := stream.receive(timeout_ms=500)) is not None:
                store(event)
                stream.ack(event.seq)

Each topic's messages come in order, and what is acknowledged never again. What was received and not
acknowledged comes again after a restart. A `Missed` then is what the journal has deleted. The first
time, it begins with what is published from then on. One application for each cursor.

A new stream (the journal was lost, or the machine lost its power) is followed from its first
message. A connection on which nothing comes for two seconds is made anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from pipeline.cursor import Position, read_position, write_position
from pipeline.errors import ConfigError
from pipeline.gaps import Filling, Missed, Telling
from pipeline.keys import ClientKeys, Socket, secure_client
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import (
    HEARTBEAT_TOPIC,
    MAX_BYTES,
    Ask,
    Heartbeat,
    Refused,
    decode,
    decode_answer,
    encode,
    replay_endpoint,
)

__all__ = ["Missed", "Subscriber"]

SILENT_S = 2.0
"""After so long without anything the connection is made anew."""
_ANSWER_S = 2.0
_RETRY_S = 0.25
_UNKNOWN = 8
"""Tries after which a journal that does not know the stream is another line's."""
_TICK_MS = 200
_WAITING = 10_000
"""Messages that may wait here for an application that fetches what it does not receive."""


class Subscriber:
    """One subscription. Not thread-safe."""

    def __init__(
        self,
        endpoint: str,
        topics: Sequence[str] = ("frame/", "part/"),
        *,
        cursor: Path | None = None,
        replay: str | None = None,
        keys: ClientKeys | None = None,
    ) -> None:
        """topics: prefixes ending in a slash.

        cursor: a file that this application alone uses. replay: the line's
        `publish.replay_endpoint`; with a cursor the one that belongs to `endpoint` by default, and
        without one gaps are filled from it as long as this object lives. keys: for a line with
        `security`.

        Raises `ConfigError` for an unusable endpoint, a topic without its slash, or a file that is
        not a cursor.
        """
        for topic in topics:
            if not topic.endswith("/"):
                raise ConfigError(
                    f"topic {topic!r} found, expected a list of topics that end in a slash: "
                    "`frame/cam1` would take in `frame/cam10/`"
                )
        if cursor is not None and replay is None:
            replay = replay_endpoint(endpoint)
        self._endpoint, self._replay, self._keys = endpoint, replay, keys
        self._topics = tuple(topics)
        self._cursor = cursor
        position = read_position(cursor) if cursor else None
        self._filling = Filling(topics, position) if replay is not None else None
        self._order: Telling | Filling = self._filling or Telling(topics)
        self._acked = position
        self._unacked: deque[tuple[str, str, int]] = deque()
        """Stream, topic and seq of what was given."""
        self._heard_ns = self._connected_ns = time.monotonic_ns()
        self._asked: Ask | None = None
        self._until_ns = 0
        """When the answer is given up, or before which nothing is asked."""
        self._context = zmq.Context(io_threads=1)
        self._live: Socket | None = None
        self._rows: Socket | None = None
        try:
            self._live = self._subscribed()
            if replay is not None:
                self._rows = self._connected(zmq.DEALER, replay)
        except ConfigError:
            self.close()
            raise

    @property
    def heartbeat(self) -> Heartbeat | None:
        """The last one."""
        return self._order.heartbeat

    @property
    def silent_ms(self) -> float:
        """Time since anything came, heartbeats included: over a second, the line is gone."""
        return (time.monotonic_ns() - self._heard_ns) / 1e6

    def receive(self, timeout_ms: float | None = None) -> Verdict | PartVerdict | Missed | None:
        """The next event, None after `timeout_ms` (None: wait for ever).

        Raises `WireError` for a message that is not of this version, `ConfigError` when `replay` is
        another line's.
        """
        until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while not self._order.ready:
            self._tend()
            left = None if until is None else max(0, round((until - time.monotonic()) * 1000))
            if not self._wait(_TICK_MS if left is None else min(left, _TICK_MS)) and left == 0:
                return None
        event = self._order.ready.popleft()
        if self._cursor is not None:
            self._unacked.append((self._order.stream_id, event.topic, event.seq))
        return event

    def ack(self, seq: int) -> None:
        """All that `receive` gave up to the event of this seq is done with, on disk on return.

        The disk is waited for: who has much to do acknowledges every so many. Raises
        `ResourceError` when the cursor cannot be written; it is then as it was.
        """
        if self._cursor is None or self._acked is None:
            raise ConfigError("ack without a cursor: give the subscriber a file for it")
        count = next((n for n, given in enumerate(self._unacked, 1) if given[2] == seq), 0)
        if not count:
            return  # done with already
        position = self._acked
        for stream_id, topic, done in (self._unacked[n] for n in range(count)):
            kept = position.seqs if position.stream_id == stream_id else {}
            position = Position(stream_id, self._topics, {**kept, topic: done})
        write_position(self._cursor, position)
        self._acked = position
        for _ in range(count):
            self._unacked.popleft()

    def _wait(self, timeout_ms: int) -> bool:
        """Whether anything came; it is taken in."""
        assert self._live is not None, "closed"
        poller = zmq.Poller()
        poller.register(self._live, zmq.POLLIN)
        if self._rows is not None:
            poller.register(self._rows, zmq.POLLIN)
        came = poller.poll(timeout_ms)
        for socket, _ in came:
            parts = socket.recv_multipart()
            if socket is self._live:
                self._take(parts[-1])
            else:
                self._answered(parts)
        return bool(came)

    def _take(self, body: bytes) -> None:
        message = decode(body)
        self._heard_ns = time.monotonic_ns()
        joining = self._order.heartbeat is None
        self._order.take(message)
        if self._cursor and self._filling and joining and self._filling.heartbeat:
            # Where it began is written down before anything is given.
            self._acked = self._filling.position
            write_position(self._cursor, self._acked)

    def _tend(self) -> None:
        """Connect anew when nothing comes; ask for what is missing."""
        now = time.monotonic_ns()
        assert self._live is not None, "closed"
        silent = now - max(self._heard_ns, self._connected_ns) > SILENT_S * 1e9
        if silent and not self._live.poll(0):  # what waits came while the application was busy
            self._live.close(0)
            self._live = self._subscribed()
            self._connected_ns = now
        if self._filling is None or now < self._until_ns:
            return
        if self._asked is not None:  # no answer came; it must not come later for another
            assert self._rows is not None
            self._rows.close(0)
            self._rows = self._connected(zmq.DEALER, self._replay or "")
        self._asked = self._filling.ask()
        if self._asked is not None:
            assert self._rows is not None
            self._until_ns = now + round(_ANSWER_S * 1e9)
            self._rows.send(encode(self._asked), zmq.DONTWAIT)

    def _answered(self, parts: list[bytes]) -> None:
        assert self._filling is not None
        self._asked = None
        self._until_ns = time.monotonic_ns() + round(_RETRY_S * 1e9)
        answer = decode_answer(parts[0])
        if isinstance(answer, Refused):
            return
        self._filling.answer(answer, [decode(body) for body in parts[1:]])
        if self._filling.unknown > _UNKNOWN:
            raise ConfigError(
                f"{self._replay}: a journal of stream {answer.current} found, expected one of "
                f"{answer.stream_id}: is it the `publish.replay_endpoint` of the line at "
                f"{self._endpoint}?"
            )
        if answer.known:
            self._until_ns = 0

    def _subscribed(self) -> Socket:
        socket = self._connected(zmq.SUB, self._endpoint)
        for topic in (*self._topics, HEARTBEAT_TOPIC):
            socket.subscribe(topic)
        return socket

    def _connected(self, kind: int, endpoint: str) -> Socket:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, 0 if self._filling is None else _WAITING)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BYTES)
        if self._keys is not None and endpoint.startswith("tcp://"):
            secure_client(socket, self._keys.own, self._keys.server_public)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ConfigError(
                f"endpoint {endpoint!r}: {error.strerror}; expected one like tcp://127.0.0.1:5601"
            ) from error
        return socket

    def close(self) -> None:
        for socket in (self._live, self._rows):
            if socket is not None:
                socket.close(0)
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
