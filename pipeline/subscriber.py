"""The client's side of the stream. Needs pyzmq and msgpack alone.

    with Subscriber("tcp://127.0.0.1:5601", topics=["part/"]) as stream:
        while True:
            event = stream.receive(timeout_ms=500)

`receive` gives verdicts in order, a `Missed` wherever some of a topic were not received, or None
when the time was up; `stream.silent_ms` tells how long nothing at all has come. A new stream (the
journal was lost, or the machine lost its power) is followed from its first message; what it holds
from before that is a `Missed`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq

from pipeline.errors import ConfigError
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import HEARTBEAT_TOPIC, Heartbeat, decode


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages of `topic` after seq `after` and up to `upto` exclusive were published unheard."""

    topic: str
    after: int
    upto: int


class Subscriber:
    """One subscription. Not thread-safe. Joining late is not missing: it begins where it begins."""

    def __init__(self, endpoint: str, topics: Sequence[str] = ("frame/", "part/")) -> None:
        """topics: prefixes ending in a slash.

        Raises `ConfigError` for an unusable endpoint, or a topic without its slash.
        """
        for topic in topics:
            if not topic.endswith("/"):
                raise ConfigError(
                    f"topic {topic!r} found, expected a list of topics that end in a slash: "
                    "`frame/cam1` would take in `frame/cam10/`"
                )
        self.heartbeat: Heartbeat | None = None
        self._stream_id = ""
        self._last: dict[str, int] = {}
        self._ready: deque[Verdict | PartVerdict | Missed] = deque()
        self._heard_ns = time.monotonic_ns()
        self._topics = tuple(topics)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        for topic in (*topics, HEARTBEAT_TOPIC):
            self._socket.subscribe(topic)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"endpoint {endpoint!r}: {error.strerror}; expected one like tcp://127.0.0.1:5601"
            ) from error

    @property
    def silent_ms(self) -> float:
        """Time since anything came, heartbeats included: over a second, the line is gone."""
        return (time.monotonic_ns() - self._heard_ns) / 1e6

    def receive(self, timeout_ms: float | None = None) -> Verdict | PartVerdict | Missed | None:
        """The next event, None after `timeout_ms` (None: wait for ever).

        Raises `WireError` for a message that is not of this version.
        """
        until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while not self._ready:
            left = None if until is None else max(0, round((until - time.monotonic()) * 1000))
            if not self._socket.poll(left):
                return None
            self._take(self._socket.recv_multipart()[-1])
        return self._ready.popleft()

    def _take(self, body: bytes) -> None:
        message = decode(body)
        self._heard_ns = time.monotonic_ns()
        if message.stream_id != self._stream_id:
            # Its seqs begin anew, or go on where rows were lost: all of it counts as unheard.
            self._stream_id = message.stream_id
            self._last.clear()
        if isinstance(message, Heartbeat):
            # Sent on the same socket after all that it counts: whatever is not here was lost.
            for topic, seq in message.last.items():
                if topic.startswith(self._topics):
                    first = self.heartbeat is None
                    seen = self._last.setdefault(topic, seq if first else 0)
                    if seq > seen:
                        self._ready.append(Missed(topic, seen, seq + 1))
                        self._last[topic] = seq
            self.heartbeat = message
            return
        seen = self._last.get(message.topic, 0 if self.heartbeat else message.prev_seq)
        if message.seq <= seen:
            return
        if message.prev_seq > seen:
            self._ready.append(Missed(message.topic, seen, message.seq))
        self._last[message.topic] = message.seq
        self._ready.append(message)

    def close(self) -> None:
        self._socket.close(0)
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
