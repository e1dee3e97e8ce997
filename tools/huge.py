"""One line-scan frame of any size through OpenVINO: how long it takes, and in how much memory.

python -m tools.huge                            16,384 x 16,384, pdn_tiny, two threads
python -m tools.huge --side 8192 --variant pdn_small --precision f32 --json

The frame is made in memory, one channel, and the detector has random weights of a sensible size:
neither speed nor memory depends on them. torch is not imported, as in a station's worker. The peak
is this process's own since it began (VmHWM). A crop around the seam of two strips, looked at alone,
must have its piece of the map.

Exit status: 0; 1 for a peak over 3 GiB, or a crop's map that is not the frame's; 2: wrong options.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.fused import FusedGraph, fuse, weight_shapes
from models.runtimes import cpu_bf16_is_fast
from models.runtimes.base import EngineOptions
from models.runtimes.openvino_ import STRIP_BYTES, OpenVinoRuntime
from models.variants import FRAME_MARGIN_PX, GRID_PX, STRIDE, VARIANTS, map_hw
from pipeline.margin import fill_margin

LIMIT_BYTES = 3 << 30
CROP_PX = 256
TOLERANCE = {"f32": 1e-5, "bf16": 0.02}
"""Of the crop's map, as a share of its maximum: another shape may be added up in another order."""
_MOST_PX = 65536
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class HugeFigures:
    """What one frame took. `peak_mib` holds all that stands before it, and the programs."""

    variant: str
    precision: str
    height: int
    width: int
    threads: int
    strips: int
    frame_mib: float
    map_mib: float
    largest_tensor_mib: float
    """Of a strip's tensors, counted in float32."""
    before_mib: float
    """Resident before frame and engine: Python and its libraries."""
    peak_mib: float
    open_s: float
    infer_s: float
    crop_difference: float
    """Of the crop's map from the frame's, as a share of its maximum."""

    @property
    def fits(self) -> bool:
        return self.peak_mib * _MIB <= LIMIT_BYTES

    @property
    def agrees(self) -> bool:
        return self.crop_difference <= TOLERANCE[self.precision]


