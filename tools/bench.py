"""The benchmark program: every figure in the README comes from here.

python -m tools.bench pipeline              four cameras, no engine: what the line itself costs
python -m tools.bench pipeline --json
python -m tools.bench accuracy              both image sets, from nothing, over three seeds
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.config import (
    CameraConfig,
    LineConfig,
    PublishConfig,
    SyntheticSource,
    WorkerConfig,
)
from pipeline.subscriber import Missed, Subscriber
from pipeline.supervisor import Line, Progress
from pipeline.telemetry import Usage, usage
from pipeline.types import Verdict


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
        listener = _Listener(endpoint)
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
    figures.machine = _machine()
    figures.when = datetime.now(UTC).strftime("%Y-%m-%d")
    return figures


class _Listener(threading.Thread):
    """A subscriber like any other; notes when each verdict came."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="listener")
        self._stream = Subscriber(endpoint, topics=["frame/"])
        self._leave = threading.Event()
        self.verdicts: list[Verdict] = []
        self._received_utc_ns: list[int] = []
        self.missed = 0

    def run(self) -> None:
        while not self._leave.is_set():
            event = self._stream.receive(timeout_ms=100)
            if isinstance(event, Verdict):
                self._received_utc_ns.append(time.time_ns())
                self.verdicts.append(event)
            elif isinstance(event, Missed):
                self.missed += 1

    def stop(self) -> None:
        time.sleep(0.3)
        self._leave.set()
        self.join()
        self._stream.close()

    def rates(self) -> dict[str, float]:
        """Frames per second and camera, over the capture times."""
        rates = {}
        for camera in sorted({verdict.camera for verdict in self.verdicts}):
            times = [v.t_capture_utc_ns for v in self.verdicts if v.camera == camera]
            span_s = (max(times) - min(times)) / 1e9
            rates[camera] = (len(times) - 1) / span_s if span_s else 0.0
        return rates

    def latencies(self) -> dict[str, dict[str, float]]:
        """Median, p99 and maximum per stage, and from capture to the subscriber's hands."""
        columns: dict[str, list[float]] = {}
        for verdict, received in zip(self.verdicts, self._received_utc_ns, strict=True):
            for name, value in verdict.latency_ms.items():
                columns.setdefault(name, []).append(value)
            columns.setdefault("received", []).append((received - verdict.t_capture_utc_ns) / 1e6)
        return {
            name: {
                "p50": float(np.percentile(values, 50)),
                "p99": float(np.percentile(values, 99)),
                "max": float(max(values)),
            }
            for name, values in columns.items()
        }


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


def _machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def _print(figures: PipelineFigures) -> None:
    console = Console()
    height, width, channels = figures.frame_hwc
    table = Table(title=f"{figures.cameras} cameras of {width}x{height}x{channels}, null runtime")
    table.add_column("figure")
    table.add_column("value", justify="right")
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
    console.print(table)


def _accuracy_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=None, help="parent of the image sets")
    parser.add_argument("--sets", default="deeppcb,magnetic_tile")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--variant", default="pdn_tiny")
    parser.add_argument("--steps", type=int, default=0, help="other than the plan's")
    parser.add_argument("--random-teacher", action="store_true", help="the baseline of no teacher")
    parser.add_argument("--device", default="cpu", help="of torch, for the training")
    parser.add_argument("--out", type=Path, default=Path("accuracy-out"))
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def bench_accuracy(chosen: argparse.Namespace) -> int:
    """Train, calibrate and look, set by set and seed by seed; a table in the end."""
    from tools.accuracy import bench, print_table

    data = chosen.data or Path(os.environ.get("LINEWATCH_DATA", "../shared/data"))
    found = bench(
        data,
        chosen.sets.split(","),
        [int(seed) for seed in chosen.seeds.split(",")],
        variant=chosen.variant,
        steps=chosen.steps,
        random_teacher=chosen.random_teacher,
        device=chosen.device,
        out=chosen.out,
        quiet=chosen.json,
    )
    found |= {"machine": _machine(), "when": f"{datetime.now(UTC):%Y-%m-%d}"}
    (chosen.out / "accuracy.json").write_text(json.dumps(found, indent=2) + "\n")
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    line = commands.add_parser("pipeline", help="the line without an engine")
    line.add_argument("--cameras", type=int, default=4)
    line.add_argument("--width", type=int, default=1280)
    line.add_argument("--height", type=int, default=1024)
    line.add_argument("--fps", type=float, default=60.0, help="per camera")
    line.add_argument("--seconds", type=float, default=20.0)
    line.add_argument("--slots", type=int, default=12, help="per camera")
    line.add_argument("--json", action="store_true", help="figures as JSON")
    _accuracy_parser(commands.add_parser("accuracy", help="what is found, and what is not"))
    chosen = parser.parse_args(arguments)
    if chosen.command == "accuracy":
        return bench_accuracy(chosen)
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


if __name__ == "__main__":
    sys.exit(main())
