"""`python -m tools.bench overhead`: what the line costs an engine that has all of the machine.

1. The bare engine: the source's frames, padded, one after the other in a loop.
2. The line as fast as it goes: the same engine and frames, one camera that waits for slots.
3. The bare engine again; the mean of both runs is what this run of the line is held to. A machine
   that others share changes its speed from minute to minute: 2 and 3 several times in turn, and the
   median of the shares counts.
4. The line at 80 % of that rate, a camera that drops: what is not inference of the time from
   capture to verdict.

Exit status: 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import ModelsError
from models.runtimes import Runtime, open_runtime
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX, map_hw
from pipeline.config import (
    CameraConfig,
    LineConfig,
    PublishConfig,
    SyntheticSource,
    WorkerConfig,
)
from pipeline.errors import DataError
from pipeline.sources import open_source
from pipeline.supervisor import Line, Progress
from pipeline.types import Label, Verdict
from tools.bench_bundles import calibrated_bundle, present_engines
from tools.bench_listener import Listener, rate, spread
from tools.bench_machine import Goal, as_json, exit_code, figure_table, machine, today, wide_console

SHARE_GOAL = 0.95
"""Of the bare engine's frames per second."""
BESIDE_GOAL_MS = 10.0
"""p99 of what is not inference, capture to verdict."""
LOAD = 0.8
FRAMES = 8
"""Rendered ones that come round and round."""
WARM_UP_S = 1.0
"""Of each run of the line that is not counted, at most a tenth of it."""


@dataclass(slots=True)
class OverheadFigures:
    """All that `--json` prints. Rates in frames/s."""

    engine: str
    threads: int
    frame_hwc: tuple[int, int, int]
    bare_fps: list[float]
    """One more than `line_fps`: before, between and after the line's runs."""
    line_fps: list[float]
    paced_fps: float = 0.0
    """Asked for in step 4."""
    paced_frames: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Of the verdicts in step 4; only `ok` and `defect` are valid ones."""
    beside_ms: dict[str, float] = field(default_factory=dict)
    """Capture to verdict less inference: p50, p99, max."""
    total_ms: dict[str, float] = field(default_factory=dict)
    missed: int = 0

    @property
    def bare(self) -> float:
        return float(np.median(self.bare_fps))

    @property
    def shares(self) -> list[float]:
        """Of each run of the line, of the bare engine's rate just before and after it."""
        beside = pairwise(self.bare_fps)
        return [line / ((a + b) / 2) for line, (a, b) in zip(self.line_fps, beside, strict=True)]

    @property
    def goals(self) -> list[Goal]:
        lost = sum(n for reason, n in self.reasons.items() if reason not in ("ok", "defect"))
        return [
            Goal("share of the bare engine's frames/s", float(np.median(self.shares)), SHARE_GOAL),
            Goal("p99 ms beside inference", self.beside_ms["p99"], BESIDE_GOAL_MS, at_most=True),
            Goal("invalid verdicts at that pace", lost, 0, at_most=True),
        ]


def bench_overhead(
    *, width: int, height: int, seconds: float, threads: int, engine: str = "", rounds: int = 5
) -> OverheadFigures:
    """seconds: of each run of the line; the bare engine has half of that before and after it.

    rounds: how often the line runs as fast as it goes.

    engine: `runtime/precision`; "": the fastest that runs here, int8 aside.
    """
    source = SyntheticSource(
        kind="synthetic", width=width, height=height, prerender=FRAMES, defect_share=0.2
    )
    padded = frames_of(source, FRAMES)
    with tempfile.TemporaryDirectory(prefix="linewatch-bench-") as work:
        bundle, engine, runtime = _fastest(Path(work), padded, threads, engine)
        hwc = (height, width, padded[0].shape[2])
        figures = OverheadFigures(engine, threads, hwc, [], [])
        try:
            figures.bare_fps.append(bare_rate(runtime, padded, seconds / 2))
            for number in range(rounds):
                fast = _Run(Path(work) / f"fast{number}", bundle, source, engine, threads=threads)
                fast.run(seconds)
                figures.line_fps.append(fast.rate(0.5 / figures.bare))
                figures.missed += fast.listener.missed
                figures.bare_fps.append(bare_rate(runtime, padded, seconds / 2))
        finally:
            runtime.close()
        figures.paced_fps = LOAD * figures.bare
        paced = _Run(
            Path(work) / "paced", bundle, source, engine, threads=threads, fps=figures.paced_fps
        )
        paced.run(seconds)
    verdicts = paced.steady()
    figures.paced_frames = len(verdicts)
    figures.reasons = dict(Counter(verdict.reason.value for verdict in verdicts))
    valid = [verdict.latency_ms for verdict in verdicts if verdict.label is not Label.INVALID]
    figures.beside_ms = spread([each["total"] - each["infer"] for each in valid])
    figures.total_ms = spread([each["total"] for each in valid])
    figures.missed += paced.listener.missed
    return figures


def frames_of(source: SyntheticSource, count: int) -> list[NDArray[np.uint8]]:
    """The source's first frames, padded as in a slot: uint8 (H + 64, W + 64, C)."""
    opened = open_source(source)
    try:
        frames = []
        for _ in range(count):
            grab = opened.read()
            assert grab is not None, "a synthetic source without a limit does not end"
            frame = np.empty(opened.shape_hwc, np.uint8)
            grab.write(frame)
            frames.append(pad_frame(frame, FRAME_MARGIN_PX))
        return frames
    finally:
        opened.close()


