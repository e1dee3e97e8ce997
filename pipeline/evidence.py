"""Fetches pictures of recorded frames from a line. Needs pyzmq and msgpack alone.

    found = fetch_picture("tcp://127.0.0.1:5604", "left", 3, 17)
    if found is not None:
        Path("left-3-17.png").write_bytes(found.data)

The three are a verdict's `camera`, `epoch` and `frame_id`; a part verdict has them in `views`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import zmq

from pipeline.errors import ConfigError, ControlError, WireError
from pipeline.keys import ClientKeys, secure_client
from pipeline.wire import MAX_PICTURE_BYTES, AskPicture, Picture, Refused, decode_picture, encode

_AGAIN_S: Final = 0.1
_REPEAT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """`data`: the image file. `about`: its size, and the frame's."""

    about: Picture
    data: bytes


def fetch_picture(
    endpoint: str,
    camera: str,
    epoch: int,
    frame_id: int,
    *,
    format: str = "png",
    longest_px: int = 0,
    wait_s: float = 2.0,
    timeout_s: float = 10.0,
    keys: ClientKeys | None = None,
) -> Fetched | None:
    """The picture of a frame; None where the line has not kept it.

    A verdict is known before its frame is written: so long as the line does not have it, it is
    asked again for `wait_s`. format, longest_px: as in `AskPicture`. timeout_s: for each answer.
    keys: for a tcp endpoint of a line with `security`.

    Raises `ConfigError` for an endpoint that cannot be used, `ControlError` when the line refuses
    or does not answer, `WireError` for an answer that is none.
    """
    ask = encode(AskPicture(camera, epoch, frame_id, format, longest_px))
    until = time.monotonic() + wait_s
    with zmq.Context(io_threads=1) as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_PICTURE_BYTES)
        if keys is not None and endpoint.startswith("tcp://"):
            secure_client(socket, keys.own, keys.server_public)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"endpoint {endpoint!r}: {error.strerror}; expected the line's recording.endpoint"
            ) from error
        while True:
            _ask(socket, ask, endpoint, timeout_s)
            head, *bodies = socket.recv_multipart()
            about = decode_picture(head)
            if isinstance(about, Refused):
                raise ControlError(f"{endpoint}: refused: {about.why}")
            if about.known:
                if len(bodies) != 1:
                    raise WireError(f"{len(bodies)} parts behind the answer found, expected one")
                return Fetched(about, bodies[0])
            if time.monotonic() > until:
                return None
            time.sleep(_AGAIN_S)


def _ask(socket: zmq.Socket[bytes], ask: bytes, endpoint: str, timeout_s: float) -> None:
    """Ask until something comes. Raises `ControlError`."""
    until = time.monotonic() + timeout_s
    while (left := until - time.monotonic()) > 0:
        # Again: whoever had the ask may have died with it. All answers to it are the same.
        socket.send(ask)
        if socket.poll(round(1000 * min(left, _REPEAT_S))):
            return
    raise ControlError(
        f"{endpoint}: no answer within {timeout_s:g} s; expected a line that runs and records "
        "(`recording` in its configuration), and your key in its allow folder"
    )
