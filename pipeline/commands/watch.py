"""`linewatch watch`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from pipeline.errors import ConfigError
from pipeline.keys import ClientKeys
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import Label, PartVerdict, Verdict

_POLL_MS = 200
_SILENT_MS = 1500
_COLORS = {Label.PASS: "green", Label.FAIL: "red", Label.INVALID: "yellow"}


def command(
    endpoint: Annotated[
        str, typer.Argument(help="Where the line publishes, such as tcp://127.0.0.1:5601.")
    ],
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Only these topics: frame/, frame/cam0/, part/. Default: frame/."),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many; 0: never.")] = 0,
    for_s: Annotated[
        float, typer.Option("--for", min=0, help="Stop after so many seconds; 0: never.")
    ] = 0,
    replay: Annotated[
        str | None,
        typer.Option(
            help="`publish.replay_endpoint`: fetch what was missed, instead of saying so."
        ),
    ] = None,
    secret: Annotated[
        Path | None, typer.Option(help="Your NAME.secret, for a line with `security`.")
    ] = None,
    server: Annotated[Path | None, typer.Option(help="The line's NAME.public.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Print verdicts as they come, and say when some were missed or the line went silent.

    Ends with 0; with 1 when verdicts were missed, so that a script notices.

    [bold]linewatch watch tcp://127.0.0.1:5601 --topic part/[/]
    """
    import time

    console = Console(highlight=False)
    until = time.monotonic() + for_s if for_s else None
    shown = missed = 0
    silent = False
    why = ""
    if (secret is None) != (server is None):
        raise ConfigError("half of the keys found, expected --secret and --server together")
    keys = ClientKeys.read(secret, server) if secret and server else None
    with Subscriber(endpoint, topic or ["frame/"], replay=replay, keys=keys) as stream:
        while not (count and shown >= count) and not (until and time.monotonic() > until):
            event = stream.receive(timeout_ms=_POLL_MS)
            beat = stream.heartbeat
            if beat is not None and beat.why != why:
                why = beat.why
                _note(console, as_json, "line", f"not ready: {why}" if why else "the line is ready")
            if event is None:
                if stream.silent_ms > _SILENT_MS and not silent:
                    silent = True
                    _note(console, as_json, "silent", "nothing heard: is the line running?")
                continue
            if silent:
                silent = False
                _note(console, as_json, "heard", "the line is back")
            if isinstance(event, Missed):
                missed += 1
                text = f"missed {event.topic} between seq {event.after} and {event.upto}"
                _note(console, as_json, "missed", text)
                continue
            shown += 1
            if as_json:
                print(json.dumps(asdict(event)), flush=True)
            else:
                console.print(_text(event))
    if missed:
        raise typer.Exit(1)


def _note(console: Console, as_json: bool, kind: str, text: str) -> None:
    if as_json:
        print(json.dumps({"note": kind, "text": text}), flush=True)
    else:
        console.print(f"[yellow]-- {text}[/]")


def _text(event: Verdict | PartVerdict) -> str:
    detail = escape(event.detail)
    head = f"{event.seq:>8} [{_COLORS[event.label]}]{event.label:<7}[/] {event.reason:<12}"
    if isinstance(event, PartVerdict):
        return f"{head} part {event.part_id} {detail}"
    boxes = " ".join(str(list(d.box_xyxy)).replace(" ", "") for d in event.defects[:4])
    more = f" +{len(event.defects) - 4}" if len(event.defects) > 4 else ""
    score = f"{event.image_score:.3f}/{event.image_threshold:.3f}"
    total = event.latency_ms.get("total", 0.0)
    return f"{head} {event.camera} #{event.frame_id} {score} {total:.1f} ms {boxes}{more}{detail}"
