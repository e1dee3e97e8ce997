"""Streams over HTTP from a server of Python's own: MJPEG, H.264, files, and all that goes wrong."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import load
from pipeline.config.sources import StreamSource, TriggerConfig
from pipeline.errors import ConfigError, SourceLost, hide_secrets
from pipeline.sources.base import Grab
from pipeline.sources.stamp import read_stamp, write_stamp
from pipeline.sources.stream import StreamCamera
from pipeline.types import Reason

WIDTH, HEIGHT = 288, 96
PATIENCE_S = 20.0
Body = Callable[[Callable[[bytes], object]], None]
"""What is sent, given how."""


def picture(number: int, width: int = WIDTH) -> NDArray[np.uint8]:
    noise = np.random.default_rng(number).integers(40, 200, (HEIGHT // 8, width // 8), np.uint8)
    frame = noise.repeat(8, axis=0).repeat(8, axis=1)
    write_stamp(frame, number)
    return frame


def jpeg(number: int, width: int = WIDTH) -> bytes:
    done, data = cv2.imencode(".jpg", picture(number, width), [cv2.IMWRITE_JPEG_QUALITY, 95])
    assert done
    return data.tobytes()


def part(data: bytes) -> bytes:
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data + b"\r\n"


def parts(*images: bytes) -> Body:
    """The images, and then the end."""

    def send(write: Callable[[bytes], object]) -> None:
        for image in images:
            write(part(image))

    return send


class Server(ThreadingHTTPServer):
    """Sends each asker the same body."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, body: Body, kind: str, *, length: int | None, status: int) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()
                try:
                    body(self.wfile.write)
                except OSError:  # the asker has gone
                    return

            def log_message(self, format: str, *args: object) -> None:
                return

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}).start()

    def url(self, user: str = "", query: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}/video{query}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(
        body: Body,
        kind: str = "multipart/x-mixed-replace; boundary=frame",
        length: int | None = None,
        status: int = 200,
    ) -> Server:
        servers.append(Server(body, kind, length=length, status=status))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


Serve = Callable[..., Server]


def connect(url: str, **keys: object) -> StreamCamera:
    basic = {"kind": "stream", "url": url, "width": WIDTH, "height": HEIGHT}
    return StreamCamera(StreamSource.model_validate(basic | keys), TriggerConfig())


def drain(camera: StreamCamera) -> tuple[list[Grab], str]:
    """All grabs until the camera is lost, and what it then says."""
    grabs = []
    until = time.monotonic() + PATIENCE_S
    try:
        while time.monotonic() < until:
            if (grab := camera.read(100)) is not None:
                grabs.append(grab)
    except SourceLost as error:
        camera.close()
        return grabs, str(error)
    raise AssertionError("not lost")


def stamps(grabs: list[Grab]) -> list[int | str | None]:
    """The number in each frame's pixels, or its fault."""
    found: list[int | str | None] = []
    for grab in grabs:
        if grab.fault is not None:
            found.append(grab.fault.value)
            continue
        out = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
        grab.write(out)
        found.append(read_stamp(out))
    return found


def slowly(images: list[bytes]) -> Body:
    """So that no reader misses any."""

    def send(write: Callable[[bytes], object]) -> None:
        for image in images:
            write(part(image))
            time.sleep(0.05)

    return send


def test_mjpeg_that_stops_in_the_middle_is_lost_after_its_last_frame(serve: Serve) -> None:
    server = serve(slowly([jpeg(number) for number in range(12)]))
    camera = connect(server.url())
    assert camera.settings()["codec"] == "mjpeg"
    grabs, error = drain(camera)
    assert stamps(grabs) == [grab.index for grab in grabs]
    assert grabs[-1].index == 11
    assert f"{server.url()}: lost after 12 frames" in error


def test_a_slow_reader_misses_frames_and_sees_it(serve: Serve) -> None:
    go_on = threading.Event()

    def send(write: Callable[[bytes], object]) -> None:
        for number in range(60):
            write(part(jpeg(number)))
        go_on.set()

    server = serve(send)
    camera = connect(server.url())
    assert go_on.wait(PATIENCE_S)
    time.sleep(0.3)
    grabs, _ = drain(camera)
    assert stamps(grabs) == [grab.index for grab in grabs]
    assert len(grabs) < 60


def test_a_server_that_freezes_is_lost(serve: Serve) -> None:
    release = threading.Event()

    def send(write: Callable[[bytes], object]) -> None:
        for number in range(8):
            write(part(jpeg(number)))
        release.wait(60)

    server = serve(send)
    camera = connect(server.url(), read_timeout_ms=1500.0)
    _, error = drain(camera)
    release.set()
    assert "lost after" in error


@pytest.mark.parametrize("kind", ["cut", "damaged"])
def test_a_damaged_jpeg_is_one_broken_frame(serve: Serve, kind: str) -> None:
    images = [jpeg(number) for number in range(12)]
    whole = images[8]
    middle = len(whole) // 2
    images[8] = whole[:middle] if kind == "cut" else whole[:middle] + b"\xff\xd9"
    grabs, _ = drain(connect(serve(slowly(images)).url()))
    found = dict(zip([grab.index for grab in grabs], stamps(grabs), strict=True))
    assert found.pop(8) == Reason.BROKEN_FRAME.value
    assert all(index == stamp for index, stamp in found.items())


