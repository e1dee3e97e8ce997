"""Logs of the stages, and what a process costs."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import time
from dataclasses import dataclass
from pathlib import Path

LOG_BYTES = 4 * 2**20
LOG_FILES = 3


def start_log(path: Path) -> None:
    """Log this process to a file, UTC, rotated: a daemon that runs for months fills no disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=LOG_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8"
    )
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def empty_long_output(folder: Path) -> None:
    """Empty what stages printed (`*.err`) where it is long: libraries write there past any log."""
    for path in folder.glob("*.err"):
        with contextlib.suppress(OSError):
            if path.stat().st_size > LOG_BYTES:
                os.truncate(path, 0)  # its writers append


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds so far; resident memory of the process alone and with what it shares, bytes."""

    cpu_s: float
    private_bytes: int
    resident_bytes: int


def usage(pid: int) -> Usage | None:
    """What a process has used, None when it is gone. Shared memory is not counted as private."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    sizes = {
        line.split(":")[0]: int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon", "RssFile", "RssShmem"))
    }
    if not sizes:
        return None
    ticks = int(fields[11]) + int(fields[12])
    private = sizes["RssAnon"] + sizes["RssFile"]
    return Usage(ticks / 100.0, private, private + sizes["RssShmem"])
