"""What the commands on journals have in common: which journal, and what times mean."""

from __future__ import annotations

import datetime
import re
import time
from pathlib import Path

from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.journal_queries import Wanted
from pipeline.station import Station

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def journal_of(path: Path) -> Path:
    """The journal of a station's configuration, or the file itself. Raises `ConfigError`."""
    return path if path.suffix == ".sqlite" else Station.of(load(path)).journal


def parsed_time(text: str | None) -> int | None:
    """UTC nanoseconds of `2026-11-22T14:00` (this machine's zone), or of `90m` ago."""
    if text is None:
        return None
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return time.time_ns() - int(ago[1]) * _UNITS[ago[2]] * 10**9
    try:
        return round(datetime.datetime.fromisoformat(text).timestamp() * 1e9)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"time {text!r} found, expected one like 2026-11-22T14:00, or 90m, 12h or 7d ago"
        ) from error


def wanted_of(
    part: str, camera: str, label: str, reason: str, since: str | None, until: str | None
) -> Wanted:
    """Raises `ConfigError` for times that are none."""
    return Wanted(
        camera=camera,
        label=label,
        reason=reason,
        part_id=part,
        since_utc_ns=parsed_time(since),
        until_utc_ns=parsed_time(until),
    )


def shown_time(utc_ns: int) -> str:
    """In this machine's zone."""
    if not utc_ns:
        return ""
    moment = datetime.datetime.fromtimestamp(utc_ns / 1e9).astimezone()
    return moment.isoformat(sep=" ", timespec="milliseconds")
