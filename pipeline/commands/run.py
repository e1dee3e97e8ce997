"""`linewatch run`."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from pipeline.config import load
from pipeline.supervisor import Line


def command(
    file: Annotated[Path, typer.Argument(help="A configuration, such as configs/station.yaml.")],
) -> None:
    """Run a station as a daemon, until SIGTERM, Ctrl-C, or the end of its recordings.

    It then drains: what was captured is decided and published before it ends. A stage that dies is
    restarted; the logs of the stages lie in the station's state folder, under log/.

    [bold]linewatch run configs/demo.yaml[/]

    [bold]linewatch watch tcp://127.0.0.1:5601[/]  in another terminal
    """
    config = load(file)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)]
    )
    stop = stop_on_signal()
    line = Line(config)
    log = logging.getLogger("supervisor")
    log.info("verdicts on %s, logs in %s", config.publish.endpoint, line.station.log("x").parent)
    line.run(stop=stop.is_set)
    log.info("%d frames captured, all of them decided", line.captured)


def stop_on_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set: the line drains instead of being cut off."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
