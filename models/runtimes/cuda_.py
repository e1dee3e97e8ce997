"""NVIDIA GPUs without TensorRT: the fused graph in 16 bits, captured as a CUDA graph per shape.

1. The ring is page-locked (`cudaHostRegister`), so that a frame's upload is one copy by the GPU's
   own engine, straight out of the slot, beside what it computes. Parts of a frame that are no
   contiguous block go through page-locked memory of the lane.
2. A lane: upload on the copy stream, replay on the compute stream, the map back on the copy-back
   stream; each waits for the other by events, and the host for the last one only.
3. Only maps come back.

What keeps two lanes apart: each has an input, an output and a host buffer of its own; all
arithmetic runs on one stream, in order; and a lane begins again only after the host has waited for
its last event, after which nothing on the GPU touches its buffers. What is in between, the captured
graphs of all lanes have in one pool of memory: only one of them runs at a time.

cuDNN takes the algorithms that it holds for the best, and only such as give one result: chosen by
a stopwatch, as `cudnn.benchmark` does, they would be others at the next start, and a replay would
not be what the line was.

`models.runtimes.tensorrt_` is the same with compiled engines in the place of captured graphs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import BundleError, RuntimeUnavailable
from models.fused import FusedGraph
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.lanes import Frames, LaneRuntime, Shape
from models.runtimes.module import DTYPES, FusedModule

STRIP_BYTES = 4 << 30
"""Bound of the largest intermediate tensor, counted in float32: 2^30 elements, half of what one
convolution may have."""
SHARE_OF_MEMORY = 1 / 8
"""Of the GPU's that this tensor may take, at most: two or three of them live at once."""
ALREADY_REGISTERED = 712
"""cudaErrorHostMemoryAlreadyRegistered"""
WARM_UPS = 3
"""Runs before a capture, in which kernels are loaded and cuDNN makes its plans."""