def run_huge(
    height: int, width: int, *, variant: str = "pdn_tiny", precision: str = "bf16", threads: int = 2
) -> HugeFigures:
    """Infer one frame, height x width pixels of at least `CROP_PX`, in this process."""
    before = resident_peak_bytes()
    graph = random_graph(variant)
    padded = lined_frame(height, width)
    raw_map = np.zeros(map_hw(height, width), np.float32)
    pieces = graph.pieces((raw_map.shape[0], raw_map.shape[1]), STRIP_BYTES)
    piece_hw = pieces[0].padded_hw((padded.shape[0], padded.shape[1]))
    start = time.perf_counter()
    options = EngineOptions(precision=precision, threads=threads, shapes=((height, width, 1),))
    engine = OpenVinoRuntime(graph, options)
    opened = time.perf_counter()
    engine.infer([padded], [raw_map])
    done = time.perf_counter()
    peak = resident_peak_bytes()
    seam = STRIDE * pieces[len(pieces) // 2].rows.first
    difference = crop_difference(engine, padded, raw_map, (seam, width // 2))
    engine.close()
    return HugeFigures(
        variant=variant,
        precision=precision,
        height=height,
        width=width,
        threads=threads,
        strips=len(pieces),
        frame_mib=padded.nbytes / _MIB,
        map_mib=raw_map.nbytes / _MIB,
        largest_tensor_mib=graph.largest_tensor_bytes(*piece_hw) / _MIB,
        before_mib=before / _MIB,
        peak_mib=peak / _MIB,
        open_s=opened - start,
        infer_s=done - opened,
        crop_difference=difference,
    )


def resident_peak_bytes() -> int:
    """The most that was ever resident of this program, what it shares included.

    `getrusage` would do, but there a child begins with what its parent had resident.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) * 1024


def random_graph(variant: str, seed: int = 0) -> FusedGraph:
    """A detector for one channel whose student is its teacher plus 5 % of noise."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, shape in weight_shapes(variant, 1, (1,)).items():
        teacher = name.replace("scale1.student", "teacher")
        if name.endswith("_std"):
            found = np.full(shape, 0.2 if name == "input_std" else 1.0)
        elif name.endswith("_mean"):
            found = np.full(shape, 0.46 if name == "input_mean" else 0.0)
        elif teacher != name and teacher in weights:
            found = weights[teacher] * (1 + 0.05 * rng.standard_normal(shape))
        else:
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100
            found = rng.standard_normal(shape) * (2 / fan_in) ** 0.5
        weights[name] = found.astype(np.float32)
    return fuse(weights, variant, 1)


def lined_frame(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (H + 64, W + 64, 1), padded: noise that differs everywhere, made line by line."""
    rng = np.random.default_rng(seed)
    both = 2 * FRAME_MARGIN_PX
    padded = np.empty((height + both, width + both, 1), np.uint8)
    inner = padded[FRAME_MARGIN_PX:-FRAME_MARGIN_PX, FRAME_MARGIN_PX:-FRAME_MARGIN_PX, 0]
    for line in inner:
        line[...] = 96 + (rng.integers(0, 256, width, np.uint8) >> 2)
    fill_margin(padded)
    return padded


def crop_difference(
    engine: OpenVinoRuntime,
    padded: NDArray[np.uint8],
    raw_map: NDArray[np.float32],
    centre_yx: tuple[int, int],
) -> float:
    """How far a crop's own map is from its piece of the frame's, as a share of its maximum."""
    both = 2 * FRAME_MARGIN_PX
    top, left = (
        min(max(0, at - CROP_PX // 2), side - both - CROP_PX) // GRID_PX * GRID_PX
        for at, side in zip(centre_yx, padded.shape[:2], strict=True)
    )
    crop = padded[top : top + CROP_PX + both, left : left + CROP_PX + both]
    found = np.empty(map_hw(CROP_PX, CROP_PX), np.float32)
    engine.infer([crop], [found])
    rows, columns = found.shape
    piece = raw_map[top // STRIDE :, left // STRIDE :][:rows, :columns]
    return float(np.abs(found - piece).max() / found.max())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", type=int, default=16384, help="width in pixels, and height")
    parser.add_argument("--height", type=int, help="in pixels, where it is not as --side")
    parser.add_argument("--variant", choices=tuple(VARIANTS), default="pdn_tiny")
    parser.add_argument(
        "--precision",
        choices=tuple(TOLERANCE),
        default="bf16" if cpu_bf16_is_fast() else "f32",
        help="default: bf16 where this CPU has it",
    )
    parser.add_argument("--threads", type=int, default=2, help="0: as many as there are cores")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    chosen = parser.parse_args(arguments)
    height = chosen.side if chosen.height is None else chosen.height
    if not CROP_PX <= min(chosen.side, height) <= max(chosen.side, height) <= _MOST_PX:
        parser.error(
            f"a frame of {chosen.side}x{height} found, expected sides of {CROP_PX} to {_MOST_PX} "
            "pixels: correct --side or --height"
        )
    if chosen.threads < 0:
        parser.error(f"--threads: {chosen.threads} found, expected 0 or more")
    figures = run_huge(
        height,
        chosen.side,
        variant=chosen.variant,
        precision=chosen.precision,
        threads=chosen.threads,
    )
    if chosen.json:
        print(json.dumps(asdict(figures)))
    else:
        print(
            f"{figures.width} x {figures.height}, {figures.variant} {figures.precision}, "
            f"{figures.threads} threads: {figures.infer_s:.1f} s in {figures.strips} strips "
            f"(opened in {figures.open_s:.1f} s)\n"
            f"peak {figures.peak_mib:.0f} MiB: frame {figures.frame_mib:.0f}, map "
            f"{figures.map_mib:.0f}, programs {figures.before_mib:.0f}, a strip's largest tensor "
            f"{figures.largest_tensor_mib:.0f} in float32\n"
            f"a crop's map differs from the frame's by {figures.crop_difference:.1e}"
        )
    if not figures.fits:
        _say(
            f"a peak of {figures.peak_mib:.0f} MiB found, expected at most "
            f"{LIMIT_BYTES / _MIB:.0f}: lower STRIP_BYTES in models/runtimes/openvino_.py"
        )
    if not figures.agrees:
        _say(
            f"a crop's map that differs by {figures.crop_difference:.1e} of its maximum found, "
            f"expected at most {TOLERANCE[figures.precision]:.0e}: the strips are not joined right"
        )
    return 0 if figures.fits and figures.agrees else 1


def _say(sentence: str) -> None:
    print(f"huge: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
