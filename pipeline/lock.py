"""Who holds a station: one daemon, and its stages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ConfigError, ResourceError, StationBusy
from pipeline.station import Station

OLD_STAGES_S = 10.0
"""How long a new daemon waits for the stages of an earlier one that was killed."""


@contextlib.contextmanager
def hold_station(station: Station, *, patience_s: float = OLD_STAGES_S) -> Iterator[None]:
    """Hold the station's run directory; sockets and notes of an earlier daemon are removed.

    The kernel lets go of a lock when its process dies, however it dies. Raises `StationBusy` when
    another daemon runs, or its stages do not end within `patience_s`; `ConfigError` for a run
    directory with other people's files, `ResourceError` for one that cannot be made.
    """
    _make(station.run_dir)
    with _locked(station.run_dir / "daemon.lock", fcntl.LOCK_EX, 0.0, station):
        with _locked(station.run_dir / "stages.lock", fcntl.LOCK_EX, patience_s, station):
            _clear(station.run_dir)
        try:
            yield
        finally:
            _clear(station.run_dir)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What is in a run directory is removed: never take a folder that has another use.
        if any(run_dir.iterdir()) and not (run_dir / "daemon.lock").exists():
            raise ConfigError(
                f"run_dir {run_dir}: a folder with other files in it found, expected an empty one "
                "or one of an earlier run: linewatch removes what it holds; choose another"
            )
        run_dir.chmod(0o700)
    except OSError as error:
        raise ResourceError(
            f"run_dir {run_dir}: {error.strerror}; expected a folder that can be made and written: "
            "check the rights above it, or choose another"
        ) from error


def _clear(run_dir: Path) -> None:
    for path in run_dir.iterdir():
        if path.suffix != ".lock" and not path.is_dir():
            path.unlink(missing_ok=True)


def hold_stage(station: Station) -> int:
    """Stage: show that it lives, as long as it lives. The descriptor must stay open."""
    path = station.run_dir / "stages.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextlib.contextmanager
def _locked(path: Path, kind: int, patience_s: float, station: Station) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + patience_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise StationBusy(
                        f"station {station.config.station}: another linewatch holds "
                        f"{station.run_dir}; expected one daemon per station: stop the other, or "
                        "give this one another `station` name"
                    ) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
