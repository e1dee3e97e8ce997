"""The CUDA runtime on an NVIDIA GPU: the plain reference's maps, whatever is in flight."""

from __future__ import annotations

import importlib.util
import mmap
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.errors import DataError, RuntimeUnavailable
from models.fused import FusedGraph, fuse
from models.references import reference_map, weights_of
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.cuda_ import CudaRuntime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.variants import FRAME_MARGIN_PX, map_hw

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU here, or torch is not a CUDA build"
)

BOUNDS = {"f32": 1e-4, "fp16": 1e-3, "bf16": 2e-2}
"""Largest difference from the plain reference as a share of the map's maximum."""
NOISE = 0.5
"""A student far from its teacher, as on a defect. Where the two nearly cancel, the rounding of 16
bits is a larger share of what is left (0.003 for fp16 at the usual noise, on the CPU)."""
BOTH = 2 * FRAME_MARGIN_PX
GRAPHS = [("pdn_tiny", 1, (1,)), ("pdn_small", 3, (1,)), ("pdn_small", 1, (1, 2))]


def graph_of(variant: str, channels: int, scales: Sequence[int] = (1,)) -> FusedGraph:
    weights = weights_of(untrained_model(variant, channels, scales, noise=NOISE))
    return fuse(weights, variant, channels, scales)


def expected_of(
    frame: NDArray[np.uint8], variant: str = "pdn_tiny", scales: Sequence[int] = (1,)
) -> NDArray[np.float32]:
    """On the CPU, so that nothing of the GPU's arithmetic is on both sides."""
    model = untrained_model(variant, frame.shape[2], scales, noise=NOISE)
    return reference_map(model, pad_frame(frame, FRAME_MARGIN_PX))


