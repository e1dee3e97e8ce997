"""A station whose wall clock jumps while it runs: an hour back, then a day on."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import LineConfig, load
from pipeline.record.recordings import stored
from pipeline.sources.sidecar import read_side
from pipeline.station import Station
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import PartVerdict, Reason, Verdict
from pipeline.wire import Heartbeat, decode

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("shifted_clock.c")
PATIENCE_S = 60.0
HOUR_S, DAY_S = 3600, 86400
STAGE = 40
"""Verdicts between two jumps."""
STATION = """\
station: clock{pid}
run_dir: {work}/run
state_dir: {work}/state
cameras:
  a:
    source: {{kind: rendered, width: 320, height: 256, frame_rate: 25}}
    deadline_ms: 30000
    slots: 32
publish: {{endpoint: "ipc://{work}/line.ipc", keep_days: 0.02}}
recording: {{folder: {work}/recordings, record: all, keep_free_gb: 0, file_mb: 2}}
worker: {{runtime: "tests.fakes:stamp"}}
"""


class Clock:
    """The wall clock of the processes that have `environment`."""

    def __init__(self, work: Path) -> None:
        library, path = work / "shifted_clock.so", work / "shift"
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(PROGRAM)]
        subprocess.run(command, check=True)
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self.environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "CLOCK_SHIFT_FILE": str(path),
        }

    def shift(self, seconds: int) -> None:
        self._memory[:] = struct.pack("q", seconds)


class Listener:
    """A subscriber on the true time, and all that it was given."""

    def __init__(self, config: LineConfig, cursor: Path) -> None:
        self._subscriber = Subscriber(config.publish.endpoint, cursor=cursor)
        self.verdicts: list[Verdict] = []
        self.parts: list[PartVerdict] = []
        self.missed: list[Missed] = []
        self.beats: list[Heartbeat] = []

    @property
    def counts(self) -> tuple[int, int, int]:
        return len(self.verdicts), len(self.parts), len(self.beats)

    def listen(self, verdicts: int = 0, parts: int = 0, beats: int = 0) -> None:
        """Until so many of each have come."""
        wanted = verdicts, parts, beats
        end = time.monotonic() + PATIENCE_S
        while any(few < many for few, many in zip(self.counts, wanted, strict=True)):
            assert time.monotonic() < end, f"{self.counts} in {PATIENCE_S:g} s, expected {wanted}"
            event = self._subscriber.receive(100)
            if isinstance(event, Verdict):
                self.verdicts.append(event)
            elif isinstance(event, PartVerdict):
                self.parts.append(event)
            elif event is not None:
                self.missed.append(event)
            beat = self._subscriber.heartbeat
            if beat is not None and (not self.beats or beat is not self.beats[-1]):
                self.beats.append(beat)

    def close(self) -> None:
        self._subscriber.close()


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def test_the_clock_of_the_fixture_jumps(clock: Clock) -> None:
    program = "import time; print(time.time()); time.sleep(0.01); print(time.monotonic())"
    for seconds in (0, -HOUR_S, DAY_S):
        clock.shift(seconds)
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=clock.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        wall, monotonic = map(float, done.stdout.split())
        assert abs(wall - time.time() - seconds) < PATIENCE_S
        assert abs(monotonic - time.monotonic()) < PATIENCE_S


@contextlib.contextmanager
def running(path: Path, clock: Clock) -> Iterator[None]:
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path)]
    process = subprocess.Popen(command, cwd=ROOT, env=clock.environment)
    try:
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_line_whose_clock_jumps_loses_and_delays_nothing(clock: Clock, tmp_path: Path) -> None:
    path = tmp_path / "station.yaml"
    path.write_text(STATION.format(pid=os.getpid(), work=tmp_path))
    config = load(path)
    listener = Listener(config, tmp_path / "cursor")
    bounds = []
    try:
        with running(path, clock):
            for seconds in (0, -HOUR_S, DAY_S):
                clock.shift(seconds)
                verdicts_before, _, beats_before = listener.counts
                listener.listen(verdicts=verdicts_before + STAGE, beats=beats_before + 5)
                off_s = listener.beats[-1].t_utc_ns / 1e9 - time.time() - seconds
                assert abs(off_s) < PATIENCE_S
                assert listener.beats[-1].ready
                bounds.append(len(listener.verdicts))
        verdicts, parts = journaled(config)
        listener.listen(len(verdicts), len(parts))
    finally:
        listener.close()
    # Each frame that was captured has its verdict, by the ids in the pixels; nothing was late.
    assert [v.frame_id for v in verdicts] == list(range(1, len(verdicts) + 1))
    assert len(verdicts) >= bounds[-1] >= 3 * STAGE
    assert {v.reason for v in verdicts} <= {Reason.OK, Reason.DEFECT}
    assert [v.raw_peak for v in verdicts] == [v.frame_id - 1 for v in verdicts]
    assert all(0 <= v.latency_ms["total"] < 30_000 for v in verdicts)
    # The clock did jump under them.
    times = [v.t_capture_utc_ns / 1e9 for v in verdicts]
    jumps = [round((b - a) / HOUR_S) for a, b in pairwise(times) if abs(b - a) > 1000]
    assert jumps == [-1, 25]
    # The subscriber had all of it, in its order.
    assert not listener.missed
    assert listener.verdicts == verdicts
    assert listener.parts == parts
    check_recording(config, len(verdicts))


def journaled(config: LineConfig) -> tuple[list[Verdict], list[PartVerdict]]:
    """All rows: seqs without a gap, though limits of retention lie within the jump."""
    with contextlib.closing(sqlite3.connect(Station.of(config).journal)) as base:
        rows = base.execute("SELECT seq, body FROM verdict ORDER BY seq").fetchall()
    assert [seq for seq, _ in rows] == list(range(1, len(rows) + 1))
    messages = [decode(body) for _, body in rows]
    verdicts = [m for m in messages if isinstance(m, Verdict)]
    return verdicts, [m for m in messages if isinstance(m, PartVerdict)]


def check_recording(config: LineConfig, count: int) -> None:
    """Every frame, or its name where it was lost; times that go on in each file, and over all."""
    folder = Station.of(config).recordings
    sides = [read_side(path) for path in sorted(one.path for one in stored(folder))]
    assert len(sides) > 1
    frames = [frame for side in sides for _, frame in sorted(side.frames.items())]
    lost = [frame.frame_id for side in sides for frame, _ in side.lost]
    assert sorted([f.frame_id for f in frames] + lost) == list(range(1, count + 1))
    assert len(frames) > count // 2
    times = [frame.t_capture_utc_ns for frame in frames]
    assert all(before < after for before, after in pairwise(times))
