"""The RTSP server of rtsp_server.py in a process of its own, and its numbered frames."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np

from pipeline.sources.stamp import write_stamp

WIDTH, HEIGHT, RATE, COUNT = 320, 256, 25, 200
GROUP = 10
"""Frames from one key frame to the next."""
PROGRAM = Path(__file__).with_name("rtsp_server.py")
_SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's packages belong to it


def write_frames(path: Path) -> Path:
    rng = np.random.default_rng(1)
    with path.open("wb") as file:
        for number in range(COUNT):
            coarse = rng.integers(60, 120, (HEIGHT // 8, WIDTH // 8), np.uint8)
            frame = coarse.repeat(8, axis=0).repeat(8, axis=1)
            write_stamp(frame, number)
            file.write(frame.tobytes())
    return path


class Server:
    def __init__(self, frames: Path, *options: str) -> None:
        size = (str(WIDTH), str(HEIGHT), str(RATE))
        command = [_SYSTEM_PYTHON, str(PROGRAM), str(frames), *size, *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server did not start: run tools/camera_packages.sh"
        self.port = int(line)

    def url(self, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}/line"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._process.pid, number)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
