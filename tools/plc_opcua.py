"""The PLC's end of the OPC UA bridge, for `tools.plc_machine`."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncua import ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.sync import Client

from pipeline.bridges.certificates import own_certificate
from pipeline.bridges.core import PASS, Refusal
from pipeline.bridges.opcua import NAMESPACE
from tools.plc_machine import Answer, LinkError, View

_TIMEOUT_S = 1.0


class OpcUaLink:
    """Hears events of results, reads the state, calls the methods; signed and encrypted."""

    def __init__(self, host: str, port: int, certificates: Path) -> None:
        """certificates: folder of the client's own, made when there is none."""
        self._url = f"opc.tcp://{host}:{port}/"
        self._uri = f"urn:{socket.gethostname()}:linewatch:plc-sim"
        self._own = own_certificate(certificates, self._uri, socket.gethostname(), client=True)
        self._client: Client | None = None
        self._heard: deque[tuple[int, Answer]] = deque()
        self._watched: list[Any] = []
        self._machine: Any = None

    def connect(self) -> None:
        self.close()
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)
        client = Client(self._url, timeout=_TIMEOUT_S)
        try:
            client.application_uri = self._uri
            client.set_security(SecurityPolicyBasic256Sha256, str(self._own[0]), str(self._own[1]))
            client.connect()
            self._client = client
            at = client.get_namespace_index(NAMESPACE)

            def node(path: str) -> Any:
                return client.get_node(ua.NodeId(ua.String(f"VisionSystem{path}"), ua.Int16(at)))

            self._machine = node(".VisionStateMachine")
            names = ("Session", "Heartbeat", "Ready", "Error", "Overrun")
            self._watched = [node(f".Diagnostics.{name}") for name in names]
            events = client.nodes.base_event_type.get_child([f"{at}:ResultReadyEventType"])
            client.create_subscription(10, self).subscribe_events(node(""), events)
        except (ua.UaError, OSError, TimeoutError, ConnectionError) as error:
            self._client = client
            self.close()
            raise LinkError(str(error)) from error

    def event_notification(self, event: Any) -> None:
        """From the client's own thread."""
        answer = Answer(event.ResultNumber, event.TriggerId, event.Verdict == PASS)
        self._heard.append((event.Session, answer))

    def look(self) -> View:
        values = self._do(lambda client: client.read_values(self._watched))
        session, heartbeat, ready, error, overrun = values
        while self._heard and self._heard[0][0] != session:
            self._heard.popleft()  # of an earlier life of the bridge
        answers = tuple(answer for _, answer in self._heard)
        return View(session, heartbeat, ready is True, error is not False, overrun is True, answers)

    def trigger(self, trigger_id: int, part_id: str) -> bool:
        arguments = (part_id, ua.Variant(trigger_id, ua.VariantType.UInt32))
        at = self._machine.nodeid.NamespaceIndex
        status = self._do(
            lambda client: self._machine.call_method(f"{at}:StartSingleJob", *arguments)
        )
        return bool(status == Refusal.ACCEPTED)

    def acknowledge(self, number: int) -> None:
        self._heard.popleft()

    def reset(self) -> None:
        at = self._machine.nodeid.NamespaceIndex
        self._do(lambda client: self._machine.call_method(f"{at}:Reset"))

    def close(self) -> None:
        client, self._client = self._client, None
        self._heard.clear()
        if client is not None:
            with contextlib.suppress(ua.UaError, OSError, TimeoutError, ConnectionError):
                client.disconnect()

    def _do(self, ask: Callable[[Client], Any]) -> Any:
        if self._client is None:
            raise LinkError("not connected")
        try:
            return ask(self._client)
        except (ua.UaError, OSError, TimeoutError, ConnectionError) as error:
            raise LinkError(str(error)) from error
