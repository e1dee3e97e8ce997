"""How much arithmetic a frame takes, and how much this machine can do.

Counted are multiplications and additions of the convolutions, 2 for each pair (2 x MAC), in the
fused graph as it is computed: margin included, and the last layer with the map's channels only.
Rows that strips compute twice are not counted: of an engine that works in strips the figures are a
few per cent lower than what it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.fused import FusedBranch, FusedGraph
from models.variants import FRAME_MARGIN_PX, MARGIN_PX

REPEATS = 4
"""Of a matrix multiplication, after one that is not counted; the quickest one counts."""
AT_ONCE = 16
"""Products of one launch on a GPU, which would wait for the next one otherwise."""
ACTIVATION_TOP = 6.0


def graph_flop(graph: FusedGraph, height: int, width: int) -> int:
    """Of one frame without its margin, height x width pixels."""
    total = 0
    for branch in graph.branches:
        # Each scale sees 16 pixels of its own beyond the frame.
        spare = 2 * (FRAME_MARGIN_PX - branch.scale * MARGIN_PX)
        rows, columns = (
            -(-(side + 2 * FRAME_MARGIN_PX - spare) // branch.scale) for side in (height, width)
        )
        total += branch_flop(branch, rows, columns)
    return total


def branch_flop(branch: FusedBranch, rows: int, columns: int) -> int:
    """Of pixels rows x columns at the branch's own scale, margin included."""
    total = 0
    for layer in branch.layers:
        kernel = layer.weight.shape[2]
        rows, columns = rows - kernel + 1, columns - kernel + 1
        total += 2 * layer.weight.size * rows * columns
        if layer.pool:
            rows, columns = rows // 2, columns // 2
    return total


def peak_flops(engine: str, size: int, threads: int) -> float | None:
    """Operations per second of a size x size matrix multiplication in the engine's own precision.

    engine: `runtime/precision`, of the runtimes that we know; None for any other. By the library
    that the engine uses, on the device that it uses.
    """
    runtime, _, precision = engine.partition("/")
    multiply: Callable[[], object]
    products = 1
    if runtime == "openvino" and precision in ("f32", "bf16", "int8"):
        multiply = _openvino(size, precision, threads)
    elif runtime == "torch" and precision == "f32":
        multiply = _torch(size, threads)
    elif runtime in ("cuda", "tensorrt") and precision in ("f32", "fp16", "bf16") and _has_gpu():
        multiply, products = _cuda(size, precision), AT_ONCE
    else:
        return None
    multiply()
    took_s = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        multiply()
        took_s.append(time.perf_counter() - begun)
    return products * 2 * size**3 / min(took_s)


def _factors(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    shape = size, size
    left = rng.random(shape, np.float32) * np.float32(ACTIVATION_TOP)
    return left, rng.random(shape, np.float32) - np.float32(0.5)


def _openvino(size: int, precision: str, threads: int) -> Callable[[], object]:
    import openvino as ov
    from openvino import opset13 as op

    left, right = _factors(size)
    given = op.parameter([size, size], np.float32)
    x, weights = given, op.constant(right)
    if precision == "int8":
        low, high = op.constant(np.float32(0)), op.constant(np.float32(ACTIVATION_TOP))
        x = op.fake_quantize(given, low, high, low, high, 256)
        most = np.abs(right).max(axis=0, keepdims=True)
        bounds = [op.constant(sign * most) for sign in (-1, 1)]
        weights = op.fake_quantize(weights, *bounds, *bounds, 255)
    product = op.relu(op.matmul(x, weights, False, False))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "int8" else precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    model = ov.Model([product], [given], "matmul")
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def multiply() -> None:
        # Anew each time: a shared tensor does not keep its array alive, and this closure does.
        request.set_input_tensor(ov.Tensor(left, shared_memory=True))
        request.infer(share_outputs=True)

    return multiply


def _torch(size: int, threads: int) -> Callable[[], object]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    left, right = (torch.from_numpy(factor) for factor in _factors(size))
    out = torch.empty(size, size)
    return lambda: torch.matmul(left, right, out=out)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _cuda(size: int, precision: str) -> Callable[[], object]:
    import torch

    from models.runtimes.module import DTYPES

    # As the engines: float32 is float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    left, right = (
        torch.from_numpy(factor).to("cuda", DTYPES[precision]) for factor in _factors(size)
    )
    out = torch.empty_like(left)

    def multiply() -> None:
        for _ in range(AT_ONCE):
            torch.matmul(left, right, out=out)
        torch.cuda.synchronize()

    return multiply
