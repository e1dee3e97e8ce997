"""Whole lines for the tests: rendered frames with stamped ids, and people who kill processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import (
    CameraConfig,
    LineConfig,
    PublishConfig,
    SupervisionConfig,
    SyntheticSource,
    WorkerConfig,
)
from pipeline.journal import read_verdicts
from pipeline.replay import result_line
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import Verdict

WIDTH, HEIGHT = 320, 256


def line_config(
    work: Path,
    *,
    cameras: int = 2,
    frames: int | None = 200,
    runtime: str = "tests.fakes:slow_stamp",
    on_full: str = "wait",
    deadline_ms: float | None = None,
    fps: float | None = None,
    slots: int = 6,
    heartbeat_timeout_ms: int = 1000,
    restarts: int = 5,
) -> LineConfig:
    """A line of pre-rendered frames; frame i of a camera (from 0) has the stamp i."""
    source = SyntheticSource(
        kind="synthetic", width=WIDTH, height=HEIGHT, frames=frames, prerender=4, defect_share=0.0
    )
    return LineConfig.model_validate(
        {
            "station": f"t{os.getpid()}-{abs(hash(str(work))) % 10**8}",
            "run_dir": str(work / "run"),
            "state_dir": str(work / "state"),
            "cameras": {
                f"cam{n}": CameraConfig.model_validate(
                    {
                        "source": source,
                        "slots": slots,
                        "on_full": on_full,
                        "deadline_ms": deadline_ms,
                        "fps": fps,
                    }
                )
                for n in range(cameras)
            },
            "worker": WorkerConfig(runtime=runtime, max_batch=2),
            "publish": PublishConfig(endpoint=f"ipc://{work}/verdicts"),
            "supervision": SupervisionConfig(
                heartbeat_timeout_ms=heartbeat_timeout_ms, restarts=restarts
            ),
        }
    )


@dataclass(slots=True)
class Saboteur:
    """Sends a signal to a stage when the line has captured so many frames, once each."""

    plan: dict[int, tuple[str, int]]
    done: list[str] = field(default_factory=list)

    def watch(self, progress: Progress) -> None:
        for at, (stage, number) in list(self.plan.items()):
            if progress.captured >= at and stage in progress.pids:
                del self.plan[at]
                os.kill(progress.pids[stage], number)
                self.done.append(stage)


def run_line(
    config: LineConfig,
    watch: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Verdict]:
    """Run a line to its end; the verdicts of its epoch, by camera and frame id."""
    line = Line(config)
    line.run(watch=watch, stop=stop)
    return list(read_verdicts(Station.of(config).journal, epoch=line.epoch))


def comparable(verdict: Verdict) -> str:
    """What must not change when a line is disturbed elsewhere."""
    return result_line(verdict)


def leftovers(config: LineConfig) -> list[Path]:
    """Files of the station's in shared memory."""
    shm = Station.of(config).shm_dir
    return list(shm.parent.glob(shm.name)) + list(shm.glob("*"))


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
