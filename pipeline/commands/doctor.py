"""`linewatch doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.config import load
from pipeline.doctor import Level, examine_machine

COLORS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


def command(
    file: Annotated[
        Path | None, typer.Argument(help="A configuration: also looks at what it needs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Look at this machine, and say what to do for a line to run.

    Shared memory, limits, CPU features, runtimes and GPU; with a configuration also its folders,
    cameras, endpoint and bundle, the engines that would be tried, in order, the one that would be
    taken, and what the line is at if it runs. Ends with 1 when there is an error, with 0 otherwise.

    [bold]linewatch doctor[/]

    [bold]linewatch doctor configs/station.yaml --json[/]
    """
    findings = examine_machine()
    if file is not None:
        from pipeline.doctor_line import examine_line

        findings += examine_line(load(file))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "", "found", "what to do", box=None, pad_edge=False)
        for finding in findings:
            color = COLORS[finding.level]
            level = f"[{color}]{finding.level}[/]"
            table.add_row(level, finding.name, finding.found, finding.remedy)
        Console().print(table)
        counts = {level: sum(f.level is level for f in findings) for level in Level}
        print(f"\n{counts[Level.ERROR]} errors, {counts[Level.WARNING]} warnings")
    if any(finding.level is Level.ERROR for finding in findings):
        raise typer.Exit(1)
