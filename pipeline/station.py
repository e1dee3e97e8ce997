"""Where a station's things lie: rings, sockets, journal, logs. One definition for every process."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import IPC_PATH_LIMIT, LineConfig, load_resolved
from pipeline.errors import ConfigError


def state_home() -> Path:
    """Where stations keep what outlives them, unless they are told otherwise."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "linewatch"


def shared_engines() -> Path:
    """See `Station.engines`."""
    return state_home() / ".engines"


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
        run_dir = Path(config.run_dir) if config.run_dir else base / "linewatch" / name
        state_dir = Path(config.state_dir) if config.state_dir else state_home() / name
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
        captures = [f"capture.{camera}" for camera in self.config.cameras]
        return [*captures, "worker", "decision", *self.companions]

    @property
    def companions(self) -> list[str]:
        """The stages beside the line, which it does without when they break."""
        catch_up = ["catch_up"] if self.config.publish.catch_up else []
        recorder = ["recorder", "pictures"] if self.config.recording else []
        return [*catch_up, *recorder, *self.bridges]

    @property
    def bridges(self) -> list[str]:
        """Stages that tell a PLC, one for each bridge."""
        return [f"bridge.{name}" for name in self.config.bridges]

    @property
    def woken(self) -> list[str]:
        """The stages that a trigger is news for."""
        return [*(f"capture.{camera}" for camera in self.config.cameras), "decision"]

    @property
    def board(self) -> Path:
        return self.shm_dir / "board"

    @property
    def engines(self) -> Path:
        """What was compiled for minutes. Stations without a folder of their own share it: each
        engine's name says all that it is of."""
        return self.state_dir / "engines" if self.config.state_dir else shared_engines()

    @property
    def journal(self) -> Path:
        return self.state_dir / "journal.sqlite"

    @property
    def engine(self) -> Path:
        """What the worker says of its engine, for decision."""
        return self.run_dir / "engine.json"

    @property
    def recordings(self) -> Path:
        """The station's recordings, a folder for each camera."""
        found = self.config.recording
        folder = Path(found.folder) if found and found.folder else self.state_dir / "recordings"
        return folder / self.config.station

    @property
    def recorder(self) -> Path:
        """The recorder's counters, for people and for its own next start."""
        return self.run_dir / "recorder.json"

    def judge_memory(self, camera: str) -> Path:
        """What decision remembers of a camera's frames, for the next one if it is killed."""
        return self.run_dir / f"{camera}.judge.json"

    def camera_note(self, camera: str) -> Path:
        """What capture knows of an opened camera: its settings, and the preparation's hash."""
        return self.run_dir / f"{camera}.camera.json"

    @property
    def triggers(self) -> Path:
        return self.shm_dir / "triggers"

    @property
    def control(self) -> str:
        """The endpoint of the control socket."""
        return self.config.control.endpoint or f"ipc://{self.socket('control')}"

    @property
    def pictures(self) -> str:
        """The endpoint where pictures of recorded frames are asked for."""
        found = self.config.recording
        return (found and found.endpoint) or f"ipc://{self.socket('pictures')}"

    def ring(self, camera: str) -> Path:
        return self.shm_dir / f"{camera}.ring"

    def socket(self, stage: str) -> Path:
        return self.run_dir / f"{stage}.ipc"

    def log(self, stage: str) -> Path:
        return self.state_dir / "log" / f"{stage}.log"

    def fault(self, stage: str) -> Path:
        """Why a stage gave up: read and removed by the supervisor."""
        return self.run_dir / f"{stage}.fault"
