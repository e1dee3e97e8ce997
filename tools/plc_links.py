"""The PLC's end of each protocol, for `tools.plc_machine`."""

from __future__ import annotations

import argparse
import json
import queue
import threading
import time
from collections import deque
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from pymodbus import ModbusException
from pymodbus.client import ModbusTcpClient

from pipeline.bridges import registers as reg
from pipeline.bridges.core import PASS, WORD, Refusal
from tools.plc_machine import Answer, Link, LinkError, View

_TIMEOUT_S = 0.3


class ModbusLink:
    """Polls all registers at once."""

    def __init__(self, host: str, port: int, unit: int = 1) -> None:
        # Without a limit and with its three retries the client takes 12 s to notice a dead server.
        self._client = ModbusTcpClient(
            host, port=port, timeout=_TIMEOUT_S, retries=0, reconnect_delay=0
        )
        self._unit = unit
        self._words = [0] * reg.SIZE

    def connect(self) -> None:
        if not self._client.connect():  # type: ignore[no-untyped-call]  # as the library has it
            raise LinkError("nobody there")

    def look(self) -> View:
        words = self._words = self._read()
        if words[reg.VERSION] != reg.MAP_VERSION:
            raise LinkError(f"register map {words[reg.VERSION]} found, expected {reg.MAP_VERSION}")
        answer = Answer(
            words[reg.RESULT_NUMBER],
            reg.number(*words[reg.RESULT_TRIGGER_ID : reg.RESULT_TRIGGER_ID + 2]),
            words[reg.VERDICT] == PASS,
        )
        return View(
            session=words[reg.SESSION],
            heartbeat=words[reg.HEARTBEAT],
            ready=words[reg.READY] == 1,
            error=words[reg.ERROR] != 0,
            overrun=words[reg.OVERRUN] != 0,
            answers=(answer,) if words[reg.RESULT_COUNT] != words[reg.RESULT_ACK] else (),
        )

    def trigger(self, trigger_id: int, part_id: str) -> bool:
        ack = self._words[reg.TRIGGER_ACK]
        session = self._words[reg.SESSION]
        wish = (ack + 1) % WORD
        words = [wish, *reg.two_words(trigger_id), *reg.text_words(part_id)]
        if not self._write(reg.TRIGGER, words):
            return False
        until = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < until:
            self._words = self._read()
            if self._words[reg.SESSION] != session:
                return False
            if self._words[reg.TRIGGER_ACK] == wish:
                return self._words[reg.TRIGGER_STATUS] == Refusal.ACCEPTED
            time.sleep(0.001)
        return False

    def acknowledge(self, number: int) -> None:
        self._write(reg.ACKNOWLEDGE, [number])

    def reset(self) -> None:
        self._write(reg.RESET, [0])
        self._write(reg.RESET, [1])

    def close(self) -> None:
        self._client.close()  # type: ignore[no-untyped-call]  # as the library has it

    def _read(self) -> list[int]:
        try:
            answer = self._client.read_input_registers(0, count=reg.SIZE, device_id=self._unit)
        except (ModbusException, OSError) as error:
            raise LinkError(str(error)) from error
        if answer.isError() or len(answer.registers) != reg.SIZE:
            raise LinkError(f"{answer} found, expected {reg.SIZE} registers")
        return list(answer.registers)

    def _write(self, address: int, words: list[int]) -> bool:
        try:
            answer = self._client.write_registers(address, words, device_id=self._unit)
        except (ModbusException, OSError) as error:
            raise LinkError(str(error)) from error
        return not answer.isError()


class MqttLink:
    """Hears parts and heartbeats from a broker; asks there for triggers."""

    def __init__(self, host: str, port: int, station: str, prefix: str = "linewatch") -> None:
        self._host, self._port = host, port
        self._base = f"{prefix}/{station}"
        self._heard: queue.SimpleQueue[MQTTMessage] = queue.SimpleQueue()
        self._answers: deque[Answer] = deque()
        self._accepted: dict[int, bool] = {}
        self._beat: dict[str, object] | None = None
        self._status = ""
        self._client: Client | None = None

    def connect(self) -> None:
        self.close()
        joined = threading.Event()
        client = Client(CallbackAPIVersion.VERSION2)
        client.connect_timeout = _TIMEOUT_S
        client.on_message = lambda client, data, message: self._heard.put(message)
        client.on_connect = lambda client, *rest: client.subscribe(f"{self._base}/+", 1)
        client.on_subscribe = lambda *rest: joined.set()
        try:
            client.connect(self._host, self._port, 5)
        except OSError as error:
            raise LinkError(str(error)) from error
        client.loop_start()
        self._client = client
        if not joined.wait(2):
            raise LinkError("the broker does not answer")

    def look(self) -> View:
        if self._client is None or not self._client.is_connected():
            raise LinkError("the connection to the broker is lost")
        self._read()
        beat = self._beat or {}
        return View(
            session=int(str(beat.get("session", 0))),
            heartbeat=int(str(beat.get("heartbeat", 0))),
            ready=self._status == "ready" and beat.get("ready") is True,
            error=self._status != "ready" or beat.get("error") is not False,
            overrun=beat.get("overrun") is True,
            answers=tuple(self._answers),
        )

    def trigger(self, trigger_id: int, part_id: str) -> bool:
        body = {"trigger_id": trigger_id, "part_id": part_id}
        self._publish("trigger", json.dumps(body))
        until = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < until:
            self._read()
            if trigger_id in self._accepted:
                return self._accepted.pop(trigger_id)
            time.sleep(0.001)
        return False

    def acknowledge(self, number: int) -> None:
        self._answers.popleft()

    def reset(self) -> None:
        self._publish("reset", "1")

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
        self._client, self._beat, self._status = None, None, ""

    def _publish(self, topic: str, text: str) -> None:
        if self._client is None or not self._client.is_connected():
            raise LinkError("the connection to the broker is lost")
        self._client.publish(f"{self._base}/{topic}", text, 1)

    def _read(self) -> None:
        while not self._heard.empty():
            message = self._heard.get()
            topic = message.topic.removeprefix(f"{self._base}/")
            if topic == "status":
                self._status = bytes(message.payload).decode()
                continue
            if topic not in ("part", "heartbeat", "answer"):
                continue
            body = json.loads(message.payload)
            if topic == "heartbeat":
                self._beat = body
            elif topic == "answer":
                self._accepted[body["trigger_id"]] = body["status"] == "accepted"
            elif self._beat is not None and body["session"] == self._beat["session"]:
                passed = body["verdict"] == "pass"
                self._answers.append(Answer(0, body["trigger_id"], passed))


def open_link(options: argparse.Namespace) -> Link:
    """The link that the command line asks for."""
    if options.protocol == "opcua":
        from tools.plc_opcua import OpcUaLink

        folder = Path(options.certificates or Path.home() / ".local/state/linewatch/plc-sim")
        return OpcUaLink(options.host, options.port or 4840, folder)
    if options.protocol == "mqtt":
        return MqttLink(options.host, options.port or 1883, options.station, options.prefix)
    return ModbusLink(options.host, options.port or 5020, options.unit)
