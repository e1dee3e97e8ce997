"""What the stages have in common: start, board, rings, wake-up sockets, the way out.

A stage is a process `python -m pipeline.<stage> RUN_DIR [CAMERA]`, started by the supervisor. It
ends with 0 when its work is done, with a `LinewatchError`'s exit code when it has given up (the
reason is left in the station's fault file, and a restart would not help), and with anything else
when it broke: then it is started again.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import zmq

from pipeline.board import Board
from pipeline.errors import LinewatchError
from pipeline.lock import hold_stage
from pipeline.ring import FrameRing
from pipeline.station import Station
from pipeline.telemetry import start_log

_PR_SET_PDEATHSIG = 1
WAKE_MS = 50
"""A stage looks at the shared memory this often even when no message wakes it."""


class Stage:
    """One running stage: its station, its row of the board, its wake-up socket."""

    def __init__(self, station: Station, name: str) -> None:
        self.station = station
        self.name = name
        self.board = Board(station.board, station.stages)
        self.log = logging.getLogger(name)
        self._context = zmq.Context(io_threads=1)
        self._inbox: zmq.Socket[bytes] | None = None
        self._outboxes: list[zmq.Socket[bytes]] = []

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        return self._context

    def rings(self) -> dict[str, FrameRing]:
        """The rings of all cameras, in the order of the configuration."""
        return {c: FrameRing(self.station.ring(c)) for c in self.station.config.cameras}

    def listen(self) -> zmq.Socket[bytes]:
        """The socket on which the other stages wake this one."""
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.setsockopt(zmq.RCVHWM, 1000)
        self._inbox.bind(f"ipc://{self.station.socket(self.name)}")
        return self._inbox

    def call(self, other: str) -> zmq.Socket[bytes]:
        """A socket that wakes another stage; see `wake`."""
        outbox = self._context.socket(zmq.PUSH)
        outbox.setsockopt(zmq.SNDHWM, 100)
        outbox.setsockopt(zmq.LINGER, 0)
        # Wake-ups for a stage that is away are of no use: it reads the rings when it starts.
        outbox.setsockopt(zmq.IMMEDIATE, 1)
        outbox.connect(f"ipc://{self.station.socket(other)}")
        self._outboxes.append(outbox)
        return outbox

    def close(self) -> None:
        for socket in self._outboxes:
            socket.close(0)
        if self._inbox is not None:
            self._inbox.close(0)
        self._context.term()
        self.board.close()


def wake(outbox: zmq.Socket[bytes], message: bytes = b"") -> None:
    """Send a wake-up; where it cannot go at once it is not needed."""
    try:
        outbox.send(message, zmq.DONTWAIT)
    except zmq.Again:
        return


def drain(inbox: zmq.Socket[bytes]) -> None:
    """Take all wake-ups that have come: one look at the rings answers them all."""
    try:
        while True:
            inbox.recv(zmq.DONTWAIT)
    except zmq.Again:
        return


def main(stage: str, work: Callable[[Stage], None]) -> None:
    """The entry of a stage's process: `work` until it returns or raises."""
    # The supervisor alone ends a line; a Ctrl-C at the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Without its supervisor nobody would restart, drain or unlink: a stage dies with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    station = Station.attach(Path(sys.argv[1]))
    hold_stage(station)
    name = ".".join([stage, *sys.argv[2:]])
    start_log(station.log(name))
    runner = Stage(station, name)
    if runner.board.maker != os.getppid():
        # It died before it could take this stage with it; there may even be another by now.
        runner.close()
        sys.exit(1)
    try:
        work(runner)
    except LinewatchError as error:
        runner.log.error("%s", error)
        station.fault(name).write_text(f"{type(error).__name__}\n{error}")
        sys.exit(error.exit_code)
    except Exception:  # the outermost loop: the supervisor restarts the stage, the log says why
        runner.log.exception("broke")
        sys.exit(1)
    finally:
        runner.close()
