"""Frames that a program pushes: real sockets between a `Pusher`, strangers, and the line."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from pipeline.config.sources import PushSource, TriggerConfig
from pipeline.errors import ConfigError, SourceLost
from pipeline.keys import ClientKeys, make_keys
from pipeline.push import (
    Answer,
    FrameRefused,
    Pusher,
    decode_answer,
)
from pipeline.sources.base import Grab
from pipeline.sources.push import PushCamera

WIDTH, HEIGHT = 64, 48
PATIENCE_S = 20.0


def config(endpoint: str, **keys: object) -> PushSource:
    basic = {"kind": "push", "endpoint": endpoint, "width": WIDTH, "height": HEIGHT}
    return PushSource.model_validate(basic | keys)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/push.sock"


@pytest.fixture
def camera(endpoint: str) -> Iterator[PushCamera]:
    found = PushCamera(config(endpoint), TriggerConfig())
    yield found
    found.close()


@pytest.fixture
def program(endpoint: str) -> Iterator[Pusher]:
    with Pusher(endpoint, timeout_ms=1000 * PATIENCE_S) as found:
        yield found


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """Where `push` waits for its answer while the test reads."""
    with ThreadPoolExecutor(1) as found:
        yield found


def picture(seed: int = 1, channels: int = 0) -> NDArray[np.uint8]:
    shape = (HEIGHT, WIDTH, channels) if channels else (HEIGHT, WIDTH)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def take(camera: PushCamera) -> Grab:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (grab := camera.read(50)) is not None:
            return grab
    raise AssertionError("no frame came")


def serve(camera: PushCamera, answer: Future[int]) -> list[Grab]:
    """Read until the program has its answer; the grabs that came."""
    grabs = []
    while not answer.done():
        if (grab := camera.read(5)) is not None:
            grabs.append(grab)
    return grabs


class Stranger:
    """A program that speaks ZeroMQ and nothing else."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)

    def say(self, camera: PushCamera, *parts: bytes) -> Answer:
        """Its message to a camera that finds nothing to take in it."""
        self._socket.send_multipart(parts)
        until = time.monotonic() + PATIENCE_S
        while not self._socket.poll(5):
            assert camera.read(5) is None
            assert time.monotonic() < until
        return decode_answer(self._socket.recv())

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def stranger(endpoint: str) -> Iterator[Stranger]:
    found = Stranger(endpoint)
    yield found
    found.close()


@pytest.mark.parametrize(("color", "channels"), [(False, 0), (False, 1), (True, 3)])
def test_pixels_and_what_goes_with_them(
    endpoint: str, program: Pusher, aside: ThreadPoolExecutor, color: bool, channels: int
) -> None:
    camera = PushCamera(config(endpoint, color=color), TriggerConfig())
    for number in range(3):
        frame = picture(number, channels)
        answer = aside.submit(program.push, frame, trigger_id=7, part_id="Ä-17", pts=2**40 + number)
        grab = take(camera)
        assert not answer.done()  # only once its pixels are with the line
        out = np.zeros(camera.format.shape_hwc, np.uint8)
        grab.write(out)
        assert np.array_equal(out.reshape(frame.shape), frame)
        assert (grab.index, grab.trigger_id, grab.part_id) == (number, 7, "Ä-17")
        assert grab.pts == 2**40 + number
        assert camera.read(0) is None
        assert answer.result(PATIENCE_S) == number
    camera.close()


