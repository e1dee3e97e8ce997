"""The line as a whole: starts the stages, watches them, restarts them, ends them, tidies up.

1. Take the station: a lock in the run directory; a second daemon is refused. Wait until no stage of
   an earlier daemon lives, account for the ids in its rings, and only then unlink them.
2. Make rings and board, start decision and worker; when both are ready, start the captures.
3. Reap and restart what broke, kill and restart what has gone silent, within a restart budget. A
   stage that gave up for a stated reason is not restarted: the line drains and ends with it. The
   captures of cameras and the companions (catch-up, recorder, pictures, bridges) have no budget:
   they are started again for ever, with pauses; a reason that they state ends the line at its start
   alone.
4. At the end (sources done, or told to stop): captures end their rings, decision decides what is
   pending, the worker leaves, every id left without a verdict gets one, and the rings go.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline import errors
from pipeline.board import (
    CAMERA_FROZEN,
    CAMERA_STATES,
    DONE,
    DRAIN,
    GO_ON,
    QUIT,
    READY,
    Board,
)
from pipeline.config import CameraConfig, LineConfig, dump_resolved
from pipeline.config.sources import LiveSource
from pipeline.control_server import ControlServer
from pipeline.errors import ConfigError, LinewatchError, StageFailed
from pipeline.journal import Journal
from pipeline.ledger import settle
from pipeline.lock import hold_station
from pipeline.prepare.preparation import prepared_shape
from pipeline.rarely import Rarely
from pipeline.ring import LOST, RUNNING, FrameRing
from pipeline.ringfile import create_ring
from pipeline.sources import probe
from pipeline.station import Station
from pipeline.telemetry import empty_long_output
from pipeline.triggers import TriggerLog

TICK_S = 0.02
_KILL_S = 5.0
_LEAST_REST_S, _MOST_REST_S = 0.25, 3.0
"""Before a camera's capture is started again."""

STAGES = {
    "capture": "pipeline.capture",
    "worker": "pipeline.worker",
    "decision": "pipeline.decision",
    "catch_up": "pipeline.catch_up",
    "recorder": "pipeline.record.recorder",
    "pictures": "pipeline.record.pictures",
    "bridge": "pipeline.bridges",
}
"""Kind of stage -> the module that is its process. A camera has a capture of its own, a bridge too.
"""

log = logging.getLogger("supervisor")


@dataclass(slots=True)
class Process:
    """A stage's process and its history."""

    name: str
    popen: subprocess.Popen[bytes]
    incarnation: int = 1
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    finished: bool = False
    fault: LinewatchError | None = None
    note: str = ""
    """Its last sentence on the board."""
    settled: bool = False
    """Whether it was ever ready."""
    rest_s: float = 0.0
    resting_until: float = 0.0
    """Of a camera's capture: when it is started again; 0: it runs."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A look at a running line."""

    captured: int
    decided: int
    restarts: int
    pids: dict[str, int]


