"""Each bridge with a simulated PLC: what passes the gate, undisturbed and with kills at random."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from paho.mqtt.client import Client as Mqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from plc_cell import ROOT, Cell, saboteur
from plc_line import good
from ports import free_port

from pipeline.bridges.mqtt import read_trigger
from pipeline.catch_up import CatchUp
from pipeline.config import load
from pipeline.journal import Journal
from pipeline.publish import Publisher
from pipeline.types import Label, Reason, Verdict
from pipeline.verdicts import part_of
from tools.plc_links import ModbusLink, MqttLink
from tools.plc_machine import Link, Plc
from tools.plc_opcua import OpcUaLink

MOSQUITTO = "/usr/sbin/mosquitto"
PATIENCE_S = 30.0
KILLED_PARTS = 250


@contextlib.contextmanager
def broker(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    if not os.access(MOSQUITTO, os.X_OK):
        if os.environ.get("LINEWATCH_NEEDS_MOSQUITTO"):
            pytest.fail(f"no {MOSQUITTO}, and LINEWATCH_NEEDS_MOSQUITTO is set")
        pytest.skip(f"no {MOSQUITTO} here: apt install mosquitto")
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen([MOSQUITTO, "-c", str(settings)], stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.02)
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def bridged(
    kind: str, folder: Path, odd_share: float, more: str = ""
) -> Iterator[tuple[Cell, Link]]:
    """A cell that runs, and the PLC's end. more: of the bridge's configuration."""
    port = free_port()
    cell = Cell(folder, f"{{kind: {kind}, port: {port}{more}}}", odd_share)
    with contextlib.ExitStack() as stack:
        link: Link
        if kind == "mqtt":
            stack.enter_context(broker(folder, port))
            link = MqttLink("127.0.0.1", port, "cell")
        elif kind == "opcua":
            link = OpcUaLink("127.0.0.1", port, folder / "client")
        else:
            link = ModbusLink("127.0.0.1", port)
        stack.enter_context(cell.running())
        yield cell, link


KINDS = ["modbus", "opcua", "mqtt"]


@pytest.mark.parametrize("kind", KINDS)
def test_undisturbed(kind: str, tmp_path: Path) -> None:
    patient = ", stale_ms: 5000, max_age_ms: 20000"  # a slow machine is no fault of the bridge
    with bridged(kind, tmp_path, 0.0, patient) as (cell, link):
        tally = cell.run_plc(link, 60, rate=20.0, gate_ms=3000.0, watchdog_ms=5000.0)
    assert tally.wrong == 0, tally
    assert tally.parts == tally.passed + tally.rejected == 60
    assert tally.good >= 40
    assert tally.good_passed >= tally.good - 3, tally
    assert "Traceback" not in cell.log.read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_that_answers_oddly(kind: str, tmp_path: Path) -> None:
    with bridged(kind, tmp_path, 0.6) as (cell, link):
        tally = cell.run_plc(link, 100, rate=25.0)
    assert tally.wrong == 0, tally
    assert tally.missing > 0
    assert tally.good_passed > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random(kind: str, tmp_path: Path) -> None:
    """Not one wrong pass; and when the killing is over, parts pass as before."""
    pause_s = (2.0, 4.0) if kind == "opcua" else (0.5, 2.0)  # OPC UA needs a second to start
    with bridged(kind, tmp_path, 0.2) as (cell, link):
        plc = Plc(link, rate=20.0, gate_ms=700.0, watchdog_ms=500.0, truth=good)
        with saboteur(cell, 7, pause_s) as killed:
            tally = plc.run(KILLED_PARTS, start_s=60.0)
        assert {"line", "bridge"} <= set(killed)
        assert tally.wrong == 0, tally
        assert tally.parts == tally.passed + tally.rejected == KILLED_PARTS
        assert tally.rejected >= KILLED_PARTS - tally.good
        after = cell.run_plc(link, 30, rate=20.0, gate_ms=2000.0)
    assert after.wrong == 0, after
    assert after.good_passed > 0, after


@pytest.mark.parametrize("kind", KINDS)
def test_a_bridge_that_is_not_there(kind: str, tmp_path: Path) -> None:
    """Silence is reject."""
    port = free_port()
    link: Link = {
        "modbus": lambda: ModbusLink("127.0.0.1", port),
        "opcua": lambda: OpcUaLink("127.0.0.1", port, tmp_path),
        "mqtt": lambda: MqttLink("127.0.0.1", port, "cell"),
    }[kind]()
    tally = Plc(link, rate=100.0, gate_ms=50.0, truth=lambda trigger_id: True).run(5, start_s=0.2)
    assert (tally.parts, tally.passed, tally.rejected) == (5, 0, 5)
    assert tally.why == {"not ready": 5}


def test_the_simulator_from_the_command_line(tmp_path: Path) -> None:
    with bridged("modbus", tmp_path, 0.0) as (cell, _):
        port = cell.config.read_text().rpartition("port: ")[2].partition("}")[0]
        arguments = ["modbus", "--port", port, "--parts", "10", "--rate", "20", "--json"]
        answer = subprocess.run(
            [sys.executable, "-m", "tools.plc_sim", *arguments, "--truth", "plc_line:good"],
            capture_output=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests/pipeline")},
        )
    tally = json.loads(answer.stdout)
    assert tally["parts"] == 10
    assert tally["wrong"] == 0


# MQTT


class Listener:
    """All messages of a station, in order."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        self.joined = threading.Event()
        self.client = Mqtt(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._hear
        self.client.connect("127.0.0.1", port)
        self.client.on_subscribe = lambda *rest: self.joined.set()
        self.client.subscribe("linewatch/cell/#", 1)
        self.client.loop_start()
        assert self.joined.wait(PATIENCE_S)

    def _hear(self, client: Mqtt, data: object, message: MQTTMessage) -> None:
        topic = message.topic.removeprefix("linewatch/cell/")
        self.heard.append((topic, bytes(message.payload), message.retain))

    def statuses(self) -> list[str]:
        return [payload.decode() for topic, payload, _ in self.heard if topic == "status"]

    def bodies(self, wanted: str) -> list[dict[str, object]]:
        return [json.loads(payload) for topic, payload, _ in self.heard if topic == wanted]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_status_is_retained_and_the_last_will_is_offline(tmp_path: Path) -> None:
    port = free_port()
    cell = Cell(tmp_path, f"{{kind: mqtt, port: {port}, results: all}}")
    with broker(tmp_path, port), cell.running():
        listener = Listener(port)
        until(lambda: listener.statuses()[-1:] == ["ready"])
        late = Listener(port)
        until(lambda: bool(late.statuses()))
        assert late.heard[0] == ("status", b"ready", True)
        cell.kill("line")
        until(lambda: listener.statuses()[-1] == "error")
        cell.kill("bridge")
        until(lambda: listener.statuses()[-1] == "offline")
        late.close()
        listener.close()


def test_parts_and_what_is_no_trigger(tmp_path: Path) -> None:
    port = free_port()
    cell = Cell(tmp_path, f"{{kind: mqtt, port: {port}}}")
    with broker(tmp_path, port), cell.running():
        listener = Listener(port)
        until(lambda: listener.statuses()[-1:] == ["ready"])
        for bad in (b"", b"{", b"[" * 4000, b"x" * 5000, b'{"trigger_id": "1"}', b"\xff" * 20):
            listener.client.publish("linewatch/cell/trigger", bad, 1)
        for trigger_id in (1, 2, 2, 3):
            body = json.dumps({"trigger_id": trigger_id, "part_id": f"p{trigger_id}"})
            listener.client.publish("linewatch/cell/trigger", body, 1)
        until(lambda: len(listener.bodies("part")) == 3)
        answers = [json.loads(body) for topic, body, _ in listener.heard if topic == "answer"]
        assert sorted((one["trigger_id"], one["status"]) for one in answers) == [
            (1, "accepted"),
            (2, "accepted"),
            (2, "used_id"),
            (3, "accepted"),
        ]
        for part in listener.bodies("part"):
            number = part["trigger_id"]
            assert isinstance(number, int)
            assert part["verdict"] == ("pass" if good(number) else "fail")
            assert part["part_id"] == f"p{number}"
        listener.close()


def test_records_are_complete_and_in_order(tmp_path: Path) -> None:
    """Bridge and broker are killed while parts are published: each is there, repeated at most."""
    port = free_port()
    cell = Cell(tmp_path, f"{{kind: mqtt, port: {port}, queue: 7}}")
    publish = load(cell.config).publish
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        journal = stack.enter_context(contextlib.closing(Journal(tmp_path / "journal.sqlite")))
        gate = None
        publisher = Publisher(context, publish.endpoint, 50, gate)
        stack.callback(publisher.close)
        rows = CatchUp(context, publish.replay, tmp_path / "journal.sqlite", gate)
        stack.callback(rows.close)
        frames = itertools.count(1)

        def go_on(parts: int) -> None:
            """The line's work: some parts, a heartbeat, and answers to who asks."""
            for _ in range(parts):
                frame = Verdict("cell", "cam", 1, next(frames), Label.PASS, Reason.OK)
                publisher.publish(journal.commit([(frame, part_of(frame))]))
            publisher.heartbeat(journal.stream_id, journal.last, ready=True)
            rows.answer(10)

        def live_until(condition: Callable[[], bool]) -> None:
            def look() -> bool:
                go_on(0)
                return condition()

            until(look)

        cursor = tmp_path / "state" / "bridge.cell.cursor"
        told: list[int] = []

        def up_to_date(listener: Listener) -> bool:
            records = listener.bodies("record")
            return bool(records) and records[-1]["seq"] == journal.last["part/"]

        def live(*, last: bool) -> None:
            """A life of broker and bridge, which ends while parts are on their way."""
            with broker(tmp_path, port):
                listener = Listener(port)
                cell.start("bridge")
                live_until(lambda: listener.statuses()[-1:] == ["ready"] and cursor.exists())
                for _ in range(20):
                    go_on(5)
                if last:
                    live_until(lambda: up_to_date(listener))
                cell.kill("bridge")
                # What the broker has acknowledged is heard before this.
                listener.client.publish("linewatch/cell/end", b"", 1)
                until(lambda: listener.heard[-1][0] == "end")
                told.extend(int(str(body["seq"])) for body in listener.bodies("record"))
                listener.close()
            go_on(5)  # while nobody listens

        stack.callback(lambda: cell.kill("bridge"))
        for life in range(4):
            live(last=life == 3)
    new = list(dict.fromkeys(told))
    assert new == sorted(new)
    assert new == list(range(new[0], new[0] + 2 * len(new), 2))
    assert len(new) >= 4 * 100


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[1]",
        b'{"trigger_id": true}',
        b'{"trigger_id": 1.5}',
        b'{"trigger_id": 1, "part_id": 2}',
        b'{"trigger_id": 1, "more": 2}',
        b'{"part_id": "a"}',
        b"[" * 4000,
        b" " * 4097,
        b"\xff",
    ],
)
def test_requests_that_are_none(payload: bytes) -> None:
    with pytest.raises(ValueError):
        read_trigger(payload)


def test_requests() -> None:
    assert read_trigger(b'{"trigger_id": 7}') == (7, "")
    assert read_trigger(b'{"trigger_id": 7, "part_id": "A"}') == (7, "A")
