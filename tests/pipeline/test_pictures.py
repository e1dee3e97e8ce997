"""The picture socket: what it answers, what it makes of strangers, and the command beside it."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import cv2
import msgpack
import numpy as np
import pytest
import yaml
import zmq
from numpy.typing import NDArray
from ports import free_port

from pipeline.cli import run
from pipeline.config import load
from pipeline.errors import ConfigError, ControlError, WireError
from pipeline.evidence import fetch_picture
from pipeline.journal import Journal
from pipeline.keys import ClientKeys, Context, Gate, allow_key, make_keys, read_secret
from pipeline.record.pictures import MAX_MESSAGE_BYTES, MAX_WAITING, PictureServer
from pipeline.record.recordings import RecordingWriter, recording_path
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.sidecar import RecordedFrame
from pipeline.station import Station
from pipeline.types import Defect, Label, Reason, Verdict
from pipeline.wire import (
    MAX_ASK_BYTES,
    MAX_SIDE_PX,
    AskPicture,
    Picture,
    Refused,
    decode_picture,
    decode_picture_ask,
    encode,
)

SHAPE = (96, 160, 3)
CAMERAS = ("left", "right")


def frame_of(number: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def write(
    folder: Path, *ids: int, camera: str = "left", epoch: int = 1, close: bool = True
) -> RecordingWriter:
    path = recording_path(folder / camera, epoch, ids[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SHAPE if camera == "left" else (*SHAPE[:2], 1)
    writer = RecordingWriter(path, shape, RecordingHead())
    for number in ids:
        known = RecordedFrame(camera, epoch, number, 0, 0, "", "fail", "defect", 1.0, 0.5)
        writer.write(frame_of(number, shape), known)
    if close:
        writer.close()
    return writer


class Server(threading.Thread):
    def __init__(
        self, endpoint: str, folder: Path, context: Context, gate: Gate | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.endpoint, self.folder = endpoint, folder
        self._leave = threading.Event()
        self.pictures = PictureServer(context, endpoint, folder, CAMERAS, gate)
        self.start()

    def run(self) -> None:
        while not self._leave.is_set():
            self.pictures.answer(20)
        self.pictures.close()

    def close(self) -> None:
        self._leave.set()
        self.join()


@pytest.fixture(params=["ipc", "tcp"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    endpoint = (
        f"ipc://{tmp_path}/pictures" if request.param == "ipc" else f"tcp://127.0.0.1:{free_port()}"
    )
    context: Context = zmq.Context()
    server = Server(endpoint, tmp_path / "recordings", context)
    yield server
    server.close()
    context.term()


def decoded(data: bytes) -> NDArray[np.uint8]:
    """RGB or grey, as the frame was."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    pixels = np.asarray(found, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., ::-1]


def test_a_png_is_the_frame(server: Server) -> None:
    write(server.folder, 3, 17)
    write(server.folder, 17, camera="right")
    left = fetch_picture(server.endpoint, "left", 1, 17)
    right = fetch_picture(server.endpoint, "right", 1, 17)
    assert left is not None
    assert right is not None
    assert np.array_equal(decoded(left.data), frame_of(17))
    assert np.array_equal(decoded(right.data), frame_of(17, (*SHAPE[:2], 1)))
    assert (left.about.width, left.about.height) == (160, 96)
    assert (left.about.frame_width, left.about.frame_height) == (160, 96)
    assert server.pictures.answered == 2


@pytest.mark.parametrize(
    ("longest_px", "size"), [(80, (80, 48)), (1, (1, 1)), (160, (160, 96)), (4000, (160, 96))]
)
def test_a_smaller_jpeg(server: Server, longest_px: int, size: tuple[int, int]) -> None:
    write(server.folder, 3)
    found = fetch_picture(server.endpoint, "left", 1, 3, format="jpeg", longest_px=longest_px)
    assert found is not None
    assert (found.about.width, found.about.height) == size
    assert (found.about.frame_width, found.about.frame_height) == (160, 96)
    assert found.data[:3] == b"\xff\xd8\xff"
    assert decoded(found.data).shape[:2] == size[::-1]


@pytest.mark.parametrize(
    ("camera", "epoch", "frame_id"),
    [("left", 1, 4), ("left", 2, 3), ("right", 1, 3), ("left", 1, 0), ("left", 2**62, 2**62)],
)
def test_a_frame_that_was_not_kept(server: Server, camera: str, epoch: int, frame_id: int) -> None:
    write(server.folder, 3, 5)
    assert fetch_picture(server.endpoint, camera, epoch, frame_id, wait_s=0) is None


