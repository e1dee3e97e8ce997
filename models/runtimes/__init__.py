"""Engines: `open_runtime` finds, opens and checks one. A runtime is one file and one row here.

1. `candidates` says what may be tried, in order: what is configured (`auto`: every engine that this
   machine can run and that the bundle has thresholds for, fastest first), then the fallbacks that
   are named. Thresholds are not portable: without some for its `runtime/precision` an engine is
   refused, and a named fallback without them already when it is not needed.
2. The candidate's module is imported (nothing imports torch or openvino before) and opened.
3. A global branch runs beside it (`models.whole`).
4. It must reproduce the bundle's reference maps (`models.runtimes.parity`).
5. Where that fails, or it cannot be opened, the next candidate is taken, and that is said.
6. Where the bundle brings a wide view, the map is weighed by it, once it has answered as the
   reference does, in blocks of the sizes that will run (`models.wide`).
7. Where it brings its training images, suspicions are looked up (`models.precedents`).
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import ParityError, RuntimeUnavailable
from models.runtimes.base import EngineOptions, Factory, Runtime, say_nothing
from models.runtimes.machine import cpu_bf16_is_fast, cpu_has_bf16, engine_fault
from models.runtimes.parity import check_parity

__all__ = [
    "RUNTIMES",
    "Candidate",
    "EngineOptions",
    "Runtime",
    "available_runtimes",
    "candidates",
    "choose",
    "cpu_bf16_is_fast",
    "cpu_has_bf16",
    "engine_of",
    "frames_together",
    "open_runtime",
]


@dataclass(frozen=True, slots=True)
class Row:
    """`factory` is a `module:function`, a `models.runtimes.base.Factory`."""

    factory: str
    packages: tuple[str, ...]
    """What must be installed; the first one's version is the engine's."""
    precisions: tuple[str, ...]
    """Fastest first; on CPUs that are slow at bf16 that comes last."""
    gpu: bool = False
    """Whether it needs an NVIDIA GPU."""
    extra: str = "station"
    """Of linewatch's own package, that brings `packages`."""
    batches: bool = True
    """Whether frames that go in together take less time than one after the other. A CPU is at its
    peak with one: together, each would only be as late as the last."""


RUNTIMES: dict[str, Row] = {
    "tensorrt": Row(
        "models.runtimes.tensorrt_:open_engine",
        ("torch_tensorrt", "tensorrt", "torch"),
        ("fp16", "bf16", "f32"),
        gpu=True,
        extra="station,tensorrt",
    ),
    "cuda": Row("models.runtimes.cuda_:open_engine", ("torch",), ("fp16", "bf16", "f32"), gpu=True),
    "openvino": Row(
        "models.runtimes.openvino_:open_engine",
        ("openvino",),
        ("int8", "bf16", "f32"),
        batches=False,
    ),
    "torch": Row("models.runtimes.torch_:open_engine", ("torch",), ("f32",), batches=False),
    "null": Row("models.runtimes.null:open_engine", ("numpy",), ("none",)),
}
"""Fastest first; `auto` never takes `null`."""
BY_NAME_ONLY = ("int8",)
"""Precisions that cost accuracy: calibrated when asked for by name, and used once calibrated."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that may be tried. fault: why not, with what to do; "" where it may."""

    runtime: str
    precision: str
    fault: str = ""
    unmeasured: bool = False
    """The fault is that the bundle has no thresholds for it."""

    @property
    def engine(self) -> str:
        """`runtime/precision`; the factory alone of a runtime of your own."""
        return self.runtime if ":" in self.runtime else f"{self.runtime}/{self.precision}"


def open_runtime(
    bundle: Bundle | None,
    runtime: str = "auto",
    precision: str = "auto",
    *,
    fallback: Sequence[str] = (),
    threads: int = 0,
    shapes: Sequence[tuple[int, int, int]] = (),
    cache_dir: Path | None = None,
    calibrating: bool = False,
    max_batch: int = 1,
    memory: Sequence[NDArray[np.uint8]] = (),
    say: Callable[[str], None] | None = None,
) -> Runtime:
    """Open an engine for a bundle, and check it against the bundle's reference maps.

    runtime: `auto`, a row of `RUNTIMES`, or `package.module:factory` of your own.
    precision: `auto` or one of the row's. bundle: may be None for `null` and your own.
    fallback: `runtime/precision` each, tried in order when what is configured cannot be opened or
        is refused. Without, a runtime that is named is the only one tried.
    threads, max_batch, memory: see `EngineOptions`.
    shapes: (H, W, C) of the frames, without margin: compiled and checked for now.
    calibrating: do without thresholds, in order to find some.
    say: called with a sentence before what takes minutes, and when an engine is taken in the place
        of one that was refused.

    Raises `RuntimeUnavailable` with the command that mends it, `ParityError` for an engine that
    does not reproduce the references: when no candidate is left, with the reasons of all of them.
    `BundleError` for a damaged bundle, at once.
    """
    own = _configured(bundle, runtime, precision, calibrating=calibrating)
    chain = [each for each in own if not each.fault]
    spare = _fallbacks(bundle, fallback, calibrating=calibrating)
    refusals: list[tuple[str, ParityError | RuntimeUnavailable]] = []
    if not chain:
        refusals.append((f"{runtime}/{precision}", _unfit(runtime, precision, own)))
    elif bundle is not None:
        # What `auto` would rather take is not passed over in silence.
        refusals += [
            (each.engine, RuntimeUnavailable(each.fault))
            for each in own[: own.index(chain[0])]
            if each.engine in bundle.calibration.engines
        ]
    chain += [each for each in spare if each not in chain]
    say, told = say or say_nothing, 0
    for candidate in chain:
        if candidate.fault:
            refusals.append((candidate.engine, RuntimeUnavailable(candidate.fault)))
            continue
        if told < len(refusals):
            say(f"{_reasons(refusals[told:])}; {candidate.engine} is taken instead")
            told = len(refusals)
        options = EngineOptions(
            candidate.precision, threads, tuple(shapes), cache_dir, max_batch, tuple(memory), say
        )
        try:
            return _open(bundle, candidate.runtime, options, calibrating=calibrating)
        except (ParityError, RuntimeUnavailable) as error:
            _let_go(error)
            refusals.append((candidate.engine, error))
    (_, first), *others = refusals
    if not others:
        raise first
    raise type(first)(f"{first}; {_reasons(others)}") from first


