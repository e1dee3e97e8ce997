"""The control socket: what is asked is done once, and what is no request changes nothing."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from pipeline.config import LineConfig
from pipeline.control import MAX_BYTES, Control, pack, unpack
from pipeline.control_server import ControlServer, counts_of, targets_of
from pipeline.errors import ConfigError, ControlError
from pipeline.parts import PartTable
from pipeline.station import Station
from pipeline.triggers import RECORDS, TriggerLog

CAMERA = {"source": {"kind": "synthetic"}, "trigger": {"mode": "hardware"}}
ENCODER = {"source": {"kind": "synthetic"}, "trigger": {"mode": "encoder", "counts": 100}}
FREE = {"source": {"kind": "synthetic"}}


class Line:
    """A control socket and its triggers, without the stages."""

    def __init__(self, folder: Path, cameras: dict[str, Any], parts: dict[str, Any]) -> None:
        config = LineConfig.model_validate(
            {
                "station": "control",
                "run_dir": str(folder / "run"),
                "state_dir": str(folder / "state"),
                "cameras": cameras,
                "parts": parts,
            }
        )
        self.ready = True
        self.station = Station.of(config)
        self.station.run_dir.mkdir()
        self.log = TriggerLog(folder / "triggers", create_epoch=1)
        self.server = ControlServer(self.station, self.log, lambda: {"ready": self.ready, "x": 5})

    def close(self) -> None:
        self.server.close()
        self.log.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    cameras = {"a": CAMERA, "b": CAMERA, "c": CAMERA, "e": ENCODER, "free": FREE}
    line = Line(tmp_path, cameras, {"box": {"views": {"a": 1, "b": 1}}})
    yield line
    line.close()


@pytest.fixture
def control(line: Line) -> Iterator[Control]:
    with Control(line.station.control) as control:
        yield control


def test_a_trigger_is_written_before_it_is_answered(line: Line, control: Control) -> None:
    assert control.trigger("box", trigger_id=2**32 - 1, part_id="Ü" * 32, timeout_ms=5000) > 0
    trigger = line.log.get(1)
    assert trigger is not None
    assert (trigger.target, trigger.trigger_id, trigger.part_id) == ("box", 2**32 - 1, "Ü" * 32)
    assert control.trigger("c", timeout_ms=5000) == 0
    assert line.log.last == 2


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"do": "trigger", "target": "a"}, "target"),  # its part is triggered
        ({"do": "trigger", "target": "free"}, "target"),
        ({"do": "trigger", "target": "nobody"}, "target"),
        ({"do": "trigger", "target": ["box"]}, "target"),
        ({"do": "trigger"}, "target"),  # there are several
        ({"do": "trigger", "target": "c", "trigger_id": -1}, "trigger_id"),
        ({"do": "trigger", "target": "c", "trigger_id": 2**32}, "trigger_id"),
        ({"do": "trigger", "target": "c", "trigger_id": True}, "trigger_id"),
        ({"do": "trigger", "target": "c", "trigger_id": "7"}, "trigger_id"),
        ({"do": "trigger", "target": "c", "part_id": "x" * 65}, "part_id"),
        ({"do": "trigger", "target": "c", "part_id": 5}, "part_id"),
        ({"do": "encoder", "target": "c", "count": 5}, "encoder"),
        ({"do": "encoder", "target": "e", "count": 1.5}, "count"),
        ({"do": "encoder", "target": "e"}, "count"),
        ({"do": "explode"}, "do"),
        ({}, "do"),
    ],
)
def test_what_is_refused(line: Line, control: Control, request_: dict[str, Any], word: str) -> None:
    with pytest.raises(ControlError, match=word):
        control.ask(request_, 5000)
    assert line.log.last == 0
    assert line.server.complaints.count == 1


def test_a_line_that_is_not_ready_takes_no_trigger(line: Line, control: Control) -> None:
    line.ready = False
    with pytest.raises(ControlError, match="not ready"):
        control.trigger("box", timeout_ms=5000)
    with pytest.raises(ControlError, match="not ready"):
        control.encoder(5, "e", timeout_ms=5000)
    assert line.log.last == 0
    assert control.status(timeout_ms=5000)["ready"] is False


def test_an_encoder_triggers_at_each_multiple_of_its_counts(line: Line, control: Control) -> None:
    made = [control.encoder(count, "e", timeout_ms=5000) for count in (950, 999, 1000, 1001, 1350)]
    assert made == [0, 0, 1, 0, 3]
    triggers = [line.log.get(index) for index in (1, 2, 3, 4)]
    assert [t.trigger_id for t in triggers if t] == [10, 11, 12, 13]
    assert control.encoder(1100, "e", timeout_ms=5000) == 0  # backwards
    with pytest.raises(ControlError, match="leap"):
        control.encoder(10**9, "e", timeout_ms=5000)
    assert control.encoder(10**9 + 100, "e", timeout_ms=5000) == 1


def test_a_leap_over_several_multiples_asks_for_a_picture_of_the_last(
    line: Line, control: Control
) -> None:
    """The belt has passed the others: they are older than any trigger that still gets a frame."""
    control.encoder(0, "e", timeout_ms=5000)
    before = time.monotonic_ns()
    assert control.encoder(350, "e", timeout_ms=5000) == 3
    *passed, last = [line.log.get(index) for index in (1, 2, 3)]
    assert last is not None
    assert last.t_ns >= before
    timeout_ms = line.station.config.cameras["e"].trigger.timeout_ms
    latest = time.monotonic_ns() - timeout_ms * 1e6
    assert [t.trigger_id for t in passed if t and t.t_ns < latest] == [1, 2]


def test_multiples_that_pass_while_the_line_is_not_ready_are_not_made_up_for(
    line: Line, control: Control
) -> None:
    """No picture of those parts can be taken any more."""
    control.encoder(50, "e", timeout_ms=5000)
    line.ready = False
    for place in range(1, 31):
        with pytest.raises(ControlError, match="not ready"):
            control.encoder(100 * place, "e", timeout_ms=5000)
    line.ready = True
    assert control.encoder(3010, "e", timeout_ms=5000) == 0
    assert control.encoder(3100, "e", timeout_ms=5000) == 1


def test_a_belt_that_trembles_on_a_multiple_triggers_once(line: Line, control: Control) -> None:
    counts = (99, 100, 99, 100, 99, 100, 200, 199, 200)
    assert [control.encoder(count, "e", timeout_ms=5000) for count in counts] == [
        *(0, 1, 0, 0, 0, 0),
        *(1, 0, 0),
    ]


def test_each_trigger_that_is_taken_has_its_part_and_others_are_refused(
    line: Line, control: Control
) -> None:
    """There is no room for more until decision has given verdicts."""
    table = PartTable(line.station.config, line.log)
    control.encoder(0, "e", timeout_ms=5000)
    taken = sum(control.encoder(100_000 * n, "e", timeout_ms=5000) for n in range(1, 5))
    with pytest.raises(ControlError, match="does not keep up"):
        control.encoder(500_000, "e", timeout_ms=5000)
    while taken < RECORDS:
        control.trigger("box", timeout_ms=5000)
        taken += 1
    with pytest.raises(ControlError, match=f"{RECORDS} triggers without a verdict"):
        control.trigger("box", timeout_ms=5000)
    table.admit()
    assert len(table.due(10**18)) == taken
    table.committed()
    control.trigger("box", timeout_ms=5000)
    assert line.log.last == RECORDS + 1


def test_status_says_what_the_line_says(line: Line, control: Control) -> None:
    status = control.status(timeout_ms=5000)
    assert (status["ready"], status["x"], status["refused"]) == (True, 5, 0)


def test_nobody_there(tmp_path: Path) -> None:
    with (
        Control(f"ipc://{tmp_path}/nobody") as control,
        pytest.raises(ControlError, match="no ans"),
    ):
        control.status(timeout_ms=50)
    with pytest.raises(ConfigError, match="endpoint"):
        Control("tcp://")


def test_fuzz(line: Line, control: Control) -> None:
    """10,000 broken messages: refused and counted, and the next good one is answered."""
    rng = random.Random(1)
    good = pack({"id": 1, "do": "trigger", "target": "box", "trigger_id": 5})
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 5000)
    dealer.setsockopt(zmq.SNDHWM, 0)
    dealer.setsockopt(zmq.RCVHWM, 0)
    dealer.connect(line.station.control)
    taken = answers = 0
    for number in range(10_000):
        body = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            match rng.randrange(3):
                case 0:
                    body[rng.randrange(len(body))] = rng.randrange(256)
                case 1:
                    del body[rng.randrange(len(body)) :]
                    body += rng.randbytes(rng.randrange(1, 20))
                case _:
                    body.insert(rng.randrange(len(body)), rng.randrange(256))
        parts = [bytes(body)] * rng.choice([1, 1, 1, 1, 5])
        dealer.send_multipart(parts)
        # Answers are read now and then, as a careless client does.
        while number % 100 == 99 and dealer.poll(0):
            taken += unpack(dealer.recv())["ok"]
            answers += 1
    while answers < 10_000 and dealer.poll(5000):
        taken += unpack(dealer.recv())["ok"]
        answers += 1
    dealer.close(0)
    assert control.status(timeout_ms=10_000)["ok"] is True
    assert line.log.last == taken
    for index in range(1, taken + 1):
        trigger = line.log.get(index)
        assert trigger is not None
        assert trigger.target == "box"
    assert line.server.complaints.count > 5000


def test_a_message_that_is_too_large_ends_its_connection_alone(
    line: Line, control: Control
) -> None:
    dealer = zmq.Context.instance().socket(zmq.DEALER)
    dealer.connect(line.station.control)
    dealer.send(b"x" * (MAX_BYTES + 1))
    assert not dealer.poll(200)
    dealer.close(0)
    assert control.status(timeout_ms=5000)["ok"] is True


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91" * 600,
        msgpack.packb([1, 2]),
        msgpack.packb({"v": 2}),
        msgpack.packb({"v": True}),
        msgpack.packb({1: 2, "v": 1}),
        msgpack.packb({"v": 1, "x": "y" * 257}),
        msgpack.packb({"v": 1, "x": "y" * MAX_BYTES}),
    ],
)
def test_what_is_no_message(body: bytes) -> None:
    with pytest.raises(ControlError):
        unpack(body)


def test_targets_and_counts() -> None:
    config = LineConfig.model_validate(
        {
            "station": "x",
            "cameras": {"a": ENCODER, "b": ENCODER, "c": FREE},
            "parts": {"box": {"views": {"a": 1}}, "web": {"views": {"c": 1}}},
        }
    )
    assert list(targets_of(config)) == ["box", "b"]
    assert counts_of(config) == {"a": 100, "b": 100, "box": 100}
