"""Frames that programs push: the line's side of `pipeline.push`, where the format is.

1. Whatever is not a frame of this format and size is refused with the reason, counted, and logged
   once in ten seconds. It never ends the source.
2. A frame is answered when the line asks for the next one: by then its pixels are in a slot, or it
   is accounted for as dropped.
3. Each program counts its frames: what it counted and the line never saw is a gap, and an index
   that is not above the last one is refused.
"""

from __future__ import annotations

import contextlib
import logging
import socket as sockets
import time
from collections import OrderedDict
from pathlib import Path
from typing import Final

import numpy as np
import zmq
from numpy.typing import NDArray

from pipeline.config.sources import PushSource, TriggerConfig
from pipeline.errors import ConfigError, WireError
from pipeline.keys import Gate, read_secret
from pipeline.push import HEADER_BYTES, Answer, Header, decode_header
from pipeline.rarely import Rarely
from pipeline.sources.base import Camera, FrameFormat, Grab

_MAX_PROGRAMS: Final = 64
_WAITING_FRAMES: Final = 2
"""That the line holds for each program, beside the one in hand."""
_MIN_LIMIT_BYTES: Final = 16 * 2**20
_BIND_LIMIT_S: Final = 2.0
_LINGER_MS: Final = 200

log = logging.getLogger("push")


class PushCamera(Camera):
    """See the module. Raises `ConfigError` for an endpoint or keys that cannot be used."""

    def __init__(self, config: PushSource, trigger: TriggerConfig) -> None:
        self._config = config
        self._index = 0  # of the next grab
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._owed: tuple[bytes, int] | None = None
        self._copied = False  # whether the line has the pixels of that one
        self._rarely = Rarely()
        self.refused = 0
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        self._gate: Gate | None = None
        self._socket.setsockopt(zmq.RCVHWM, _WAITING_FRAMES)
        # A frame of another size is to have an answer; one much larger is cut off by ZeroMQ.
        frame_bytes = int(np.prod(self.format.shape_hwc))
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(4 * frame_bytes, _MIN_LIMIT_BYTES))
        # A program that connects again under its name takes the place of its lost connection.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            if config.secret_key is not None and config.allow is not None:
                own = read_secret(Path(config.secret_key))
                self._gate = Gate(self._context, own, Path(config.allow))
                self._gate.secure(self._socket)
            self._bind()
        except BaseException:
            self.close()
            raise

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(self._config.height, self._config.width, 3 if self._config.color else 1)

    def read(self, wait_ms: float) -> Grab | None:
        self._settle()
        until = time.monotonic() + wait_ms / 1000
        while True:
            left_ms = max(0.0, 1000 * (until - time.monotonic()))
            if not self._socket.poll(round(left_ms)):
                return None
            program = self._socket.recv()
            parts = [self._socket.recv(copy=False)]
            while self._socket.getsockopt(zmq.RCVMORE):
                part = self._socket.recv(copy=False)
                parts = [*parts[:2], part]
            index = -1
            try:
                header = self._check(parts)
                index = header.index
                self._count(program, index)
                self._match(header, parts[1])
            except WireError as error:
                self._refuse(program, index, str(error))
            else:
                self._owed = program, index
                return self._grab(header, parts[1])
            if not left_ms:
                return None

    def close(self) -> None:
        if self._copied:
            self._settle()
        self._socket.close(_LINGER_MS)
        if self._gate is not None:
            self._gate.close()
        self._context.term()

    # One message

    def _check(self, parts: list[zmq.Frame]) -> Header:
        if len(parts) != 2:
            found = "more than 2 parts" if len(parts) > 2 else "one part"
            raise WireError(f"a message of {found} found, expected two, header and pixels")
        size = len(parts[0].buffer)
        if size > HEADER_BYTES:
            raise WireError(f"a header of {size} bytes found, expected at most {HEADER_BYTES}")
        return decode_header(parts[0].bytes)

    def _count(self, program: bytes, index: int) -> None:
        """Account for what was lost before it. Raises `WireError` for an index that was there."""
        if index < 0:
            return
        last = self._last.get(program, index - 1)
        if index <= last:
            raise WireError(f"index {index} found, expected one above {last}, the last one")
        self._index += index - last - 1
        self._last[program] = index
        self._last.move_to_end(program)
        if len(self._last) > _MAX_PROGRAMS:
            self._last.popitem(last=False)

    def _match(self, header: Header, pixels: zmq.Frame) -> None:
        found = (header.height, header.width, header.channels)
        expected = self.format.shape_hwc
        if found != expected:
            raise WireError(
                f"a frame of (height, width, channels) {found} found, expected {expected} as the "
                "line's source says"
            )
        size = len(pixels.buffer)
        if size != np.prod(expected):
            raise WireError(f"{size} bytes of pixels found, expected {np.prod(expected)}")

    def _grab(self, header: Header, pixels: zmq.Frame) -> Grab:
        image = np.frombuffer(pixels.buffer, np.uint8).reshape(self.format.shape_hwc)

        def write(out: NDArray[np.uint8]) -> None:
            out[...] = image
            self._copied = True

        self._copied = False
        index = self._index
        self._index += 1
        return Grab(index, write, header.pts, header.trigger_id, header.part_id)

    # Answers

    def _settle(self) -> None:
        owed, self._owed = self._owed, None
        if owed is not None:
            self._answer(owed[0], Answer(owed[1]))

    def _refuse(self, program: bytes, index: int, reason: str) -> None:
        self.refused += 1
        if self._rarely.due(""):
            log.warning("a frame was refused (%d so far): %s", self.refused, reason)
        self._answer(program, Answer(index, reason))

    def _answer(self, program: bytes, answer: Answer) -> None:
        # A program that does not fetch its answers, or is gone, does without.
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart([program, answer.encode()], zmq.DONTWAIT)

    def _bind(self) -> None:
        endpoint = self._config.endpoint
        until = time.monotonic() + _BIND_LIMIT_S
        while True:
            try:
                if endpoint.startswith("ipc://") and _is_heard(endpoint.removeprefix("ipc://")):
                    raise zmq.ZMQError(zmq.EADDRINUSE)
                self._socket.bind(endpoint)
                return
            except zmq.ZMQError as error:
                if error.errno == zmq.EADDRINUSE and time.monotonic() < until:
                    time.sleep(0.05)  # one that was closed just now may hold it for a moment
                    continue
                raise ConfigError(
                    f"endpoint {endpoint}: {error.strerror}; expected one that this line can "
                    "listen on, and nothing else does: choose another, or end what holds it"
                ) from error


def _is_heard(path: str) -> bool:
    """Whether somebody listens there: ZeroMQ would take a path over without a word."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == 0
