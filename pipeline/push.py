"""Frames for a line from a program that owns its camera. Needs pyzmq, msgpack and numpy alone.

    with Pusher("ipc:///run/line/robot.sock") as line:
        line.push(frame, part_id="A-17")          # uint8, (H, W), (H, W, 1) or RGB (H, W, 3)

The format, for programs in other languages (docs/push.md has an example):

1. The line binds a ROUTER socket, the program connects a DEALER, best with a routing id of its own
   that stays the same when it connects again. A frame is two parts: a msgpack map, and the pixels,
   row by row without gaps.
2. The map: v 1; height, width, channels (1, or 3 for RGB); dtype "uint8"; and where the program has
   them index (of the frame, counting up by one: a gap is frames that got lost), trigger_id, part_id
   (at most 64 bytes) and pts (its own clock, nanoseconds). Nothing else.
3. Each frame is answered with a msgpack map: v 1; ok, whether the line took it; index as it was
   sent, or -1; error, what was wrong. A frame that was refused was never captured: it has no
   verdict.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from pipeline.errors import ConfigError, SourceError, SourceLost, WireError
from pipeline.triggers import PART_ID_BYTES, TRIGGER_LIMIT

if TYPE_CHECKING:
    from pipeline.keys import ClientKeys

VERSION: Final = 1
HEADER_BYTES: Final = 4096
MAX_INDEX: Final = 2**63 - 1
_LIMITS: Final = {
    "max_str_len": 1024,
    "max_bin_len": 0,
    "max_ext_len": 0,
    "max_array_len": 0,
    "max_map_len": 16,
}


@dataclass(frozen=True, slots=True)
class Header:
    """What comes before a frame's pixels. index and pts: -1 where there is none."""

    height: int
    width: int
    channels: int
    dtype: str = "uint8"
    index: int = -1
    trigger_id: int = 0
    part_id: str = ""
    pts: int = -1

    def encode(self) -> bytes:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return _pack({"v": VERSION, **fields})


_RANGES: Final = {
    "height": (1, 65536),
    "width": (1, 65536),
    "channels": (1, 3),
    "index": (-1, MAX_INDEX),
    "trigger_id": (0, TRIGGER_LIMIT - 1),
    "pts": (-1, MAX_INDEX),
}
_REQUIRED: Final = ("height", "width", "channels", "dtype")


def decode_header(body: bytes) -> Header:
    """Raises `WireError` for anything that is not as the module says."""
    found = _unpack(body)
    for name in _REQUIRED:
        if name not in found:
            raise WireError(f"a header without {name!r} found")
    for name, value in found.items():
        if name in _RANGES:
            low, high = _RANGES[name]
            if type(value) is not int or not low <= value <= high:
                raise WireError(f"{name}: {_short(value)} found, expected {low} to {high}")
        elif name == "part_id":
            if not isinstance(value, str) or len(value.encode()) > PART_ID_BYTES:
                raise WireError(
                    f"part_id: {_short(value)} found, expected text, at most {PART_ID_BYTES} bytes"
                )
        elif name == "dtype":
            if value != "uint8":
                raise WireError(f"dtype: {_short(value)} found, expected 'uint8'")
        else:
            names = ", ".join(Header.__slots__)
            raise WireError(f"{_short(name)} found in a header, expected v, {names} alone")
    return Header(**found)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the line says to a frame; `error` is empty when it took it."""

    index: int
    error: str = ""

    def encode(self) -> bytes:
        return _pack({"v": VERSION, "ok": not self.error, "index": self.index, "error": self.error})


def decode_answer(body: bytes) -> Answer:
    """Raises `WireError`."""
    match _unpack(body):
        case {"ok": bool(ok), "index": int(index), "error": str(error)} if ok != bool(error):
            return Answer(index, error)
    raise WireError("an answer that is none of a line's found; check the endpoint")


def _pack(fields: Mapping[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields)
    return packed


def _unpack(body: bytes) -> dict[str, Any]:
    """A map of this version, without its `v`."""
    if len(body) > HEADER_BYTES:
        raise WireError(f"{len(body)} bytes found, expected a map of at most {HEADER_BYTES}")
    try:
        found = msgpack.unpackb(body, strict_map_key=True, **_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise WireError(f"{len(body)} bytes that are not msgpack found: {error}") from error
    if not isinstance(found, dict) or type(found.get("v")) is not int or found["v"] != VERSION:
        raise WireError(f"something else than a msgpack map with v={VERSION} found")
    if not all(isinstance(name, str) for name in found):
        raise WireError("a map with keys that are not text found")
    del found["v"]
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class FrameRefused(SourceError):
    """The line did not take the frame; the error says why."""


class Pusher:
    """Pushes frames one after the other, counting them. Not thread-safe."""

    def __init__(
        self, endpoint: str, *, keys: ClientKeys | None = None, timeout_ms: float = 2000.0
    ) -> None:
        """keys: the program's own and the line's public one, where the endpoint asks for them.

        Raises `ConfigError` for an endpoint that cannot be one.
        """
        self._endpoint = endpoint
        self._keys = keys
        self._timeout_ms = timeout_ms
        self._name = b"p" + secrets.token_bytes(15)
        self._index = 0
        self._context = zmq.Context(io_threads=1)
        try:
            self._socket = self._connect()
        except ConfigError:
            self._context.term()
            raise

    def push(
        self, frame: NDArray[np.uint8], *, trigger_id: int = 0, part_id: str = "", pts: int = -1
    ) -> int:
        """Returns the frame's index once the line has taken it; it counts every frame pushed.

        frame: uint8, (H, W), (H, W, 1), or RGB (H, W, 3).
        Raises `ValueError` for what can be no frame's, `FrameRefused` with the line's reason,
        `SourceLost` when the line does not answer in time: nobody knows whether it took the frame.
        """
        if frame.dtype != np.uint8 or frame.ndim not in (2, 3):
            raise ValueError(
                f"a {frame.dtype} array of shape {frame.shape} found, expected uint8 and (H, W), "
                "(H, W, 1) or (H, W, 3)"
            )
        height, width, channels = (*frame.shape, 1)[:3]
        index = self._index
        header = Header(
            height, width, channels, index=index, trigger_id=trigger_id, part_id=part_id, pts=pts
        ).encode()
        try:
            decode_header(header)
        except WireError as error:
            raise ValueError(str(error)) from error
        self._index += 1
        # A socket that was refused for its key has nowhere to send to, and sending would wait.
        has_way = self._socket.poll(round(self._timeout_ms), zmq.POLLOUT)
        if has_way:
            self._socket.send_multipart([header, np.ascontiguousarray(frame).data])
        while has_way and self._socket.poll(round(self._timeout_ms)):
            answer = decode_answer(self._socket.recv())
            if answer.index in (index, -1):  # -1: it could not even read the header
                if answer.error:
                    raise FrameRefused(answer.error)
                return index
        # What still waits for the line would come to it as a picture of long ago.
        self._socket.close(0)
        self._socket = self._connect()
        raise SourceLost(
            f"{self._endpoint}: no answer of the line in {self._timeout_ms:g} ms; check that it "
            "runs, lets in this program's key, and is set up for frames of this size"
        )

    def _connect(self) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.ROUTING_ID, self._name)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            if self._keys is not None:
                from pipeline.keys import secure_client

                secure_client(socket, self._keys.own, self._keys.server_public)
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            raise ConfigError(
                f"endpoint {self._endpoint!r}: {error.strerror}; expected the one of the line's "
                "source, such as tcp://127.0.0.1:5610"
            ) from error
        return socket

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