def bare_rate(runtime: Runtime, padded: Sequence[NDArray[np.uint8]], seconds: float) -> float:
    """Frames per second of the engine alone, one frame after the other."""
    height, width = (side - 2 * FRAME_MARGIN_PX for side in padded[0].shape[:2])
    raw_map = np.empty(map_hw(height, width), np.float32)
    for _ in range(2):
        runtime.infer([padded[0]], [raw_map])
    count = 0
    begun = time.perf_counter()
    while (took := time.perf_counter() - begun) < seconds or not count:
        runtime.infer([padded[count % len(padded)]], [raw_map])
        count += 1
    return count / took


def _fastest(
    folder: Path, padded: Sequence[NDArray[np.uint8]], threads: int, engine: str
) -> tuple[Path, str, Runtime]:
    """A calibrated bundle, its engine's name, and the engine, opened as the worker does."""
    # int8 costs accuracy, and is taken by name only, as on a station.
    here = [name for name in present_engines()[0] if not name.endswith("/int8")]
    names = [engine] if engine else here
    both = 2 * FRAME_MARGIN_PX
    height, width, channels = padded[0].shape
    faults = []
    for name in names:
        try:
            bundle = calibrated_bundle(folder / "bundles", name, padded, threads)
            runtime = open_runtime(
                Bundle.load(bundle),
                *name.split("/"),
                threads=threads,
                shapes=[(height - both, width - both, channels)],
            )
        except (ModelsError, ImportError) as error:
            # An untrained engine in 8 bits may not reproduce its references; the next one is taken.
            faults.append(f"{name}: {error}")
            print(f"left out: {faults[-1]}", file=sys.stderr)
            continue
        return bundle, name, runtime
    raise DataError(f"no engine to measure: {'; '.join(faults)}")


class _Run:
    """One run of a line with one camera. fps: its pace; None: as fast as slots come free."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        source: SyntheticSource,
        engine: str,
        *,
        threads: int,
        fps: float | None = None,
    ) -> None:
        folder.mkdir()
        endpoint = f"ipc://{folder}/verdicts"
        on_full: Literal["drop", "wait"] = "wait" if fps is None else "drop"
        self._config = LineConfig(
            station="bench",
            run_dir=f"{folder}/run",
            state_dir=f"{folder}/state",
            cameras={
                # Without a deadline: how late a frame is shall be seen, not cut off.
                "cam": CameraConfig(source=source, fps=fps, on_full=on_full, deadline_ms=None)
            },
            # The bundle has thresholds for this engine alone, so `auto` takes its precision.
            worker=WorkerConfig(
                bundle=str(bundle), runtime=engine.partition("/")[0], threads=threads
            ),
            publish=PublishConfig(endpoint=endpoint),
        )
        self.listener = Listener(endpoint)
        self._begun = 0.0
        self._seconds = 0.0

    def run(self, seconds: float) -> None:
        self._seconds = seconds
        self.listener.start()
        try:
            Line(self._config).run(stop=self._done, watch=self._watch)
        finally:
            self.listener.stop()

    def _watch(self, progress: Progress) -> None:
        if progress.decided and not self._begun:
            self._begun = time.monotonic()

    def _done(self) -> bool:
        return bool(self._begun) and time.monotonic() - self._begun > self._seconds

    def _warm(self) -> int:
        """How many verdicts came before the part that counts."""
        times = self.listener.received_utc_ns
        if not times:
            return 0
        until = times[0] + round(min(WARM_UP_S, self._seconds / 10) * 1e9)
        return sum(each < until for each in times)

    def steady(self) -> list[Verdict]:
        return self.listener.verdicts[self._warm() :]

    def rate(self, together_s: float) -> float:
        """Frames per second that got a valid verdict; see `bench_listener.rate`."""
        first = self._warm()
        arrived = zip(
            self.listener.verdicts[first:], self.listener.received_utc_ns[first:], strict=True
        )
        times = [ns / 1e9 for verdict, ns in arrived if verdict.label is not Label.INVALID]
        return rate(times, together_s)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run of the line")
    parser.add_argument("--rounds", type=int, default=5, help="runs of the line at full speed")
    parser.add_argument("--threads", type=int, default=2, help="of the engine; 0: all")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--runtime", default="", help="runtime/precision; the fastest but int8")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    figures = bench_overhead(
        width=chosen.width,
        height=chosen.height,
        seconds=chosen.seconds,
        threads=chosen.threads,
        engine=chosen.runtime,
        rounds=chosen.rounds,
    )
    about = {
        "shares": figures.shares,
        "goals": [goal.plain() for goal in figures.goals],
        "machine": machine(),
        "when": today(),
    }
    if chosen.json:
        print(as_json(asdict(figures) | about))
    else:
        _print(figures)
    return exit_code(figures.goals)


def _print(figures: OverheadFigures) -> None:
    height, width, channels = figures.frame_hwc
    threads = figures.threads or "all"
    table = figure_table(
        f"pdn_tiny, {figures.engine}, {threads} threads, one camera of {width}x{height}x{channels}"
    )
    for name, values in (
        ("bare engine frames/s, between the runs of the line", figures.bare_fps),
        ("line frames/s", figures.line_fps),
        ("shares", figures.shares),
    ):
        table.add_row(name, ", ".join(f"{value:.3g}" for value in values))
    table.add_section()
    table.add_row("paced frames/s", f"{figures.paced_fps:.2f}")
    table.add_row("verdicts", ", ".join(f"{k} {n}" for k, n in figures.reasons.items()))
    for name, spread_ms in (
        ("capture to verdict less inference", figures.beside_ms),
        ("capture to verdict", figures.total_ms),
    ):
        text = " / ".join(f"{value:.2f}" for value in spread_ms.values())
        table.add_row(f"{name} ms, p50 / p99 / max", text)
    table.add_row("messages missed by the subscriber", str(figures.missed))
    table.caption = f"{machine()}, {today()}"
    console = wide_console()
    console.print(table)
    for goal in figures.goals:
        console.print(str(goal), highlight=False)
