"""torch-tensorrt's own lowering and partitioner over our graphs, without GPU and TensorRT.

`make conformance` runs it. It builds no engine, and so says nothing about TensorRT's arithmetic or
speed; it answers whether torch-tensorrt, as released, would put the whole graph into one engine:

1. A copy of the wheel's Python (fetched by `make setup`) without its shared objects is imported,
   with `tensorrt/` beside this file in the place of TensorRT, and answers of ours in the place of
   the few questions that are asked of a GPU at import.
2. Each fused graph is exported as `models.runtimes.tensorrt_` does it, and goes through the steps
   of `torch_tensorrt.dynamo.compile` up to where an engine would be built.
3. Expected: every operator supported, one part, named `_run_on_acc_0`, nothing beside it; and what
   torch makes of that part is the same map.
4. A graph with an operator that has no converter must not pass, else this proves nothing.

    python tests/conformance/lowering.py [FOLDER that holds torch_tensorrt/]
"""

from __future__ import annotations

import itertools
import logging
import shutil
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import torch

from models.errors import RuntimeUnavailable
from models.fused import fuse
from models.references import weights_of
from models.runtimes.module import DTYPES, FusedModule
from models.runtimes.tensorrt_ import check_one_engine, exported
from models.untrained import untrained_model
from models.variants import ALLOWED_SCALES, VARIANTS

HERE = Path(__file__).parent
WHEEL = Path(sys.prefix) / "conformance"
SHAPES = ((1, 194, 227, 1), (2, 130, 133, 3))
"""(N, rows, columns, C): odd and even sides, single frames and batches, grey and colour."""
GRAPHS = tuple(itertools.product(VARIANTS, ALLOWED_SCALES))


TOLERANCE = 1e-5
"""Of the maximum: lowering must not change what is computed, in any precision."""


class Compiled(torch.nn.Module):
    """In the place of an engine, so that `check_one_engine` looks at what it will look at."""


def import_copy(wheel: Path, scratch: Path) -> None:
    """Put torch_tensorrt of the wheel, and our tensorrt, in reach of `import`."""
    if not (wheel / "torch_tensorrt" / "__init__.py").is_file():
        raise SystemExit(f"{wheel}: no torch_tensorrt found, expected the wheel: run `make setup`")
    ignore = shutil.ignore_patterns("*.so*", "lib", "bin", "include")
    shutil.copytree(wheel / "torch_tensorrt", scratch / "torch_tensorrt", ignore=ignore)
    sys.path[:0] = [str(scratch), str(HERE)]
    # It is asked whether a library for Windows is loaded.
    sys.modules["dllist"] = types.SimpleNamespace(dllist=list)  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch._C._CudaDeviceProperties = object  # type: ignore[attr-defined]
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(
        total_memory=24 << 30, name="stand-in", major=9, minor=0
    )


def partitioned(module: torch.nn.Module, shape: tuple[int, ...]) -> tuple[Any, int, int]:
    """The graph in parts, how many operators have converters, and how many there are."""
    from torch_tensorrt.dynamo import partitioning
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import (
        get_decompositions,
        post_lowering,
        pre_export_lowering,
    )

    settings = CompilationSettings(require_full_compilation=True, min_block_size=1)
    program = exported(module, torch.zeros(shape, dtype=torch.uint8))
    program = pre_export_lowering(program, settings)
    program = program.run_decompositions(get_decompositions(False, False, False))
    graph = post_lowering(program.module(), settings)
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    supported, total = partitioning.get_graph_converter_support(graph, set())
    parts, _ = partitioning.fast_partition(
        graph,
        min_block_size=1,
        torch_executed_ops=set(),
        require_full_compilation=True,
        skip_fusion=supported == total,
    )
    return parts, supported, total


def check(module: torch.nn.Module, shape: tuple[int, ...]) -> int:
    """The number of operators, all of them in one part. Raises `RuntimeUnavailable` if not."""
    try:
        parts, supported, total = partitioned(module, shape)
    except AssertionError as error:
        raise RuntimeUnavailable(str(error)) from error
    frames = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).byte()
    expected = module(frames)
    off = float((parts(frames) - expected).abs().max() / expected.max())
    if not off <= TOLERANCE:
        raise RuntimeUnavailable(f"lowered, the maps are off by {off:.2g}")
    for name, child in list(parts.named_children()):
        if isinstance(child, torch.fx.GraphModule) and "_run_on_acc_" in name:
            setattr(parts, name, Compiled())
    check_one_engine(parts)
    if supported != total or not hasattr(parts, "_run_on_acc_0"):
        raise RuntimeUnavailable(f"{supported} of {total} operators found in one engine")
    return int(total)


class Unsupported(torch.nn.Module):
    """A histogram has no converter."""

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        return torch.histc(padded.float()).relu()


def main(wheel: Path) -> None:
    warnings.simplefilter("ignore")  # torch's and torch-tensorrt's own, at import and export
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        import_copy(wheel, Path(scratch))
        for (variant, scales), shape in itertools.product(GRAPHS, SHAPES):
            weights = weights_of(untrained_model(variant, shape[3], scales))
            graph = fuse(weights, variant, shape[3], scales)
            for precision, dtype in DTYPES.items():
                count = check(FusedModule(graph, dtype).eval(), shape)
                print(
                    f"{variant} at scales {list(scales)}, {precision}, "
                    f"{'x'.join(map(str, shape))}: {count} of {count} operators in one engine",
                    flush=True,
                )
        try:
            check(Unsupported(), SHAPES[0])
        except RuntimeUnavailable as refused:
            print(f"a histogram, which has no converter, is refused as it must be: {refused}")
        else:
            raise SystemExit("a histogram was taken for supported: this check sees nothing")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WHEEL)
