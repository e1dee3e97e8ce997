"""`linewatch keys make`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.keys import make_keys


def command(
    name: Annotated[str, typer.Argument(help="Whose keys: the station's name, a client's name.")],
    folder: Annotated[Path, typer.Option("--in", help="Where both files go.")] = Path("keys"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the public key as JSON.")] = False,
) -> None:
    """Make a pair of keys: NAME.secret, which stays here, and NAME.public, for the other side.

    The line and each of its clients make their own. A client's public key is let in with
    `linewatch keys allow`; the line's public key goes to every client, that it may know the line.

    [bold]linewatch keys make line-1[/]
    """
    pair = make_keys(folder, name)
    if as_json:
        print(json.dumps({"name": name, "public": pair.public.decode(), "folder": str(folder)}))
        return
    print(f"{folder / name}.secret: the secret, mode 0600; it never leaves this machine")
    print(f"{folder / name}.public: for the other side")
