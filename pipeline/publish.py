"""The line's voice: verdicts and heartbeats on a ZeroMQ PUB socket."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable, Mapping

import zmq

from pipeline.errors import ConfigError, StationBusy
from pipeline.journal import Row
from pipeline.wire import HEARTBEAT_TOPIC, Heartbeat, encode

SEND_LIMIT = 20_000
"""Messages that may wait for one slow subscriber before PUB drops its newest; it notices by seq.

Some 14 MB of decision's memory for each one that has stopped: 40 s of four cameras at 60 frames/s.
"""
LINGER_MS = 1000


class Publisher:
    """Publishes what is journaled, nothing else; one heartbeat every `heartbeat_ms`."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, heartbeat_ms: int
    ) -> None:
        """Raises `StationBusy` when the endpoint is taken, `ConfigError` when it cannot be used."""
        if endpoint.startswith("ipc://") and _answers(endpoint.removeprefix("ipc://")):
            raise _taken(endpoint, os.strerror(errno.EADDRINUSE))
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_LIMIT)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close(0)
            if error.errno == errno.EADDRINUSE:
                raise _taken(endpoint, error.strerror) from error
            raise ConfigError(
                f"publish.endpoint {endpoint}: {error.strerror}; expected an address of this "
                "machine that can be bound, such as tcp://127.0.0.1:5601"
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


def _taken(endpoint: str, why: str) -> StationBusy:
    return StationBusy(
        f"publish.endpoint {endpoint}: {why}; expected a free endpoint: stop whoever holds it "
        "(`linewatch doctor` names it), or choose another"
    )


def _answers(path: str) -> bool:
    """Whether somebody listens on a Unix socket: ZeroMQ would take it over without a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:  # nobody, or no such path: bind says what is wrong with it
            return False
        return True