Forward = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [N, rows, columns, C] -> float32 [N, h, w], both on the GPU."""

log = logging.getLogger(__name__)


class CudaStreams:
    """One stream each for copies to the GPU, arithmetic, and copies back."""

    def __init__(self, device: torch.device) -> None:
        self.up, self.compute, self.back = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self.pool = torch.cuda.graph_pool_handle()
        """For what captured graphs have between their inputs and outputs."""


class CudaLane:
    """See `models.runtimes.lanes.Lane`. capture: as a CUDA graph, else called each time.

    Without a capture `forward` gives a new tensor each time. It comes from the memory of the
    compute stream, and goes back there when the lane begins again: by then it has been copied, so
    whatever is computed next on that stream may have its place.
    """

    def __init__(
        self,
        forward: Forward,
        shape: Shape,
        device: torch.device,
        streams: CudaStreams,
        *,
        capture: bool,
    ) -> None:
        self._streams = streams
        self._input = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._uploaded, self._computed, self._done = (
            torch.cuda.Event()  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self._forward = forward
        self._graph: torch.cuda.CUDAGraph | None = None
        self._staged: torch.Tensor | None = None
        # Zeros and weights were written on torch's usual stream, which no event here waits for.
        torch.cuda.synchronize(device)
        with torch.inference_mode(), torch.cuda.stream(streams.compute):
            for _ in range(WARM_UPS):
                self._output = forward(self._input)
        torch.cuda.synchronize(device)
        if capture:
            # Not of the pool, of which other lanes' graphs may write over all.
            output = torch.empty(self._output.shape, dtype=self._output.dtype, device=device)
            self._graph = torch.cuda.CUDAGraph()
            with (
                torch.inference_mode(),
                torch.cuda.graph(self._graph, pool=streams.pool, stream=streams.compute),
            ):
                output.copy_(forward(self._input))
            self._output = output
        self._host = torch.empty(self._output.shape, dtype=torch.float32, pin_memory=True)

    def start(self, frames: Frames) -> None:
        try:
            self._start(frames)
        except BaseException:
            # `finish` waits for the last event, which was not reached: here, for what was begun.
            torch.cuda.synchronize(self._input.device)
            raise

    def _start(self, frames: Frames) -> None:
        with torch.cuda.stream(self._streams.up):
            for number, frame in enumerate(frames):
                # torch takes no read-only memory, and would copy strided rows one by one.
                whole = frame.flags.writeable and frame.flags.c_contiguous
                pixels = torch.from_numpy(frame) if whole else self._stage(number, frame)
                self._input[number].copy_(pixels, non_blocking=True)
            self._uploaded.record()
        self._streams.compute.wait_event(self._uploaded)
        with torch.inference_mode(), torch.cuda.stream(self._streams.compute):
            if self._graph is None:
                self._output = self._forward(self._input)
            else:
                self._graph.replay()
            self._computed.record()
        self._streams.back.wait_event(self._computed)
        with torch.cuda.stream(self._streams.back):
            self._host.copy_(self._output, non_blocking=True)
            self._done.record()

    def _stage(self, number: int, frame: NDArray[np.uint8]) -> torch.Tensor:
        """A copy that stays as it is until the lane begins again."""
        if self._staged is None:
            self._staged = torch.empty(self._input.shape, dtype=torch.uint8, pin_memory=True)
        pixels = self._staged[number]
        np.copyto(pixels.numpy(), frame)
        return pixels

    def finish(self) -> NDArray[np.float32]:
        self._done.synchronize()
        found: NDArray[np.float32] = self._host.numpy()
        return found


class CudaRuntime(LaneRuntime):
    """See `models.runtimes.base.Runtime`.

    name: of the engine. forward_of: what computes a shape; None: the captured module itself.
    strip_bytes: at most; a GPU with little memory gets smaller ones.
    Raises `RuntimeUnavailable` where torch finds no GPU.
    """

    def __init__(
        self,
        graph: FusedGraph,
        options: EngineOptions,
        *,
        name: str = "cuda",
        forward_of: Callable[[FusedModule, Shape], Forward] | None = None,
        strip_bytes: int = STRIP_BYTES,
    ) -> None:
        device = gpu()
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # torch's default rounds float32 convolutions to 10 bits (TF32): f32 would not be f32.
        torch.backends.cudnn.allow_tf32 = False
        module = FusedModule(graph, DTYPES[options.precision]).eval().to(device)
        streams = CudaStreams(device)

        def open_lane(shape: Shape) -> CudaLane:
            forward = forward_of(module, shape) if forward_of else module
            return CudaLane(forward, shape, device, streams, capture=forward_of is None)

        super().__init__(
            f"{name}/{options.precision}/{gpu_name(device)}",
            graph,
            open_lane,
            shapes=options.shapes,
            strip_bytes=min(strip_bytes, _affordable(device)),
            max_batch=options.max_batch,
        )
        # Last, since what cannot be opened is never closed.
        self._locked = [memory for memory in options.memory if _page_lock(memory, device)]

    def close(self) -> None:
        torch.cuda.synchronize()
        super().close()
        for memory in self._locked:
            with suppress(RuntimeError):
                _cudart().cudaHostUnregister(memory.ctypes.data)
        self._locked = []


def gpu() -> torch.device:
    """The GPU that torch would use. Raises `RuntimeUnavailable` with what to do."""
    if not torch.cuda.is_available():
        raise RuntimeUnavailable(
            "torch finds no NVIDIA GPU, expected one for this runtime: see `nvidia-smi`, and "
            "whether torch is a CUDA build; without a GPU use runtime openvino"
        )
    return torch.device("cuda", torch.cuda.current_device())


def _affordable(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_MEMORY)


def gpu_name(device: torch.device) -> str:
    """Such as `nvidia-h200`, for engine ids and caches."""
    return "-".join(torch.cuda.get_device_name(device).lower().split())[:48]


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _page_lock(memory: NDArray[np.uint8], device: torch.device) -> bool:
    """Whether the GPU may now copy out of it by itself; without, uploads are slower, not wrong.

    False too for what another engine of this process has locked, and will unlock.
    """
    result = _cudart().cudaHostRegister(memory.ctypes.data, memory.nbytes, 0)
    if int(result) == 0:
        return True
    # CUDA keeps the error until somebody asks, and torch asks after its next kernel: let that be
    # this one, and not the first frame's.
    with suppress(RuntimeError):
        torch.ones(1, device=device).add_(1)
    if int(result) == ALREADY_REGISTERED:
        return False
    log.warning(
        "%d MiB of the ring cannot be page-locked (CUDA error %d): frames go up more slowly; "
        "raise the limit of locked memory (LimitMEMLOCK=infinity)",
        memory.nbytes >> 20,
        int(result),
    )
    return False


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the cuda runtime: name a bundle")
    return CudaRuntime(bundle.graph(), options)