def _let_go(error: BaseException | None) -> None:
    """Of a refused engine's buffers, which the frames of a traceback hold: the next one may need
    that memory."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    gc.collect()


def _reasons(refusals: Sequence[tuple[str, Exception]]) -> str:
    return "; ".join(f"{engine} refused: {error}" for engine, error in refusals)


def _open(
    bundle: Bundle | None, runtime: str, options: EngineOptions, *, calibrating: bool
) -> Runtime:
    """One engine, checked."""
    target = RUNTIMES[runtime].factory if runtime in RUNTIMES else runtime
    factory = _factory(target)
    try:
        return _opened(bundle, runtime, factory, options, calibrating=calibrating)
    except (RuntimeError, OSError) as error:
        # What GPU libraries raise: out of memory, a kernel that does not compile, a missing file.
        raise RuntimeUnavailable(
            f"{runtime}/{options.precision} cannot be opened: {type(error).__name__}: {error}: see "
            "`linewatch doctor`, or allow another engine in worker.fallback"
        ) from error


def _opened(
    bundle: Bundle | None,
    runtime: str,
    factory: Factory,
    options: EngineOptions,
    *,
    calibrating: bool,
) -> Runtime:
    engine = factory(bundle, options)
    if bundle is None or runtime == "null":
        return engine
    batches, gpu = [1], runtime in RUNTIMES and RUNTIMES[runtime].gpu
    if gpu:
        # Each size of a batch is a graph of its own, and each of its two lanes.
        sizes = [1 << n for n in range(options.max_batch.bit_length())]
        batches = [size for size in sizes for _ in range(2)]
    try:
        if not calibrating:
            bundle.thresholds(engine_of(engine.engine_id))
        whole = bundle.graph().whole if bundle.global_branch else None
        if whole is None:
            check_parity(engine, bundle, options.shapes, batches=batches)
        else:
            from models.runtimes.with_whole import WithWhole

            # The branch sees a crop as a whole frame only; beside others it is another picture.
            local, engine = engine, WithWhole(engine, whole, options, gpu=gpu)
            check_parity(engine, bundle)
            crops = engine.local(bundle.references())
            check_parity(local, bundle, options.shapes, crops, batches)
        wide = bundle.wide()
        if wide:
            from models.runtimes.with_wide import WithWide

            engine = WithWide(engine, wide, bundle.calibration.q_b, options, gpu=gpu)
        precedents = bundle.precedents()
        if precedents is not None:
            from models.precedents import POWER, POWER_BESIDE_WIDE  # with OpenCV
            from models.runtimes.looking_up import LookingUp

            power = POWER_BESIDE_WIDE if wide else POWER
            engine = LookingUp(engine, precedents, bundle.calibration.q_b, power)
    except BaseException:
        engine.close()
        raise
    return engine


def engine_of(engine_id: str) -> str:
    """`openvino/bf16/cpu` -> `openvino/bf16`: what thresholds belong to."""
    return "/".join(engine_id.split("/")[:2])


def frames_together(engine_id: str, limit: int) -> int:
    """Of an open engine: how many frames to give it in one call, at most `limit`."""
    row = RUNTIMES.get(engine_id.partition("/")[0])
    return limit if row is None or row.batches else 1


def choose(
    bundle: Bundle | None, runtime: str, precision: str, *, calibrating: bool = False
) -> tuple[str, str]:
    """Resolve `auto`: the first that may be tried.

    Raises `RuntimeUnavailable` when nothing fits this machine and bundle.
    """
    own = _configured(bundle, runtime, precision, calibrating=calibrating)
    for each in own:
        if not each.fault:
            return each.runtime, each.precision
    raise _unfit(runtime, precision, own)


def candidates(
    bundle: Bundle | None,
    runtime: str,
    precision: str,
    fallback: Sequence[str] = (),
    *,
    calibrating: bool = False,
) -> list[Candidate]:
    """What `open_runtime` would try, in order, and what it would not, with the reasons.

    Raises `RuntimeUnavailable` for names that there are not, and for a fallback without thresholds.
    """
    own = _configured(bundle, runtime, precision, calibrating=calibrating)
    spare = _fallbacks(bundle, fallback, calibrating=calibrating)
    return own + [each for each in spare if each not in own]


def available_runtimes() -> dict[str, str]:
    """`runtime/precision` -> "" where this machine can run it, else why not and what to do."""
    return {
        f"{name}/{precision}": _fault(name, precision)
        for name in RUNTIMES
        for precision in _fastest_first(name)
    }


def _configured(
    bundle: Bundle | None, runtime: str, precision: str, *, calibrating: bool
) -> list[Candidate]:
    """For `auto` every engine, fastest first; else those of one runtime, up to the one to take."""
    if ":" in runtime:
        return [Candidate(runtime, precision)]
    if runtime not in ("auto", *RUNTIMES):
        raise RuntimeUnavailable(
            f"runtime {runtime!r} found, expected auto, {', '.join(RUNTIMES)}, or "
            "package.module:factory of your own"
        )
    if runtime == "null":
        return [Candidate("null", "none")]
    if runtime != "auto" and precision not in ("auto", *RUNTIMES[runtime].precisions):
        raise RuntimeUnavailable(
            f"precision {precision!r} found for runtime {runtime}, expected auto or "
            f"{', '.join(RUNTIMES[runtime].precisions)}"
        )
    found: list[Candidate] = []
    names = [runtime] if runtime != "auto" else [name for name in RUNTIMES if name != "null"]
    for name in names:
        for one in _fastest_first(name):
            asked = precision == one or (
                precision == "auto" and not (calibrating and one in BY_NAME_ONLY)
            )
            if asked:
                found.append(_candidate(bundle, name, one, calibrating=calibrating))
                if runtime != "auto" and not found[-1].fault:
                    return found
    return found


def _fastest_first(name: str) -> list[str]:
    """A row's precisions, on this machine."""
    row = RUNTIMES[name]
    slow = () if row.gpu or cpu_bf16_is_fast() else ("bf16",)
    return sorted(row.precisions, key=lambda one: one in slow)


