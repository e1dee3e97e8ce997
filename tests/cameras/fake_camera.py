"""Aravis's fake GigE Vision camera, a process of its own that sends on the loopback interface.

Its frame ids start at 65401, so that they wrap after 135 frames. At an exposure of 10000 us and a
gain of 0 the pixel in the upper left corner is the frame id modulo 255.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

ADDRESS = "127.0.0.1"
SERIAL = "LW1"
FIRST_ID = 65401
PATIENCE_S = 30.0

_PROGRAM = "arv-fake-gv-camera-0.8"
_PORT = 3956


class FakeCamera:
    """Runs within its `with`; can be killed, started again, frozen and thawed."""

    def __init__(self, lost_per_thousand: int = 0) -> None:
        self._command = [_PROGRAM, "-i", ADDRESS, "-s", SERIAL, "-r", str(lost_per_thousand)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert not _answers(), f"UDP port {_PORT} is taken: another fake camera runs; end it"
        self._process = subprocess.Popen(self._command)
        until = time.monotonic() + PATIENCE_S
        while not _answers():
            assert self._process.poll() is None, f"{_PROGRAM} ended with {self._process.returncode}"
            assert time.monotonic() < until, f"{_PROGRAM} does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """As `with`, and it is not there until it is started."""
        try:
            yield
        finally:
            self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _answers() -> bool:
    rows = Path("/proc/net/udp").read_text().splitlines()[1:]
    return any(row.split()[1].endswith(f":{_PORT:04X}") for row in rows)
