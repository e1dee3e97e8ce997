"""Our use of torch-tensorrt against its released source, which is read and never imported: that
needs a GPU and TensorRT's libraries. `make setup` fetches it; `make conformance` goes on from here,
with its own lowering and partitioner.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._decomp import get_decompositions
from torch._export.utils import _collect_all_valid_cia_ops_for_aten_namespace, _get_decomp_for_cia

from models.bundle import Bundle
from models.errors import BundleError, RuntimeUnavailable
from models.fused import fuse
from models.references import weights_of
from models.runtimes import tensorrt_
from models.runtimes.base import EngineOptions
from models.runtimes.module import DTYPES, FusedModule
from models.runtimes.tensorrt_ import WholeSquares, check_one_engine, exported
from models.untrained import untrained_bundle, untrained_model
from models.variants import ALLOWED_SCALES, VARIANTS
from pipeline.cli import run
from pipeline.config import load
from pipeline.station import Station
from pipeline.window import inspected_window

WHEEL = Path(sys.prefix) / "conformance" / "torch_tensorrt"
OURS = Path(inspect.getfile(tensorrt_))
REMOVED = "remove_assert_nodes"
"""The lowering pass that takes away what only checks types; it is not computed."""

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own, at export


def parsed(path: str) -> ast.Module:
    file = WHEEL / path
    assert file.is_file(), f"{file} not found: run `make setup`, which fetches torch-tensorrt"
    return ast.parse(file.read_text())


def operator_of(node: ast.expr) -> str:
    """`torch.ops.aten.relu.default`, or `aten.relu.default` -> `aten.relu.default`."""
    return ast.unparse(node).removeprefix("torch.ops.")


@cache
def converters() -> dict[str, str]:
    """Operators with an enabled converter, and the name of its validator, if it has one."""
    found = {}
    for path in (WHEEL / "dynamo" / "conversion").glob("*.py"):
        for node in ast.walk(parsed(str(path.relative_to(WHEEL)))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                "dynamo_tensorrt_converter"
            ):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if node.args and keywords.get("enabled", "True") == "True":
                    validator = keywords.get("capability_validator", "")
                    found[operator_of(node.args[0])] = validator
    assert len(found) > 200, "the registry's decorators are not where they were"
    return found


@cache
def removed() -> set[str]:
    tree = parsed(f"dynamo/lowering/passes/{REMOVED}.py")
    texts = {operator_of(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = {text for text in texts if re.fullmatch(r"aten\.\w+\.default", text)}
    assert found
    return found


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """As torch-tensorrt's, but for those it writes itself: see `own_decompositions`."""
    sets: dict[str, set[Any]] = {}
    for node in parsed("dynamo/lowering/_decomposition_groups.py").body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Set):
            sets[ast.unparse(node.target)] = {
                resolved(operator_of(element)) for element in node.value.elts
            }
    disabled = sets["torch_disabled_decompositions"]
    table = {
        op: _get_decomp_for_cia(op)
        for op in _collect_all_valid_cia_ops_for_aten_namespace()
        if op not in disabled
    }
    return {**table, **get_decompositions(list(sets["torch_enabled_decompositions"]))}


@cache
def own_decompositions() -> dict[str, set[str]]:
    """Operators that torch-tensorrt replaces by functions of its own, and those that they call."""
    found = {}
    for node in ast.walk(parsed("dynamo/lowering/_decompositions.py")):
        for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            if isinstance(mark, ast.Call) and "register_torch_trt_decomp" in ast.unparse(mark.func):
                name = operator_of(mark.args[0])
                called = {operator_of(at) for at in ast.walk(node) if isinstance(at, ast.Attribute)}
                overload = name if name.count(".") == 2 else f"{name}.default"
                found[overload] = {at for at in called if re.fullmatch(r"aten\.\w+\.\w+", at)}
                found[overload].discard(name)
    assert "aten.alias.default" in found
    return found


def resolved(name: str) -> Any:
    found = torch.ops
    for part in name.split("."):
        found = getattr(found, part)
    return found


def unsupported(program: torch.export.ExportedProgram) -> set[str]:
    """The operators that torch-tensorrt would leave to torch, and why where it matters."""
    found = set()
    for node in program.run_decompositions(decompositions()).graph.nodes:
        name = str(node.target)
        if node.op != "call_function" or name in removed():
            continue
        if name in own_decompositions():
            found |= own_decompositions()[name] - converters().keys()
        elif name not in converters():
            found.add(name)
        elif converters()[name] == "avg_pool_param_validator" and any(node.args[4:5]):
            found.add(f"{name} with ceil_mode")
    return found