def test_a_size_that_changes(serve: Serve) -> None:
    images = [jpeg(number) for number in range(8)] + [jpeg(8, WIDTH + 8), jpeg(9)]
    grabs, _ = drain(connect(serve(slowly(images)).url()))
    found = dict(zip([grab.index for grab in grabs], stamps(grabs), strict=True))
    assert found.pop(8) == Reason.WRONG_SIZE.value
    assert all(index == stamp for index, stamp in found.items())
    [detail] = [grab.detail for grab in grabs if grab.detail]
    assert "296 x 96 px found, expected 288 x 96" in detail


def encoded(path: Path, count: int) -> bytes:
    """H.264, a key frame each ten frames, in the container that the path's name says."""
    with av.open(str(path), "w") as container:
        options = {"g": "10", "bf": "0", "preset": "ultrafast", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), format="gray")
            frame = frame.reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def test_a_file_waits_for_its_reader_and_is_lost_at_its_end(serve: Serve, tmp_path: Path) -> None:
    data = encoded(tmp_path / "a.mkv", 60)
    server = serve(lambda write: write(data) and None, "video/x-matroska", len(data))
    camera = connect(server.url())
    time.sleep(0.3)
    grabs, error = drain(camera)
    assert stamps(grabs) == list(range(60))
    assert [grab.pts for grab in grabs] == [number * 40_000_000 for number in range(60)]
    assert "the stream has ended" in error


def test_a_damaged_packet_breaks_what_builds_on_it(serve: Serve, tmp_path: Path) -> None:
    data = bytearray(encoded(tmp_path / "a.mkv", 60))
    with av.open(str(tmp_path / "a.mkv")) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
        sizes = [p.size for p in av.open(str(tmp_path / "a.mkv")).demux(video=0) if p.size]
    start = places[23] + sizes[23] // 2
    data[start : start + 40] = bytes(40)
    server = serve(lambda write: write(bytes(data)) and None, "video/x-matroska", len(data))
    grabs, _ = drain(connect(server.url()))
    broken = Reason.BROKEN_FRAME.value
    assert [grab.index for grab in grabs] == list(range(60))
    found = stamps(grabs)
    assert found[:23] == list(range(23))
    assert found[23:30] == [broken] * 7
    assert found[30:] == list(range(30, 60))


def test_nothing_there() -> None:
    with pytest.raises(SourceLost, match="cannot be opened"):
        connect("http://127.0.0.1:9/video")


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "image/jpeg", 200, "cannot be opened|no pictures"),
        (b"<html>log in</html>", "text/html", 200, "cannot be opened|no pictures"),
        (b"no", "text/plain", 401, "401 Unauthorized"),
        (b"no", "text/plain", 404, "404"),
        (b"no", "text/plain", 503, "cannot be opened"),
    ],
)
def test_what_is_no_stream(serve: Serve, body: bytes, kind: str, status: int, words: str) -> None:
    server = serve(lambda write: write(body) and None, kind, len(body), status)
    with pytest.raises(SourceLost, match=words):
        connect(server.url())


def test_a_server_that_says_nothing(serve: Serve) -> None:
    release = threading.Event()
    server = serve(lambda write: release.wait(60) and None)
    began = time.monotonic()
    with pytest.raises(SourceLost):
        connect(server.url(), read_timeout_ms=500.0)
    assert time.monotonic() - began < PATIENCE_S
    release.set()


def test_secrets_are_in_no_error_log_or_setting(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    said = []
    with caplog.at_level(logging.DEBUG):
        for images, status in (([], 401), ([jpeg(n) for n in range(8)] + [jpeg(8)[:400]], 200)):
            server = serve(slowly(images), status=status)
            try:
                camera = connect(server.url("me:s3cret@", "?token=hush"))
                said.append(str(camera.settings()))
                grabs, error = drain(camera)
                said += [error, *(grab.detail for grab in grabs)]
            except SourceLost as error:
                said.append(str(error))
    text = caplog.text + "".join(said)
    assert "http://***@127.0.0.1" in text
    assert "s3cret" not in text
    assert "hush" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://10.0.0.7:554/a", "rtsp://10.0.0.7:554/a"),
        ("rtsp://u:p@10.0.0.7/a?b=c", "rtsp://***@10.0.0.7/a?***"),
        ("rtsp://u:p/@?@h/a", "rtsp://***@h/a"),
        ("rtsp:/u:p@h", "rtsp:/***@h"),
        ("u:p@h", "u:***@h"),
        ("plain text", "plain text"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert hide_secrets(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.0.0.7/stream",
        "file:///etc/passwd",
        "rtsp://",
        "rtsp://:s3cret@/a",
        "rtsp:/me:s3cret@10.0.0.7",
        "rtmp://me:s3cret@10.0.0.7/a",
        "http://me:s3cret@10.0.0.7:99999/a",
        "http://me:s3cret@[::1/a",
        "http://me:s3cret@10.0.0.7/a b",
    ],
)
def test_urls_that_are_refused_without_their_secrets(tmp_path: Path, url: str) -> None:
    path = tmp_path / "line.yaml"
    path.write_text(
        "station: a\ncameras:\n  dock:\n    source: {kind: stream, width: 64, height: 64, "
        f"url: '{url}'}}\n"
    )
    with pytest.raises(ConfigError, match=r"source.url: .*expected rtsp, rtsps") as refusal:
        load(path)
    assert "s3cret" not in str(refusal.value)
