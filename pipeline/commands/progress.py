"""Progress bars of the commands: on the terminal's stderr, so that stdout can be piped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.supervisor import Progress as LineProgress


class Update(Protocol):
    """Moves a bar; `note` says what is being done."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None: ...


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, *, quiet: bool = False) -> Iterator[Update]:
    """A bar on the terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task(title, total=total, note="")

        def update(done: int, total: int | None, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


@contextlib.contextmanager
def line_progress(
    title: str, total: int | None, *, quiet: bool = False
) -> Iterator[Callable[[LineProgress], None]]:
    """A bar over the frames that a line has decided; the `watch` of `Line.run`."""
    with progress_bar(title, total, quiet=quiet) as update:

        def watch(progress: LineProgress) -> None:
            update(progress.decided, total)

        yield watch
