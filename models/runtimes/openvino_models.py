"""Models compiled by OpenVINO for this CPU: in memory by their shape, and on disk between starts.

On disk they lie in the folder of compiled engines (`models.runtimes.enginecache`), each with its
digest. OpenVINO's own cache has none: a bit of a weight that turned over would be loaded, the
engine refused at every start, and nobody could tell why. Whatever goes wrong with the folder costs
the time of a compilation, never the start.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import openvino as ov
from numpy.typing import NDArray

from models.errors import RuntimeUnavailable
from models.runtimes.enginecache import EngineCache, EngineKey
from models.runtimes.machine import cpu_identity

KEPT = 16
"""Compiled shapes kept in memory beyond those that were pinned at the start; and so many beyond
those, the first ones, are looked for on disk."""
SUFFIX = ".blob"
SOURCES = ("models/*.py", "models/runtimes/*openvino*.py")

log = logging.getLogger(__name__)
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Cpu:
    """What a model is compiled for and with."""

    openvino: str
    cpu: str
    threads: int
    program: str
    """A hash of the modules that build models."""


@dataclass(frozen=True, slots=True)
class OnDisk:
    """Where compiled models are kept, and a hash of all that this one computes with."""

    folder: Path
    content: str


class Compiled:
    """Requests by the shape that `build` is given; those asked for first stay in memory.

    hint: OpenVINO's inference precision. threads: 0 is as many as the machine has.
    """

    def __init__(
        self,
        build: Callable[[int, int], ov.Model],
        *,
        hint: str,
        threads: int,
        disk: OnDisk | None = None,
    ) -> None:
        self._core = ov.Core()
        self._build = build
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
        }
        self._disk = disk
        self._looked_for = 0
        self._requests: OrderedDict[Shape, Any] = OrderedDict()
        self._pinned: set[Shape] = set()

    def __len__(self) -> int:
        return len(self._requests)

    def pin(self, shape: Shape) -> None:
        self._pinned.add(shape)
        self.request(shape)

    def request(self, shape: Shape) -> Any:
        request = self._requests.get(shape)
        if request is None:
            request = self._requests[shape] = self._model(shape).create_infer_request()
            spare = [key for key in self._requests if key not in self._pinned]
            for old in spare[: max(0, len(spare) - KEPT)]:
                del self._requests[old]
        self._requests.move_to_end(shape)
        return request

    def clear(self) -> None:
        self._requests.clear()

    def _model(self, shape: Shape) -> ov.CompiledModel:
        self._looked_for += shape not in self._pinned
        if self._disk is None or (shape not in self._pinned and self._looked_for > KEPT):
            return self._compile(shape)
        machine = Cpu(
            ov.get_version(), cpu_identity(), self._settings["INFERENCE_NUM_THREADS"], _program()
        )
        precision = self._settings["INFERENCE_PRECISION_HINT"]
        key = EngineKey(self._disk.content, (1, *shape, 0), precision, machine)
        with ExitStack() as held:
            try:
                kept = EngineCache(self._disk.folder, SUFFIX)
                # Compiling takes less than waiting for who is at it.
                alone = held.enter_context(kept.holding(key, wait=False))
                path = kept.find(key) if alone else None
            except (RuntimeUnavailable, OSError) as error:
                log.warning("%s: no compiled models are kept there", error)
                return self._compile(shape)
            if path is not None and (loaded := self._load(path)) is not None:
                return loaded
            compiled = self._compile(shape)
            if alone:
                _keep(kept, key, compiled)
        return compiled

    def _compile(self, shape: Shape) -> ov.CompiledModel:
        return self._core.compile_model(self._build(*shape), "CPU", self._settings)

    def _load(self, path: Path) -> ov.CompiledModel | None:
        try:
            blob = io.BytesIO(path.read_bytes())
            return self._core.import_model(blob, "CPU", self._settings)
        except (RuntimeError, OSError) as error:
            log.warning("%s: cannot be loaded (%s): compiled again", path, error)
            return None


def _keep(kept: EngineCache, key: EngineKey, compiled: ov.CompiledModel) -> None:
    def write(path: Path) -> None:
        path.write_bytes(compiled.export_model().getbuffer())

    try:
        kept.put(key, write)
    except (RuntimeUnavailable, RuntimeError, OSError) as error:
        log.warning("%s: a compiled model cannot be kept (%s): make room", kept.folder, error)


@cache
def _program() -> str:
    root = Path(__file__).parents[2]
    found = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of names, shapes and values."""
    found = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()
