"""Who holds a station: one daemon, and its stages."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import StationBusy
from pipeline.station import Station

_OLD_STAGES_S = 10.0


@contextlib.contextmanager
def hold_station(station: Station) -> Iterator[None]:
    """Hold the station's run directory; sockets and notes of an earlier daemon are removed.

    The kernel lets go of a lock when its process dies, however it dies. Raises `StationBusy` when
    another daemon runs, or its stages do not end.
    """
    station.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    station.run_dir.chmod(0o700)
    with _locked(station.run_dir / "daemon.lock", fcntl.LOCK_EX, 0.0, station):
        with _locked(station.run_dir / "stages.lock", fcntl.LOCK_EX, _OLD_STAGES_S, station):
            for path in station.run_dir.iterdir():
                if path.suffix != ".lock":
                    path.unlink()
        try:
            yield
        finally:
            for path in station.run_dir.iterdir():
                if path.suffix != ".lock":
                    path.unlink()


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
