"""An engine with the global branch beside it (`models.whole`).

The branch costs the same for every frame, little beside a full-size one, and runs in float32: on
a CPU by OpenVINO where it is installed, else by torch; beside an engine on a GPU by torch there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.bundle import Reference
from models.runtimes.base import EngineOptions, Runtime
from models.variants import FRAME_MARGIN_PX, MARGIN_PX
from models.whole import Floats, WholeGraph, shrink, spread

InferWhole = Callable[[Floats, Floats], Floats]
"""Planes [1, C, 256, 256] and [1, C, 288, 288], normalised -> map [64, 64]."""


def open_whole_graph(graph: WholeGraph, options: EngineOptions, *, gpu: bool) -> InferWhole:
    """gpu: on that which torch would use."""
    if not gpu and importlib.util.find_spec("openvino"):
        from models.runtimes.whole_openvino import open_whole

        return open_whole(graph, options.threads, options.cache_dir)
    from models.runtimes.whole_torch import open_whole_torch

    return open_whole_torch(graph, "cuda" if gpu else "cpu")


class WithWhole:
    """Any runtime; its map becomes half of itself and half of the global branch's.

    options: the engine's. gpu: where the engine runs.
    """

    name = "global branch"

    def __init__(
        self, engine: Runtime, graph: WholeGraph, options: EngineOptions, *, gpu: bool = False
    ) -> None:
        self.inner, self._graph = engine, graph
        self._infer = open_whole_graph(graph, options, gpu=gpu)

    @property
    def engine_id(self) -> str:
        return self.inner.engine_id

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self.inner.infer(padded, out)
        inside = slice(FRAME_MARGIN_PX, -FRAME_MARGIN_PX)
        for frame, raw_map in zip(padded, out, strict=True):
            np.add(raw_map, self._whole(frame[inside, inside]), out=raw_map)
            np.multiply(raw_map, np.float32(0.5), out=raw_map)
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        self.inner.close()

    def local(self, references: Sequence[Reference]) -> list[Reference]:
        """What the engine alone must give where both together give the references."""
        inside = slice(FRAME_MARGIN_PX, -FRAME_MARGIN_PX)
        return [
            Reference(each.padded, 2 * each.raw_map - self._whole(each.padded[inside, inside]))
            for each in references
        ]

    def _whole(self, frame: NDArray[np.uint8]) -> Floats:
        """The branch's map of a frame (H, W, C) without margin, like the local map."""
        graph = self._graph
        small = ((shrink(frame) - graph.mean) / graph.std).transpose(2, 0, 1)[None]
        margin = ((0, 0), (0, 0), (MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX))
        found = self._infer(np.ascontiguousarray(small), np.pad(small, margin, mode="reflect"))
        height, width = frame.shape[:2]
        return np.float32(graph.alpha) * spread(found, (height, width)) + np.float32(graph.beta)
