"""`linewatch bridge`."""

from __future__ import annotations

import enum
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from pipeline.bridges.run import run
from pipeline.commands.run import stop_on_signal
from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.station import Station


class Kind(enum.StrEnum):
    MODBUS = "modbus"
    OPCUA = "opcua"
    MQTT = "mqtt"


def command(
    kind: Annotated[Kind, typer.Argument(help="The protocol.")],
    config: Annotated[
        Path, typer.Argument(help="The station's configuration, such as configs/plc.yaml.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Which of the configuration's bridges, when several are of this kind."),
    ] = None,
) -> None:
    """Run one of a station's PLC bridges here, until SIGTERM or Ctrl-C.

    `linewatch run` starts all of them itself; this is for commissioning and for finding faults,
    with the line running or not. What the PLC sees of the parts, and what it has to do, is in
    docs/plc.md.

    [bold]linewatch bridge modbus configs/plc.yaml[/]

    [bold]python -m tools.plc_sim modbus --parts 60 --rate 2 --gate-ms 1000[/]  a simulated PLC, in
    another terminal
    """
    station = Station.of(load(config))
    names = [one for one, bridge in station.config.bridges.items() if bridge.kind == kind]
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        found = ", ".join(names) or "none"
        raise ConfigError(
            f"{config}: bridges of kind {kind} found: {found}; expected "
            f"{f'one called {name!r}' if name else 'one, or --name to choose'}"
        )
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)]
    )
    with stop_on_signal() as stop:
        run(station, name, stop.is_set)
