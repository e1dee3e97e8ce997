"""One bridge of a line: which protocol, from where, and until when."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Final

from pipeline.bridges.desk import Desk
from pipeline.config.bridges import Bridge
from pipeline.errors import ConfigError, RuntimeUnavailable
from pipeline.station import Station

MODULES: Final = {
    "modbus": "pipeline.bridges.modbus",
    "opcua": "pipeline.bridges.opcua",
    "mqtt": "pipeline.bridges.mqtt",
}
"""Kind of bridge -> the module whose `serve(bridge, station, desk, stop)` it is."""

Serve = Callable[[Bridge, Station, Desk, Callable[[], bool]], None]


def find(station: Station, name: str) -> Bridge:
    """The bridge of this name. Raises `ConfigError` where the configuration has none."""
    bridges = station.config.bridges
    if name not in bridges:
        found = ", ".join(bridges) or "none"
        raise ConfigError(f"bridge {name!r} wanted, {found} in the configuration's `bridges`")
    return bridges[name]


def run(station: Station, name: str, stop: Callable[[], bool]) -> None:
    """Run one bridge until `stop()`, which it asks at least every 50 ms.

    Raises `ConfigError`, `StationBusy` for an address that is taken, and `RuntimeUnavailable` when
    the protocol's library is not installed.
    """
    bridge = find(station, name)
    serve = _load(bridge.kind)
    desk = Desk(bridge, station, name)
    try:
        serve(bridge, station, desk, stop)
    finally:
        desk.close()


def _load(kind: str) -> Serve:
    try:
        serve: Serve = importlib.import_module(MODULES[kind]).serve
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            f"the Python package {error.name!r} is not installed, and a bridge of kind {kind} "
            "needs it: pip install 'linewatch[plc]'"
        ) from error
    return serve