def test_a_frame_that_is_written_while_it_is_asked_for(server: Server) -> None:
    late = threading.Timer(0.4, write, (server.folder, 9))
    late.start()
    found = fetch_picture(server.endpoint, "left", 1, 9, wait_s=20)
    late.join()
    assert found is not None
    assert np.array_equal(decoded(found.data), frame_of(9))


def test_a_file_that_still_grows(server: Server) -> None:
    writer = write(server.folder, 1, 2, close=False)
    try:
        found = fetch_picture(server.endpoint, "left", 1, 2, wait_s=0)
    finally:
        writer.close()
    assert found is not None
    assert np.array_equal(decoded(found.data), frame_of(2))


def test_a_damaged_recording_is_said_to_be_one(server: Server) -> None:
    path = write(server.folder, 1, 2).path
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
    assert fetch_picture(server.endpoint, "left", 1, 1) is not None
    with pytest.raises(ControlError, match="after 1 of 2 frames: it is cut off"):
        fetch_picture(server.endpoint, "left", 1, 2)


@pytest.mark.parametrize(
    "camera", ["", "..", "../left", "left/", "/etc", "*", "middle", "x" * 3000]
)
def test_a_name_that_is_no_camera_is_no_path(server: Server, camera: str) -> None:
    write(server.folder, 3)
    with pytest.raises(ControlError, match=r"camera .* found, expected one of left, right"):
        fetch_picture(server.endpoint, camera, 1, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "gif"},
        {"format": 3},
        {"longest_px": -1},
        {"longest_px": MAX_SIDE_PX + 1},
        {"epoch": -1},
        {"frame_id": -1},
        {"frame_id": True},
        {"camera": b"left"},
        {"kind": "ask"},
        {"v": 2},
    ],
    ids=str,
)
def test_what_is_no_ask(change: dict[str, object]) -> None:
    good = msgpack.unpackb(encode(AskPicture("left", 1, 3)))
    assert decode_picture_ask(msgpack.packb(good)) == AskPicture("left", 1, 3)
    with pytest.raises(WireError):
        decode_picture_ask(msgpack.packb(good | change))


def test_strangers_change_nothing(server: Server) -> None:
    write(server.folder, 3)
    dice = random.Random(4)
    good = encode(AskPicture("left", 1, 3, "jpeg", 16))
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(server.endpoint)
        sent = 0
        for number in range(10_000):
            body = bytearray(good)
            for _ in range(dice.randint(1, 4)):
                body[dice.randrange(len(body))] = dice.randrange(256)
            if number % 3 == 0:
                body = bytearray(dice.randbytes(dice.randrange(200)))
            try:
                decode_picture_ask(bytes(body))
            except WireError:
                client.send_multipart([bytes(body)] * (1 + number % 2))
                sent += 1
                assert client.poll(20_000)
                assert isinstance(decode_picture(client.recv_multipart()[-1]), Refused)
        client.send(bytes(MAX_ASK_BYTES + 1))
        assert client.poll(20_000)
        assert isinstance(decode_picture(client.recv()), Refused)
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(server.endpoint)
        client.send(bytes(MAX_MESSAGE_BYTES + 1))
        assert not client.poll(200)  # cut off
    assert server.pictures.refused == sent + 1
    assert fetch_picture(server.endpoint, "left", 1, 3) is not None


def test_more_than_can_wait_are_all_answered_in_order(server: Server) -> None:
    write(server.folder, *range(1, 9))
    asked = [AskPicture("left", 1, 1 + number % 10, "png", 8) for number in range(8 * MAX_WAITING)]
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(server.endpoint)
        for ask in asked:
            client.send(encode(ask))
        for ask in asked:
            assert client.poll(20_000)
            head, *bodies = client.recv_multipart()
            found = decode_picture(head)
            assert isinstance(found, Picture)
            assert (found.frame_id, found.known) == (ask.frame_id, ask.frame_id <= 8)
            assert len(bodies) == found.known


