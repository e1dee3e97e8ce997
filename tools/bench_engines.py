"""`python -m tools.bench engines`: how fast each runtime and precision of this machine is.

1. Each precision's peak is measured first, and again at the end: one large matrix multiplication.
2. For each variant and size, all engines are opened and warmed up, and then take turns.
3. The map of each is held to the plain float32 networks': largest difference over largest value.
4. With `--anomalib DIR`, anomalib's own networks take turns with our pdn_small.

What would take too long, or would not fit, is left out, and the output says why. Sizes are
WIDTHxHEIGHT, as camera people write them.

Exit status: 1 when a goal (against anomalib, of a GPU) is missed, 2 for wrong options.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import ModelsError
from models.fused import FusedGraph
from models.runtimes import Runtime
from models.variants import FRAME_MARGIN_PX, RECEPTIVE_FIELD_PX, VARIANTS, feature_channels, map_hw
from pipeline.commands.progress import Update, progress_bar
from tools.bench_arithmetic import graph_flop, peak_flops
from tools.bench_bundles import (
    again,
    make_bundle,
    map_error,
    open_engine,
    padded_frame,
    plain_networks,
    present_engines,
    with_peaks,
)
from tools.bench_engines_found import GPU_RUNTIMES, Found, Row
from tools.bench_machine import Goal, as_json, exit_code, machine, take_turns, today

LEAST_RUNS = 3
AGAIN_BELOW_S = 1.0
LIKELY_SHARE = 0.5
"""Of the peak, until an engine was measured on a smaller frame of the same variant."""
SLOW_ENGINE = "torch/f32"
SLOW_PX = {"pdn_tiny": 1280 * 1024}
SLOW_OTHER_PX = 640 * 640
"""Largest frames of `SLOW_ENGINE`, which is the yardstick and no way to run, unless it is named."""
REFERENCE_FLOP = 3e11
GPU_REFERENCE_FLOP = 3e13
"""Larger frames are not run through the plain networks: a smaller one shows the error."""
ERROR_FRAME_PX = 256
"""Side of that smaller frame."""
STRIP_BYTES = {"cuda": 4 << 30, "tensorrt": 4 << 30}
CPU_STRIP_BYTES = 512 << 20
"""Bounds of the largest tensor, as the runtimes have them; about four of them live at once."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. sizes: (width, height). map_channels: extra rows, 0 for none."""

    variants: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    engines: Sequence[str]
    threads: int = 0
    seconds: float = 3.0
    channels: int = 3
    map_channels: int = 0
    longest_s: float = 100.0
    matmul: int = 4096
    every_size: bool = False
    """The slow engine too."""


def measure(plan: Plan, update: Update) -> Found:
    """Peaks, then every variant and size, then the peaks again."""
    found = Found()
    found.peaks = _peaks(plan, {})
    models = [
        (variant, keep)
        for variant in plan.variants
        for keep in (0, plan.map_channels)
        if keep < feature_channels(variant) and (keep == 0 or plan.map_channels)
    ]
    models = list(dict.fromkeys(models))
    total = len(models) * len(plan.sizes) * len(plan.engines)
    with tempfile.TemporaryDirectory(prefix="linewatch-bench-") as folder:
        for variant, keep in models:
            _Variant(plan, found, Path(folder), variant, keep).measure(
                lambda note: update(len(found.rows) + len(found.left_out), total, note)
            )
    update(total, total, "peaks again")
    found.peaks = _peaks(plan, found.peaks)
    return found


def _peaks(plan: Plan, known: Mapping[str, float]) -> dict[str, float]:
    """GFLOP/s by engine, the higher of what is known and what is found now."""
    peaks = {}
    gpu = [name for name in GPU_RUNTIMES if f"{name}/fp16" in plan.engines]
    for engine in dict.fromkeys([*plan.engines, *(f"{name}/bf16" for name in gpu)]):
        found = peak_flops(engine, plan.matmul, plan.threads)
        if found is not None:
            peaks[engine] = max(found / 1e9, known.get(engine, 0.0))
    return peaks


