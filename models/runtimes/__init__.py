"""Engines: `open_runtime` finds, opens and checks one. A runtime is one file and one row here.

1. `auto` takes the fastest row that this machine can run and that the bundle has thresholds for.
2. The row's module is imported (nothing imports torch or openvino before that) and opened.
3. Without thresholds for its `runtime/precision` the engine is refused: they are not portable.
4. A global branch runs beside it (`models.whole`).
5. It must reproduce the bundle's reference maps (`models.runtimes.parity`).
6. Where the bundle brings its training images, suspicions are looked up (`models.precedents`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from models.bundle import Bundle
from models.errors import RuntimeUnavailable
from models.runtimes.base import EngineOptions, Factory, Runtime
from models.runtimes.parity import check_parity

__all__ = [
    "RUNTIMES",
    "EngineOptions",
    "Runtime",
    "available_runtimes",
    "choose",
    "engine_of",
    "open_runtime",
]


@dataclass(frozen=True, slots=True)
class Row:
    """`factory` is a `module:function`, a `models.runtimes.base.Factory`."""

    factory: str
    package: str
    """What must be installed."""
    precisions: tuple[str, ...]
    """Fastest first."""


RUNTIMES: dict[str, Row] = {
    "openvino": Row("models.runtimes.openvino_:open_engine", "openvino", ("bf16", "f32")),
    "torch": Row("models.runtimes.torch_:open_engine", "torch", ("f32",)),
    "null": Row("models.runtimes.null:open_engine", "numpy", ("none",)),
}
"""Fastest first; `auto` never takes `null`."""


def open_runtime(
    bundle: Bundle | None,
    runtime: str = "auto",
    precision: str = "auto",
    *,
    threads: int = 0,
    shapes: Sequence[tuple[int, int, int]] = (),
    cache_dir: Path | None = None,
    calibrating: bool = False,
) -> Runtime:
    """Open an engine for a bundle, and check it against the bundle's reference maps.

    runtime: `auto`, a row of `RUNTIMES`, or `package.module:factory` of your own.
    precision: `auto` or one of the row's. bundle: may be None for `null` and your own.
    shapes: (H, W, C) of the frames, without margin: compiled and checked for now.
    calibrating: do without thresholds, in order to find some.

    Raises `RuntimeUnavailable` with the command that mends it, `ParityError` for an engine that
    does not reproduce the references, `BundleError` for a damaged bundle.
    """
    runtime, precision = choose(bundle, runtime, precision, calibrating=calibrating)
    target = RUNTIMES[runtime].factory if runtime in RUNTIMES else runtime
    options = EngineOptions(precision, threads, tuple(shapes), cache_dir)
    engine = _factory(target)(bundle, options)
    if bundle is None or runtime == "null":
        return engine
    try:
        if not calibrating:
            bundle.thresholds(engine_of(engine.engine_id))
        whole = bundle.graph().whole if bundle.global_branch else None
        if whole is None:
            check_parity(engine, bundle, shapes)
        else:
            from models.runtimes.with_whole import WithWhole

            # The branch sees a crop as a whole frame only; beside others it is another picture.
            local, engine = engine, WithWhole(engine, whole, threads)
            check_parity(engine, bundle)
            check_parity(local, bundle, shapes, engine.local(bundle.references()))
        precedents = bundle.precedents()
    except BaseException:
        engine.close()
        raise
    if precedents is None:
        return engine
    from models.runtimes.looking_up import LookingUp  # with OpenCV

    return LookingUp(engine, precedents, bundle.calibration.q_b)


def engine_of(engine_id: str) -> str:
    """`openvino/bf16/cpu` -> `openvino/bf16`: what thresholds belong to."""
    return "/".join(engine_id.split("/")[:2])


def choose(
    bundle: Bundle | None, runtime: str, precision: str, *, calibrating: bool = False
) -> tuple[str, str]:
    """Resolve `auto`. Raises `RuntimeUnavailable` when nothing fits this machine and bundle."""
    if ":" in runtime:
        return runtime, precision
    if runtime not in ("auto", *RUNTIMES):
        raise RuntimeUnavailable(
            f"runtime {runtime!r} found, expected auto, {', '.join(RUNTIMES)}, or "
            "package.module:factory of your own"
        )
    names = [runtime] if runtime != "auto" else [name for name in RUNTIMES if name != "null"]
    faults: list[str] = []
    unmeasured: list[str] = []
    for name in names:
        precisions = RUNTIMES[name].precisions
        if precision not in ("auto", *precisions) and runtime != "auto" and name != "null":
            raise RuntimeUnavailable(
                f"precision {precision!r} found for runtime {name}, expected auto or "
                f"{', '.join(precisions)}"
            )
        for candidate in precisions:
            if precision not in ("auto", candidate) and name != "null":
                continue
            fault = _fault(name, candidate)
            if fault:
                faults.append(fault)
            elif (
                name == "null"
                or calibrating
                or (bundle and f"{name}/{candidate}" in bundle.calibration.engines)
            ):
                return name, candidate
            else:
                unmeasured.append(f"{name}/{candidate}")
    if unmeasured and bundle is None:
        raise RuntimeUnavailable(
            f"no bundle found, expected one for {unmeasured[0]}: name a bundle, or use runtime null"
        )
    if unmeasured and bundle is not None:
        bundle.thresholds(unmeasured[0])  # raises, naming the command
    wanted = f"{runtime}/{precision}"
    raise RuntimeUnavailable(f"{wanted} cannot run here: {'; '.join(faults) or 'no such engine'}")


def available_runtimes() -> dict[str, str]:
    """`runtime/precision` -> "" where this machine can run it, else why not and what to do."""
    return {
        f"{name}/{precision}": _fault(name, precision)
        for name, row in RUNTIMES.items()
        for precision in row.precisions
    }


def _fault(name: str, precision: str) -> str:
    if importlib.util.find_spec(RUNTIMES[name].package) is None:
        return (
            f"{name}/{precision}: package {RUNTIMES[name].package} is not installed: run "
            "`pip install 'linewatch[station]'`"
        )
    if precision == "bf16" and not cpu_has_bf16():
        return (
            f"{name}/{precision}: this CPU has neither avx512_bf16 nor amx_bf16: use precision f32"
        )
    return ""


@cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; emulated, it is slower than f32."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text) is not None


def _factory(target: str) -> Factory:
    module, _, name = target.partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RuntimeUnavailable(
            f"runtime {target}: {error}: expected an importable module and a factory in it that "
            "takes (bundle, options); check the name and what is installed"
        ) from error
    return factory
