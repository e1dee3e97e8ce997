"""`python -m tools.faults plc`: a whole line, a bridge and a simulated PLC, and who kills them.

The line has a rendered camera with software triggers, and an engine that reads the number in the
picture: each fifth is bad. The PLC triggers parts through the bridge and lets through what it says
passes, while capture, worker, decision and bridge are killed in turn (`kill -9`). In the end each
part that passed is held against the line's journal: one frame, taken between the part's trigger
and its gate, with the picture of a good part. `--kills 0` is the undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtimes.base import EngineOptions
from pipeline.config import LineConfig
from pipeline.journal import read_verdicts
from pipeline.sources.stamp import read_stamp
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import MARGIN_PX, Label, Verdict
from tools.plc_links import open_link
from tools.plc_machine import Passage, Plc
from tools.plc_sim import parse

_BAD_EVERY = 5
_STEP = 2**20  # numbers that a map's peak can tell apart
_BAD_PEAK = 2.0
_STARTED_S = 60.0
VICTIMS = ("bridge.cell", "capture.cam", "worker", "decision")


class NumberRuntime:
    """The peak of its map says which picture it was: below 1 a good one, from 2 on a bad one."""

    engine_id = "number/none/none"

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        for frame, raw_map in zip(padded, out, strict=True):
            inner = frame[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
            number = read_stamp(inner) or 0  # none: the worker's warm-up, or a torn picture
            raw_map.fill(0)
            bad = number % _BAD_EVERY == 0
            peak = (number % (_STEP - 1) + 1) / _STEP + (_BAD_PEAK if bad else 0.0)
            raw_map[raw_map.shape[0] // 2, raw_map.shape[1] // 2] = peak
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return


def number_runtime(bundle: Bundle | None, options: EngineOptions) -> NumberRuntime:
    """The factory that the line's configuration names."""
    return NumberRuntime()


@dataclass(slots=True)
class Found:
    """What became of the parts."""

    protocol: str
    parts: int
    passed: int = 0
    wrong: int = 0
    """Passed, and the journal does not show a good part that was taken for this trigger."""
    kills: dict[str, int] = field(default_factory=dict)
    faulty_s: float = 0.0
    """Of all fault windows together: from a kill until the PLC sees the line ready again."""
    good_outside: int = 0
    """Good parts outside the fault windows, and how many of them passed."""
    good_outside_passed: int = 0
    seconds: float = 0.0
    why: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.good_outside_passed / max(self.good_outside, 1)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", choices=["modbus", "opcua", "mqtt"], default="modbus")
    parser.add_argument("--port", type=int, default=0, help="mqtt: of a broker that runs")
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=10.0, help="parts per second")
    parser.add_argument("--gate-ms", type=float, default=700.0)
    parser.add_argument("--kills", type=int, default=40, help="of each: bridge, capture, ...")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")


def run(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="linewatch-plc-") as folder:
        found = act(chosen, Path(folder))
    if chosen.json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{found.protocol}: {found.parts} parts in {found.seconds:.0f} s, {found.passed} passed"
            f", {found.wrong} wrong passes; kills: {found.kills or 'none'}\n"
            f"outside {found.faulty_s:.0f} s of faults {found.good_outside_passed} of "
            f"{found.good_outside} good parts passed ({100 * found.share:.2f} %)\n"
            f"rejects: {found.why}"
        )
    return 0 if found.wrong == 0 and found.share >= 0.99 else 1


def line_config(folder: Path, protocol: str, port: int) -> LineConfig:
    """A line of one triggered camera, with a bridge called cell."""
    return LineConfig.model_validate_json(
        json.dumps(
            {
                "station": f"plc-{os.getpid()}",
                "run_dir": f"{folder}/run",
                "state_dir": f"{folder}/state",
                "cameras": {
                    "cam": {
                        "source": {"kind": "rendered", "width": 320, "height": 256},
                        "trigger": {"mode": "software"},
                        "recipe": {"image_threshold": 1.0, "pixel_threshold": 1.0},
                    }
                },
                "worker": {"runtime": "tools.faults_plc:number_runtime"},
                "publish": {"endpoint": f"ipc://{folder}/out"},
                "supervision": {"restarts": 1000},
                "bridges": {"cell": {"kind": protocol, "port": port}},
            }
        )
    )


