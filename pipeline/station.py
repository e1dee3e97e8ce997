"""Where a station's things lie: rings, sockets, journal, logs. One definition for every process."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import IPC_PATH_LIMIT, LineConfig, load_resolved
from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Station:
    """Paths of one station. Stage names are `capture.<camera>`, `worker` and `decision`."""

    config: LineConfig
    run_dir: Path
    state_dir: Path
    shm_dir: Path

    @classmethod
    def of(cls, config: LineConfig) -> Station:
        """Raises `ConfigError` when a socket's path would be too long."""
        name = config.station
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = Path(runtime) if runtime else Path(tempfile.gettempdir()) / f"run-{os.getuid()}"
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
        run_dir = Path(config.run_dir) if config.run_dir else base / "linewatch" / name
        state_dir = Path(config.state_dir) if config.state_dir else state / "linewatch" / name
        station = cls(config, run_dir, state_dir, Path(config.shm_dir) / f"linewatch-{name}")
        longest = len(str(station.socket("decision")).encode())
        if longest > IPC_PATH_LIMIT:
            raise ConfigError(
                f"run_dir {run_dir}: its sockets' paths have {longest} bytes, expected at most "
                f"{IPC_PATH_LIMIT}; set a shorter run_dir"
            )
        return station

    @classmethod
    def attach(cls, run_dir: Path) -> Station:
        """The station of a line that runs, as its stages see it."""
        return cls.of(load_resolved((run_dir / "line.json").read_text()))

    @property
    def stages(self) -> list[str]:
        return [*(f"capture.{camera}" for camera in self.config.cameras), "worker", "decision"]

    @property
    def board(self) -> Path:
        return self.shm_dir / "board"

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal.sqlite"

    @property
    def engine(self) -> Path:
        """What the worker says of its engine, for decision."""
        return self.run_dir / "engine.json"

    def ring(self, camera: str) -> Path:
        return self.shm_dir / f"{camera}.ring"

    def socket(self, stage: str) -> Path:
        return self.run_dir / f"{stage}.ipc"

    def log(self, stage: str) -> Path:
        return self.state_dir / "log" / f"{stage}.log"

    def fault(self, stage: str) -> Path:
        """Why a stage gave up: read and removed by the supervisor."""
        return self.run_dir / f"{stage}.fault"
