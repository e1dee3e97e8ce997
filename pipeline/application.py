"""The command line's shape: typer's application from the table in `pipeline.cli`."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
from collections.abc import Sequence
from typing import Annotated

import typer

from pipeline.cli import COMMANDS, GROUPS

HELP = """Looks at every part that passes a camera, finds defects that nobody labelled, and
publishes one verdict per frame.

From nothing to verdicts:

[bold]linewatch doctor[/]: what this machine has, and what to do

[bold]linewatch demo[/]: the whole way on a rendered line

[bold]linewatch train good/ --out bundles/[/]: learn from images of good parts

[bold]linewatch calibrate bundles/NAME --good more-good/[/]: choose the thresholds

[bold]linewatch evaluate bundles/NAME --good more-good/ --bad bad/[/]: how good it is; a report

[bold]linewatch replay line.mkv --bundle bundles/NAME --out results.jsonl[/]: try them

[bold]linewatch run station.yaml[/]: the station itself

[bold]linewatch watch tcp://127.0.0.1:5601[/]: its verdicts

Each command explains itself: [bold]linewatch train --help[/].
"""


def build(arguments: Sequence[str]) -> typer.Typer:
    """The application, in which only the command that the arguments name is loaded."""
    app = typer.Typer(
        help=_reflowed(HELP),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
    )

    app.callback()(_root)
    groups = {}
    for name, summary in GROUPS.items():
        groups[name] = typer.Typer(
            help=summary,
            no_args_is_help=name not in COMMANDS,
            rich_markup_mode="rich",
            pretty_exceptions_enable=False,
        )
        groups[name].callback()(_group)
    words = [argument for argument in arguments if not argument.startswith("-")]
    for name, row in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        called = words[: len(name.split())] == name.split()
        function = importlib.import_module(row.module).command if called else _not_called
        if name in groups:
            text = _reflowed(function.__doc__) if called else GROUPS[name]
            groups[name].callback(invoke_without_command=True, help=text)(function)
            continue
        register = (groups[group] if group else app).command
        register(last, short_help=row.summary, help=_reflowed(function.__doc__))(function)
    for name, group_app in groups.items():
        app.add_typer(group_app, name=name)
    return app


def _reflowed(text: str | None) -> str:
    """A docstring whose paragraphs are one line each: typer keeps the breaks of all but one."""
    paragraphs = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(importlib.metadata.version("linewatch"))
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and end.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """The options before a command."""


def _not_called() -> None:
    raise AssertionError("the command that is called is the one that is loaded")


def _group() -> None:
    """A group of one command keeps its name."""
