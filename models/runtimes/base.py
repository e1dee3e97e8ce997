"""What an engine is: one method from a padded frame to its raw anomaly map.

A runtime is one file beside this one and one row in `models.runtimes.RUNTIMES`. Nothing here or in
`__init__` imports torch or openvino: that happens when a runtime is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import DataError
from models.variants import FRAME_MARGIN_PX, RECEPTIVE_FIELD_PX, map_hw


class Runtime(Protocol):
    """A compiled detector. Not thread-safe: one caller at a time."""

    @property
    def engine_id(self) -> str:
        """`runtime/precision/device`, such as `openvino/bf16/cpu`: stands in every verdict."""

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        """Write the raw map of each frame of the batch and return each map's maximum.

        padded: uint8 (H + 64, W + 64, C) frames, C 1 or 3 (RGB), with their 32 pixel margin.
        out: float32 (ceil(H / 4), ceil(W / 4)) each, written in place; raw squared differences,
        the mean over channels, not normalised. Sizes may differ within the batch.
        """

    def close(self) -> None: ...


class Stage(Runtime, Protocol):
    """A runtime that changes the maps of another one."""

    name: str
    """What it brings, for people."""
    inner: Runtime


def stages(engine: Runtime) -> list[tuple[str, Runtime]]:
    """The engine as it grows: first the student and teacher alone, last the whole of it."""
    found: list[tuple[str, Runtime]] = []
    while hasattr(engine, "inner") and hasattr(engine, "name"):
        stage = cast(Stage, engine)
        found.append((stage.name, stage))
        engine = stage.inner
    return [("student", engine), *reversed(found)]


def say_nothing(sentence: str) -> None:
    """Where nobody waits for an engine."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How an engine is to be opened."""

    precision: str = "f32"
    threads: int = 0
    """CPU threads of one inference; 0: as many as the machine has."""
    shapes: tuple[tuple[int, int, int], ...] = ()
    """(H, W, C) of the frames, without margin, to compile for now; others compile as they come."""
    cache_dir: Path | None = None
    """Where what was compiled may be kept between starts; None: nowhere."""
    max_batch: int = 1
    """Frames that may be given to `infer` together."""
    memory: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False)
    """What frames will lie in (whole rings), which outlives the engine: a GPU page-locks it."""
    say: Callable[[str], None] = say_nothing
    """Called with a sentence before anything that takes minutes."""


Factory = Callable[[Bundle | None, EngineOptions], Runtime]
"""What a row of `RUNTIMES`, or your own `package.module:factory`, names. `null` needs no bundle."""


def check_batch(
    padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]], in_channels: int
) -> None:
    """Raise `DataError` unless every frame and map of the batch has the shape `infer` asks for."""
    if len(padded) != len(out):
        raise DataError(f"{len(padded)} frames and {len(out)} maps found, expected as many of both")
    smallest = RECEPTIVE_FIELD_PX
    for frame, raw_map in zip(padded, out, strict=True):
        if frame.ndim != 3 or frame.dtype != np.uint8 or frame.shape[2] != in_channels:
            raise DataError(
                f"a frame {frame.dtype} {frame.shape} found, expected uint8 "
                f"(H + 64, W + 64, {in_channels}): give frames of the channels that the bundle "
                "was trained on"
            )
        height, width = (side - 2 * FRAME_MARGIN_PX for side in frame.shape[:2])
        if min(height, width) < smallest:
            raise DataError(
                f"a frame of {width}x{height} found, expected at least {smallest}x{smallest}"
            )
        if raw_map.shape != map_hw(height, width) or raw_map.dtype != np.float32:
            raise DataError(
                f"room for a map {raw_map.dtype} {raw_map.shape} found, expected float32 "
                f"{map_hw(height, width)} for a frame of {width}x{height}"
            )