def test_rows_with_gaps_between_them(
    camera: PushCamera, program: Pusher, aside: ThreadPoolExecutor
) -> None:
    wide = picture(channels=3)
    answer = aside.submit(program.push, wide[:, :, 1])
    [grab] = serve(camera, answer)
    out = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    grab.write(out)
    assert np.array_equal(out[:, :, 0], wide[:, :, 1])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((HEIGHT, WIDTH + 1), np.uint8), "(48, 65, 1) found, expected (48, 64, 1)"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "(48, 64, 3) found"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_and_leaves_no_gap(
    camera: PushCamera,
    program: Pusher,
    aside: ThreadPoolExecutor,
    frame: NDArray[np.uint8],
    words: str,
) -> None:
    assert [grab.index for grab in serve(camera, aside.submit(program.push, picture()))] == [0]
    answer = aside.submit(program.push, frame)
    assert serve(camera, answer) == []
    with pytest.raises(FrameRefused) as refusal:
        answer.result()
    assert words in str(refusal.value)
    assert camera.refused == 1
    later = aside.submit(program.push, picture())
    assert [grab.index for grab in serve(camera, later)] == [1]


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((HEIGHT, WIDTH), np.uint16, "expected uint8 and"),
        ((9,), np.uint8, "expected uint8 and"),
        ((2, 2, 2, 2), np.uint8, "expected uint8 and"),
        ((0, WIDTH), np.uint8, "height: 0 found"),
        ((HEIGHT, WIDTH, 9), np.uint8, "channels: 9 found"),
    ],
)
def test_arrays_that_are_no_frames(
    program: Pusher, shape: tuple[int, ...], dtype: type[np.generic], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        program.push(np.zeros(shape, dtype))


@pytest.mark.parametrize("keys", [{"part_id": "x" * 65}, {"trigger_id": -1}, {"pts": 2**63}])
def test_what_can_go_with_no_frame(program: Pusher, keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="found, expected"):
        program.push(picture(), **keys)


def header(**changes: object) -> bytes:
    fields = {"v": 1, "height": HEIGHT, "width": WIDTH, "channels": 1, "dtype": "uint8"} | changes
    packed: bytes = msgpack.packb({k: v for k, v in fields.items() if v is not None})
    return packed


PIXELS = bytes(HEIGHT * WIDTH)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b""], "a message of one part"),
        ([b"", PIXELS], "not msgpack"),
        ([b"hello", PIXELS], "not msgpack"),
        ([header(), PIXELS, b""], "more than 2 parts"),
        ([header(), b""], "0 bytes of pixels found, expected 3072"),
        ([header(), PIXELS + b"x"], "3073 bytes of pixels"),
        ([header(v=2), PIXELS], "v=1"),
        ([header(v=True), PIXELS], "v=1"),
        ([header(width=None), PIXELS], "without 'width'"),
        ([header(width=64.0), PIXELS], "width: 64.0 found"),
        ([header(width="64"), PIXELS], "width: '64' found"),
        ([header(width=True), PIXELS], "width: True found"),
        ([header(width=-1), PIXELS], "width: -1 found"),
        ([header(dtype="uint16"), PIXELS], "dtype: 'uint16' found"),
        ([header(dtype=8), PIXELS], "dtype: 8 found"),
        ([header(part_id="x" * 65), PIXELS], "at most 64 bytes"),
        ([header(part_id=7), PIXELS], "part_id: 7 found"),
        ([header(trigger_id=2**32), PIXELS], "trigger_id: 4294967296 found"),
        ([header(trigger_id=-1), PIXELS], "trigger_id: -1 found"),
        ([header(index=2**63), PIXELS], "index: 9223372036854775808 found"),
        ([header(triggerid=7), PIXELS], "'triggerid' found in a header"),
        ([b"\x81\x01\x01", PIXELS], "found"),
        ([b"x" * 5000, PIXELS], "a header of 5000 bytes"),
        ([b"\x91" * 4000, PIXELS], "found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_frame_is_refused(
    camera: PushCamera, stranger: Stranger, parts: list[bytes], words: str
) -> None:
    assert words in stranger.say(camera, *parts).error
    assert camera.refused == 1


def test_an_index_that_was_there_is_refused_and_a_gap_is_seen(
    camera: PushCamera, endpoint: str
) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(endpoint)
    indices = []
    for index in (5, 6, 6, 4, 9, None):
        socket.send_multipart([header(index=index), PIXELS])
        until = time.monotonic() + PATIENCE_S
        while not socket.poll(5):
            if (grab := camera.read(5)) is not None:
                indices.append(grab.index)
            assert time.monotonic() < until
        answer = decode_answer(socket.recv())
        assert answer.index == (-1 if index is None else index)
        assert bool(answer.error) == (index in (6, 4) and len(indices) == 2 and answer.error != "")
    assert indices == [0, 1, 4, 5]
    assert camera.refused == 2
    socket.close(0)
    context.term()


def test_a_flood_of_nonsense_is_one_line_in_the_log(
    camera: PushCamera, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="push"):
        for _ in range(50):
            stranger.say(camera, b"nonsense", b"")
    assert len(caplog.records) == 1
    assert "1 so far" in caplog.text
    assert camera.refused == 50


def test_reading_ends_in_time_during_a_flood(camera: PushCamera, endpoint: str) -> None:
    stop = threading.Event()

    def flood() -> None:
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(endpoint)
        while not stop.is_set():
            if socket.poll(10, zmq.POLLOUT):
                socket.send_multipart([b"x", b"y"])
        socket.close(0)
        context.term()

    thread = threading.Thread(target=flood)
    thread.start()
    while camera.refused < 100:
        began = time.monotonic()
        assert camera.read(20) is None
        assert time.monotonic() - began < 10
    stop.set()
    thread.join()


