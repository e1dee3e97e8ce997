"""The control socket: what may be asked of a running line, byte for byte, and who asks.

Needs pyzmq and msgpack alone. A DEALER or REQ socket sends one frame, a msgpack map, and gets one:

    {v: 1, do: "trigger", id: 7, target: "box", trigger_id: 4711, part_id: "A-17"}
    {v: 1, id: 7, ok: true, trigger_id: 4711}

    {v: 1, do: "encoder", id: 8, target: "box", count: 123456}      the belt's position, in counts
    {v: 1, do: "status", id: 9}      -> ready, cameras, captured, decided, ...
    {v: 1, id: 9, ok: false, error: "what was found, what was expected"}

`id` comes back in the answer. `target` is the name of a part or of a camera; it may be empty where
the line has only one. `trigger_id`, from 0 to 2^32 - 1, and `part_id` come back in the verdict.

    with Control("ipc:///run/line-1/control.ipc") as control:
        control.trigger("box", trigger_id=4711)
"""

from __future__ import annotations

import itertools
import time
from types import TracebackType
from typing import Any, Final, Self

import msgpack
import zmq

from pipeline.errors import ConfigError, ControlError
from pipeline.keys import ClientKeys, secure_client

VERSION: Final = 1
MAX_BYTES: Final = 4096
_LIMITS: Final = {
    "max_str_len": 256,
    "max_bin_len": 256,
    "max_ext_len": 0,
    "max_array_len": 256,
    "max_map_len": 256,
}


def pack(message: dict[str, Any]) -> bytes:
    """A request or an answer as it travels."""
    packed: bytes = msgpack.packb({"v": VERSION, **message})
    return packed


def unpack(body: bytes) -> dict[str, Any]:
    """A map of this version. Raises `ControlError` for anything else."""
    if len(body) > MAX_BYTES:
        raise ControlError(f"{len(body)} bytes found, expected at most {MAX_BYTES}")
    try:
        found = msgpack.unpackb(body, strict_map_key=True, **_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ControlError(f"{len(body)} bytes that are not msgpack found: {error}") from error
    if not isinstance(found, dict) or type(found.get("v")) is not int or found["v"] != VERSION:
        raise ControlError(f"no map with v={VERSION} found: see pipeline/control.py")
    return found


class Control:
    """The asking side. Not thread-safe. A line that does not answer is a `ControlError`."""

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
        keys: ClientKeys | None = None,
    ) -> None:
        """context: to share. keys: for a tcp endpoint of a line with `security`.

        Raises `ConfigError` for an endpoint that cannot be used.
        """
        self._own = context is None
        self._context = context or zmq.Context(io_threads=1)
        self._endpoint = endpoint
        self._ids = itertools.count(1)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 100)
        if keys is not None and endpoint.startswith("tcp://"):
            secure_client(self._socket, keys.own, keys.server_public)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError(
                f"endpoint {endpoint!r}: {error.strerror}; expected the line's control socket"
            ) from error

    def trigger(
        self, target: str = "", *, trigger_id: int = 0, part_id: str = "", timeout_ms: float = 200
    ) -> int:
        """Have a frame taken of each view; the trigger's id, as the verdict will have it.

        After a `ControlError` nobody knows whether the trigger was taken: it is not to be repeated
        for the same part.
        """
        answer = self.ask(
            {"do": "trigger", "target": target, "trigger_id": trigger_id, "part_id": part_id},
            timeout_ms,
        )
        return int(answer["trigger_id"])

    def encoder(self, count: int, target: str = "", *, timeout_ms: float = 200) -> int:
        """Tell the belt's position; how many triggers that made."""
        answer = self.ask({"do": "encoder", "target": target, "count": count}, timeout_ms)
        return int(answer["triggers"])

    def status(self, *, timeout_ms: float = 1000) -> dict[str, Any]:
        """How the line is."""
        return self.ask({"do": "status"}, timeout_ms)

    def ask(self, request: dict[str, Any], timeout_ms: float) -> dict[str, Any]:
        """The answer to any request. Raises `ControlError` for a refusal, and when none came."""
        number = next(self._ids)
        try:
            self._socket.send(pack({"id": number, **request}), zmq.DONTWAIT)
        except zmq.Again as error:
            raise ControlError(f"{self._endpoint}: nobody reads there: is it running?") from error
        until = time.monotonic() + timeout_ms / 1000
        while self._socket.poll(max(0, round((until - time.monotonic()) * 1000))):
            answer = unpack(self._socket.recv())
            if answer.get("id") != number:  # of a request that was given up
                continue
            if answer.get("ok") is not True:
                raise ControlError(str(answer.get("error", "refused without a reason")))
            return answer
        raise ControlError(
            f"{self._endpoint}: no answer in {timeout_ms:g} ms; is the line running? "
            "(`linewatch doctor`)"
        )

    def close(self) -> None:
        self._socket.close(0)
        if self._own:
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
