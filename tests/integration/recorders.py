"""A line with its recorder, whoever starts it: the supervisor, or the test in its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lines import line_config

from pipeline.config import LineConfig
from pipeline.record.recordings import stored
from pipeline.sources.sidecar import RecordedFrame, read_side
from pipeline.station import Station
from pipeline.supervisor import STAGES, Line, Progress


def recording_line(work: Path, recording: dict[str, Any], **line: Any) -> LineConfig:
    """A line of rendered cameras whose frames are recorded under `work`/recordings."""
    config = line_config(work, **line)
    options = {"folder": str(work / "recordings"), "keep_free_gb": 0.0, "sample_passes": 0.0}
    return LineConfig.model_validate(
        config.model_dump() | {"recording": options | recording},
        strict=False,
    )


@dataclass(slots=True)
class RecordingLine:
    """Runs a line. A recorder that the supervisor does not start is started, and again, here."""

    config: LineConfig
    watch: Callable[[Progress, int], None] = lambda progress, pid: None
    """Told the recorder's process id, 0 while it does not run."""
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def run(self, stop: Callable[[], bool] = lambda: False) -> Line:
        line = Line(self.config)
        try:
            line.run(watch=self._look, stop=stop)
        finally:
            if self._process is not None:
                self._process.wait(20)
        return line

    def _look(self, progress: Progress) -> None:
        if "recorder" in STAGES:
            self.watch(progress, progress.pids.get("recorder", 0))
            return
        if self._process is None or (self._process.poll() or 0) != 0:
            run_dir = str(Station.of(self.config).run_dir)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.record.recorder", run_dir]
            )
            self.starts += 1
        self.watch(progress, self._process.pid)


def recorded(config: LineConfig, camera: str) -> list[RecordedFrame]:
    """All frames of a camera that lie in its recordings, in order."""
    folder = Station.of(config).recordings
    paths = sorted(one.path for one in stored(folder) if one.path.parent.name == camera)
    return [frame for path in paths for _, frame in sorted(read_side(path).frames.items())]


def lost(config: LineConfig, camera: str) -> list[tuple[RecordedFrame, str]]:
    folder = Station.of(config).recordings / camera
    return [one for path in sorted(folder.glob("*.mkv")) for one in read_side(path).lost]
