"""`linewatch journal find`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pipeline.commands.journals import journal_of, shown_time, wanted_of
from pipeline.errors import ConfigError
from pipeline.journal_queries import Entry, find


def command(
    source: Annotated[
        Path, typer.Argument(metavar="STATION", help="The station's YAML, or a journal.sqlite.")
    ],
    part: Annotated[str, typer.Option(help="This part, with its frames.")] = "",
    camera: Annotated[str, typer.Option(help="Of this camera.")] = "",
    label: Annotated[str, typer.Option(help="pass, fail or invalid.")] = "",
    reason: Annotated[str, typer.Option(help="Such as defect or late.")] = "",
    since: Annotated[
        str | None, typer.Option(help="From then on: 2026-11-22T14:00, or 90m ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    kind: Annotated[str, typer.Option(help="frame or part; both by default.")] = "",
    limit: Annotated[
        int | None, typer.Option(min=0, help="The newest so many; 0: all. Table: 50, else all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Whole messages, a line each.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="One line each, for a spreadsheet.")
    ] = False,
) -> None:
    """Verdicts in the journal, by time, part, camera and label; also while the line runs.

    [bold]linewatch journal find station.yaml --label fail --since 8h[/]
    """
    if kind not in ("", "frame", "part"):
        raise ConfigError(f"--kind {kind} found, expected frame or part")
    if limit is None:
        limit = 0 if as_json or as_csv else 50
    wanted = replace(wanted_of(part, camera, label, reason, since, until), kind=kind, limit=limit)
    found = find(journal_of(source), wanted)
    if as_json:
        for entry in found:
            line = {"t_commit_utc_ns": entry.t_commit_utc_ns, **asdict(entry.message)}
            print(json.dumps({"kind": entry.plain()["kind"], **line}))
    elif as_csv:
        _write_csv(found)
    else:
        _print(found)


def _write_csv(found: Iterable[Entry]) -> None:
    writer: csv.DictWriter[str] | None = None
    for entry in found:
        plain = entry.plain()
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(plain))
            writer.writeheader()
        writer.writerow(plain)


def _print(found: Iterable[Entry]) -> None:
    # On a narrow screen nothing is cut off, and what other commands are asked with stays together.
    names = ("seq", "committed", "kind", "views", "part", "label", "reason", "score", "defects")
    columns = [Column(name, no_wrap=name != "committed", overflow="fold") for name in names]
    columns[1].min_width = len("15:47:24.384")
    table = Table(*columns, box=SIMPLE_HEAD, padding=0, collapse_padding=True)
    for entry in found:
        plain = entry.plain()
        table.add_row(
            str(plain["seq"]),
            shown_time(entry.t_commit_utc_ns)[:23],
            str(plain["kind"]),
            escape(str(plain["views"]).replace(" ", "\n")),
            escape(str(plain["part_id"])),
            str(plain["label"]),
            str(plain["reason"]),
            f"{plain['image_score']:.3g}/{plain['image_threshold']:.3g}",
            str(plain["defects"]),
        )
    Console().print(table)
