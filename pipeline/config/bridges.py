"""Who tells the PLC: the bridges of a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.types import PathText, Strict, is_local

BEATS = 3
"""Heartbeats of the line that must fit into `stale_ms`: one that comes late is no fault yet."""
Port = Annotated[int, Field(ge=1, le=65535)]


class Bridge(Strict):
    """What all bridges have; each has an address, and a `kind` that names its protocol."""

    kind: str
    host: str = Field(default="127.0.0.1", min_length=1)
    port: Port
    insecure: bool = False
    """Beyond this machine, and nothing says who may come: only on a network that nobody else
    reaches."""
    target: str = ""
    """Part or camera that a trigger is for; empty: the line has only one."""
    results: Literal["triggered", "all"] = "triggered"
    """triggered: of the bridge's own triggers alone. all: of every part, for lines whose cameras
    are triggered by wire."""
    stale_ms: PositiveInt = 200
    """A line that gave no heartbeat for so long is an ERROR."""
    max_age_ms: PositiveFloat = 2000.0
    """From trigger (without one: capture) to the PLC's look at the result; then it is no pass."""

    @property
    def guarded(self) -> bool:
        """Whether it is encrypted, and knows who is at the other end."""
        return False

    @model_validator(mode="after")
    def _check_reach(self) -> Self:
        if not (self.guarded or self.insecure or is_local(f"tcp://{self.host}:{self.port}")):
            raise ValueError(
                f"an address of this machine, such as 127.0.0.1, and {self.host!r} is none: anyone "
                "on that network could write there. OPC UA has `trusted` and MQTT `tls` against "
                "that; where nobody else is on it write `insecure: true`"
            )
        return self


class ModbusBridge(Bridge):
    kind: Literal["modbus"]
    port: Port = 5020
    unit: int = Field(default=1, ge=0, le=247)
    """The server's unit identifier; 0: it answers to each."""


class OpcUaBridge(Bridge):
    kind: Literal["opcua"]
    port: Port = 4840
    certificates: PathText | None = None
    """Folder of the server's key and certificate, made there when they are missing; None: opcua in
    the station's state folder."""
    trusted: PathText | None = None
    """Folder of the certificates (.der, .pem) of clients that may connect; None: any may."""

    @property
    def guarded(self) -> bool:
        return self.trusted is not None


class MqttBridge(Bridge):
    kind: Literal["mqtt"]
    port: Port = 1883
    tls: bool = False
    ca_file: PathText | None = None
    """Certificates that the broker's is checked with; None: the system's."""
    user: str | None = None
    password_file: PathText | None = None
    """Its first line; readable by its owner alone."""
    prefix: str = Field(default="linewatch", pattern=r"^[^+#\x00/][^+#\x00]{0,200}$")
    """Of all topics: `<prefix>/<station>/part` and so on."""
    queue: int = Field(default=1000, ge=1, le=100000)
    """Records on the way to the broker that it has not acknowledged."""

    @property
    def guarded(self) -> bool:
        return self.tls

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        if (self.user is None) != (self.password_file is None):
            raise ValueError("`user` and `password_file` together, or none of them")
        if self.ca_file is not None and not self.tls:
            raise ValueError("no `ca_file` without `tls: true`")
        return self


BridgeConfig = Annotated[ModbusBridge | OpcUaBridge | MqttBridge, Field(discriminator="kind")]


def check_pace(bridges: Mapping[str, Bridge], heartbeat_ms: int) -> None:
    """Raises `ValueError` for a line whose heartbeats come too seldom for one of its bridges."""
    for name, bridge in bridges.items():
        if heartbeat_ms * BEATS > bridge.stale_ms:
            raise ValueError(
                f"publish.heartbeat_ms of at most a third of bridges.{name}.stale_ms, "
                f"{bridge.stale_ms // BEATS}, and it is {heartbeat_ms}: one late heartbeat would "
                "be an ERROR"
            )
