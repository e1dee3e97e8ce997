"""`python -m tools.bench start`: how long `linewatch run` takes until a station is ready.

1. A station with one camera (images of 1280x1024 in a folder), a calibrated pdn_tiny and OpenVINO.
2. `linewatch run` is started, as a process of its own; a subscriber waits for it as a PLC bridge
   does. Ready is what the heartbeat says: the engine is loaded, and held to its reference maps.
3. The first valid verdict is noted too: cameras are opened once the line is ready.
4. SIGTERM, and again. The first start of all is not counted: it fills the disk's cache.

Exit status: 1 when the goal is missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.variants import FRAME_MARGIN_PX
from pipeline.commands.progress import progress_bar
from pipeline.errors import StageFailed
from pipeline.subscriber import Subscriber
from pipeline.types import Label, Verdict
from tools.bench_bundles import calibrated_bundle, padded_frame, present_engines
from tools.bench_machine import Goal, as_json, exit_code, figure_table, machine, today, wide_console

GOAL_S = 4.0
"""From the command to ready, the worst of all starts."""
GIVE_UP_S = 120.0
IMAGES = 4
FPS = 2.0
HEARTBEAT_MS = 20
"""More often than a station's, so that this measures no coarser."""
ROOT = Path(__file__).resolve().parents[1]


def bench_start(*, repeats: int, width: int, height: int, threads: int) -> dict[str, Any]:
    """Seconds of every start, until ready and until the first valid verdict."""
    engine = next(name for name in present_engines()[0] if name in ENGINES)
    with (
        tempfile.TemporaryDirectory(prefix="linewatch-bench-") as work,
        progress_bar("Starts", repeats + 1, quiet=not sys.stderr.isatty()) as update,
    ):
        file, endpoint = _station(Path(work), engine, width, height, threads)
        ready_s, verdict_s = [], []
        for number in range(repeats + 1):
            ready, verdict = _one_start(file, endpoint)
            update(number + 1, repeats + 1)
            if number:
                ready_s.append(ready)
                verdict_s.append(verdict)
    return {
        "engine": engine,
        "frame": f"{width}x{height}",
        "ready_s": ready_s,
        "first_verdict_s": verdict_s,
        "median_ready_s": float(np.median(ready_s)),
        "worst_ready_s": max(ready_s),
        "median_first_verdict_s": float(np.median(verdict_s)),
        "worst_first_verdict_s": max(verdict_s),
    }


ENGINES = ("openvino/bf16", "openvino/f32")
"""The first that runs here."""


def _station(folder: Path, engine: str, width: int, height: int, threads: int) -> tuple[Path, str]:
    """Its configuration and where it publishes."""
    images, margin = folder / "images", FRAME_MARGIN_PX
    images.mkdir()
    padded = [padded_frame(height, width, 1, seed=k) for k in range(IMAGES)]
    count = round(FPS * GIVE_UP_S)
    for number in range(count):
        path = images / f"{number}.png"
        if number < IMAGES:
            cv2.imwrite(str(path), padded[number][margin:-margin, margin:-margin])
        else:
            path.symlink_to(f"{number % IMAGES}.png")
    bundle = calibrated_bundle(folder / "bundles", engine, padded, threads)
    endpoint = f"ipc://{folder}/verdicts"
    # Slow, and without a deadline: the first verdict is what is waited for, however late.
    source = {"kind": "folder", "path": str(images)}
    camera = {"source": source, "fps": FPS, "deadline_ms": None}
    config = {
        "station": "bench-start",
        "run_dir": f"{folder}/run",
        "state_dir": f"{folder}/state",
        "cameras": {"cam": camera},
        "worker": {"bundle": str(bundle), "runtime": "openvino", "threads": threads},
        "publish": {"endpoint": endpoint, "heartbeat_ms": HEARTBEAT_MS},
    }
    file = folder / "station.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file, endpoint


def _one_start(file: Path, endpoint: str) -> tuple[float, float]:
    """Seconds until ready and until the first valid verdict.

    Raises `StageFailed` when the line ends by itself, or is not ready in time.
    """
    log = file.with_suffix(".log")
    ready_s = verdict_s = 0.0
    with Subscriber(endpoint, topics=["frame/"]) as stream, log.open("wb") as output:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", str(file)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while not verdict_s:
                event = stream.receive(timeout_ms=5)
                now_s = time.monotonic() - begun
                if not ready_s and stream.heartbeat is not None and stream.heartbeat.ready:
                    ready_s = now_s
                if isinstance(event, Verdict) and event.label is not Label.INVALID:
                    verdict_s = now_s
                if process.poll() is not None or now_s > GIVE_UP_S:
                    raise StageFailed(
                        f"linewatch run was not ready after {now_s:.1f} s, ended with "
                        f"{process.returncode}: {log.read_text()[-2000:]}"
                    )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    # A verdict may come before the heartbeat that says ready.
    return ready_s or verdict_s, verdict_s


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of the engine; 0: all")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    found = bench_start(
        repeats=chosen.repeats,
        width=chosen.width,
        height=chosen.height,
        threads=chosen.threads,
    )
    goals = [Goal("worst start, seconds until ready", found["worst_ready_s"], GOAL_S, at_most=True)]
    if chosen.json:
        about = {"machine": machine(), "when": today(), "goals": [goal.plain() for goal in goals]}
        print(as_json(found | about))
        return exit_code(goals)
    table = figure_table(f"linewatch run, one camera of {found['frame']}, {found['engine']}")
    for name, text in (("ready", "ready"), ("first_verdict", "first valid verdict")):
        median, worst = found[f"median_{name}_s"], found[f"worst_{name}_s"]
        table.add_row(f"{text} s, median / worst", f"{median:.2f} / {worst:.2f}")
    table.caption = f"{len(found['ready_s'])} starts; {machine()}, {today()}"
    console = wide_console()
    console.print(table)
    for goal in goals:
        console.print(str(goal), highlight=False)
    return exit_code(goals)
