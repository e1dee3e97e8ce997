"""A file that only grows, by whole pieces: a write that fails half-way is taken back."""

from __future__ import annotations

import os
from pathlib import Path


class AppendFile:
    """Raises `OSError` where the disk refuses, and then ends where it ended before."""

    def __init__(self, path: Path) -> None:
        """Make it. Raises `FileExistsError` where there is one."""
        self.path = path
        self.size_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o644)

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        done = 0
        try:
            while done < len(view):
                done += os.pwrite(self._file, view[done:], self.size_bytes + done)
        except OSError:
            os.ftruncate(self._file, self.size_bytes)
            raise
        self.size_bytes += len(view)

    def overwrite(self, at: int, data: bytes) -> None:
        os.pwrite(self._file, data, at)

    def sync(self) -> None:
        """To the disk, so that a power cut costs nothing of what was appended."""
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)
