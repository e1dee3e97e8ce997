"""`linewatch keys allow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.keys import allow_key


def command(
    public: Annotated[Path, typer.Argument(help="A client's NAME.public.")],
    folder: Annotated[
        Path, typer.Option("--in", help="`security.allow` of the station; made if not there.")
    ] = Path("keys/allowed"),
) -> None:
    """Let a client in: its public key goes into the folder that `security.allow` names.

    A running line lets it in at once. To shut it out, remove its file from the folder: connections
    that stand already stay until they end or the line is started again.

    [bold]linewatch keys allow mes.public --in keys/allowed[/]
    """
    print(f"{allow_key(public, folder)}: let in")
