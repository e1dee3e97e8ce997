"""`python -m tools.bench pipeline`: what the line itself costs, without an engine."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

from rich.console import Console

from pipeline.config import (
    CameraConfig,
    LineConfig,
    PublishConfig,
    SyntheticSource,
    WorkerConfig,
)
from pipeline.supervisor import Line, Progress
from pipeline.telemetry import Usage, usage
from tools.bench_listener import Listener
from tools.bench_machine import figure_table, machine, today


@dataclass(slots=True)
class PipelineFigures:
    """What one run of the line without an engine gave."""

    cameras: int
    frame_hwc: tuple[int, int, int]
    asked_fps: float
    seconds: float
    frames: int = 0
    verdicts: int = 0
    fps_per_camera: dict[str, float] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    latency_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    cpu_share: dict[str, float] = field(default_factory=dict)
    private_mib: dict[str, float] = field(default_factory=dict)
    copies_per_frame: int = 1
    """The source's write into the slot; tests/pipeline/test_one_copy.py holds us to it."""
    machine: str = ""
    when: str = ""


def bench_pipeline(
    *, cameras: int, width: int, height: int, fps: float, seconds: float, slots: int
) -> PipelineFigures:
    """Pre-rendered one-channel frames through all stages with the null runtime, journal on.

    Latency is measured where a subscriber stands: from capture to its `recv`.
    """
    figures = PipelineFigures(cameras, (height, width, 1), fps, seconds)
    with tempfile.TemporaryDirectory(prefix="linewatch-bench-") as work:
        endpoint = f"ipc://{work}/verdicts"
        source = SyntheticSource(
            kind="synthetic", width=width, height=height, prerender=8, defect_share=0.2
        )
        config = LineConfig(
            station="bench",
            run_dir=f"{work}/run",
            state_dir=f"{work}/state",
            cameras={
                f"cam{n}": CameraConfig(source=source, slots=slots, fps=fps, on_full="drop")
                for n in range(cameras)
            },
            worker=WorkerConfig(runtime="null"),
            publish=PublishConfig(endpoint=endpoint),
        )
        line = Line(config)
        listener = Listener(endpoint)
        meter = _Meter(seconds)
        listener.start()
        try:
            line.run(stop=meter.done, watch=meter.watch)
        finally:
            listener.stop()
        figures.frames = line.captured
    verdicts = listener.verdicts
    figures.verdicts = len(verdicts)
    figures.missed = listener.missed
    figures.labels = dict(Counter(verdict.label.value for verdict in verdicts))
    figures.reasons = dict(Counter(verdict.reason.value for verdict in verdicts))
    figures.fps_per_camera = listener.rates()
    figures.latency_ms = listener.latencies()
    figures.cpu_share, figures.private_mib = meter.shares()
    figures.machine = machine()
    figures.when = today()
    return figures


class _Meter:
    """Lets the line run for a time, and reads what each stage used in its last part."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = 0.0
        self._first: dict[str, Usage] = {}
        self._last: dict[str, Usage] = {}
        self._first_at = self._last_at = 0.0

    def watch(self, progress: Progress) -> None:
        if progress.captured and not self._begun:
            self._begun = time.monotonic()
        if not self._begun:
            return
        now = time.monotonic()
        if not self._first and now - self._begun > 1.0:
            self._first, self._first_at = self._read(progress), now
        if now - self._last_at > 0.5:
            self._last, self._last_at = self._read(progress), now

    def done(self) -> bool:
        return bool(self._begun) and time.monotonic() - self._begun > self._seconds

    def shares(self) -> tuple[dict[str, float], dict[str, float]]:
        """CPU share of each stage (1.0: one core), and private memory in MiB."""
        span_s = self._last_at - self._first_at
        cpu = {
            name: (self._last[name].cpu_s - self._first[name].cpu_s) / span_s
            for name in self._first
            if name in self._last and span_s > 0
        }
        memory = {name: used.private_bytes / 2**20 for name, used in self._last.items()}
        return cpu, memory

    @staticmethod
    def _read(progress: Progress) -> dict[str, Usage]:
        found = {name: usage(pid) for name, pid in progress.pids.items()}
        return {name: used for name, used in found.items() if used is not None}


def _print(figures: PipelineFigures) -> None:
    height, width, channels = figures.frame_hwc
    table = figure_table(f"{figures.cameras} cameras of {width}x{height}x{channels}, null runtime")
    table.add_row("frames / verdicts", f"{figures.frames} / {figures.verdicts}")
    table.add_row("labels", ", ".join(f"{k} {n}" for k, n in figures.labels.items()))
    table.add_row("reasons", ", ".join(f"{k} {n}" for k, n in figures.reasons.items()))
    for camera, rate in figures.fps_per_camera.items():
        table.add_row(f"{camera} frames/s", f"{rate:.1f}")
    for name, figure in figures.latency_ms.items():
        table.add_row(
            f"{name} ms, p50 / p99 / max",
            f"{figure['p50']:.2f} / {figure['p99']:.2f} / {figure['max']:.2f}",
        )
    for name, share in figures.cpu_share.items():
        table.add_row(f"{name}: cores, MiB", f"{share:.2f}, {figures.private_mib[name]:.0f}")
    table.add_row("copies of the pixels per frame", str(figures.copies_per_frame))
    table.add_row("messages missed by the subscriber", str(figures.missed))
    table.caption = f"{figures.machine}, {figures.when}"
    Console().print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--fps", type=float, default=60.0, help="per camera")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--slots", type=int, default=12, help="per camera")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    figures = bench_pipeline(
        cameras=chosen.cameras,
        width=chosen.width,
        height=chosen.height,
        fps=chosen.fps,
        seconds=chosen.seconds,
        slots=chosen.slots,
    )
    if chosen.json:
        print(json.dumps(asdict(figures), indent=2))
    else:
        _print(figures)
    complete = figures.frames == figures.verdicts and not figures.reasons.get("dropped")
    return 0 if complete else 1
