"""For tests of the ring: calls that are killed at any line, and a stage for `Desk`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pipeline.desk
import pipeline.ring
import pipeline.worker
from pipeline.board import Board
from pipeline.config import LineConfig
from pipeline.stage import Stage
from pipeline.station import Station

SHAPE = (33, 36, 1)
DEADLINE_MS = 50
TRACED = {module.__file__ for module in (pipeline.ring, pipeline.worker, pipeline.desk)}


class Killed(BaseException):
    """Nothing in the line catches it."""


def cut_off(at_line: int | None, call: Callable[[], object]) -> bool:
    """Whether the call was killed before its `at_line`-th line in the modules of the line."""
    left = sys.maxsize if at_line is None else at_line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise Killed
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Killed:
        return True
    finally:
        sys.settrace(before)
    return False


@contextlib.contextmanager
def decision_stage() -> Iterator[Stage]:
    """What `Desk` asks a stage for: its station, the worker's note of the engine, a log."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        config = LineConfig.model_validate(
            {
                "station": "properties",
                "run_dir": f"{folder}/run",
                "state_dir": f"{folder}/state",
                "shm_dir": folder,
                "cameras": {
                    "cam": {
                        "source": {"kind": "synthetic", "width": 36, "height": 33},
                        "deadline_ms": float(DEADLINE_MS),
                    }
                },
            }
        )
        station = Station.of(config)
        station.run_dir.mkdir()
        station.shm_dir.mkdir()
        Board(station.board, station.stages, create=True).close()
        thresholds = {"q_a": 0.0, "q_b": 0.1, "image_threshold": 0.5, "pixel_threshold": 0.5}
        note = {"engine_id": "copy", "bundle_sha256": "", "thresholds": thresholds}
        note["tolerance"] = None
        station.engine.write_text(json.dumps(note))
        stage = Stage(station, "decision")
        stage.log.setLevel(logging.CRITICAL)
        yield stage
        stage.close()
