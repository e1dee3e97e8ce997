"""An engine whose maps are weighed by the wide view beside it (`models.wide`).

On a CPU it runs by OpenVINO where that is installed, else by torch; beside an engine on a GPU by
torch on the same GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.runtimes.base import EngineOptions, Runtime
from models.wide import Infer, WideView, above_level, check_answer, weigh


def open_wide_view(view: WideView, options: EngineOptions, *, gpu: bool) -> Infer:
    """gpu: on that which torch would use."""
    if not gpu and importlib.util.find_spec("openvino"):
        from models.runtimes.wide_openvino import open_wide

        frames_hw = [shape[:2] for shape in options.shapes]
        return open_wide(view, options.threads, options.cache_dir, frames_hw)
    from models.wide_net import open_wide_torch

    return open_wide_torch(view, "cuda" if gpu else "cpu")


class WithWide:
    """Any runtime. It answers with the engine's own id: a bundle either brings a wide view or not,
    and its thresholds were chosen accordingly.

    q_b: the bundle's (`models.wide`). options: the engine's; frames of its shapes are compiled and
    checked for now. gpu: where the engine runs.
    Raises `ParityError` where a wide view answers otherwise than the reference.
    """

    name = "wide view"

    def __init__(
        self,
        engine: Runtime,
        views: Sequence[WideView],
        q_b: float,
        options: EngineOptions,
        *,
        gpu: bool = False,
    ) -> None:
        self.inner, self._views, self._q_b = engine, views, q_b
        self._infers = [open_wide_view(view, options, gpu=gpu) for view in views]
        for view, infer in zip(views, self._infers, strict=True):
            check_answer(view, infer, [shape[:2] for shape in options.shapes])

    @property
    def engine_id(self) -> str:
        return self.inner.engine_id

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self.inner.infer(padded, out)
        for frame, raw_map in zip(padded, out, strict=True):
            weigh(raw_map, above_level(self._views, self._infers, frame), self._q_b)
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        self._infers = []  # and with them what was compiled
        self.inner.close()
