"""Engines against the plain reference, how one is chosen, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated
from models.errors import BundleError, DataError, RuntimeUnavailable
from models.references import reference_map
from models.runtimes import (
    RUNTIMES,
    available_runtimes,
    cpu_bf16_is_fast,
    cpu_has_bf16,
    engine_of,
    frames_together,
    open_runtime,
)
from models.runtimes import openvino_ as openvino_module
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.null import CALIBRATION, NullRuntime
from models.runtimes.openvino_ import OpenVinoRuntime
from models.runtimes.openvino_models import KEPT
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.variants import FRAME_MARGIN_PX, map_hw

THRESHOLDS = EngineThresholds(0.5, 0.4, 10, 0, 0.3, 0.95, "for a test")
TOLERANCE = {"f32": 2e-5, "bf16": 0.06}
"""Largest difference from the plain reference as a share of the map's maximum."""
ENGINES = [("torch", "f32"), ("openvino", "f32")]
if cpu_has_bf16():
    ENGINES.append(("openvino", "bf16"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {c: Bundle.load(untrained_bundle(folder, in_channels=c)) for c in (1, 3)}


def with_thresholds(bundle: Bundle, folder: Path, *engines: str) -> Bundle:
    calibration = Calibration(
        bundle.calibration.q_a, bundle.calibration.q_b, dict.fromkeys(engines, THRESHOLDS)
    )
    return Bundle.load(recalibrated(bundle, folder, calibration))


def infer(runtime: Runtime, frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    out = [np.full(map_hw(*frame.shape[:2]), np.nan, np.float32) for frame in frames]
    peaks = runtime.infer([pad_frame(frame, FRAME_MARGIN_PX) for frame in frames], out)
    assert peaks == [float(raw_map.max()) for raw_map in out]
    return out


@pytest.mark.parametrize(("name", "precision"), ENGINES)
@pytest.mark.parametrize("channels", [1, 3])
def test_engine_equals_reference_for_mixed_sizes(
    bundles: dict[int, Bundle], channels: int, name: str, precision: str
) -> None:
    sizes = [(64, 96), (33, 33), (130, 75), (64, 96)]
    runtime = open_runtime(
        bundles[channels], name, precision, threads=2, shapes=[(64, 96, channels)], calibrating=True
    )
    assert engine_of(runtime.engine_id) == f"{name}/{precision}"
    frames = [textured_frame(*hw, channels, seed=k) for k, hw in enumerate(sizes)]
    frames[3][20:30, 30:60] = 255  # something unusual: large values must agree too
    model = untrained_model("pdn_tiny", channels)
    for found, frame in zip(infer(runtime, frames), frames, strict=True):
        expected = reference_map(model, pad_frame(frame, FRAME_MARGIN_PX))
        assert np.abs(found - expected).max() <= TOLERANCE[precision] * expected.max()
    runtime.close()


@pytest.mark.parametrize(("name", "precision"), ENGINES)
def test_batch_gives_what_single_frames_give(
    bundles: dict[int, Bundle], name: str, precision: str
) -> None:
    runtime = open_runtime(bundles[1], name, precision, threads=2, calibrating=True, max_batch=4)
    frames = [textured_frame(64, 80, 1, seed=k) for k in range(5)]
    together = infer(runtime, frames)
    for frame, expected in zip(frames, together, strict=True):
        # Torch adds up in another order when four go through together.
        np.testing.assert_allclose(infer(runtime, [frame])[0], expected, rtol=1e-5, atol=1e-6)
    assert runtime.infer([], []) == []


@pytest.mark.parametrize(
    ("engine_id", "together"),
    [
        ("openvino/int8/cpu", 1),
        ("torch/f32/cpu", 1),
        ("cuda/fp16/nvidia-l4", 4),
        ("tensorrt/fp16/nvidia-l4", 4),
        ("null/none/none", 4),
        ("mine/f32/none", 4),
    ],
)
def test_a_cpu_takes_one_frame_at_a_time(engine_id: str, together: int) -> None:
    assert frames_together(engine_id, 4) == together


def test_frames_and_maps_in_a_larger_buffer(bundles: dict[int, Bundle]) -> None:
    """Read-only frames, rows with a stride, and maps that are no contiguous block."""
    for name, precision in ENGINES:
        runtime = open_runtime(bundles[1], name, precision, threads=2, calibrating=True)
        frame = textured_frame(64, 80, 1)
        [expected] = infer(runtime, [frame])
        wide = np.zeros((128, 190, 1), np.uint8)
        strided = wide[:, 3:147]
        strided[...] = pad_frame(frame, FRAME_MARGIN_PX)
        strided.flags.writeable = False
        room = np.full((16, 50), -1, np.float32)
        runtime.infer([strided], [room[:, 5:25]])
        assert np.array_equal(room[:, 5:25], expected)
        assert (room[:, :5] == -1).all()
        assert (room[:, 25:] == -1).all()


def test_openvino_in_strips_equals_openvino_whole(bundles: dict[int, Bundle]) -> None:
    graph = bundles[1].graph()
    frame = textured_frame(301, 90, 1)
    maps = []
    for strip_bytes in (1 << 30, 1 << 20):
        runtime = OpenVinoRuntime(graph, EngineOptions(threads=2), strip_bytes=strip_bytes)
        maps += infer(runtime, [frame])
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-5, atol=1e-6 * maps[0].max())


def test_openvino_keeps_a_bounded_number_of_shapes(bundles: dict[int, Bundle]) -> None:
    options = EngineOptions(threads=2, shapes=((40, 40, 1),))
    runtime = OpenVinoRuntime(bundles[1].graph(), options)
    for width in range(33, 33 + 2 * KEPT, 1):
        infer(runtime, [textured_frame(33, width, 1)])
    assert runtime.compiled_shapes == KEPT + 1


@pytest.mark.parametrize(
    ("frame", "raw_map", "what"),
    [
        (np.zeros((128, 128, 3), np.uint8), np.zeros((16, 16), np.float32), "channels"),
        (np.zeros((128, 128), np.uint8), np.zeros((16, 16), np.float32), "channels"),
        (np.zeros((128, 128, 1), np.float32), np.zeros((16, 16), np.float32), "uint8"),
        (np.zeros((96, 128, 1), np.uint8), np.zeros((8, 16), np.float32), "at least 33x33"),
        (np.zeros((128, 128, 1), np.uint8), np.zeros((17, 16), np.float32), "room"),
        (np.zeros((128, 128, 1), np.uint8), np.zeros((16, 16), np.float64), "room"),
    ],
)
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_wrong_shapes_are_refused(
    bundles: dict[int, Bundle],
    name: str,
    frame: NDArray[np.uint8],
    raw_map: NDArray[np.float32],
    what: str,
) -> None:
    runtime = open_runtime(bundles[1], name, "f32", threads=2, calibrating=True)
    with pytest.raises(DataError, match=what):
        runtime.infer([frame], [raw_map])
    with pytest.raises(DataError, match="1 frames and 0 maps"):
        runtime.infer([frame], [])


def test_auto_takes_the_fastest_calibrated_engine(
    bundles: dict[int, Bundle], tmp_path: Path
) -> None:
    for engines in (
        ["torch/f32"],
        ["torch/f32", "openvino/f32"],
        ["torch/f32", "openvino/f32", "openvino/bf16"],
    ):
        bundle = with_thresholds(bundles[1], tmp_path, *engines)
        expected = engines[-1] if cpu_bf16_is_fast() or "bf16" not in engines[-1] else engines[-2]
        assert open_runtime(bundle, threads=2).engine_id == f"{expected}/cpu"


@pytest.mark.parametrize("runtime", ["auto", "torch", "openvino"])
def test_without_thresholds_it_names_the_command(bundles: dict[int, Bundle], runtime: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"linewatch calibrate .* --runtime"):
        open_runtime(bundles[1], runtime)


def test_what_cannot_be_opened_says_why(bundles: dict[int, Bundle], tmp_path: Path) -> None:
    bundle = with_thresholds(bundles[1], tmp_path, "torch/f32")
    with pytest.raises(RuntimeUnavailable, match="'onnx' found, expected auto, tensorrt, cuda"):
        open_runtime(bundle, "onnx")
    with pytest.raises(RuntimeUnavailable, match="'bf16' found for runtime torch"):
        open_runtime(bundle, "torch", "bf16")
    with pytest.raises(RuntimeUnavailable, match="expected an importable module"):
        open_runtime(bundle, "no.such.module:factory")
    with pytest.raises(RuntimeUnavailable, match="name a bundle"):
        open_runtime(None)
    with pytest.raises(BundleError, match="name a bundle"):
        openvino_module.open_engine(None, EngineOptions())


def test_doctor_lists_every_engine_without_importing_any() -> None:
    found = available_runtimes()
    assert set(found) == {f"{n}/{p}" for n, row in RUNTIMES.items() for p in row.precisions}
    assert found["torch/f32"] == found["openvino/f32"] == found["null/none"] == ""
    assert bool(found["openvino/bf16"]) is not cpu_has_bf16()


def test_openvino_never_imports_torch(bundles: dict[int, Bundle], tmp_path: Path) -> None:
    bundle = with_thresholds(bundles[1], tmp_path, "openvino/f32")
    program = f"""
import json, sys, numpy as np
from models.bundle import Bundle
from models.runtimes import available_runtimes, open_runtime
available_runtimes()
before = "openvino" in sys.modules
engine = open_runtime(Bundle.load({str(bundle.path)!r}), threads=1, shapes=[(64, 64, 1)])
out = np.empty((16, 16), np.float32)
engine.infer([np.zeros((128, 128, 1), np.uint8)], [out])
roots = {{name.partition(".")[0] for name in sys.modules}}
print(json.dumps([before, "openvino" in roots,
    sorted(roots & {{"torch", "pipeline", "calibrate", "cv2", "sklearn", "scipy"}})]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout) == [False, True, []]


def test_null_is_fast_and_needs_no_bundle() -> None:
    runtime = open_runtime(None, "null")
    padded, raw_map = np.zeros((1056, 1312, 1), np.uint8), np.zeros((256, 320), np.float32)
    [peak] = runtime.infer([padded], [raw_map])
    over = CALIBRATION.raw(CALIBRATION.engines[engine_of(runtime.engine_id)].image_threshold)
    assert peak == raw_map.max() >= over
    assert 0 < (raw_map >= over).mean() < 0.05
    took = []
    for _ in range(50):
        start = time.perf_counter()
        runtime.infer([padded], [raw_map])
        took.append(time.perf_counter() - start)
    # The quickest, since a busy machine delays any of them.
    assert min(took) < 0.0002


def mine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """What a user's own factory looks like."""
    return NullRuntime()


def test_users_own_factory_is_opened() -> None:
    assert isinstance(open_runtime(None, f"{__name__}:mine"), NullRuntime)
