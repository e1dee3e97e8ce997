"""`linewatch config check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.config import dump_resolved, load


def command(
    file: Annotated[Path, typer.Argument(help="A configuration, such as configs/station.yaml.")],
    show: Annotated[
        bool, typer.Option("--json", help="Print it as JSON, with defaults and full paths.")
    ] = False,
) -> None:
    """Read a configuration and name every fault in it, with file, line and key.

    Nothing is opened that the file points to; [bold]linewatch doctor FILE[/] does that.

    [bold]linewatch config check configs/station.yaml[/]
    """
    config = load(file)
    if show:
        print(dump_resolved(config))
        return
    cameras = ", ".join(f"{name} ({camera.source.kind})" for name, camera in config.cameras.items())
    print(f"{file}: station {config.station}, cameras {cameras}: no faults")
