"""`linewatch journal stats`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.journals import journal_of, shown_time
from pipeline.journal_queries import statistics


def command(
    source: Annotated[
        Path, typer.Argument(metavar="STATION", help="The station's YAML, or a journal.sqlite.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """How large the journal is, how far back it goes, and how many verdicts of each kind it has.

    [bold]linewatch journal stats station.yaml[/]
    """
    found = statistics(journal_of(source))
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    span = f"{shown_time(found.first_commit_utc_ns)} to {shown_time(found.last_commit_utc_ns)}"
    print(f"{found.rows} rows, seq {found.oldest_seq} to {found.newest_seq}, {span}")
    print(
        f"{found.file_bytes / 2**20:.1f} MiB, of which {found.free_bytes / 2**20:.1f} MiB are free"
    )
    table = Table("topic", "verdict", "rows")
    for topic, counts in found.labels.items():
        for verdict, count in counts.items():
            table.add_row(escape(topic), verdict, str(count))
    Console().print(table)
