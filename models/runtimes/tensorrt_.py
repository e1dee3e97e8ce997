"""NVIDIA GPUs with TensorRT: the fused graph compiled ahead, one engine for each shape.

1. The module, typed as it is to run, is exported for one fixed shape and compiled as a whole. What
   does not become exactly one engine is refused: the rest would run in torch, slowly, unnoticed.
2. Compiling takes minutes, so engines are kept (`models.runtimes.enginecache`), where
   `options.cache_dir` names a place.
3. Lanes, strips, streams and copies are those of `models.runtimes.cuda_`.

Both lanes of a shape run one engine. It has one execution context, which is enough: all arithmetic
is enqueued on one stream, in order, and a context may be enqueued again before it is done, as long
as that is on the same stream. torch-tensorrt runs on the caller's stream (unless that is torch's
default stream, which ours is not), and binds inputs and outputs anew at each call: the input is the
lane's own, and the output a tensor newly made on that stream, which the lane keeps until it has
been copied back. So one lane's map is never written over by the other's. Its modes in which outputs
are shared between calls (CUDA graphs, pre-allocated outputs) are off unless asked for, and stay so.

Written against torch-tensorrt 2.11 to 2.13.
"""

from __future__ import annotations

import importlib.util
import logging
import operator
import pickle
import tempfile
import time
import weakref
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.bundle import Bundle
from models.errors import BundleError, RuntimeUnavailable
from models.fused import FusedGraph
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.cuda_ import STRIP_BYTES, CudaRuntime, Forward, gpu, gpu_name
from models.runtimes.enginecache import EngineCache, EngineKey, Machine, constants_sha256
from models.runtimes.lanes import Shape
from models.runtimes.module import FusedModule

INSTALL = "pip install 'linewatch[station,tensorrt]'"
OPTIMIZATION_LEVEL = 4
"""Of 0 to 5; 3 is TensorRT's own choice. Higher ones try more kernels, and compile for longer."""
WORKSPACE_BYTES = 8 << 30
"""What a kernel may use beside its tensors; never more than half of the GPU's memory."""
UNREADABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    LookupError,
    EOFError,
    AssertionError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeUnavailable,
)
"""What loading a file may raise that another version wrote, say."""

log = logging.getLogger(__name__)


class TensorRtRuntime(CudaRuntime):
    """See `models.runtimes.base.Runtime`.

    Every shape of `options.shapes` is compiled here, in every batch that may be asked for: none may
    have to be compiled while parts pass. Raises `RuntimeUnavailable` without GPU or TensorRT, for
    a cache that others may write into, and for a graph that does not become one engine.
    """

    def __init__(
        self, graph: FusedGraph, options: EngineOptions, *, strip_bytes: int = STRIP_BYTES
    ) -> None:
        engines = Engines(graph, options)
        super().__init__(
            graph, options, name="tensorrt", forward_of=engines.forward, strip_bytes=strip_bytes
        )


