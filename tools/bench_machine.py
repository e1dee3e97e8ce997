"""What every part of the benchmark program needs: where and when it ran, timing, goals."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TURN_S = 0.1
"""An entry runs for so long before the next one has its turn: a quick one several times."""
NOWHERE_COLUMNS = 140
PAUSE_S = 0.005
"""Threads of the entry before spin on for a moment, waiting for work."""


def machine() -> str:
    """One line about the processor."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def today() -> str:
    """UTC, as 2026-01-31."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def take_turns(
    entries: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    least: int = 3,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Milliseconds of every run of each entry; `entries` are warm already.

    Turns go to whoever has run for the shortest time, so that a busy moment of the machine hits all
    alike. Each entry runs at least `least` times, and not on beyond `seconds`.
    """
    took_ms: dict[str, list[float]] = {name: [] for name in entries}
    spent_s = dict.fromkeys(entries, 0.0)
    waiting = set(entries)
    while waiting:
        name = min(waiting, key=lambda each: spent_s[each])
        time.sleep(PAUSE_S)
        turn_until = time.perf_counter() + TURN_S
        while name in waiting:
            begun = time.perf_counter()
            entries[name]()
            ended = time.perf_counter()
            took_ms[name].append((ended - begun) * 1e3)
            spent_s[name] += ended - begun
            if spent_s[name] >= seconds and len(took_ms[name]) >= least:
                waiting.remove(name)
                done(name)
            if ended >= turn_until:
                break
    return took_ms


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that the README promises, and what was found. `at_most`: lower is better."""

    name: str
    found: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """NaN meets no goal."""
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {"name": self.name, "found": self.found, "wanted": self.wanted, "met": self.met}

    def __str__(self) -> str:
        sign = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "MISSED"
        return f"{self.name}: {self.found:.4g}, goal {sign} {self.wanted:g}: {verdict}"


def exit_code(goals: list[Goal]) -> int:
    """1 when a goal is missed."""
    return 0 if all(goal.met for goal in goals) else 1


def wide_console() -> Console:
    """As wide as tables need where nobody's terminal says how wide it is."""
    console = Console()
    return console if console.is_terminal else Console(width=NOWHERE_COLUMNS)


def figure_table(title: str) -> Table:
    """A table of names and values, for the caller to fill."""
    table = Table(title=title)
    table.add_column("figure")
    table.add_column("value", justify="right")
    return table


def as_json(figures: Any) -> str:
    """JSON that every reader takes: numbers that are not finite become null."""
    return json.dumps(_finite(figures), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
