"""Bundles and engines for measuring: detectors that have learned nothing, opened without a gate.

Speed does not depend on weights. What a station's gate asks (thresholds, reference maps) is left
out here, or made to fit: an int8 engine's ranges are measured on a few textured frames.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, EngineThresholds, recalibrated
from models.runtimes import RUNTIMES, EngineOptions, Runtime, available_runtimes
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX, map_hw

PEAK_FRAMES = 4
PEAK_FRAME_PX = 256
"""Side of the frames on which int8's ranges are measured."""
ABOVE = 1.05
"""The image threshold of a bundle for the line, over the highest score of its frames: as on a
station, most frames pass."""


def present_engines() -> tuple[list[str], dict[str, str]]:
    """`runtime/precision` that run here, fastest first, and why the others do not."""
    here = available_runtimes()
    names = [name for name in here if name.partition("/")[0] != "null"]
    return [n for n in names if not here[n]], {n: here[n] for n in names if here[n]}


def padded_frame(height: int, width: int, channels: int, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (height + 64, width + 64, channels): texture with a few marks, reflected at its sides.

    Marks, since large values of a map are what an error is measured against.
    """
    from models.untrained import textured_frame

    frame = textured_frame(height, width, channels, seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        top, left = (int(rng.integers(0, side * 3 // 4)) for side in (height, width))
        frame[top : top + height // 16 + 1, left : left + width // 16 + 1] //= 3
    return pad_frame(frame, FRAME_MARGIN_PX)


def make_bundle(folder: Path, variant: str, channels: int, map_channels: int = 0) -> Bundle:
    """An untrained one, without thresholds."""
    from models.untrained import untrained_bundle

    path = untrained_bundle(folder, variant, channels, map_channels=map_channels)
    return Bundle.load(path)


def plain_networks(
    variant: str, channels: int, map_channels: int, *, gpu: bool, threads: int
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The networks of `make_bundle`, unfused, in float32: padded frame -> raw map."""
    import torch

    from models.references import reference_map
    from models.untrained import untrained_model

    model = untrained_model(variant, channels, map_channels=map_channels)
    if gpu:
        torch.backends.cudnn.allow_tf32 = False
        model = model.cuda()
    elif threads:
        torch.set_num_threads(threads)
    return lambda padded: reference_map(model, padded)


def map_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference over the largest value expected; both (h, w)."""
    return float(np.abs(found - expected).max() / expected.max())


def with_peaks(bundle: Bundle, threads: int) -> Bundle:
    """The bundle as if calibrated for int8 on a few textured frames."""
    from models.runtimes.openvino_ import activation_peaks

    frames = [
        padded_frame(PEAK_FRAME_PX, PEAK_FRAME_PX, bundle.in_channels, seed=100 + k)
        for k in range(PEAK_FRAMES)
    ]
    peaks = activation_peaks(bundle.graph(), frames, threads)
    calibration = dataclasses.replace(bundle.calibration, activation_peaks=peaks)
    return dataclasses.replace(bundle, calibration=calibration)


def open_engine(
    bundle: Bundle,
    engine: str,
    threads: int,
    shapes: Sequence[tuple[int, int, int]] = (),
    memory: Sequence[NDArray[np.uint8]] = (),
) -> Runtime:
    """The engine of a row, or of a `package.module:factory/precision`, without any gate.

    shapes: (H, W, C) to compile for. memory: what frames will lie in, for a GPU to page-lock.
    Raises what the factory raises.
    """
    name, _, precision = engine.rpartition("/")
    target = RUNTIMES[name].factory if name in RUNTIMES else name
    module, _, factory = target.partition(":")
    options = EngineOptions(
        precision,
        threads,
        tuple(shapes),
        memory=tuple(memory),
        say=lambda sentence: print(sentence, file=sys.stderr),
    )
    runtime: Runtime = getattr(importlib.import_module(module), factory)(bundle, options)
    return runtime


def again(
    runtime: Runtime, frame: NDArray[np.uint8], raw_map: NDArray[np.float32]
) -> Callable[[], object]:
    """An inference of one padded frame, to be called over and over."""
    return lambda: runtime.infer([frame], [raw_map])


def calibrated_bundle(
    folder: Path, engine: str, padded: Sequence[NDArray[np.uint8]], threads: int
) -> Path:
    """A bundle of pdn_tiny with thresholds for one engine, just above what these frames give.

    padded: uint8 (H + 64, W + 64, C), of one shape.
    """
    height, width = (side - 2 * FRAME_MARGIN_PX for side in padded[0].shape[:2])
    bundle = make_bundle(folder, "pdn_tiny", padded[0].shape[2])
    if engine.endswith("/int8"):
        bundle = with_peaks(bundle, threads)
    runtime = open_engine(bundle, engine, threads)
    try:
        raw_map = np.empty(map_hw(height, width), np.float32)
        highest = max(runtime.infer([frame], [raw_map])[0] for frame in padded)
    finally:
        runtime.close()
    calibration = bundle.calibration
    score = 0.1 * (highest - calibration.q_a) / (calibration.q_b - calibration.q_a)
    threshold = ABOVE * max(score, 0.1)
    thresholds = EngineThresholds(
        image_threshold=threshold,
        pixel_threshold=threshold,
        images=len(padded),
        above=0,
        false_reject_bound=1.0,
        confidence=0.95,
        chosen="for measuring speed: just above what a few frames gave",
    )
    return recalibrated(
        bundle, folder, dataclasses.replace(calibration, engines={engine: thresholds})
    )
