"""A line of rendered cameras, running in a thread of the test, with somebody at its controls."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import LineConfig
from pipeline.control import Control
from pipeline.errors import ControlError, LinewatchError
from pipeline.journal import read_verdicts
from pipeline.station import Station
from pipeline.supervisor import Line
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import decode

PATIENCE_S = 40.0


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)


class LiveLine:
    """Cameras by name with their trigger's mode; each has a file of faults."""

    def __init__(
        self,
        work: Path,
        cameras: dict[str, str],
        *,
        parts: dict[str, Any] | None = None,
        runtime: str = "tests.fakes:stamp",
        source: dict[str, Any] | None = None,
        restarts: int = 1,
        on_full: str = "drop",
        **trigger: Any,
    ) -> None:
        self.work = work
        common = {"width": 320, "height": 256, "frame_rate": 25.0, "frozen_ms": 600.0}
        self.config = LineConfig.model_validate(
            {
                "station": f"live{os.getpid()}-{abs(hash(str(work))) % 10**6}",
                "run_dir": str(work / "run"),
                "state_dir": str(work / "state"),
                "cameras": {
                    name: {
                        "source": {
                            "kind": "rendered",
                            **common,
                            "retry_s": 0.5,
                            "faults": str(work / name),
                            **(source or {}),
                        }
                        if "kind" not in (source or {})
                        else source,
                        "trigger": {"mode": mode, "timeout_ms": 2000.0, **trigger},
                        "deadline_ms": None,
                        "on_full": on_full,
                    }
                    for name, mode in cameras.items()
                },
                "parts": parts or {},
                "worker": {"runtime": runtime},
                "publish": {"endpoint": f"ipc://{work}/verdicts"},
                "supervision": {"heartbeat_timeout_ms": 2000, "restarts": restarts},
            }
        )
        self.station = Station.of(self.config)
        self.line = Line(self.config)
        self.control = Control(self.station.control)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.error: LinewatchError | None = None

    def _run(self) -> None:
        try:
            self.line.run(stop=self._stop.is_set)
        except LinewatchError as error:
            self.error = error

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            until(lambda: bool(self.status().get("ready")), "the line is ready")
            yield
        finally:
            self._stop.set()
            self._thread.join()
            self.control.close()
        assert self.error is None, self.error

    def status(self) -> dict[str, Any]:
        try:
            return self.control.status(timeout_ms=500)
        except ControlError:
            return {}

    def wait_for(self, camera: str, state: str) -> None:
        until(lambda: self.status().get("cameras", {}).get(camera) == state, f"{camera} {state}")

    def fault(self, camera: str, word: str | None) -> None:
        path = self.work / camera
        if word is None:
            path.unlink()
        else:
            path.with_suffix(".new").write_text(word)
            path.with_suffix(".new").replace(path)

    def kill(self, stage: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.line.progress().pids[stage], number)

    def verdicts(self) -> list[Verdict]:
        return list(read_verdicts(self.station.journal))

    def parts(self) -> list[PartVerdict]:
        with contextlib.closing(sqlite3.connect(self.station.journal)) as base:
            rows = base.execute("SELECT body FROM verdict WHERE kind != 'frame' ORDER BY seq")
            found = [decode(body) for (body,) in rows]
        return [part for part in found if isinstance(part, PartVerdict)]
