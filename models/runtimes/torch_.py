"""PyTorch on the CPU, float32, channels last: what the compiled engines are checked against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import BundleError
from models.fused import FusedGraph
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.lanes import Frames, LaneRuntime, Shape
from models.runtimes.module import DTYPES, FusedModule

STRIP_BYTES = 256 << 20
"""Bound of the largest intermediate tensor: two or three of them live at once."""


class CpuLane:
    """See `models.runtimes.lanes.Lane`: computes at once, in the caller's thread."""

    def __init__(self, module: FusedModule, shape: Shape) -> None:
        self._module = module
        self._input = torch.empty(shape, dtype=torch.uint8)
        self._found: NDArray[np.float32] | None = None

    @torch.inference_mode()
    def start(self, frames: Frames) -> None:
        for frame, room in zip(frames, self._input.numpy(), strict=True):
            room[...] = frame
        self._found = self._module(self._input).numpy()

    def finish(self) -> NDArray[np.float32]:
        assert self._found is not None, "a lane is begun before it is finished"
        return self._found


class TorchRuntime(LaneRuntime):
    """See `models.runtimes.base.Runtime`. `threads` sets torch's own, for the whole process."""

    def __init__(
        self, graph: FusedGraph, options: EngineOptions, *, strip_bytes: int = STRIP_BYTES
    ) -> None:
        if options.threads > 0:
            torch.set_num_threads(options.threads)
        module = FusedModule(graph, DTYPES[options.precision]).eval()
        super().__init__(
            f"torch/{options.precision}/cpu",
            graph,
            lambda shape: CpuLane(module, shape),
            shapes=options.shapes,
            strip_bytes=strip_bytes,
            max_batch=options.max_batch,
        )


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the torch runtime: name a bundle")
    return TorchRuntime(bundle.graph(), options)