def fused(variant: str, channels: int, scales: tuple[int, ...]) -> Any:
    weights = weights_of(untrained_model(variant, channels, scales))
    return fuse(weights, variant, channels, scales)


@pytest.mark.parametrize("scales", ALLOWED_SCALES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_operator_has_a_converter(variant: str, scales: tuple[int, ...]) -> None:
    graph = fused(variant, 1, scales)
    for dtype in DTYPES.values():
        module = FusedModule(graph, dtype).eval()
        program = exported(module, torch.zeros((1, 130, 133, 1), dtype=torch.uint8))
        assert unsupported(program) == set()


class Histogram(torch.nn.Module):
    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        return torch.histc(padded.float())


def test_an_operator_without_converter_is_seen() -> None:
    example = torch.zeros((1, 130, 133, 1), dtype=torch.uint8)
    program = torch.export.export(Histogram(), (example,), strict=False)
    assert unsupported(program) == {"aten.histc.default"}
    plain = FusedModule(fused("pdn_tiny", 1, (1, 2))).eval()
    program = torch.export.export(plain, (example,), strict=False)
    assert unsupported(program) == {"aten.avg_pool2d.default with ceil_mode"}


@pytest.mark.parametrize("sides", [(128, 160), (129, 160), (128, 161), (131, 133)])
def test_whole_squares_give_the_same_map(sides: tuple[int, int]) -> None:
    module = FusedModule(fused("pdn_tiny", 3, (1, 2))).eval()
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *sides, 3), np.uint8))
    with torch.inference_mode():
        expected = module(frames)
        with WholeSquares():
            found = module(frames)
    assert (found - expected).abs().max() <= 1e-6 * expected.max()


