"""The MQTT client: results to a broker, triggers from it. Topics and fields are in docs/plc.md.

    <prefix>/<station>/status     retained: offline (the last will), online, error or ready
    <prefix>/<station>/heartbeat  ten times a second, never retained: the counter, READY, ERROR, ...
    <prefix>/<station>/part       QoS 1, for the PLC: each result, as it comes and only then
    <prefix>/<station>/record     QoS 1, for records: every part since the cursor, in order
    <prefix>/<station>/trigger    from the PLC: {"trigger_id": 4711, "part_id": "A-17"}
    <prefix>/<station>/answer     what became of a trigger
    <prefix>/<station>/reset      from the PLC, any payload: forget what waits, and OVERRUN

A connection that is lost is made anew, with subscriptions of its own. The cursor of the records
moves when the broker has acknowledged; QoS 1 may deliver a message twice, and `seq` tells.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Final

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from pipeline.bridges.core import Fields, Refusal, Result
from pipeline.bridges.desk import POLL_MS, Desk
from pipeline.config.bridges import Bridge, MqttBridge
from pipeline.errors import ConfigError, LinewatchError
from pipeline.rarely import Rarely
from pipeline.station import Station
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import PartVerdict

_BEAT_S: Final = 0.1
_RETRY_S: Final = 1.0
_CONNECT_S: Final = 3.0
_KEEPALIVE_S: Final = 5
_MAX_REQUEST_BYTES: Final = 4096

log = logging.getLogger("bridge")


def serve(bridge: Bridge, station: Station, desk: Desk, stop: Callable[[], bool]) -> None:
    """Serve until `stop()`; a broker that is away is tried again and again.

    Raises `ConfigError` for a password or certificate that cannot be read.
    """
    assert isinstance(bridge, MqttBridge)
    told = False
    while not stop():
        session = Session(bridge, station, desk)
        try:
            session.run(stop)
        except OSError as error:
            if not told:  # once, and not every second
                log.warning("broker %s:%d: %s; trying again", bridge.host, bridge.port, error)
        told = not session.stood
        until = time.monotonic() + _RETRY_S
        while time.monotonic() < until and not stop():
            time.sleep(0.02)


class Session:
    """One connection to the broker."""

    def __init__(self, bridge: MqttBridge, station: Station, desk: Desk) -> None:
        self.stood = False
        """Whether the broker ever let it in."""
        self._bridge = bridge
        self._station = station
        self._desk = desk
        self._base = f"{bridge.prefix}/{station.config.station}"
        self._lost = threading.Event()
        self._joined = threading.Event()
        self._refused = ""
        self._status = ""
        self._beat_at = 0.0
        self._rarely = Rarely()
        self._client = self._make_client()

    def run(self, stop: Callable[[], bool]) -> None:
        """Publish until `stop()` or until the connection is lost. Raises `OSError` without one."""
        self._client.connect(self._bridge.host, self._bridge.port, _KEEPALIVE_S)
        self._client.loop_start()
        recorder = threading.Thread(target=self._record, name="record")
        try:
            if not self._joined.wait(_CONNECT_S) or self._refused:
                raise ConnectionError(self._refused or "the broker does not answer")
            self.stood = True
            log.info("broker %s:%d: connected", self._bridge.host, self._bridge.port)
            recorder.start()
            with self._desk.subscribe() as stream:
                while not stop() and not self._lost.is_set() and recorder.is_alive():
                    self._work(stream)
            if not self._lost.is_set():
                self._publish("status", "offline", retain=True).wait_for_publish(1)
        finally:
            self._lost.set()
            if recorder.ident is not None:
                recorder.join()
            self._client.disconnect()
            self._client.loop_stop()

    def _work(self, stream: Subscriber) -> None:
        """Results, state and heartbeat for the PLC."""
        self._desk.step(stream)
        for number, result in self._desk.new_results():
            self._publish("part", part_message(self._desk.look().session, number, result))
        fields = self._desk.look()
        status = "ready" if fields.ready else "error" if fields.error else "online"
        if status != self._status:
            self._status = status
            self._publish("status", status, retain=True)
        if time.monotonic() >= self._beat_at:
            self._beat_at = time.monotonic() + _BEAT_S
            self._client.publish(f"{self._base}/heartbeat", json.dumps(_beat(fields)), 0)

    def _record(self) -> None:
        """Records, in a thread of its own; a disk that is full keeps nothing from the PLC."""
        while not self._lost.is_set():
            try:
                self._publish_records()
            except LinewatchError as error:
                if self._rarely.due("record"):
                    log.error("records: %s", error)
                self._lost.wait(_RETRY_S)

    def _publish_records(self) -> None:
        """All parts in order; the cursor moves when the broker has them."""
        sent: deque[tuple[int, MQTTMessageInfo]] = deque()
        with self._desk.subscribe(durable=True) as stream:
            while not self._lost.is_set():
                event = None
                if len(sent) < self._bridge.queue:
                    event = stream.receive(timeout_ms=POLL_MS)
                else:
                    time.sleep(POLL_MS / 1000)
                if isinstance(event, PartVerdict):
                    sent.append((event.seq, self._publish("record", json.dumps(asdict(event)))))
                elif isinstance(event, Missed):
                    body = json.dumps({"missed": {"after": event.after, "upto": event.upto}})
                    sent.append((event.seq, self._publish("record", body)))
                done = 0
                while sent and sent[0][1].is_published():
                    done = sent.popleft()[0]
                if done:
                    stream.ack(done)

    def _publish(self, topic: str, payload: str, *, retain: bool = False) -> MQTTMessageInfo:
        return self._client.publish(f"{self._base}/{topic}", payload, 1, retain)

    def _make_client(self) -> Client:
        bridge = self._bridge
        client = Client(CallbackAPIVersion.VERSION2, f"linewatch-{self._station.config.station}")
        client.connect_timeout = _CONNECT_S
        client.max_inflight_messages_set(bridge.queue)
        client.will_set(f"{self._base}/status", "offline", 1, True)
        if bridge.user is not None and bridge.password_file is not None:
            client.username_pw_set(bridge.user, _password(Path(bridge.password_file)))
        if bridge.tls:
            try:
                client.tls_set(bridge.ca_file)
            except OSError as error:
                raise ConfigError(
                    f"ca_file {bridge.ca_file}: {error}; expected a PEM file"
                ) from error
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    # In the client's own thread

    def _on_connect(
        self,
        client: Client,
        data: object,
        flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refused = f"refused: {reason}"
        else:
            client.subscribe([(f"{self._base}/trigger", 1), (f"{self._base}/reset", 1)])
        self._joined.set()

    def _on_disconnect(
        self,
        client: Client,
        data: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._lost.set()

    def _on_message(self, client: Client, data: object, message: MQTTMessage) -> None:
        if message.retain:
            return  # of some earlier time: no part is under the camera for it
        if message.topic.endswith("/reset"):
            self._desk.reset()
            return
        try:
            trigger_id, part_id = read_trigger(bytes(message.payload))
        except ValueError as error:
            if self._rarely.due("trigger"):
                log.warning("trigger: %s", error)
            return

        def answered(answer: Future[Refusal]) -> None:
            body = {"trigger_id": trigger_id, "status": answer.result().name.lower()}
            self._publish("answer", json.dumps(body))

        self._desk.trigger(trigger_id, part_id).add_done_callback(answered)


def part_message(session: int, number: int, result: Result) -> str:
    """A result for the PLC. `verdict` is what may be acted upon."""
    verdict = result.verdict
    body = {
        "session": session,
        "number": number,
        "trigger_id": result.trigger_id,
        "part_id": result.part_id,
        "verdict": result.label.value,
        "reason": result.reason,
        "image_score": verdict.image_score if verdict else 0.0,
        "image_threshold": verdict.image_threshold if verdict else 0.0,
        "defects": [asdict(defect) for defect in result.defects],
        "seq": verdict.seq if verdict else 0,
    }
    return json.dumps(body)


def read_trigger(payload: bytes) -> tuple[int, str]:
    """Trigger and part id of a request. Raises `ValueError` for anything else."""
    if len(payload) > _MAX_REQUEST_BYTES:
        raise ValueError(f"{len(payload)} bytes found, expected at most {_MAX_REQUEST_BYTES}")
    try:
        found = json.loads(payload)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    match found:
        case {"trigger_id": int() as trigger_id, **rest} if not isinstance(
            trigger_id, bool
        ) and set(rest) <= {"part_id"}:
            part_id = rest.get("part_id", "")
            if isinstance(part_id, str):
                return trigger_id, part_id
    raise ValueError(f'{payload[:80]!r} found, expected {{"trigger_id": 1, "part_id": "text"}}')


def _beat(fields: Fields) -> dict[str, object]:
    return {
        "session": fields.session,
        "heartbeat": fields.heartbeat,
        "ready": fields.ready,
        "busy": fields.busy,
        "error": fields.error,
        "overrun": fields.overrun,
        "error_code": fields.error_code.name.lower(),
        "count": fields.count,
        "lost": fields.lost,
        "t_utc_ns": time.time_ns(),
    }


def _password(path: Path) -> str:
    """The first line. Raises `ConfigError` where others can read it, or nobody."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"password_file {path}: others may read it; expected mode 0600: chmod 600 {path}"
            )
        return path.read_text().split("\n", 1)[0]
    except OSError as error:
        raise ConfigError(f"password_file {path}: {error.strerror}") from error
