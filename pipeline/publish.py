"""The line's voice: verdicts and heartbeats on a ZeroMQ PUB socket."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import zmq

from pipeline.errors import StationBusy
from pipeline.journal import Row
from pipeline.wire import HEARTBEAT_TOPIC, Heartbeat, encode

SEND_LIMIT = 100_000
"""Messages that may wait for one slow subscriber before PUB drops its newest; it notices by seq."""
LINGER_MS = 1000


class Publisher:
    """Publishes what is journaled, nothing else; one heartbeat every `heartbeat_ms`."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, heartbeat_ms: int
    ) -> None:
        """Raises `StationBusy` when the endpoint is taken."""
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_LIMIT)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            raise StationBusy(
                f"publish.endpoint {endpoint}: {error.strerror}; expected a free endpoint: "
                "stop whoever holds it (`linewatch doctor` names it), or choose another"
            ) from error
        self._every_ns = heartbeat_ms * 1_000_000
        self._next_ns = 0

    def publish(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._socket.send_multipart([row.topic.encode(), row.body])

    def heartbeat(
        self, stream_id: str, last: Mapping[str, int], *, ready: bool, now: bool = False
    ) -> None:
        """Send a heartbeat when one is due, or now."""
        t = time.monotonic_ns()
        if t < self._next_ns and not now:
            return
        self._next_ns = t + self._every_ns
        beat = Heartbeat(stream_id, last, time.time_ns(), ready)
        self._socket.send_multipart([HEARTBEAT_TOPIC.encode(), encode(beat)])

    def close(self) -> None:
        self._socket.close()
