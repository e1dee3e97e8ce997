"""RTSP against a real server: what arrives, and what becomes of a server killed, frozen, lossy."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rtsp import GROUP, HEIGHT, PROGRAM, RATE, WIDTH, Server, write_frames

from pipeline.config.sources import StreamSource, TriggerConfig
from pipeline.errors import SourceLost
from pipeline.sources.base import Grab
from pipeline.sources.stamp import read_stamp
from pipeline.sources.stream import StreamCamera
from pipeline.types import Reason

PATIENCE_S = 30.0
CODED_ANEW = 6
"""Grey levels by which two codings of one frame may differ."""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames") / "frames.raw")


@pytest.fixture
def server(frames: Path) -> Iterator[Server]:
    found = Server(frames)
    yield found
    found.stop()


def connect(url: str, **keys: object) -> StreamCamera:
    basic = {"kind": "stream", "url": url, "width": WIDTH, "height": HEIGHT}
    return StreamCamera(StreamSource.model_validate(basic | keys), TriggerConfig())


def take(camera: StreamCamera) -> Grab:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (grab := camera.read(100)) is not None:
            return grab
    raise AssertionError("no frame came")


def pixels(grab: Grab) -> NDArray[np.uint8]:
    assert grab.fault is None, grab.detail
    out = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    grab.write(out)
    return out


def loss(camera: StreamCamera) -> str:
    """What the camera says when it is lost; until then `read` gives what it has."""
    until = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < until:
            camera.read(50)
    except SourceLost as error:
        return str(error)
    raise AssertionError("not lost")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_frames_arrive_in_order_each_as_it_was_sent(server: Server, transport: str) -> None:
    camera = connect(server.url(), transport=transport)
    assert camera.settings() == {"codec": "h264", "transport": transport}
    grabs = [take(camera) for _ in range(3 * GROUP)]
    camera.close()
    # A slow machine skips some, and says so by the index; with udp it may lose packets itself.
    good = [grab for grab in grabs if grab.fault is None or transport == "tcp"]
    stamps = [read_stamp(pixels(grab)) or 0 for grab in good]
    assert {stamp - grab.index for stamp, grab in zip(stamps, good, strict=True)} == {
        stamps[0] - good[0].index
    }
    # The first frame comes without a time stamp.
    assert good[-1].pts - good[1].pts == (stamps[-1] - stamps[1]) * 10**9 // RATE


def test_a_killed_server_is_lost_and_one_started_again_is_back(
    server: Server, frames: Path
) -> None:
    camera = connect(server.url())
    take(camera)
    server.stop()
    assert server.url() in loss(camera)
    camera.close()
    began = time.monotonic()
    with pytest.raises(SourceLost, match="cannot be opened"):
        connect(server.url())
    assert time.monotonic() - began < 6
    again = Server(frames)
    try:
        camera = connect(again.url())
        assert read_stamp(pixels(take(camera))) is not None
        camera.close()
    finally:
        again.stop()


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_frozen_server_is_lost_and_never_holds_up_its_reader(
    server: Server, transport: str
) -> None:
    camera = connect(server.url(), transport=transport, read_timeout_ms=3000.0)
    take(camera)
    server.signal(signal.SIGSTOP)
    while camera.read(20) is not None:  # what had come before
        pass
    began = time.monotonic()
    assert camera.read(20) is None
    assert time.monotonic() - began < 2.5
    assert "lost after" in loss(camera)
    began = time.monotonic()
    camera.close()
    with pytest.raises(SourceLost):
        connect(server.url(), read_timeout_ms=1000.0)
    assert time.monotonic() - began < 10
    server.signal(signal.SIGCONT)
    camera = connect(server.url(), transport=transport)
    take(camera)
    camera.close()


def test_a_process_ends_beside_a_frozen_server(server: Server) -> None:
    """The thread that waits for it does not keep the process, nor bring it down."""
    program = (
        "import os, signal, sys\n"
        "from pipeline.config.sources import StreamSource, TriggerConfig\n"
        "from pipeline.sources.stream import StreamCamera\n"
        f"config = StreamSource(kind='stream', url={server.url()!r}, width=320, height=256)\n"
        "camera = StreamCamera(config, TriggerConfig())\n"
        "assert camera.read(10000)\n"
        "print('frozen', flush=True)\n"
        "sys.stdin.readline()\n"
        "camera.close()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROGRAM.parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "frozen\n"
        server.signal(signal.SIGSTOP)
        _, errors = process.communicate("\n", timeout=PATIENCE_S)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("transport", "every", "words"),
    [("tcp", 31, "conceals damage"), ("udp", 31, "packets were lost on the way")],
)
def test_what_lost_packets_spoil_is_broken_and_nothing_else_is_wrong(
    server: Server, frames: Path, transport: str, every: int, words: str
) -> None:
    """Each frame that counts as good is the one of a server that loses nothing.

    Give or take what a viewer who comes a moment later changes: the server makes a key frame for
    him, and codes the next ones a grey level or two otherwise. What a decoder makes up for lost
    blocks is 20 levels off on the average, as frames have nothing in common.
    """
    camera = connect(server.url())
    good = {}
    for _ in range(8 * GROUP):
        picture = pixels(take(camera))
        good[read_stamp(picture)] = picture
    camera.close()
    lossy = Server(frames, "--lose", str(every))
    try:
        camera = connect(lossy.url(), transport=transport)
        grabs = [take(camera) for _ in range(8 * GROUP)]
        camera.close()
    finally:
        lossy.stop()
    broken = [grab for grab in grabs if grab.fault]
    assert {grab.fault for grab in broken} == {Reason.BROKEN_FRAME}
    assert any(words in grab.detail for grab in broken)
    for grab in grabs:
        if grab.fault is None:
            picture = pixels(grab)
            number = read_stamp(picture)
            assert number is not None
            if number in good:
                assert np.abs(picture.astype(int) - good[number]).max() <= CODED_ANEW


def test_a_password_opens_and_is_told_to_nobody(frames: Path) -> None:
    server = Server(frames, "--password", "s3cret")
    try:
        camera = connect(server.url("inspector:s3cret@"))
        take(camera)
        server.stop()
        assert "s3cret" not in loss(camera)
        camera.close()
    finally:
        server.stop()


def test_a_wrong_password_is_refused_and_told_to_nobody(frames: Path) -> None:
    server = Server(frames, "--password", "s3cret")
    try:
        with pytest.raises(SourceLost, match="401 Unauthorized") as refusal:
            connect(server.url("inspector:wr0ng@"))
        assert "wr0ng" not in str(refusal.value)
        assert refusal.value.__cause__ is None
    finally:
        server.stop()


def test_another_size_is_a_fault_of_each_frame(server: Server) -> None:
    camera = connect(server.url(), width=640)
    grab = take(camera)
    camera.close()
    assert grab.fault is Reason.WRONG_SIZE
    assert "320 x 256 px found, expected 640 x 256" in grab.detail


def test_colour(server: Server) -> None:
    camera = connect(server.url(), color=True)
    assert camera.format.shape_hwc == (HEIGHT, WIDTH, 3)
    out = np.zeros(camera.format.shape_hwc, np.uint8)
    take(camera).write(out)
    camera.close()
    assert read_stamp(out) is not None


def test_a_path_that_the_server_does_not_have(server: Server) -> None:
    with pytest.raises(SourceLost, match="404"):
        connect(server.url().replace("/line", "/none"))
