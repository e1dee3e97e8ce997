"""`linewatch recipe log`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.config import load_recipe
from pipeline.recipes import history, revision_of


def command(
    file: Annotated[Path, typer.Argument(help="The recipe (YAML).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all revisions as JSON.")] = False,
) -> None:
    """Every revision of a camera's recipe: when, why, and what changed.

    [bold]linewatch recipe log recipes/front.yaml[/]
    """
    current = revision_of(load_recipe(file))
    found = history(file)
    if as_json:
        print(json.dumps({"current": current, "revisions": [asdict(r) for r in found]}, indent=2))
        return
    table = Table("no.", "revision", "when", "why", "changed")
    before: dict[str, Any] = {}
    for each in found:
        changed = [k for k, v in each.recipe.items() if before.get(k, v) != v or k not in before]
        shown = ", ".join(f"{k}={json.dumps(each.recipe[k])}" for k in changed) if before else "all"
        table.add_row(
            str(each.number), each.revision, each.when, escape(each.reason), escape(shown)
        )
        before = each.recipe
    Console().print(table)
    if not found or found[-1].revision != current:
        print(f"{file} is {current} now: edited by hand, and not written down yet")
