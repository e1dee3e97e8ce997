"""anomalib's own networks beside our pdn_small: one process, one size, turn by turn.

The networks are OpenVINO models as `tools/anomalib_speed.py --keep DIR` leaves them. OpenVINO
chooses their precision, as it would for anomalib's users.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ModelsError
from models.pdn import feature_channels
from models.variants import map_hw
from tools.bench_bundles import again, make_bundle, open_engine, padded_frame, with_peaks
from tools.bench_machine import Goal, take_turns

NETWORKS = ("whole", "student_teacher")
SIZE = 640
"""Side of the image for which networks are made where there are none."""
GOALS = {"openvino/int8": 3.0, "openvino/bf16": 1.6}
"""So many times as fast as anomalib's whole model."""
CANNOT_BE_MADE = 3
"""Exit status of tools/anomalib_speed.py without a venv."""
VARIANT = "pdn_small"


def compare(
    folder: Path,
    engines: Sequence[str],
    *,
    threads: int,
    seconds: float,
    venv: Path | None,
    map_channels: int = 0,
) -> tuple[dict[str, Any], list[Goal]]:
    """Times and ratios for JSON, and the goals; `why_not` alone where there are no networks.

    engines: ours, those that can be opened. seconds: for each network. map_channels: those of the
    goals once more, with maps of so many channels; 0: not.
    """
    why = "" if _all_there(folder) else _make(folder, threads, venv)
    if why:
        return {"why_not": why}, []
    import openvino as ov

    core = ov.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    entries: dict[str, Callable[[], object]] = {}
    for name in NETWORKS:
        compiled = core.compile_model(folder / f"{name}.xml", "CPU", settings)
        shape = tuple(int(side) for side in compiled.input(0).shape)
        image = np.random.default_rng(0).random(shape, dtype=np.float32)
        entries[f"anomalib {name}"] = _inference(compiled.create_infer_request(), image)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    height, width = shape[2:]
    frame = padded_frame(height, width, 3)
    raw_map = np.empty(map_hw(height, width), np.float32)
    left_out = {}
    with tempfile.TemporaryDirectory(prefix="linewatch-bench-") as work, ExitStack() as opened:
        for keep in (0, map_channels) if map_channels else (0,):
            bundle = make_bundle(Path(work), VARIANT, 3, keep)
            if any(engine.endswith("/int8") for engine in engines):
                bundle = with_peaks(bundle, threads)
            for engine in engines if not keep else [each for each in engines if each in GOALS]:
                name = f"{engine}, {keep} of {feature_channels(VARIANT)}" if keep else engine
                try:
                    runtime = open_engine(bundle, engine, threads, [(height, width, 3)], [frame])
                except (ModelsError, ImportError, RuntimeError) as error:
                    left_out[name] = str(error)
                    continue
                opened.enter_context(closing(runtime))
                entries[name] = again(runtime, frame, raw_map)
        for entry in entries.values():
            entry()
        took_ms = take_turns(entries, seconds=seconds)
    return summary(took_ms) | {
        "size": height,
        "precision": precision,
        "left_out": left_out,
    }, goals({name: float(np.median(ms)) for name, ms in took_ms.items()})


def _inference(request: Any, image: NDArray[np.float32]) -> Callable[[], object]:
    """One inference, to be called over and over."""
    import openvino as ov

    def infer() -> None:
        # Anew each time: a shared tensor does not keep its array alive, and this closure does.
        request.set_input_tensor(ov.Tensor(image, shared_memory=True))
        request.infer(share_outputs=True)

    return infer


def summary(took_ms: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Medians, 99th percentiles, and how many times as fast each network is as anomalib's two."""
    medians = {name: float(np.median(ms)) for name, ms in took_ms.items()}
    rows = []
    for name, ms in took_ms.items():
        row: dict[str, Any] = {
            "name": name,
            "median_ms": medians[name],
            "p99_ms": float(np.percentile(ms, 99)),
            "runs": len(ms),
        }
        for other in NETWORKS:
            row[f"{other}_over_this"] = medians[f"anomalib {other}"] / medians[name]
        rows.append(row)
    return {"rows": rows}


def goals(medians_ms: Mapping[str, float]) -> list[Goal]:
    """Of the engines that were measured."""
    whole = medians_ms["anomalib whole"]
    return [
        Goal(f"{name} over anomalib's whole model, times as fast", whole / took_ms, GOALS[engine])
        for name, took_ms in medians_ms.items()
        if (engine := name.partition(",")[0]) in GOALS
    ]


def _all_there(folder: Path) -> bool:
    return all((folder / f"{name}{end}").is_file() for name in NETWORKS for end in (".xml", ".bin"))


def _make(folder: Path, threads: int, venv: Path | None) -> str:
    """Run the tool that makes the networks; "" when they are there, else why not."""
    tool = Path(__file__).with_name("anomalib_speed.py")
    command = [sys.executable, str(tool), "--keep", str(folder.absolute())]
    command += ["--size", str(SIZE), "--threads", str(threads), "--repeats", "1"]
    command += ["--venv", str(venv)] if venv is not None else []
    said: list[str] = []
    with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            if line.startswith("anomalib_speed: "):
                said = []
            said.append(line.strip())
    if process.returncode == 0 and _all_there(folder):
        return ""
    reason = " ".join(line for line in said if line)
    if process.returncode == CANNOT_BE_MADE:
        return reason
    return f"{tool.name} ended with {process.returncode}: {reason[-400:]}"
