"""The OPC UA server: names after OPC 40100-1 (Machine Vision) as far as they go.

    VisionSystem
      VisionStateMachine
        CurrentState      Preoperational, Error, Ready or SingleExecution
        StartSingleJob(PartId, TriggerId) -> Status       Reset()
      ResultManagement
        Results/...       the newest result, invalid as soon as it is too old or the line is silent
      Diagnostics         Session, Heartbeat, Ready, Busy, Error, ErrorCode, Overrun, ...
      event ResultReadyEventType, with all of a result in its fields

Only encrypted channels of trusted certificates get in (`pipeline.bridges.certificates`).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from asyncua import Node, Server, ua
from asyncua.common.methods import uamethod
from asyncua.server.event_generator import EventGenerator

from pipeline.bridges.certificates import GuardedServer, own_certificate, read_trusted
from pipeline.bridges.core import INVALID, REASON_CODES, WORD, Fields, Refusal, Result
from pipeline.bridges.desk import Desk
from pipeline.config.bridges import Bridge, OpcUaBridge
from pipeline.errors import StationBusy
from pipeline.station import Station

NAMESPACE: Final = "urn:linewatch:vision"
_GLANCE_S: Final = 0.02

DIAGNOSTICS: Final = {
    "Session": ua.VariantType.UInt16,
    "Heartbeat": ua.VariantType.UInt16,
    "Ready": ua.VariantType.Boolean,
    "Busy": ua.VariantType.Boolean,
    "Error": ua.VariantType.Boolean,
    "ErrorCode": ua.VariantType.UInt16,
    "Overrun": ua.VariantType.Boolean,
    "ResultCount": ua.VariantType.UInt16,
    "Lost": ua.VariantType.UInt32,
}
RESULT: Final = {
    "Session": ua.VariantType.UInt16,
    "ResultNumber": ua.VariantType.UInt16,
    "TriggerId": ua.VariantType.UInt32,
    "PartId": ua.VariantType.String,
    "Verdict": ua.VariantType.UInt16,
    "Reason": ua.VariantType.UInt16,
    "ReasonText": ua.VariantType.String,
    "Score": ua.VariantType.Double,
    "Threshold": ua.VariantType.Double,
    "DefectCount": ua.VariantType.UInt32,
    "Boxes": ua.VariantType.Int32,
    "Seq": ua.VariantType.Int64,
}
"""Of an event, and under Results. Boxes: x0, y0, x1, y1 of each defect, one after the other."""

log = logging.getLogger("bridge")


def serve(bridge: Bridge, station: Station, desk: Desk, stop: Callable[[], bool]) -> None:
    """Serve until `stop()`. Raises `StationBusy` for an address that cannot be bound, and what
    `own_certificate` and `read_trusted` raise."""
    assert isinstance(bridge, OpcUaBridge)
    # What strangers send is theirs: it would fill the log, tracebacks and all.
    logging.getLogger("asyncua").setLevel(logging.CRITICAL)
    with desk.listening() as listens:
        asyncio.run(_serve(bridge, station, desk, lambda: stop() or not listens()))
        if not listens():
            raise RuntimeError("the stream is not read any more: see the log")


async def _serve(
    bridge: OpcUaBridge, station: Station, desk: Desk, stop: Callable[[], bool]
) -> None:
    server = await _make_server(bridge, station)
    nodes = await VisionNodes.make(server, desk)
    try:
        await server.start()
    except OSError as error:
        raise StationBusy(
            f"{bridge.host}:{bridge.port}: {error.strerror}; expected a free port on an address of "
            "this machine: choose another `port`, or stop its holder"
        ) from error
    log.info("OPC UA on opc.tcp://%s:%d/", bridge.host, bridge.port)
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(changed.set)

    desk.changed = wake
    try:
        while not stop():
            changed.clear()
            await nodes.update()
            try:
                await asyncio.wait_for(changed.wait(), _GLANCE_S)
            except TimeoutError:
                continue
    finally:
        desk.changed = lambda: None
        await server.stop()


async def _make_server(bridge: OpcUaBridge, station: Station) -> Server:
    trusted = read_trusted(Path(bridge.trusted)) if bridge.trusted else None
    server = Server() if bridge.insecure else GuardedServer(trusted)
    uri = f"urn:{socket.gethostname()}:linewatch:{station.config.station}"
    folder = Path(bridge.certificates) if bridge.certificates else station.state_dir / "opcua"
    certificate, key = own_certificate(folder, uri, socket.gethostname())
    await server.init()
    await server.set_application_uri(uri)
    server.set_server_name(f"linewatch {station.config.station}")
    server.set_endpoint(f"opc.tcp://{bridge.host}:{bridge.port}/")
    await server.load_certificate(certificate)
    await server.load_private_key(key)
    return server


class VisionNodes:
    """The nodes, and what they were last written. Used in the server's event loop alone."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._nodes: dict[str, Node] = {}
        self._written: dict[str, object] = {}
        self._event: EventGenerator

    @classmethod
    async def make(cls, server: Server, desk: Desk) -> VisionNodes:
        nodes = cls(desk)
        at = await server.register_namespace(NAMESPACE)
        system = await server.nodes.objects.add_object(
            _id(at, "VisionSystem"), _name(at, "VisionSystem")
        )
        machine = await nodes._add_folder(at, system, "VisionStateMachine")
        await nodes._add(at, machine, "VisionSystem.VisionStateMachine.CurrentState", "String")
        inputs = [
            ua.Argument("PartId", ua.NodeId(ua.Int32(ua.ObjectIds.String))),
            ua.Argument("TriggerId", ua.NodeId(ua.Int32(ua.ObjectIds.UInt32))),
        ]
        outputs = [ua.Argument("Status", ua.NodeId(ua.Int32(ua.ObjectIds.UInt16)))]
        path = "VisionSystem.VisionStateMachine"
        await machine.add_method(
            _id(at, f"{path}.StartSingleJob"),
            _name(at, "StartSingleJob"),
            nodes._start,
            inputs,
            outputs,
        )
        await machine.add_method(_id(at, f"{path}.Reset"), _name(at, "Reset"), nodes._reset, [], [])
        diagnostics = await nodes._add_folder(at, system, "Diagnostics")
        for name, kind in DIAGNOSTICS.items():
            await nodes._add(at, diagnostics, f"VisionSystem.Diagnostics.{name}", kind.name)
        management = await nodes._add_folder(at, system, "ResultManagement")
        results = await management.add_folder(
            _id(at, "VisionSystem.ResultManagement.Results"), _name(at, "Results")
        )
        for name, kind in RESULT.items():
            path = f"VisionSystem.ResultManagement.Results.{name}"
            await nodes._add(at, results, path, kind.name)
        event = await server.create_custom_event_type(
            at, "ResultReadyEventType", properties=list(RESULT.items())
        )
        nodes._event = await server.get_event_generator(event.nodeid, system.nodeid)
        return nodes

    async def update(self) -> None:
        """Write what has changed; an event for each new result."""
        for number, result in self._desk.new_results():
            values = result_values(self._desk.look().session, number, result)
            for name, value in values.items():
                setattr(self._event.event, name, ua.Variant(value, RESULT[name]))
            await self._event.trigger(message=f"{result.label} {result.part_id}")
        fields = self._desk.look()
        now: dict[str, object] = {"VisionSystem.VisionStateMachine.CurrentState": state_of(fields)}
        for name, value in zip(DIAGNOSTICS, _diagnostics(fields), strict=True):
            now[f"VisionSystem.Diagnostics.{name}"] = value
        if fields.result is not None:
            number = (fields.ack + 1) % WORD
            for name, value in result_values(fields.session, number, fields.result).items():
                now[f"VisionSystem.ResultManagement.Results.{name}"] = value
        elif "VisionSystem.ResultManagement.Results.Verdict" in self._written:
            now["VisionSystem.ResultManagement.Results.Verdict"] = INVALID
        for path, value in now.items():
            if self._written.get(path) != value:
                self._written[path] = value
                kind = await self._nodes[path].read_data_type_as_variant_type()
                await self._nodes[path].write_value(ua.Variant(value, kind))

    @uamethod
    async def _start(self, parent: object, part_id: object, trigger_id: object) -> Any:
        status = Refusal.BAD_ID  # the library lets arguments of any type through
        if type(trigger_id) is int and isinstance(part_id, str | None):
            status = await asyncio.wrap_future(self._desk.trigger(trigger_id, part_id or ""))
        return ua.Variant(int(status), ua.VariantType.UInt16)

    @uamethod
    def _reset(self, parent: object) -> None:
        self._desk.reset()

    async def _add_folder(self, at: int, parent: Node, name: str) -> Node:
        return await parent.add_object(_id(at, f"VisionSystem.{name}"), _name(at, name))

    async def _add(self, at: int, parent: Node, path: str, kind: str) -> None:
        variant = ua.VariantType[kind]
        first: object = {"String": "", "Boolean": False}.get(kind, 0)
        if path.endswith("Boxes"):
            first = []
        self._nodes[path] = await parent.add_variable(
            _id(at, path), _name(at, path.rpartition(".")[2]), ua.Variant(first, variant)
        )


