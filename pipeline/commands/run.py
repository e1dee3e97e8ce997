"""`linewatch run`."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler

from pipeline.config import load
from pipeline.supervisor import Line


def command(
    file: Annotated[Path, typer.Argument(help="A configuration, such as configs/demo.yaml.")],
) -> None:
    """Run a station as a daemon, until SIGTERM, Ctrl-C, or the end of its recordings.

    It then drains: what was captured is decided and published before it ends. A stage that dies is
    restarted; the logs of the stages lie in the station's state folder, under log/.

    [bold]linewatch run configs/demo.yaml[/]

    [bold]linewatch watch tcp://127.0.0.1:5611[/]  in another terminal
    """
    config = load(file)
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(show_path=False)]
    )
    line = Line(config)
    log = logging.getLogger("supervisor")
    log.info("verdicts on %s, logs in %s", config.publish.endpoint, line.station.log("x").parent)
    with stop_on_signal() as stop:
        line.run(stop=stop.is_set)
    log.info("%d frames captured, all of them decided", line.captured)


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set: the line drains instead of being cut off. Afterwards
    they do what they did before."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
