"""`linewatch journal export`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.journals import journal_of, wanted_of
from pipeline.commands.progress import progress_bar
from pipeline.errors import ResourceError, RuntimeUnavailable
from pipeline.journal_queries import find, statistics

_BATCH = 20_000


def command(
    source: Annotated[
        Path, typer.Argument(metavar="STATION", help="The station's YAML, or a journal.sqlite.")
    ],
    out: Annotated[Path, typer.Option("--parquet", help="The file to write.")],
    since: Annotated[
        str | None, typer.Option(help="From then on: 2026-11-22T14:00, or 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Before then.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the count as JSON.")] = False,
) -> None:
    """Write the journal's verdicts to a Parquet file, a row each; also while the line runs.

    Needs pyarrow: pip install 'linewatch\\[parquet]'.

    [bold]linewatch journal export station.yaml --since 7d --parquet week.parquet[/]
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable(
            "no pyarrow found, expected it for Parquet files: pip install 'linewatch[parquet]'"
        ) from error
    journal = journal_of(source)
    schema = pyarrow.schema(
        [
            ("seq", pyarrow.int64()),
            ("t_commit_utc_ns", pyarrow.int64()),
            ("t_capture_utc_ns", pyarrow.int64()),
            *((name, pyarrow.string()) for name in ("kind", "views", "part_id")),
            ("trigger_id", pyarrow.int64()),
            *((name, pyarrow.string()) for name in ("label", "reason")),
            ("image_score", pyarrow.float64()),
            ("image_threshold", pyarrow.float64()),
            ("defects", pyarrow.int32()),
        ]
    )
    total = statistics(journal).rows
    count = 0
    aside = out.with_name(out.name + ".part")
    entries = find(journal, wanted_of("", "", "", "", since, until))
    try:
        with (
            parquet.ParquetWriter(aside, schema) as writer,
            progress_bar("export", total, quiet=as_json) as update,
        ):
            while batch := [entry.plain() for entry in itertools.islice(entries, _BATCH)]:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                count += len(batch)
                update(count, total)
        aside.replace(out)
    except OSError as error:
        raise ResourceError(
            f"{out}: {error.strerror or error}; expected a file that can be written"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
    print(json.dumps({"rows": count, "file": str(out)}) if as_json else f"{out}: {count} rows")
