"""The process of a bridge: `python -m pipeline.bridges RUN_DIR NAME`, started by the supervisor."""

from __future__ import annotations

import logging

from pipeline.board import DONE, QUIT, READY
from pipeline.bridges.run import run
from pipeline.stage import Stage, main


def work(stage: Stage) -> None:
    name = stage.name.partition(".")[2]

    def stop() -> bool:
        stage.board.beat(stage.name)
        return stage.board.order == QUIT

    stage.board.set_state(stage.name, READY)
    run(stage.station, name, stop)
    stage.board.set_state(stage.name, DONE)
    logging.getLogger("bridge").info("ended")


if __name__ == "__main__":
    main("bridge", work)