class Saboteur:
    """Kills the victims in turn, waits until the PLC sees a line that is ready, and goes on."""

    def __init__(self, plc: Plc, kills: int, seconds: float, seed: int) -> None:
        """seconds: how long the run takes about; the kills are spread over it."""
        self.windows: list[tuple[int, int]] = []
        """UTC, of each fault."""
        self.kills: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self._plc = plc
        self._left = list(VICTIMS) * kills
        self._chance = random.Random(seed)
        self._chance.shuffle(self._left)
        self._pause_s = seconds / (len(self._left) + 1) if kills else 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="saboteur")

    def watch(self, progress: Progress) -> None:
        self.pids = dict(progress.pids)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        while self._left and not self._stop.wait(self._pause_s * self._chance.uniform(0.5, 1.0)):
            victim = self._left.pop()
            begin = time.time_ns()
            try:
                os.kill(self.pids[victim], signal.SIGKILL)
            except (ProcessLookupError, KeyError):  # it rests before it is started again
                continue
            self.kills[victim] = self.kills.get(victim, 0) + 1
            self._stop.wait(0.5)
            while not self._plc.ready and not self._stop.wait(0.02):
                continue
            self._stop.wait(1.0)  # a capture or worker that is being started shows in no register
            self.windows.append((begin, time.time_ns()))


def act(chosen: argparse.Namespace, folder: Path) -> Found:
    """One run."""
    port = chosen.port or _free_port()
    config = line_config(folder, chosen.protocol, port)
    options = [chosen.protocol, "--port", str(port), "--station", config.station]
    link = open_link(parse([*options, "--certificates", str(folder / "client")]))
    plc = Plc(link, rate=chosen.rate, gate_ms=chosen.gate_ms)
    saboteur = Saboteur(plc, chosen.kills, chosen.parts / chosen.rate, chosen.seed)
    done = threading.Event()
    line = Line(config)
    ended = threading.Event()

    def inspect() -> None:
        try:
            line.run(stop=done.is_set, watch=saboteur.watch)
        finally:
            ended.set()

    thread = threading.Thread(target=inspect, name="line")
    thread.start()
    begin = time.monotonic()
    try:
        while not plc.ready and not ended.is_set() and time.monotonic() - begin < _STARTED_S:
            plc.scan()
        saboteur.start()
        plc.run(chosen.parts, stop=ended.is_set)
    finally:
        saboteur.stop()
        done.set()
        thread.join()
    found = Found(chosen.protocol, plc.tally.parts, plc.tally.passed, kills=saboteur.kills)
    found.seconds = time.monotonic() - begin
    found.why = plc.tally.why
    judge(found, plc.history, saboteur.windows, frames_of(config))
    return found


def frames_of(config: LineConfig) -> dict[int, list[Verdict]]:
    """The journal's frames by their trigger."""
    frames: dict[int, list[Verdict]] = {}
    for verdict in read_verdicts(Station.of(config).journal):
        frames.setdefault(verdict.trigger_id, []).append(verdict)
    return frames


def judge(
    found: Found,
    history: Sequence[Passage],
    windows: Sequence[tuple[int, int]],
    frames: dict[int, list[Verdict]],
) -> None:
    """Hold what passed against the journal. A part whose picture nobody has counts as good in its
    turn: four of five are."""
    found.faulty_s = sum(end - begin for begin, end in windows) / 1e9
    for passage in history:
        taken = frames.get(passage.trigger_id, [])
        shows_good = len(taken) == 1 and is_good(taken[0], passage)
        found.wrong += not passage.why and not shows_good
        outside = not any(
            begin <= passage.gate_utc_ns and passage.taken_utc_ns <= end for begin, end in windows
        )
        shows_bad = any(verdict.raw_peak >= _BAD_PEAK for verdict in taken)
        if outside and not shows_bad:
            found.good_outside += 1
            found.good_outside_passed += not passage.why


def is_good(verdict: Verdict, passage: Passage) -> bool:
    """Whether a frame is a good part's picture, taken for this passage."""
    number = round(verdict.raw_peak % 1.0 * _STEP) - 1
    return (
        verdict.label is Label.PASS
        and 0.0 < verdict.raw_peak < 1.0
        and number % _BAD_EVERY != 0
        and passage.taken_utc_ns <= verdict.t_capture_utc_ns <= passage.gate_utc_ns
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