class Line:
    """One station's line, from its configuration. `run` blocks until it has ended."""

    def __init__(self, config: LineConfig) -> None:
        if config.worker.bundle:
            # Where a link leads is found out once: a worker that is started again has the same.
            bundle = str(Path(config.worker.bundle).resolve())
            worker = config.worker.model_copy(update={"bundle": bundle})
            config = config.model_copy(update={"worker": worker})
        self.station = Station.of(config)
        self.config = config
        self.epoch = 0
        self.captured = 0
        """Ids taken by all captures together, once `run` has returned."""
        self._processes: dict[str, Process] = {}
        self._rings: dict[str, FrameRing] = {}
        self._draining = False
        self._rarely = Rarely(60.0)
        self._decided_s = 0.0
        self._fault: LinewatchError | None = None

    def run(
        self,
        *,
        stop: Callable[[], bool] = lambda: False,
        watch: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        """Run the line until its sources end or `stop()` is true; then drain it.

        watch: called some fifty times a second.

        Raises what a stage gave up with, `StageFailed` when the restart budget is spent, and what
        making the line can raise (`StationBusy`, `ResourceError`, `SourceError`, `ConfigError`).
        """
        with (
            hold_station(self.station),
            self._rings_and_board() as board,
            self._control(board),
        ):
            try:
                for name in ("decision", "worker", *self.station.companions):
                    self._start(board, name)
                while not self._ended():
                    self._tend(board)
                    self._capture_when_ready(board)
                    if self._fault or stop():
                        self._drain(board)
                    watch(self.progress())
                    time.sleep(TICK_S)
            finally:
                self._end(board)
        if self._fault:
            raise self._fault

    def progress(self) -> Progress:
        processes = list(self._processes.values())  # the control socket's thread asks as well
        return Progress(
            captured=sum(ring.last_id for ring in self._rings.values()),
            decided=sum(ring.decided_id for ring in self._rings.values()),
            restarts=sum(process.incarnation - 1 for process in processes),
            pids={process.name: process.popen.pid for process in processes},
        )

    @contextlib.contextmanager
    def _rings_and_board(self) -> Iterator[Board]:
        """Shared memory of this run; what is left of an earlier one is accounted for first."""
        station = self.station
        shapes = {camera: _shape(camera, c) for camera, c in self.config.cameras.items()}
        journal = Journal(station.journal, self.config.publish)
        try:
            left = settle(station, journal)
            self.epoch = journal.next_epoch()
        finally:
            journal.close()
        if left:
            log.warning("%d frames of an earlier run had no verdict: now invalid/line_died", left)
        station.shm_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for camera, shape in shapes.items():
                path = station.ring(camera)
                create_ring(path, shape, self.config.cameras[camera].slots, self.epoch)
                self._rings[camera] = FrameRing(path)
            (station.run_dir / "line.json").write_text(dump_resolved(self.config))
            board = Board(station.board, station.stages, create=True)
            triggers = TriggerLog(station.triggers, create_epoch=self.epoch)
            try:
                yield board
            finally:
                triggers.close()
                board.close()
        finally:
            self.captured = sum(ring.last_id for ring in self._rings.values())
            for ring in self._rings.values():
                ring.close()
            self._rings = {}
            journal = Journal(station.journal, self.config.publish)
            try:
                settle(station, journal)
            finally:
                journal.close()

    @contextlib.contextmanager
    def _control(self, board: Board) -> Iterator[None]:
        """The control socket, which takes triggers while the line runs."""
        triggers = TriggerLog(self.station.triggers)
        try:
            server = ControlServer(self.station, triggers, lambda: self._status(board))
            try:
                yield
            finally:
                server.close()
        finally:
            triggers.close()

    def _status(self, board: Board) -> dict[str, object]:
        """What the control socket says of the line."""
        ready = all(board.state(name) == READY for name in ("worker", "decision"))
        progress = self.progress()
        return {
            "ready": ready and board.order == GO_ON,
            "station": self.config.station,
            "epoch": self.epoch,
            "cameras": {
                camera: CAMERA_STATES[board.camera(f"capture.{camera}")]
                for camera in self.config.cameras
            },
            "captured": progress.captured,
            "decided": progress.decided,
            "restarts": progress.restarts,
        }

    def _start(self, board: Board, name: str) -> None:
        """Start a stage, for the first time or again."""
        kind, _, camera = name.partition(".")
        station = self.station
        station.log(name).parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", STAGES[kind], str(station.run_dir)]
        known = self._processes.get(name)
        incarnation = known.incarnation + 1 if known else 1
        board.set_starting(name, incarnation)
        # What the interpreter itself has to say (a missing module, a crash) goes beside the log.
        with station.log(name).with_suffix(".err").open("ab") as stderr:
            popen = subprocess.Popen(
                [*arguments, *([camera] if camera else [])],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
        board.set_pid(name, popen.pid)
        process = self._processes.setdefault(name, Process(name, popen))
        process.popen = popen
        process.incarnation = incarnation
        process.starts.append(time.monotonic())
        log.info("%s started (pid %d, start %d)", name, popen.pid, process.incarnation)

    def _capture_when_ready(self, board: Board) -> None:
        awaited = ["worker", "decision"]
        recorder = self._processes.get("recorder")
        if recorder is not None and not recorder.settled and recorder.incarnation == 1:
            awaited.append("recorder")  # the first frames too; one that breaks keeps nobody
        if self._draining or any(board.state(name) != READY for name in awaited):
            return
        for camera in self.config.cameras:
            if f"capture.{camera}" not in self._processes:
                self._start(board, f"capture.{camera}")

    def _tend(self, board: Board) -> None:
        """Reap what has ended, kill what is stuck, restart what broke."""
        if self._rarely.due("output"):
            empty_long_output(self.station.log("any").parent)
        for process in list(self._processes.values()):
            if process.finished:
                continue
            code = process.popen.poll()
            if (note := board.note(process.name)) != process.note:
                process.note = note
                if note:
                    log.info("%s: %s", process.name, note)
            if code is None:
                process.settled = process.settled or board.state(process.name) == READY
                self._kill_if_stuck(board, process)
            elif process.resting_until:
                if time.monotonic() > process.resting_until:
                    if self._is_lasting(process.name):
                        self._start_again(board, process)
                    else:
                        self._restart(board, process, code)
            elif code == 0 and (board.state(process.name) == DONE or board.order == QUIT):
                process.finished = True
            elif (fault := self._read_fault(process.name, code)) is not None and not (
                self._is_lasting(process.name) and process.settled
            ):
                process.finished = True
                self._fault = self._fault or fault
            else:
                self._restart(board, process, code)

    def _kill_if_stuck(self, board: Board, process: Process) -> None:
        limits = self.config.supervision
        limit = max(limits.heartbeat_timeout_ms, board.busy_limit_ms(process.name))
        if board.state(process.name) not in (READY, DONE):
            limit = max(limit, limits.start_timeout_ms)
        if (silent := board.silent_ms(process.name)) > limit:
            log.error("%s silent for %.0f ms (limit %d): killed", process.name, silent, limit)
            process.popen.kill()

    def _restart(self, board: Board, process: Process, code: int) -> None:
        limits = self.config.supervision
        now = time.monotonic()
        if self._is_lasting(process.name):
            # A camera that hangs or crashes its library never ends the line, nor does a bridge.
            board.set_camera(process.name, CAMERA_FROZEN)
            process.rest_s = min(2 * process.rest_s or _LEAST_REST_S, _MOST_REST_S)
            if now - process.starts[-1] > limits.restart_window_s:
                process.rest_s = 0.0
            log.warning("%s ended with %d: again in %g s", process.name, code, process.rest_s)
            process.resting_until = now + process.rest_s
            return
        while process.starts and now - process.starts[0] > limits.restart_window_s:
            process.starts.popleft()
        if len(process.starts) > limits.restarts:
            process.finished = True
            self._fault = self._fault or StageFailed(
                f"{process.name}: ended with {code} and was started {len(process.starts)} times in "
                f"{limits.restart_window_s:g} s, expected at most {limits.restarts} restarts; see "
                f"{self.station.log(process.name)}"
            )
            return
        log.warning("%s ended with %d: started again", process.name, code)
        self._start_again(board, process)

    def _start_again(self, board: Board, process: Process) -> None:
        """Or later, where the machine has no process or file to give; it counts as a start."""
        process.resting_until = 0.0
        try:
            self._start(board, process.name)
        except OSError as error:
            log.error("%s cannot be started: %s", process.name, error)
            process.starts.append(time.monotonic())
            process.resting_until = time.monotonic() + _MOST_REST_S

    def _is_lasting(self, name: str) -> bool:
        """Whether the stage is started again whatever happens."""
        kind, _, camera = name.partition(".")
        if kind == "capture":
            return isinstance(self.config.cameras[camera].source, LiveSource)
        return name in self.station.companions

    def _read_fault(self, name: str, code: int) -> LinewatchError | None:
        """Why a stage gave up, if it did."""
        path = self.station.fault(name)
        if code <= 0 or not path.exists():
            return None
        kind, _, text = path.read_text().partition("\n")
        path.unlink()
        known = getattr(errors, kind, LinewatchError)
        error: LinewatchError = known(text)
        return error

    def _drain(self, board: Board) -> None:
        """Take no more frames. A camera without a living capture has its ring ended here."""
        if not self._draining:
            self._draining = True
            board.set_order(DRAIN)
            self._drain_until = time.monotonic() + self.config.supervision.drain_timeout_s
        for camera, ring in self._rings.items():
            capture = self._processes.get(f"capture.{camera}")
            away = capture is None or capture.finished or capture.resting_until
            if ring.ended == RUNNING and away:
                ring.end(LOST)

    def _ended(self) -> bool:
        """Whether decision is done, or what it would take to get there is not to be had."""
        decision, worker = self._processes["decision"], self._processes["worker"]
        if decision.finished:
            return self._recorded()
        if self._draining and worker.finished and self._pending():
            return True
        if self._draining and time.monotonic() > self._drain_until:
            log.error("not drained in %g s", self.config.supervision.drain_timeout_s)
            return True
        return False

    def _recorded(self) -> bool:
        """Whether the recorder has written what waits, or has had the time for it."""
        recorder = self._processes.get("recorder")
        if recorder is None or recorder.finished or recorder.resting_until:
            return True
        self._decided_s = self._decided_s or time.monotonic()
        return time.monotonic() > self._decided_s + self.config.supervision.drain_timeout_s

    def _pending(self) -> bool:
        return any(ring.decided_id < ring.last_id for ring in self._rings.values())

    def _end(self, board: Board) -> None:
        """Everything off: asked first, then killed; always reaped."""
        board.set_order(QUIT)
        until = time.monotonic() + _KILL_S
        for process in self._processes.values():
            try:
                if process.name == "decision" and not process.finished:
                    process.popen.kill()  # it waits for frames that nobody will answer
                process.popen.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("%s did not leave: killed", process.name)
                process.popen.kill()
                process.popen.wait()
            beside = process.name in self.station.companions
            if not process.finished and self._fault is None and not beside:
                self._fault = self._read_fault(process.name, process.popen.returncode)


def _shape(camera: str, config: CameraConfig) -> tuple[int, int, int]:
    """Of the frames that are inspected. Raises `SourceError`, `ConfigError`."""
    try:
        return prepared_shape(config, probe(config.source))
    except ConfigError as error:
        raise ConfigError(f"camera {camera}: {error}") from error