def _id(namespace: int, path: str) -> ua.NodeId:
    return ua.NodeId(ua.String(path), ua.Int16(namespace))


def _name(namespace: int, name: str) -> ua.QualifiedName:
    return ua.QualifiedName(name, ua.UInt16(namespace))


def state_of(fields: Fields) -> str:
    """The state of the machine vision state machine that fits."""
    if fields.error:
        return "Error"
    if not fields.ready:
        return "Preoperational"
    return "SingleExecution" if fields.busy else "Ready"


def _diagnostics(fields: Fields) -> list[object]:
    """In the order of `DIAGNOSTICS`."""
    return [
        fields.session,
        fields.heartbeat,
        fields.ready,
        fields.busy,
        fields.error,
        int(fields.error_code),
        fields.overrun,
        fields.count,
        fields.lost,
    ]


def result_values(session: int, number: int, result: Result) -> dict[str, object]:
    """A result as the fields of `RESULT`."""
    verdict = result.verdict
    return {
        "Session": session,
        "ResultNumber": number,
        "TriggerId": result.trigger_id % 2**32,
        "PartId": result.part_id,
        "Verdict": result.code,
        "Reason": REASON_CODES.get(result.reason, REASON_CODES["unknown"]),
        "ReasonText": result.reason,
        "Score": verdict.image_score if verdict else 0.0,
        "Threshold": verdict.image_threshold if verdict else 0.0,
        "DefectCount": len(result.defects),
        "Boxes": [edge for defect in result.defects for edge in defect.box_xyxy],
        "Seq": verdict.seq if verdict else 0,
    }