def _candidate(bundle: Bundle | None, name: str, precision: str, *, calibrating: bool) -> Candidate:
    fault = _fault(name, precision)
    if fault or calibrating:
        return Candidate(name, precision, fault)
    try:
        _thresholds(bundle, f"{name}/{precision}")
    except RuntimeUnavailable as error:
        return Candidate(name, precision, str(error), unmeasured=True)
    return Candidate(name, precision)


def _thresholds(bundle: Bundle | None, engine: str) -> None:
    """Raises `RuntimeUnavailable` where there are none, naming the command."""
    if bundle is None:
        raise RuntimeUnavailable(
            f"no bundle found, expected one for {engine}: name a bundle, or use runtime null"
        )
    bundle.thresholds(engine)


def _fallbacks(
    bundle: Bundle | None, fallback: Sequence[str], *, calibrating: bool
) -> list[Candidate]:
    """Engines that the machine cannot run are in it; one without thresholds is an error."""
    found = []
    for engine in fallback:
        name, _, precision = engine.partition("/")
        if name == "null" or name not in RUNTIMES or precision not in RUNTIMES[name].precisions:
            known = [e for e in available_runtimes() if not e.startswith("null/")]
            raise RuntimeUnavailable(
                f"fallback {engine!r} found, expected one of {', '.join(known)}"
            )
        if not calibrating:
            _thresholds(bundle, engine)
        found.append(Candidate(name, precision, _fault(name, precision)))
    return found


def _unfit(runtime: str, precision: str, found: Sequence[Candidate]) -> RuntimeUnavailable:
    """Why none of what is configured may be tried: for want of thresholds, if that is it."""
    unmeasured = [each for each in found if each.unmeasured]
    # Not int8's command, unless it was asked for: it is the second thing to calibrate.
    for each in sorted(unmeasured, key=lambda each: each.precision in BY_NAME_ONLY):
        return RuntimeUnavailable(each.fault)
    engines: dict[str, list[str]] = {}
    for each in found:
        engines.setdefault(each.fault, []).append(each.engine)
    faults = "; ".join(f"{', '.join(names)}: {fault}" for fault, names in engines.items())
    return RuntimeUnavailable(
        f"{runtime}/{precision} cannot run here: {faults or 'no such engine'}"
    )


def _fault(name: str, precision: str) -> str:
    row = RUNTIMES[name]
    cpu_needs = "" if row.gpu else precision
    return engine_fault(row.packages, row.extra, gpu=row.gpu, cpu_needs=cpu_needs)


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