class _Variant:
    """One variant, with all sizes and engines."""

    def __init__(self, plan: Plan, found: Found, folder: Path, variant: str, keep: int) -> None:
        self.plan, self.found, self.variant = plan, found, variant
        of = feature_channels(variant)
        self.label = f"{variant}, {keep} of {of}" if keep else variant
        bundle = make_bundle(folder, variant, plan.channels, keep)
        if any(engine.endswith("/int8") for engine in plan.engines):
            bundle = with_peaks(bundle, plan.threads)
        self.bundle: Bundle = bundle
        self.graph: FusedGraph = bundle.graph()
        self._rates: dict[str, float] = {}
        """Of each engine, in FLOP/s, on the size before."""
        self._on_gpu = any(_on_gpu(engine) for engine in plan.engines)
        self._plain = plain_networks(
            variant, plan.channels, keep, gpu=self._on_gpu, threads=plan.threads
        )
        self._maps: dict[tuple[int, int], tuple[NDArray[np.uint8], NDArray[np.float32]]] = {}

    def measure(self, say: Callable[[str], None]) -> None:
        """Smaller sizes first: they tell how long the larger ones will take."""
        for width, height in sorted(self.plan.sizes, key=lambda wh: wh[0] * wh[1]):
            say(f"{self.label} {width}x{height}")
            self._size(width, height, say)

    def _size(self, width: int, height: int, say: Callable[[str], None]) -> None:
        plan, name = self.plan, f"{self.label} {width}x{height}"
        flop = graph_flop(self.graph, height, width)
        frame = padded_frame(height, width, plan.channels)
        raw_map = np.empty(map_hw(height, width), np.float32)
        shape = height, width, plan.channels
        with ExitStack() as opened:
            runtimes: dict[str, Runtime] = {}
            for engine in plan.engines:
                why = self._why_not(engine, height, width, flop)
                if not why:
                    say(f"{name}: {engine} opens")
                    try:
                        runtime = open_engine(self.bundle, engine, plan.threads, [shape], [frame])
                        opened.enter_context(closing(runtime))
                        _warm_up(again(runtime, frame, raw_map))
                        runtimes[engine] = runtime
                        continue
                    except (ModelsError, ImportError, MemoryError, RuntimeError) as error:
                        why = str(error)  # torch has no memory left on the GPU, say
                about = {"engine": engine, "variant": self.label, "size": f"{width}x{height}"}
                self.found.left_out.append({**about, "why": why})
            say(f"{name}: timing")
            took_ms = take_turns(
                {name: again(runtime, frame, raw_map) for name, runtime in runtimes.items()},
                seconds=plan.seconds,
                least=LEAST_RUNS,
            )
            for engine, runtime in runtimes.items():
                say(f"{name}: {engine} against the plain networks")
                off, where = self._map_error(runtime, height, width, flop)
                median, p99 = (float(ms) for ms in np.percentile(took_ms[engine], (50, 99)))
                self._rates[engine] = flop / median * 1e3
                row = Row(
                    variant=self.label,
                    width=width,
                    height=height,
                    engine=engine,
                    median_ms=median,
                    p99_ms=p99,
                    runs=len(took_ms[engine]),
                    frames_per_s=1e3 / median,
                    gflop=flop / 1e9,
                    gflop_per_s=flop / median / 1e6,
                    map_error=off,
                    error_frame=where,
                )
                self.found.rows.append(row)

    def _why_not(self, engine: str, height: int, width: int, flop: int) -> str:
        """Why an engine is left out of this size; "" where it is not."""
        plan = self.plan
        most = SLOW_PX.get(self.variant, SLOW_OTHER_PX)
        if engine == SLOW_ENGINE and height * width > most and not plan.every_size:
            return f"slow: over {most} pixels it is measured only when named in --runtimes"
        rate = self._rates.get(engine, LIKELY_SHARE * 1e9 * self.found.peaks.get(engine, 0.0))
        likely_s = (LEAST_RUNS + 1) * flop / rate if rate else 0.0
        if likely_s > plan.longest_s:
            return f"would take about {likely_s:.0f} s, over --longest {plan.longest_s:g}"
        padded = [side + 2 * FRAME_MARGIN_PX for side in (height, width)]
        bound = STRIP_BYTES.get(engine.partition("/")[0], CPU_STRIP_BYTES)
        needed = 4 * min(self.graph.largest_tensor_bytes(padded[0], padded[1]), bound)
        free = _free_bytes(engine)
        if needed > free:
            return f"needs about {needed >> 20} MiB, and {free >> 20} MiB are free"
        return ""

    def _map_error(self, runtime: Runtime, height: int, width: int, flop: int) -> tuple[float, str]:
        """The error, and WIDTHxHEIGHT of the frame on which it was found."""
        if flop > (GPU_REFERENCE_FLOP if self._on_gpu else REFERENCE_FLOP):
            height, width = min(height, ERROR_FRAME_PX), min(width, ERROR_FRAME_PX)
        try:
            padded, expected = self._reference(height, width)
        except RuntimeError:  # the plain networks, which know no strips, fill the GPU's memory
            height, width = min(height, ERROR_FRAME_PX), min(width, ERROR_FRAME_PX)
            padded, expected = self._reference(height, width)
        found = np.empty_like(expected)
        runtime.infer([padded], [found])
        return map_error(found, expected), f"{width}x{height}"

    def _reference(self, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """A padded frame and the plain networks' map of it."""
        if (height, width) not in self._maps:
            padded = padded_frame(height, width, self.plan.channels)
            self._maps[height, width] = padded, self._plain(padded)
        return self._maps[height, width]


def _warm_up(entry: Callable[[], object]) -> None:
    """Once, which compiles; twice where that is soon done."""
    begun = time.perf_counter()
    entry()
    if time.perf_counter() - begun < AGAIN_BELOW_S:
        entry()


def _on_gpu(engine: str) -> bool:
    if engine.partition("/")[0] not in GPU_RUNTIMES:
        return False
    import torch

    return torch.cuda.is_available()


def _free_bytes(engine: str) -> int:
    if _on_gpu(engine):
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def size_of(text: str) -> tuple[int, int]:
    """`1280x1024` -> (width, height). Raises `argparse.ArgumentTypeError`."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} found, expected WIDTHxHEIGHT")
    if min(int(width), int(height)) < RECEPTIVE_FIELD_PX:
        raise argparse.ArgumentTypeError(f"{text}: sides of {RECEPTIVE_FIELD_PX} px or more")
    return int(width), int(height)


def add_options(parser: argparse.ArgumentParser) -> None:
    def names(text: str) -> list[str]:
        return text.split(",")

    def variants(text: str) -> list[str]:
        if unknown := set(names(text)) - set(VARIANTS):
            raise argparse.ArgumentTypeError(f"{sorted(unknown)}: expected of {list(VARIANTS)}")
        return names(text)

    def sizes(text: str) -> list[tuple[int, int]]:
        return [size_of(each) for each in names(text)]

    def runtimes(text: str) -> list[str]:
        if any("/" not in each for each in names(text)):
            raise argparse.ArgumentTypeError("each as runtime/precision, such as openvino/bf16")
        return names(text)

    parser.add_argument("--variants", type=variants, default="pdn_tiny,pdn_small,pdn_medium")
    standard = "256x256,640x640,1280x1024,2448x2048"
    parser.add_argument("--sizes", type=sizes, default=standard, help="WIDTHxHEIGHT,...")
    parser.add_argument(
        "--runtimes",
        type=runtimes,
        default=None,
        help="runtime/precision,... or package.module:factory/precision; all that run here",
    )
    parser.add_argument("--threads", type=int, default=2, help="of a CPU engine; 0: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each entry")
    parser.add_argument(
        "--longest", type=float, default=100.0, help="seconds an entry may take, or is left out"
    )
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help="grey or RGB")
    parser.add_argument(
        "--map-channels", type=int, default=0, help="rows with fewer channels in the map, too"
    )
    parser.add_argument("--matmul", type=int, default=4096, help="size of the peak's matrices")
    parser.add_argument(
        "--anomalib", type=Path, help="folder of anomalib's exported networks; made if empty"
    )
    parser.add_argument("--venv", type=Path, help="anomalib's own, see tools/anomalib_speed.py")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    from tools.bench_anomalib import compare
    from tools.bench_engines_table import print_tables

    engines, absent = present_engines()
    if chosen.runtimes:
        # Whoever names one learns why it does not run when it is opened.
        engines, absent = chosen.runtimes, {}
    plan = Plan(
        variants=chosen.variants,
        sizes=chosen.sizes,
        engines=engines,
        threads=chosen.threads,
        seconds=chosen.seconds,
        channels=chosen.channels,
        map_channels=chosen.map_channels,
        longest_s=chosen.longest,
        matmul=chosen.matmul,
        every_size=bool(chosen.runtimes),
    )
    beside: dict[str, Any] | None = None
    goals: list[Goal] = []
    if chosen.anomalib is not None:
        beside, goals = compare(
            chosen.anomalib,
            engines,
            threads=plan.threads,
            seconds=plan.seconds,
            venv=chosen.venv,
            map_channels=plan.map_channels,
        )
    with progress_bar("Engines", None, quiet=not sys.stderr.isatty()) as update:
        found = measure(plan, update)
    goals += found.goals()
    figures = found.plain() | {
        "threads": plan.threads,
        "channels": plan.channels,
        "not_here": absent,
        "anomalib": beside,
        "goals": [goal.plain() for goal in goals],
        "machine": machine() + _gpu_name(engines),
        "when": today(),
    }
    if chosen.json:
        print(as_json(figures))
    else:
        print_tables(found, figures, goals)
    return exit_code(goals)


def _gpu_name(engines: Sequence[str]) -> str:
    if not any(_on_gpu(engine) for engine in engines):
        return ""
    import torch

    return f", {torch.cuda.get_device_name()}"