class Engines:
    """Finds or compiles the engine of a shape. Raises as `TensorRtRuntime` does."""

    def __init__(self, graph: FusedGraph, options: EngineOptions) -> None:
        versions = installed()
        self._device = gpu()
        self._options = options
        self._constants = constants_sha256(graph)
        self._machine = Machine(
            torch=torch.__version__,
            torch_tensorrt=versions[0],
            tensorrt=versions[1],
            gpu=gpu_name(self._device),
            capability=torch.cuda.get_device_capability(self._device),
        )
        self._cache = EngineCache(options.cache_dir) if options.cache_dir else None
        # Weak: an engine lives as long as its lanes, and they are given up when long unused.
        self._open: weakref.WeakValueDictionary[Shape, nn.Module] = weakref.WeakValueDictionary()

    def forward(self, module: FusedModule, shape: Shape) -> Forward:
        """What computes `module` for this shape; the same engine while one is open."""
        engine = self._open.get(shape)
        if engine is None:
            engine = self._open[shape] = self._engine(module, shape)
        kept = engine  # for as long as `run` lives

        def run(padded: torch.Tensor) -> torch.Tensor:
            found = kept(padded)
            raw_map: torch.Tensor = found[0] if isinstance(found, tuple | list) else found
            return raw_map

        return run

    def _engine(self, module: FusedModule, shape: Shape) -> nn.Module:
        if self._cache is None:
            with tempfile.TemporaryDirectory() as scratch:
                # Else it would be torch-tensorrt's own, in a folder that others may write into.
                return self._compile(module, shape, Path(scratch) / "timing.bin")
        key = EngineKey(self._constants, shape, self._options.precision, self._machine)
        size = "x".join(map(str, shape))
        # Another process may be compiling just this.
        self._options.say(f"TensorRT: looks for the engine of {size}, or waits for it")
        with self._cache.holding(key):
            engine = self._load(self._cache, key)
            if engine is None:
                with self._cache.timing(self._machine) as timing:
                    engine = self._compile(module, shape, timing)
                self._keep(self._cache, key, engine)
        return engine

    def _compile(self, module: FusedModule, shape: Shape, timing: Path) -> nn.Module:
        import torch_tensorrt

        size = "x".join(map(str, shape))
        self._options.say(
            f"TensorRT compiles {self._options.precision} for {size}: some minutes, once for this "
            "bundle, size and GPU"
        )
        begun = time.monotonic()
        memory = torch.cuda.get_device_properties(self._device).total_memory
        example = self._example(shape)
        try:
            program = exported(module, example)
            engine: nn.Module = torch_tensorrt.dynamo.compile(
                program,
                arg_inputs=[example],
                require_full_compilation=True,
                min_block_size=1,
                optimization_level=OPTIMIZATION_LEVEL,
                workspace_size=min(WORKSPACE_BYTES, memory // 2),
                timing_cache_path=str(timing),
                immutable_weights=True,
                disable_tf32=True,
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise RuntimeUnavailable(
                f"TensorRT {self._machine.tensorrt} cannot compile {self._options.precision} for "
                f"{size} ({error}): use runtime cuda, and report it"
            ) from error
        check_one_engine(engine)
        log.info("TensorRT compiled %s in %.0f s", size, time.monotonic() - begun)
        return engine

    def _load(self, cache: EngineCache, key: EngineKey) -> nn.Module | None:
        path = cache.find(key)
        if path is None:
            return None
        import torch_tensorrt  # noqa: F401  what an engine is, to `load`

        try:
            engine = torch.export.load(path).module()
            check_one_engine(engine)
        except UNREADABLE as error:
            log.warning("%s: cannot be loaded (%s): deleted, and compiled again", path, error)
            cache.drop(key)
            return None
        return engine

    def _keep(self, cache: EngineCache, key: EngineKey, engine: nn.Module) -> None:
        import torch_tensorrt

        def write(path: Path) -> None:
            torch_tensorrt.save(
                engine,
                str(path),
                output_format="exported_program",
                arg_inputs=[self._example(key.shape)],
                retrace=True,
            )

        try:
            cache.put(key, write)
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError.
            log.warning(
                "%s: the engine cannot be kept (%s): the next start compiles it again; make room",
                cache.folder,
                error,
            )

    def _example(self, shape: Shape) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.uint8, device=self._device)


class WholeSquares(TorchFunctionMode):
    """Averages of 2x2 squares that end beyond an odd side, as TensorRT's converters can take them.

    They take no average over what is there of a square, and there the last pixel again gives the
    same: (a + b + a + b) / 4 for (a + b) / 2.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is nn.functional.avg_pool2d and kwargs.get("ceil_mode") and args[1:] == (2,):
            del kwargs["ceil_mode"]
            height, width = args[0].shape[-2:]
            beyond = (0, width % 2, 0, height % 2)
            x = nn.functional.pad(args[0], beyond, mode="replicate") if any(beyond) else args[0]
            return func(x, 2, **kwargs)
        return func(*args, **kwargs)


def exported(module: FusedModule, example: torch.Tensor) -> torch.export.ExportedProgram:
    """What TensorRT compiles: the module for the shape of `example`, uint8 [N, rows, columns, C].

    float32 [N, h, w] comes out. Arithmetic is in the module's own dtype, on the example's device.
    """
    with WholeSquares():
        return torch.export.export(module, (example,), strict=False)


def installed() -> tuple[str, str]:
    """Versions of torch-tensorrt and TensorRT. Raises `RuntimeUnavailable` naming what to install.

    They are imported here, and nowhere else first: torch-tensorrt without TensorRT's libraries
    raises a bare `Exception`.
    """
    missing = [
        name for name in ("torch_tensorrt", "tensorrt") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise RuntimeUnavailable(
            f"no package {' and no package '.join(missing)} found, expected both for runtime "
            f"tensorrt: run `{INSTALL}`"
        )
    try:
        import tensorrt
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeUnavailable(
            f"torch-tensorrt or TensorRT cannot be imported ({error}), expected those that belong "
            f"to torch {torch.__version__}: run `{INSTALL}`"
        ) from error
    return str(torch_tensorrt.__version__), str(tensorrt.__version__)


def check_one_engine(engine: nn.Module) -> None:
    """Raise `RuntimeUnavailable` unless all that is computed, one TensorRT engine computes.

    engine: what torch-tensorrt compiled (the engine is its child `_run_on_acc_0`), or what was
    loaded from a file (there it is an operator, `execute_engine`).
    """
    nodes = engine.graph.nodes if isinstance(engine, torch.fx.GraphModule) else ()
    calls = [node for node in nodes if node.op.startswith("call_") and not _only_passes_on(node)]
    engines = [node for node in calls if _is_engine(engine, node)]
    if len(engines) == len(calls) == 1:
        return
    others = [str(node.target) for node in calls if node not in engines]
    names = f" ({', '.join(others[:5])}{', ...' if len(others) > 5 else ''})" if others else ""
    raise RuntimeUnavailable(
        f"{len(engines)} TensorRT engines and {len(others)} operators beside them{names} found, "
        "expected one engine and nothing else: use runtime cuda, and report it with the versions "
        "of torch and torch-tensorrt"
    )


def _is_engine(module: nn.Module, node: Any) -> bool:
    if node.op == "call_module":
        # A graph in this place is one that was not compiled.
        child = module.get_submodule(node.target)
        return node.target.startswith("_run_on_acc_") and not isinstance(
            child, torch.fx.GraphModule
        )
    return "execute_engine" in str(node.target)


def _only_passes_on(node: Any) -> bool:
    """The first of several outputs, and checks of the input's shape: no arithmetic."""
    target = str(node.target)
    return node.target is operator.getitem or "_assert" in target or target.startswith("_guards")


def open_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """The row of `RUNTIMES`: precisions fp16, bf16 and f32."""
    if bundle is None:
        raise BundleError("no bundle found, expected one for the tensorrt runtime: name a bundle")
    return TensorRtRuntime(bundle.graph(), options)
