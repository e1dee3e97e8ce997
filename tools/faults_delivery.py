"""`python -m tools.faults delivery`: results, and people who kill processes.

Publisher (journal and PUB), catch-up socket and one subscriber with a cursor, each a process. While
results are published, publisher and subscriber are killed in turn (`kill -9`), now and then the
catch-up socket with them; the subscriber is frozen, made slow, and the journal's disk is full for a
moment. In the end the subscriber's own log is held against the journal: every result came, in the
order of its topic, and what was acknowledged never again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from pipeline.cursor import read_position

_STALLED_S = 120.0
_FULL_S = 1.0


@dataclass(slots=True)
class Found:
    """What became of the results."""

    results: int
    messages: int = 0
    kills: dict[str, int] = field(default_factory=dict)
    frozen_s: float = 0.0
    full_disk_s: float = 0.0
    seconds: float = 0.0
    lost: int = 0
    out_of_order: int = 0
    twice_after_ack: int = 0
    twice_before_ack: int = 0
    """Allowed: given, not acknowledged, and given again after a restart."""
    missed: int = 0

    @property
    def good(self) -> bool:
        return not (self.lost or self.out_of_order or self.twice_after_ack or self.missed)


class Cast:
    """The three processes."""

    def __init__(self, folder: Path, results: int, rate: float, durability: str) -> None:
        self.folder = folder
        self._arguments = {
            "publisher": [str(results), str(rate), durability],
            "catch_up": [],
            "subscriber": [],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = dict.fromkeys(self._arguments, 0)
        for role in self._arguments:
            self._start(role)

    def _start(self, role: str) -> None:
        arguments = [sys.executable, "-m", "tools.faults_roles", role, str(self.folder)]
        self._running[role] = subprocess.Popen([*arguments, *self._arguments[role]])

    def kill(self, role: str) -> None:
        """And start it again at once."""
        process = self._running[role]
        process.kill()
        process.wait()
        self.kills[role] += 1
        self._start(role)

    def pid(self, role: str) -> int:
        return self._running[role].pid

    def check(self) -> None:
        for role, process in self._running.items():
            if process.poll() is not None:
                raise RuntimeError(f"{role} ended by itself with {process.returncode}")

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


def faults(
    folder: Path,
    *,
    results: int,
    kills: int,
    freeze_s: float,
    slow_s: float,
    rate: float,
    durability: str,
    seed: int,
    say: bool = False,
) -> Found:
    """Raises `RuntimeError` when nothing moves any more."""
    chance = random.Random(seed)
    found = Found(results)
    cast = Cast(folder, results, rate, durability)
    begun = time.monotonic()
    # Each at a share of the results: the machine may be as slow as it likes.
    plan = [(chance.uniform(0.02, 0.98), f"kill {n}") for n in range(kills)]
    plan += [(0.3, "freeze"), (0.5, "full"), (0.7, "slow")]
    plan.sort()
    try:
        _await(cast, "joined", (folder / "cursor").exists)
        (folder / "go").touch()
        victims = 0
        for share, what in plan:
            _await(cast, what, partial(_reached, folder, share * results))
            if say:
                print(f"{decided(folder):>8} of {results}: {what}", file=sys.stderr, flush=True)
            if what.startswith("kill"):
                cast.kill(("publisher", "subscriber")[victims % 2])
                victims += 1
                if chance.random() < 0.2:
                    cast.kill("catch_up")
            elif what == "freeze":
                _freeze(cast, freeze_s)
            elif what == "full":
                _fill(cast, folder)
            else:
                (folder / "slow").touch()
                time.sleep(slow_s)
                (folder / "slow").unlink()
        found.frozen_s, found.full_disk_s = freeze_s, _FULL_S
        _await(cast, "all decided", lambda: decided(folder) >= results)
        _await(cast, "all acknowledged", lambda: acknowledged(folder))
    finally:
        cast.close()
    found.kills = cast.kills
    found.seconds = time.monotonic() - begun
    _compare(folder, found)
    return found


def _await(cast: Cast, what: str, condition: Callable[[], bool]) -> None:
    """Until it is so; as long as the subscriber's log grows, patience is endless."""
    log = cast.folder / "received.log"
    size, until = -1, time.monotonic() + _STALLED_S
    while not condition():
        cast.check()
        now = log.stat().st_size if log.exists() else 0
        if now != size:
            size, until = now, time.monotonic() + _STALLED_S
        if time.monotonic() > until:
            raise RuntimeError(f"{what}: nothing has moved for {_STALLED_S:g} s")
        time.sleep(0.02)


def _freeze(cast: Cast, seconds: float) -> None:
    os.kill(cast.pid("subscriber"), signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(cast.pid("subscriber"), signal.SIGCONT)


def _fill(cast: Cast, folder: Path) -> None:
    """No file of the publisher's may grow for a while, as on a disk that is full."""
    wal = folder / "journal.sqlite-wal"
    room = wal.stat().st_size if wal.exists() else 0
    pid = cast.pid("publisher")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    time.sleep(_FULL_S)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def _rows(folder: Path, query: str) -> list[tuple[str, int]]:
    path = folder / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as base:
        return [(str(topic), int(seq)) for topic, seq in base.execute(query)]


def decided(folder: Path) -> int:
    """Results in the journal."""
    try:
        found = _rows(folder, "SELECT '', COALESCE(MAX(frame_id), 0) FROM verdict")
    except sqlite3.Error:
        return 0
    return found[0][1]


def _reached(folder: Path, results: float) -> bool:
    return decided(folder) >= results


def acknowledged(folder: Path) -> bool:
    position = read_position(folder / "cursor")
    last = dict(_rows(folder, "SELECT topic, MAX(seq) FROM verdict GROUP BY topic"))
    return position is not None and dict(position.seqs) == last


def _compare(folder: Path, found: Found) -> None:
    """The subscriber's log against the journal."""
    expected = _rows(folder, "SELECT topic, seq FROM verdict ORDER BY seq")
    found.messages = len(expected)
    given: set[tuple[str, int]] = set()
    last: dict[str, int] = {}
    acked: dict[str, int] = {}
    for line in (folder / "received.log").read_text().splitlines():
        kind, *rest = line.split()
        if kind == "s":
            last = dict(acked)
        elif kind == "a":
            acked = dict(last)
        elif kind == "m":
            found.missed += 1
        else:
            topic, seq = rest[0], int(rest[1])
            found.out_of_order += seq <= last.get(topic, 0)
            found.twice_after_ack += seq <= acked.get(topic, 0)
            found.twice_before_ack += (topic, seq) in given and seq > acked.get(topic, 0)
            last[topic] = seq
            given.add((topic, seq))
    found.lost = len(set(expected) - given)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--freeze", type=float, default=60.0, help="seconds")
    parser.add_argument("--slow", type=float, default=10.0, help="seconds")
    parser.add_argument("--rate", type=float, default=1000.0, help="results per second")
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="what was found as JSON")


def run(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="linewatch-faults-") as folder:
        found = faults(
            Path(folder),
            results=chosen.results,
            kills=chosen.kills,
            freeze_s=chosen.freeze,
            slow_s=chosen.slow,
            rate=chosen.rate,
            durability=chosen.durability,
            seed=chosen.seed,
            say=not chosen.json,
        )
    if chosen.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        for name, value in asdict(found).items():
            print(f"{name.replace('_', ' '):>20}: {value}")
    return 0 if found.good else 1