def test_only_known_keys_come_in(tmp_path: Path) -> None:
    write(tmp_path / "recordings", 3)
    make_keys(tmp_path / "keys", "line")
    for name in ("mes", "stranger"):
        make_keys(tmp_path / "keys", name)
    allow_key(tmp_path / "keys" / "mes.public", tmp_path / "allow")
    context: Context = zmq.Context()
    gate = Gate(context, read_secret(tmp_path / "keys" / "line.secret"), tmp_path / "allow")
    server = Server(f"tcp://127.0.0.1:{free_port()}", tmp_path / "recordings", context, gate)

    def ask(keys: ClientKeys | None) -> bool:
        found = fetch_picture(server.endpoint, "left", 1, 3, keys=keys, timeout_s=1)
        return found is not None

    def keys_of(name: str) -> ClientKeys:
        folder = tmp_path / "keys"
        return ClientKeys.read(folder / f"{name}.secret", folder / "line.public")

    try:
        assert ask(keys_of("mes"))
        for keys in (keys_of("stranger"), None):
            with pytest.raises(ControlError, match="no answer"):
                ask(keys)
    finally:
        server.close()
        gate.close()
        context.term()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no answer within 0\.2 s"):
        fetch_picture(f"ipc://{tmp_path}/none", "left", 1, 3, timeout_s=0.2)
    with pytest.raises(ConfigError, match="endpoint"):
        fetch_picture("carrier://pigeon", "left", 1, 3)


# The command


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A station that does not run, with a failed frame in journal and recordings."""
    name = "line-1"
    config = {
        "station": name,
        "state_dir": str(tmp_path / "state"),
        "cameras": {"cam0": {"source": {"kind": "synthetic"}}},
        "worker": {"runtime": "null"},
        "recording": {"folder": str(tmp_path / "recordings")},
    }
    file = tmp_path / "station.yaml"
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "state").mkdir()
    path = recording_path(tmp_path / "recordings" / name / "cam0", 1, 1)
    path.parent.mkdir(parents=True)
    writer = RecordingWriter(path, SHAPE, RecordingHead())
    known = RecordedFrame("cam0", 1, 1, 0, 0, "", "fail", "defect", 1.0, 0.5)
    writer.write(np.full(SHAPE, 128, np.uint8), known)
    writer.close()
    verdict = Verdict(
        name,
        "cam0",
        1,
        1,
        Label.FAIL,
        Reason.DEFECT,
        image_score=1.0,
        image_threshold=0.5,
        defects=(Defect((40, 30, 80, 60), 1000, 1.0),),
    )
    with contextlib.closing(Journal(Station.of(load(file)).journal)) as journal:
        journal.commit([(verdict, None)])
    return file


def test_the_command_draws_the_verdict(
    station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "frame.png"
    assert run(["evidence", str(station), "cam0/1/1", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["known"]
    assert (found["width"], found["height"]) == (160, 96)
    assert found["verdict"]["defects"] == [
        asdict(Defect((40, 30, 80, 60), 1000, 1.0)) | {"box_xyxy": [40, 30, 80, 60]}
    ]
    assert (decoded(out.read_bytes()) == 128).all()
    assert run(["evidence", str(station), "cam0/1/1", "--out", str(out), "--boxes"]) == 0
    drawn = decoded(out.read_bytes())
    assert drawn.shape[0] > 96
    assert (drawn[-96:] != 128).any()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["cam0/1/2"], 1, "no such frame in the recordings"),
        (["cam1/1/1"], 2, "expected one of cam0"),
        (["cam0-1-1"], 2, "expected CAMERA/EPOCH/FRAME_ID"),
        (["cam0/1/1", "--out", "a.bmp"], 2, "ends in .png or .jpg"),
        (["cam0/1/1", "--boxes", "--longest-px", "9"], 2, "--boxes found with"),
        (["cam0/1/1", "--out", "/proc/none.png"], 9, "cannot be written"),
        (["cam0/1/1", "--secret", "a.secret"], 2, "half of the keys"),
    ],
)
def test_the_command_says_what_is_wrong(
    station: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    assert run(["evidence", str(station), *arguments]) == code
    found = capsys.readouterr()
    assert words in found.out + found.err


def test_a_bare_install_fetches(server: Server) -> None:
    """With pyzmq and msgpack alone."""
    write(server.folder, 3)
    program = (
        "import sys\n"
        "from pipeline.evidence import fetch_picture\n"
        f"found = fetch_picture({server.endpoint!r}, 'left', 1, 3)\n"
        "extra = {'numpy', 'cv2', 'pydantic', 'av', 'yaml'} & set(sys.modules)\n"
        "print(len(found.data), extra)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    size, extra = done.stdout.split(maxsplit=1)
    assert int(size) > 1000
    assert extra.strip() == "set()"
