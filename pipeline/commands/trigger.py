"""`linewatch trigger`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.config import load
from pipeline.control import Control
from pipeline.errors import ControlError
from pipeline.publish import own_keys
from pipeline.station import Station
from pipeline.subscriber import Subscriber
from pipeline.types import Label, PartVerdict
from pipeline.wire import encode

_COLORS = {Label.PASS: "green", Label.FAIL: "red", Label.INVALID: "yellow"}
_EXITS = {Label.PASS: 0, Label.FAIL: 1, Label.INVALID: 12}
_FIRST_HEARTBEAT_MS = 2000


def command(
    config: Annotated[Path, typer.Argument(help="The configuration of a station that runs.")],
    target: Annotated[
        str, typer.Argument(help="A part or a camera; may be left out where there is only one.")
    ] = "",
    trigger_id: Annotated[
        int,
        typer.Option("--id", min=0, max=2**32 - 1, help="Comes back in the verdict; 0: a new one."),
    ] = 0,
    part_id: Annotated[str, typer.Option(help="A text that comes back in the verdict.")] = "",
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for the part's verdict.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Have a station's cameras take a part's frames, and print the part's verdict.

    Ends with 0 for `pass`, 1 for `fail`, 12 for `invalid`, 11 when the line refuses the trigger or
    gives no verdict in time.

    [bold]linewatch trigger station.yaml box --part-id A-17[/]
    """
    station = Station.of(load(config))
    keys = own_keys(station.config.security)
    trigger_id = trigger_id or time.time_ns() // 1_000_000 % 2**32
    with (
        Subscriber(station.config.publish.endpoint, topics=["part/"], keys=keys) as stream,
        Control(station.control, keys=keys) as control,
    ):
        # Only after a heartbeat nothing that is published goes unheard.
        until = time.monotonic() + _FIRST_HEARTBEAT_MS / 1000
        while stream.heartbeat is None and time.monotonic() < until:
            stream.receive(timeout_ms=50)
        control.trigger(target, trigger_id=trigger_id, part_id=part_id, timeout_ms=2000)
        part = _wait(stream, trigger_id, wait_s)
    if as_json:
        print(json.dumps(_plain(part), indent=2))
    else:
        color = _COLORS[part.label]
        views = ", ".join(f"{camera} {frame_id}" for camera, _, frame_id in part.views)
        Console(highlight=False).print(
            f"[{color}]{part.label}[/] ({part.reason}), trigger {part.trigger_id}, "
            f"score {part.image_score:.3f} of {part.image_threshold:.3f}, "
            f"{len(part.defects)} defects, views: {views or 'none'}"
        )
    raise typer.Exit(_EXITS[part.label])


def _wait(stream: Subscriber, trigger_id: int, wait_s: float) -> PartVerdict:
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        event = stream.receive(timeout_ms=1000 * left)
        if isinstance(event, PartVerdict) and event.trigger_id == trigger_id:
            return event
    raise ControlError(f"no verdict on trigger {trigger_id} within {wait_s:g} s")


def _plain(part: PartVerdict) -> object:
    import msgpack

    return msgpack.unpackb(encode(part))
