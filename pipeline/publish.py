"""The line's voice: verdicts and heartbeats on a ZeroMQ PUB socket."""

from __future__ import annotations

import errno
import socket as sockets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import zmq

from pipeline.config.security import SecurityConfig
from pipeline.errors import ConfigError, StationBusy
from pipeline.journal import Row
from pipeline.keys import ClientKeys, Context, Gate, Socket, read_secret
from pipeline.wire import HEARTBEAT_TOPIC, Heartbeat, encode

SEND_LIMIT = 20_000
"""Messages that may wait for one slow subscriber before PUB drops its newest; it notices by seq.

Some 14 MB of decision's memory for each one that has stopped: 40 s of four cameras at 60 frames/s.
"""
LINGER_MS = 1000
_SUBSCRIPTION_BYTES = 4096
"""What a subscriber may send: its topics. Whoever sends more is cut off."""


class Publisher:
    """Publishes what is journaled, nothing else; one heartbeat every `heartbeat_ms`."""

    def __init__(
        self, context: Context, endpoint: str, heartbeat_ms: int, gate: Gate | None = None
    ) -> None:
        """gate: who may subscribe over tcp; None: whoever reaches it.

        Raises `StationBusy` when the endpoint is taken, `ConfigError` when it cannot be used.
        """
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_LIMIT)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _SUBSCRIPTION_BYTES)
        bind(self._socket, endpoint, "publish.endpoint", gate)
        self._every_ns = heartbeat_ms * 1_000_000
        self._next_ns = 0

    def publish(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._socket.send_multipart([row.topic.encode(), row.body])

    @property
    def next_ns(self) -> int:
        """When it is time for a heartbeat, monotonic."""
        return self._next_ns

    def heartbeat(
        self,
        stream_id: str,
        last: Mapping[str, int],
        *,
        ready: bool,
        cameras: Mapping[str, str] | None = None,
        why: str = "",
    ) -> None:
        """Send one; the next is due `heartbeat_ms` from now."""
        self._next_ns = time.monotonic_ns() + self._every_ns
        beat = Heartbeat(stream_id, last, time.time_ns(), ready, cameras or {}, why)
        self._socket.send_multipart([HEARTBEAT_TOPIC.encode(), encode(beat)])

    def close(self) -> None:
        self._socket.close()


def open_gate(context: Context, security: SecurityConfig | None) -> Gate | None:
    """The gate of this process's tcp endpoints, where there are keys. Raises `ConfigError`."""
    if security is None or not security.secret or not security.allow:
        return None
    return Gate(context, read_secret(Path(security.secret)), Path(security.allow))


def own_keys(security: SecurityConfig | None) -> ClientKeys | None:
    """For a `Subscriber` that is a part of the line itself. Raises `ConfigError`."""
    if security is None or not security.secret:
        return None
    own = read_secret(Path(security.secret))
    return ClientKeys(own, own.public)


def bind(socket: Socket, endpoint: str, key: str, gate: Gate | None) -> None:
    """Bind a socket to an endpoint of the configuration, or close it and raise.

    key: of the endpoint in the configuration. gate: for tcp endpoints.

    Raises `StationBusy` when the endpoint is taken, `ConfigError` when it cannot be used.
    """
    try:
        if endpoint.startswith("ipc://") and endpoint_answers(endpoint.removeprefix("ipc://")):
            raise zmq.ZMQError(errno.EADDRINUSE)
        if gate is not None and endpoint.startswith("tcp://"):
            gate.secure(socket)
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close(0)
        if error.errno == errno.EADDRINUSE:
            raise StationBusy(
                f"{key} {endpoint}: {error.strerror}; expected a free endpoint: stop whoever holds "
                "it (`linewatch doctor` names it), or choose another"
            ) from error
        raise ConfigError(
            f"{key} {endpoint}: {error.strerror}; expected an address of this machine that can "
            "be bound, such as tcp://127.0.0.1:5601"
        ) from error


def endpoint_answers(path: str) -> bool:
    """Whether somebody listens on a Unix socket: ZeroMQ would take it over without a word."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:  # nobody, or no such path: bind says what is wrong with it
            return False
        return True
