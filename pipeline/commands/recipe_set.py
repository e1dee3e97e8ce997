"""`linewatch recipe set`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.errors import ConfigError
from pipeline.recipes import revise


def command(
    file: Annotated[Path, typer.Argument(help="The recipe (YAML); made if it is not there.")],
    change: Annotated[
        list[str],
        typer.Argument(help="KEY=VALUE, a value as in YAML; KEY= goes back to the default."),
    ],
    reason: Annotated[str, typer.Option(help="Why: it stands in the history for ever.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the revision as JSON.")] = False,
) -> None:
    """Change a camera's recipe, and write down when and why.

    The history beside the file keeps every revision whole. A change by hand is written down as such
    with the next one.

    [bold]linewatch recipe set recipes/front.yaml min_area_px=64 --reason "dust, see 8D 17"[/]

    [bold]linewatch recipe set recipes/front.yaml optics.watch=warn --reason "samples by hand"[/]
    """
    found = revise(file, dict(_parsed(text) for text in change), reason)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return
    print(f"{file}: revision {found.number}, {found.revision}")


def _parsed(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{text!r} found, expected KEY=VALUE such as min_area_px=64")
    try:
        return key, yaml.safe_load(value) if value else None
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is no YAML: {error}") from error
