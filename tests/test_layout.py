"""The house keeps its plan: which module may import which, and how long a file may get."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "models", "calibrate", "tools")
FILES = sorted(
    path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in FILES
    if path.relative_to(ROOT).parts[0] in PACKAGES
}
MAX_LINES = 420

STAGES = ("pipeline.capture", "pipeline.worker", "pipeline.decision", "pipeline.catch_up")
COMMANDS = ("pipeline.cli", "pipeline.application", "pipeline.commands")
FORBIDDEN: list[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
    # what, may not import, except that it may import, except for these modules
    ("models", ("pipeline", "calibrate", "tools"), (), ()),
    ("pipeline", ("calibrate", "tools"), (), COMMANDS),
    ("pipeline", ("torch", "torchvision"), (), ("pipeline.commands",)),
    ("pipeline", ("openvino", "typer", "rich", "matplotlib", "sklearn"), (), COMMANDS),
    (
        "calibrate",
        ("pipeline",),
        tuple(
            f"pipeline.{leaf}"
            for leaf in (
                *("types", "errors", "boxes", "rules", "config", "tolerance", "window"),
                *("optics", "fixture"),
            )
        ),
        (),
    ),
    ("calibrate", ("torch", "tools"), (), ()),
    *[(stage, tuple(s for s in STAGES if s != stage), (), ()) for stage in STAGES],
    *[
        (f"pipeline.{leaf}", ("models", "pipeline.supervisor", *STAGES, *COMMANDS), (), ())
        for leaf in (
            *("types", "errors", "config", "ring", "ringfile", "board", "optics", "fixture"),
            *("sources", "boxes", "rules", "journal", "wire", "publish", "subscriber"),
            *("station", "stage", "telemetry", "batching", "prepare", "record", "parts", "desk"),
        )
    ],
    ("pipeline.capture", ("models", "pipeline.supervisor", *COMMANDS), (), ()),
    ("pipeline.decision", ("models", "pipeline.supervisor", *COMMANDS), (), ()),
    ("pipeline.worker", ("pipeline.supervisor", "models.training", *COMMANDS), (), ()),
    ("pipeline.supervisor", ("models", *STAGES, *COMMANDS), (), ()),
    *[
        (f"models.{name}", ("torch", "openvino"), (), ())
        for name in (
            *("variants", "fused", "whole", "wide", "bundle", "schema", "errors"),
            "runtimes.base",
        )
    ],
    (
        "models.runtimes",
        ("torch",),
        (),
        tuple(
            f"models.runtimes.{name}"
            for name in ("torch_", "whole_torch", "module", "cuda_", "tensorrt_")
        ),
    ),
    (
        "models.runtimes",
        ("openvino",),
        (),
        (
            "models.runtimes.openvino_",
            "models.runtimes.openvino_graph",
            "models.runtimes.openvino_models",
            "models.runtimes.whole_openvino",
            "models.runtimes.wide_openvino",
        ),
    ),
    ("models.pdn", ("models.efficientad", "models.training", "models.bundle"), (), ()),
    ("models.efficientad", ("models.training", "models.bundle", "models.runtimes"), (), ()),
    ("models.bundle", ("models.runtimes",), (), ()),
    ("pipeline.bridges", ("models", "pipeline.supervisor", *STAGES, *COMMANDS), (), ()),
    ("pipeline", ("pymodbus",), (), ("pipeline.bridges.modbus",)),
    ("pipeline", ("paho",), (), ("pipeline.bridges.mqtt",)),
    (
        "pipeline",
        ("asyncua", "cryptography"),
        (),
        ("pipeline.bridges.opcua", "pipeline.bridges.certificates"),
    ),
    # A bare install has only these: what is beside the standard library and the packages of ours.
    ("pipeline.subscriber", ("numpy", "pydantic", "yaml", "cv2", "av", "psutil"), (), ()),
    ("pipeline.wire", ("numpy", "pydantic", "yaml", "cv2", "av", "psutil"), (), ()),
    *[
        (f"pipeline.{client}", ("numpy", "pydantic", "yaml", "cv2", "av", "psutil"), (), ())
        for client in ("keys", "gaps", "cursor", "rarely", "evidence")
    ],
    ("pipeline.push", ("pydantic", "yaml", "cv2", "av", "psutil"), (), ()),
]  # fmt: skip


def imports(module: str) -> Iterator[str]:
    """Every module that the file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import, expected an absolute one"
            assert node.module
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def within(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("rule", FORBIDDEN, ids=lambda rule: f"{rule[0]}-{rule[1][0]}")
def test_imports_run_one_way(
    rule: tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]],
) -> None:
    what, banned, allowed, exempt = rule
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if within(module, (what,)) and not within(module, exempt)
        for name in imports(module)
        if within(name, banned) and not within(name, allowed)
    ]
    assert not wrong


def test_every_rule_speaks_of_something() -> None:
    """A module that was renamed must not slip out of its rule."""
    missing = {
        name
        for what, banned, allowed, exempt in FORBIDDEN
        for name in (what, *banned, *allowed, *exempt)
        if name.partition(".")[0] in PACKAGES and name not in MODULES
    }
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_one_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_nothing_is_patched() -> None:
    """Public fakes instead: a patched test goes on passing when what it patches has moved."""
    words = ("monkey" + "patch", "unittest." + "mock", "mo" + "cker")
    assert not [f"{path}: {word}" for path in FILES for word in words if word in path.read_text()]


def test_broad_excepts_are_few_and_explained() -> None:
    """`except Exception` stands where a stage or the command line ends, and nowhere else."""
    broad = {
        str(path.relative_to(ROOT))
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception"))
        and not within(module, (*STAGES, "pipeline.desk", "pipeline.stage", "pipeline.cli"))
    }
    assert not broad


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.capture", ("torch", "openvino", "typer", "matplotlib", "yaml", "sklearn")),
        ("pipeline.decision", ("torch", "openvino", "typer", "matplotlib", "yaml", "sklearn")),
        ("pipeline.worker", ("torch", "openvino", "typer", "matplotlib", "yaml", "sklearn")),
        ("pipeline.supervisor", ("torch", "openvino", "typer", "matplotlib", "sklearn")),
        ("pipeline.subscriber", ("torch", "openvino", "typer", "numpy", "pydantic", "cv2", "av")),
        ("pipeline.catch_up", ("torch", "openvino", "typer", "matplotlib", "yaml", "cv2", "av")),
        ("pipeline.push", ("torch", "openvino", "typer", "pydantic", "cv2", "av", "yaml")),
        ("pipeline.cli", ("torch", "openvino", "typer", "numpy", "pydantic", "cv2", "av", "zmq")),
        ("models.bundle", ("torch", "openvino")),
        ("models.runtimes", ("torch", "openvino")),
        ("models.runtimes.openvino_", ("torch",)),
    ],
)  # fmt: skip
def test_what_a_process_loads(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(*[m for m in {absent!r} if m in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert answer.stdout.split() == []