def infer(runtime: Runtime, frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    out = [np.full(map_hw(*frame.shape[:2]), np.nan, np.float32) for frame in frames]
    peaks = runtime.infer([pad_frame(frame, FRAME_MARGIN_PX) for frame in frames], out)
    assert peaks == [float(raw_map.max()) for raw_map in out]
    return out


def off(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference as a share of the maximum; NaN is infinitely far off."""
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max() / expected.max())


def frames_of(sizes: Sequence[tuple[int, int]], channels: int = 1) -> list[NDArray[np.uint8]]:
    frames = [textured_frame(*hw, channels, seed=k) for k, hw in enumerate(sizes)]
    for frame in frames:
        frame[10:16, 12:28] = 255  # something unusual: large values must agree too
    return frames


@pytest.fixture
def tiny() -> Iterator[CudaRuntime]:
    runtime = CudaRuntime(graph_of("pdn_tiny", 1), EngineOptions("f32", max_batch=4))
    yield runtime
    runtime.close()


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize(("variant", "channels", "scales"), GRAPHS)
def test_maps_equal_the_reference(
    variant: str, channels: int, scales: tuple[int, ...], precision: str
) -> None:
    options = EngineOptions(precision, shapes=((160, 224, channels),), max_batch=2)
    runtime = CudaRuntime(graph_of(variant, channels, scales), options)
    assert runtime.engine_id.startswith(f"cuda/{precision}/")
    assert runtime.engine_id.count("/") == 2
    frames = frames_of([(160, 224), (131, 77), (160, 224), (33, 33)], channels)
    for found, frame in zip(infer(runtime, frames), frames, strict=True):
        assert off(found, expected_of(frame, variant, scales)) <= BOUNDS[precision]
    runtime.close()


def test_float32_is_not_rounded_to_tf32(tiny: CudaRuntime) -> None:
    """torch's default, which is ten times coarser than what is promised for f32."""
    assert not torch.backends.cudnn.allow_tf32
    (frame,) = frames_of([(200, 200)])
    (found,) = infer(tiny, [frame])
    assert off(found, expected_of(frame)) <= 2e-5


def test_batches_of_mixed_sizes(tiny: CudaRuntime) -> None:
    frames = frames_of([(64, 96)] * 7 + [(33, 40)] + [(64, 96)] * 2 + [(130, 75)])
    for found, frame in zip(infer(tiny, frames), frames, strict=True):
        assert off(found, expected_of(frame)) <= BOUNDS["f32"]
    assert tiny.infer([], []) == []


def test_strips_equal_the_whole_frame() -> None:
    graph = graph_of("pdn_tiny", 1, (1, 2))
    (frame,) = frames_of([(403, 90)])
    maps = []
    for strip_bytes in (1 << 30, 2 << 20):
        runtime = CudaRuntime(graph, EngineOptions("f32"), strip_bytes=strip_bytes)
        maps += infer(runtime, [frame])
        runtime.close()
    assert len(graph.pieces(map_hw(403, 90), 2 << 20)) > 2
    assert off(maps[1], maps[0]) <= 1e-5
    assert off(maps[1], expected_of(frame, scales=(1, 2))) <= BOUNDS["f32"]


def test_strided_and_read_only_frames_and_maps_in_a_larger_buffer(tiny: CudaRuntime) -> None:
    frame = textured_frame(64, 80, 1)
    expected = expected_of(frame)
    wide = np.zeros((64 + BOTH, 190, 1), np.uint8)
    strided = wide[:, 3 : 3 + 80 + BOTH]
    strided[...] = pad_frame(frame, FRAME_MARGIN_PX)
    whole = pad_frame(frame, FRAME_MARGIN_PX).copy()
    read_only = whole.copy()
    for array in (strided, read_only):
        array.flags.writeable = False
    room = np.full((3, 16, 50), -1, np.float32)
    tiny.infer([strided, whole, read_only], [plane[:, 5:25] for plane in room])
    for plane in room:
        assert off(plane[:, 5:25], expected) <= BOUNDS["f32"]
        assert (plane[:, :5] == -1).all()
        assert (plane[:, 25:] == -1).all()


@pytest.mark.parametrize("max_batch", [1, 4])
def test_each_of_many_frames_in_a_row_gets_its_own_map(max_batch: int) -> None:
    """Lanes take turns: a map that is written before it was copied back would be another's."""
    runtime = CudaRuntime(graph_of("pdn_tiny", 1), EngineOptions("f32", max_batch=max_batch))
    frames = frames_of([(128, 160)] * 8)
    alone = [infer(runtime, [frame])[0] for frame in frames]
    assert all(off(one, other) > 1e-3 for one, other in pairwise(alone))
    rng = np.random.default_rng(1)
    for _ in range(25):
        order = [int(k) for k in rng.integers(0, len(frames), 13)]
        for number, found in zip(order, infer(runtime, [frames[k] for k in order]), strict=True):
            assert off(found, alone[number]) <= 1e-5
    runtime.close()


def test_a_large_frame_after_a_small_one_while_both_are_in_flight(tiny: CudaRuntime) -> None:
    """New lanes are opened, warmed up and captured while another one computes."""
    frames = frames_of([(64, 96), (700, 900), (64, 96), (350, 420), (64, 100)])
    for found, frame in zip(infer(tiny, frames), frames, strict=True):
        assert off(found, expected_of(frame)) <= BOUNDS["f32"]


def test_frames_out_of_a_page_locked_ring() -> None:
    ring = np.frombuffer(mmap.mmap(-1, 8 << 20), np.uint8)
    options = EngineOptions("f32", memory=(ring,), max_batch=2)
    runtime = CudaRuntime(graph_of("pdn_tiny", 1), options)
    side = (96 + BOTH) * (128 + BOTH)
    slots = [ring[k * side : (k + 1) * side].reshape(96 + BOTH, 128 + BOTH, 1) for k in (0, 1)]
    frames = frames_of([(96, 128)] * 6)
    maps = [np.empty(map_hw(96, 128), np.float32) for _ in slots]
    for first in range(0, 6, 2):
        # As capture does it: the slot is filled anew once its map is there.
        pair = frames[first : first + 2]
        for slot, frame in zip(slots, pair, strict=True):
            slot[...] = pad_frame(frame, FRAME_MARGIN_PX)
        runtime.infer(slots, maps)
        for found, frame in zip(maps, pair, strict=True):
            assert off(found, expected_of(frame)) <= BOUNDS["f32"]
    # A second engine over the same ring neither fails nor takes the lock away.
    CudaRuntime(graph_of("pdn_tiny", 1), options).close()
    runtime.infer(slots, maps)
    assert off(maps[0], expected_of(frames[4])) <= BOUNDS["f32"]
    runtime.close()


def test_memory_that_cannot_be_locked_is_a_warning_and_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And CUDA's error does not come up again in the next inference."""
    nowhere = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.uint8), shape=(1 << 40,), writeable=False
    )
    (frame,) = frames_of([(64, 96)])
    runtime = CudaRuntime(graph_of("pdn_tiny", 1), EngineOptions("f32", memory=(nowhere,)))
    assert "cannot be page-locked" in caplog.text
    (found,) = infer(runtime, [frame])
    assert off(found, expected_of(frame)) <= BOUNDS["f32"]
    runtime.close()


def test_closed_and_opened_again() -> None:
    (frame,) = frames_of([(96, 128)])
    options = EngineOptions("fp16", shapes=((96, 128, 1),))
    maps = []
    for _ in range(3):
        runtime = CudaRuntime(graph_of("pdn_tiny", 1), options)
        maps += infer(runtime, [frame])
        runtime.close()
        runtime.close()
    assert all(off(found, maps[0]) <= 1e-3 for found in maps)
    torch.cuda.synchronize()


def test_wrong_shapes_are_refused_and_do_no_harm(tiny: CudaRuntime) -> None:
    (frame,) = frames_of([(64, 96)])
    with pytest.raises(DataError, match="channels"):
        tiny.infer([np.zeros((128, 160, 3), np.uint8)], [np.zeros((16, 24), np.float32)])
    (found,) = infer(tiny, [frame])
    assert off(found, expected_of(frame)) <= BOUNDS["f32"]


def test_without_tensorrt_it_names_the_extra() -> None:
    from models.runtimes.tensorrt_ import TensorRtRuntime

    if all(map(importlib.util.find_spec, ("torch_tensorrt", "tensorrt"))):
        pytest.skip("TensorRT is installed here")
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'linewatch\[station,tensorrt\]'"):
        TensorRtRuntime(graph_of("pdn_tiny", 1), EngineOptions("fp16"))
