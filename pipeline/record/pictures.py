"""Stage: pictures of recorded frames for whoever knows a verdict's camera, epoch and frame id.

A process of its own, with less right to the CPU than inspection: no frame waits for a picture.

1. A ROUTER socket on `recording.endpoint` takes one `AskPicture` per message (`pipeline.wire`).
2. A thread reads the frame and makes the picture, one after the other; the process lives meanwhile.
3. The answer is `Picture` and the image file; `Refused` where the recording is damaged or the
   picture too large. What is no `AskPicture` is refused, counted, and logged rarely.
4. While `MAX_WAITING` pictures are to be made, further asks stay in their senders' queues.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import cv2
import numpy as np
import zmq
from numpy.typing import NDArray

from pipeline.board import DONE, QUIT, READY
from pipeline.errors import LinewatchError, SourceError, WireError
from pipeline.keys import Context, Gate
from pipeline.publish import bind, open_gate
from pipeline.rarely import Rarely
from pipeline.record.recordings import find_evidence, read_evidence
from pipeline.stage import WAKE_MS, Stage, main
from pipeline.wire import (
    MAX_PICTURE_BYTES,
    AskPicture,
    Picture,
    Refused,
    decode_picture_ask,
    encode,
)

MAX_MESSAGE_BYTES = 2**16
"""Whoever sends more is cut off at once; an ask of fewer that is too large is refused in words."""
MAX_WAITING = 32
_ENVELOPES = 4
_UNTAKEN = 2 * MAX_WAITING
"""Pictures that wait for one who does not take them, at most; who misses one may ask again."""
_GLANCE_MS = 2
_NICE = 10
_PNG_LEVEL = 1
"""Of zlib: three times as fast as the usual one, and files a tenth larger."""
_JPEG_QUALITY = 92

log = logging.getLogger("pictures")


class PictureServer:
    """The socket; `answer` serves it. Not thread-safe."""

    def __init__(
        self,
        context: Context,
        endpoint: str,
        folder: Path,
        cameras: Collection[str],
        gate: Gate | None = None,
    ) -> None:
        """folder: the station's recordings, with a folder for each of `cameras`.

        Raises `StationBusy` when the endpoint is taken, `ConfigError` when it cannot be used.
        """
        self.refused = 0
        self.answered = 0
        self._folder, self._cameras = folder, tuple(cameras)
        self._rarely = Rarely()
        self._waiting: deque[tuple[list[bytes], Future[tuple[Picture, bytes]]]] = deque()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, _UNTAKEN)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        bind(self._socket, endpoint, "recording.endpoint", gate)
        self._reader = ThreadPoolExecutor(1, "pictures")

    def answer(self, timeout_ms: int) -> None:
        """Take in who asks, and send what is made."""
        while self._waiting and self._waiting[0][1].done():
            envelope, made = self._waiting.popleft()
            self._socket.send_multipart([*envelope, *self._parts(made)])
        if len(self._waiting) >= MAX_WAITING:
            wait([self._waiting[0][1]], timeout_ms / 1000)
            return
        if not self._socket.poll(min(timeout_ms, _GLANCE_MS) if self._waiting else timeout_ms):
            return
        *envelope, body = self._socket.recv_multipart()
        try:
            ask = self._read(envelope, body)
        except WireError as error:
            self._socket.send_multipart([*envelope[:_ENVELOPES], *self._refuse(error)])
            return
        self._waiting.append((envelope, self._reader.submit(make_picture, self._folder, ask)))

    def _read(self, envelope: list[bytes], body: bytes) -> AskPicture:
        if len(envelope) > _ENVELOPES or any(len(each) > 256 for each in envelope):
            raise WireError(f"{len(envelope)} parts found, expected an ask_picture and no more")
        ask = decode_picture_ask(body)
        if ask.camera not in self._cameras:  # which must not become a path either
            raise WireError(
                f"camera {ask.camera[:80]!r} found, expected one of {', '.join(self._cameras)}"
            )
        return ask

    def _parts(self, made: Future[tuple[Picture, bytes]]) -> list[bytes]:
        """Of the answer."""
        try:
            picture, data = made.result()
        except (LinewatchError, OSError, cv2.error, MemoryError) as error:
            return self._refuse(error)
        self.answered += 1
        return [encode(picture), data] if picture.known else [encode(picture)]

    def _refuse(self, error: Exception) -> list[bytes]:
        self.refused += 1
        if self._rarely.due("refused"):
            log.warning("refused: %s (%d so far)", error, self.refused)
        return [encode(Refused(str(error)[:400]))]

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._socket.close(0)


def make_picture(folder: Path, ask: AskPicture) -> tuple[Picture, bytes]:
    """A recorded frame as an image file; not `known`, and no bytes, where it is not there.

    folder: the station's recordings. Raises `SourceError` for a damaged one, `WireError` for a
    picture of more than `MAX_PICTURE_BYTES`.
    """
    unknown = Picture(ask.camera, ask.epoch, ask.frame_id, known=False), b""
    if (found := find_evidence(folder, ask.camera, ask.epoch, ask.frame_id)) is None:
        return unknown
    try:
        frame = read_evidence(*found)
    except SourceError:
        if not found[0].exists():  # it made room for others meanwhile
            return unknown
        raise
    shown = _shrunk(frame, ask.longest_px)
    data = _encoded(shown, ask.format)
    if len(data) > MAX_PICTURE_BYTES:
        raise WireError(
            f"a picture of {len(data)} bytes found, expected at most {MAX_PICTURE_BYTES}: ask for "
            "a smaller longest_px, or for jpeg"
        )
    (height, width), (frame_height, frame_width) = shown.shape[:2], frame.shape[:2]
    known = Picture(
        ask.camera,
        ask.epoch,
        ask.frame_id,
        known=True,
        format=ask.format,
        width=width,
        height=height,
        frame_width=frame_width,
        frame_height=frame_height,
    )
    return known, data


def _shrunk(frame: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """(H, W, C) -> the same, or (h, w[, C]) with its longest side at most so long."""
    height, width = frame.shape[:2]
    if not 0 < longest_px < max(height, width):
        return frame
    scale = longest_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    if picture.ndim == 3 and picture.shape[2] == 3:
        picture = picture[:, :, ::-1]  # OpenCV has BGR
    options = {
        "png": [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL],
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
    }
    _, data = cv2.imencode(f".{kind}", picture, options[kind])
    return data.tobytes()


def work(stage: Stage) -> None:
    os.nice(_NICE)
    station, config = stage.station, stage.station.config
    gate = open_gate(stage.context, config.security)
    try:
        server = PictureServer(
            stage.context, station.pictures, station.recordings, config.cameras, gate
        )
        try:
            stage.board.set_state(stage.name, READY)
            while stage.board.order != QUIT:
                server.answer(WAKE_MS)
                stage.board.beat(stage.name)
        finally:
            server.close()
    finally:
        if gate is not None:
            gate.close()
    stage.board.set_state(stage.name, DONE)


if __name__ == "__main__":
    main("pictures", work)