def signature(path: str, name: str) -> ast.FunctionDef:
    (found,) = (
        node
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    return found


def calls(source: str, name: str) -> list[dict[str, ast.expr]]:
    """The keywords of every call of `name` in a source."""
    return [
        {str(word.arg): word.value for word in node.keywords}
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def unknown(keywords: Iterator[str], function: ast.FunctionDef) -> set[str]:
    """Those that are no parameter by name (`**kwargs` swallows them), or one that is given up."""
    arguments = function.args
    named = {word.arg for word in (*arguments.args, *arguments.kwonlyargs)}
    text = ast.get_docstring(function) or ""
    given_up = {
        word
        for word in named
        for line in text.splitlines()
        if re.match(rf"\s*{word}\b", line) and re.search("deprecated|has no effect", line, re.I)
    }
    warned = {
        str(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and "is deprecated" in node.value
    }
    given_up |= {word for word in named for text in warned if f"`{word}` is deprecated" in text}
    return {word for word in keywords if word not in named or word in given_up}


CALLS = [
    ("torch_tensorrt.dynamo.compile", "dynamo/_compiler.py", "compile"),
    ("torch_tensorrt.save", "_compile.py", "save"),
]


@pytest.mark.parametrize(("call", "path", "name"), CALLS)
def test_every_keyword_is_a_parameter(call: str, path: str, name: str) -> None:
    found = calls(OURS.read_text(), call)
    assert len(found) == 1
    assert None not in found[0]
    assert unknown(iter(found[0]), signature(path, name)) == set()


def test_a_misspelt_and_a_deprecated_keyword_are_seen() -> None:
    source = OURS.read_text().replace("min_block_size=1", "min_block_sise=1, use_python_runtime=1")
    (found,) = calls(source, CALLS[0][0])
    wrong = unknown(iter(found), signature(*CALLS[0][1:]))
    assert wrong == {"min_block_sise", "use_python_runtime"}
    assert unknown(iter(["enabled_precisions"]), signature(*CALLS[0][1:])) == {"enabled_precisions"}


def test_what_is_compiled_is_the_whole_graph_at_any_size() -> None:
    """Without these two a graph that is not supported comes back as it was, with a warning."""
    (found,) = calls(OURS.read_text(), CALLS[0][0])
    assert ast.unparse(found["require_full_compilation"]) == "True"
    assert ast.unparse(found["min_block_size"]) == "1"


def test_the_wheel_is_that_of_our_torch() -> None:
    (version,) = (
        node.value.value
        for node in parsed("_version.py").body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "__version__"
        and isinstance(node.value, ast.Constant)
    )
    assert str(version).split(".")[:2] == torch.__version__.split(".")[:2]


class Engine(torch.nn.Module):
    """What torch-tensorrt puts in the place of a part of the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def compiled(*targets: str, then: Callable[..., Any] | None = None) -> torch.fx.GraphModule:
    """A graph that calls children of these names, then an operator."""
    graph = torch.fx.Graph()
    value = graph.placeholder("padded")
    for target in targets:
        value = graph.call_module(target, (value,))
    if then:
        value = graph.call_function(then, (value,))
    graph.output(value)
    return torch.fx.GraphModule({target: Engine() for target in targets}, graph)


def test_one_engine_and_nothing_else_is_accepted() -> None:
    check_one_engine(compiled("_run_on_acc_0"))
    check_one_engine(compiled("_guards_fn", "_run_on_acc_0"))


@pytest.mark.parametrize(
    ("engine", "what"),
    [
        (compiled(), "0 TensorRT engines and 0 operators"),
        (compiled(then=torch.relu), "0 TensorRT engines and 1 operators beside them .*relu"),
        (compiled("_run_on_acc_0", "_run_on_acc_2"), "2 TensorRT engines"),
        (compiled("_run_on_acc_0", "_run_on_gpu_1"), "1 TensorRT engines and 1 .*_run_on_gpu_1"),
        (compiled("_run_on_acc_0", then=torch.relu), "1 TensorRT engines and 1 operators"),
        (Engine(), "0 TensorRT engines"),
    ],
)
def test_anything_else_is_refused(engine: torch.nn.Module, what: str) -> None:
    with pytest.raises(RuntimeUnavailable, match=f"{what}.*use runtime cuda"):
        check_one_engine(engine)


def test_a_part_that_was_not_compiled_is_refused() -> None:
    engine = compiled("_run_on_acc_0")
    engine._run_on_acc_0 = compiled(then=torch.relu)
    with pytest.raises(RuntimeUnavailable, match="0 TensorRT engines"):
        check_one_engine(engine)


def test_without_the_packages_it_names_the_extra(tmp_path: Path) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path))
    if torch.cuda.is_available():
        pytest.skip("with a GPU see tests/gpu")
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'linewatch\[station,tensorrt\]'"):
        tensorrt_.open_engine(bundle, EngineOptions("fp16"))
    with pytest.raises(BundleError, match="name a bundle"):
        tensorrt_.open_engine(None, EngineOptions("fp16"))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--runtime", "torch/f32"], 2, "no --shape found"),
        (["--runtime", "torch/f32", "--shape", "64"], 2, "'64' found, expected HEIGHTxWIDTH"),
        (["--runtime", "torch/f32", "--shape", "64x32"], 2, "at least 33 each"),
        (["--runtime", "tenserrt", "--shape", "64x96"], 5, "'tenserrt' found"),
        (["--runtime", "torch/f16", "--shape", "64x96"], 5, "'f16' found"),
        (["--config", "none.yaml", "--shape", "64x96"], 2, "no such file"),
    ],
)
def test_compile_says_what_is_wrong(
    tmp_path: Path,
    options: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["compile", str(untrained_bundle(tmp_path)), *options]) == code
    caught = capsys.readouterr()
    assert words in caught.err
    assert "Traceback" not in caught.err + caught.out


def test_compile_opens_what_needs_no_compiling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(untrained_bundle(tmp_path))
    shapes = ["--shape", "64x96", "--shape", "80X72", "--shape", "64x96"]
    assert run(["compile", bundle, *shapes, "--runtime", "torch"]) == 0
    text = capsys.readouterr().out
    assert "not needed" in text
    assert "nothing has to be compiled ahead" in text
    assert "linewatch calibrate" in text
    assert run(["compile", bundle, *shapes, "--runtime", "torch", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    sizes = [(one["height"], one["width"], one["channels"]) for one in answer["opened"]]
    assert sizes == [(64, 96, 1), (80, 72, 1)]
    assert all(one["engine_id"] == "torch/f32/cpu" for one in answer["opened"])


def test_compile_takes_bundle_and_zones_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is compiled has the size that the worker's engine is given, not the frame's."""
    bundle = untrained_bundle(tmp_path)
    config = tmp_path / "line.yaml"
    config.write_text(
        f"""station: a
worker: {{bundle: {bundle.name}}}
cameras:
  left:
    source: {{kind: synthetic, width: 320, height: 240}}
    recipe:
      zones: [{{mode: include, polygon: [[0, 0], [100, 0], [100, 90], [0, 90]]}}]
"""
    )
    options = ["--shape", "240x320", "--runtime", "torch", "--json"]
    assert run(["compile", "--config", str(config), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["bundle"] == str(bundle)
    assert answer["cache_dir"] == str(Station.of(load(config)).engines)
    (one,) = answer["opened"]
    window = inspected_window(load(config).cameras["left"].recipe, (240, 320))
    assert (one["height"], one["width"]) == window.hw != (240, 320)