def test_a_line_that_is_away(endpoint: str) -> None:
    with Pusher(endpoint, timeout_ms=50) as program:
        with pytest.raises(SourceLost, match="no answer of the line"):
            program.push(picture())
        camera = PushCamera(config(endpoint), TriggerConfig())
        assert camera.read(200) is None  # what was not taken then does not come now
        camera.close()


def test_a_line_that_does_not_answer(camera: PushCamera, endpoint: str) -> None:
    program = Pusher(endpoint, timeout_ms=300)
    with pytest.raises(SourceLost, match="no answer of the line"):
        program.push(picture())
    program.close()


def test_closing_answers_what_was_taken(
    endpoint: str, program: Pusher, aside: ThreadPoolExecutor
) -> None:
    camera = PushCamera(config(endpoint), TriggerConfig())
    answer = aside.submit(program.push, picture())
    take(camera).write(np.zeros((HEIGHT, WIDTH, 1), np.uint8))
    camera.close()
    assert answer.result(PATIENCE_S) == 0


def test_closing_does_not_answer_for_what_nobody_took(endpoint: str) -> None:
    """A line that stops while a frame waits for a slot has not taken it."""
    camera = PushCamera(config(endpoint), TriggerConfig())
    program = Pusher(endpoint, timeout_ms=1000)
    with ThreadPoolExecutor(1) as aside:
        answer = aside.submit(program.push, picture())
        take(camera)
        camera.close()
        with pytest.raises(SourceLost):
            answer.result(PATIENCE_S)
    program.close()


def test_a_line_that_comes_back(endpoint: str, aside: ThreadPoolExecutor) -> None:
    program = Pusher(endpoint, timeout_ms=500)

    def insist() -> int:
        while True:
            with contextlib.suppress(SourceLost):  # sent to the line that was just going away
                return program.push(picture())

    for _ in range(3):
        camera = PushCamera(config(endpoint), TriggerConfig())
        assert serve(camera, aside.submit(insist))
        camera.close()
    program.close()


@pytest.mark.parametrize("where", ["ipc", "tcp"])
def test_an_endpoint_that_is_taken(tmp_path: Path, where: str) -> None:
    port = zmq.Context.instance().socket(zmq.REP)
    number = port.bind_to_random_port("tcp://127.0.0.1")
    port.close(0)
    endpoint = f"ipc://{tmp_path}/a.sock" if where == "ipc" else f"tcp://127.0.0.1:{number}"
    camera = PushCamera(config(endpoint), TriggerConfig())
    with pytest.raises(ConfigError, match="nothing else does"):
        PushCamera(config(endpoint), TriggerConfig())
    camera.close()
    PushCamera(config(endpoint), TriggerConfig()).close()


def test_a_socket_file_of_one_that_was_killed_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "old.sock").touch()
    PushCamera(config(f"ipc://{tmp_path}/old.sock"), TriggerConfig()).close()


def test_an_endpoint_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listen on"):
        PushCamera(config(f"ipc://{tmp_path}/none/a.sock"), TriggerConfig())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"endpoint": "tcp://0.0.0.0:5610"}, "secret_key"),
        ({"endpoint": "tcp://10.0.0.7:5610"}, "which other machines can reach"),
        ({"secret_key": "line.secret"}, "or neither"),
        ({"allow": "allowed"}, "or neither"),
    ],
)
def test_configurations_that_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(**({"endpoint": "tcp://127.0.0.1:5610"} | keys))


def test_keys_keep_strangers_out(
    tmp_path: Path, endpoint: str, stranger: Stranger, aside: ThreadPoolExecutor
) -> None:
    line = make_keys(tmp_path / "line", "line")
    own = make_keys(tmp_path / "allowed", "robot")
    other = make_keys(tmp_path / "other", "other")
    secret, allow = str(tmp_path / "line" / "line.secret"), str(tmp_path / "allowed")
    camera = PushCamera(config(endpoint, secret_key=secret, allow=allow), TriggerConfig())
    for pair, comes_in in ((own, True), (other, False), (None, False)):
        keys = None if pair is None else ClientKeys(pair, line.public)
        with Pusher(endpoint, keys=keys, timeout_ms=20_000 if comes_in else 300) as program:
            answer = aside.submit(program.push, picture())
            assert len(serve(camera, answer)) == comes_in
            assert (answer.exception() is None) == comes_in
    camera.close()


def test_keys_that_are_not_there(tmp_path: Path, endpoint: str) -> None:
    missing = str(tmp_path / "none")
    with pytest.raises(ConfigError, match="expected a key file"):
        PushCamera(config(endpoint, secret_key=missing, allow=missing), TriggerConfig())
    PushCamera(config(endpoint), TriggerConfig()).close()  # the endpoint was let go of
