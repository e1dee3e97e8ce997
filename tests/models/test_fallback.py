"""What is tried when an engine cannot be opened or is refused, in which order, and what is said."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_parity import ScaledRuntime

from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated, write_bundle
from models.errors import BundleError, ParityError, RuntimeUnavailable
from models.references import save_detector
from models.runtimes import (
    RUNTIMES,
    available_runtimes,
    candidates,
    choose,
    cpu_bf16_is_fast,
    cpu_has_bf16,
    open_runtime,
)
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.machine import cuda_of, driver_fault, engine_fault, torch_fault
from models.runtimes.openvino_ import OpenVinoRuntime, activation_peaks
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.variants import FRAME_MARGIN_PX

THRESHOLDS = EngineThresholds(0.5, 0.4, 10, 0, 0.3, 0.95, "for a test")
BROKEN = f"{__name__}:broken"
no_gpu = pytest.mark.skipif(not driver_fault(), reason="this machine has an NVIDIA GPU")


def broken(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """An engine that the gate refuses, and that calls itself by a name of its own."""
    assert bundle is not None
    return Named(OpenVinoRuntime(bundle.graph(), EngineOptions(threads=1)))


class Named(ScaledRuntime):
    def __init__(self, engine: Runtime) -> None:
        super().__init__(engine)
        self.engine_id = "mine/f32/cpu"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(untrained_bundle(tmp_path_factory.mktemp("bundle")))


def measured(bundle: Bundle, folder: Path, *engines: str) -> Bundle:
    calibration = Calibration(
        bundle.calibration.q_a, bundle.calibration.q_b, dict.fromkeys(engines, THRESHOLDS)
    )
    return Bundle.load(recalibrated(bundle, folder, calibration))


def with_ranges(bundle: Bundle, folder: Path, *engines: str) -> Bundle:
    frames = [pad_frame(textured_frame(128, 160, 1, seed=k), FRAME_MARGIN_PX) for k in range(3)]
    calibration = dataclasses.replace(
        measured(bundle, folder, *engines).calibration,
        activation_peaks=activation_peaks(bundle.graph(), frames, threads=1),
    )
    return Bundle.load(recalibrated(bundle, folder, calibration))


@pytest.fixture(scope="module")
def delicate(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Student and teacher are so close that bf16 rounds their difference away; f32 does not."""
    folder = tmp_path_factory.mktemp("delicate")
    path = save_detector(
        folder,
        untrained_model(noise=0.005),
        q_a=1e-7,
        q_b=1e-6,
        provenance={"note": "nearly the same twice"},
        frames=[textured_frame(128, 160, 1)],
    )
    return measured(Bundle.load(path), folder, "openvino/bf16", "openvino/f32")


def test_the_rows_stand_fastest_first() -> None:
    assert list(RUNTIMES) == ["tensorrt", "cuda", "openvino", "torch", "null"]
    assert RUNTIMES["tensorrt"].precisions == RUNTIMES["cuda"].precisions == ("fp16", "bf16", "f32")
    assert RUNTIMES["openvino"].precisions == ("int8", "bf16", "f32")


@no_gpu
def test_without_a_gpu_its_engines_say_what_is_missing() -> None:
    found = available_runtimes()
    assert "NVIDIA" in found["cuda/fp16"]
    assert "openvino" in found["cuda/fp16"]
    wanted = "linewatch[station,tensorrt]"
    assert wanted in found["tensorrt/fp16"] or "NVIDIA" in found["tensorrt/fp16"]
    with pytest.raises(RuntimeUnavailable, match=r"cuda/fp16, cuda/bf16, cuda/f32: no NVIDIA"):
        open_runtime(None, "cuda")


def test_packages_that_are_missing_are_named_with_the_extra() -> None:
    def fault(*packages: str) -> str:
        return engine_fault(packages, "station,tensorrt", gpu=False)

    assert fault("numpy") == ""
    assert fault("no_such_thing", "numpy") == (
        "package no_such_thing is not installed: run `pip install 'linewatch[station,tensorrt]'`"
    )
    assert fault("no_such_thing", "nor_this").startswith("no_such_thing and nor_this are not")


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("cuda: Optional[str] = None\n", ""),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip = None\n", "13.0"),
        ("cuda = '12.8'\n", "12.8"),
        ("cuda = None\nhip: Optional[str] = '6.4'\n", ""),
        ("", ""),
    ],
)
def test_the_build_of_torch_is_read_and_not_imported(tmp_path: Path, text: str, cuda: str) -> None:
    path = tmp_path / "version.py"
    assert cuda_of(path) == ""
    path.write_text(text)
    assert cuda_of(path) == cuda


def test_this_torch_is_what_it_says_itself() -> None:
    import torch

    assert bool(torch_fault()) == (torch.version.cuda is None)


def test_auto_goes_through_what_the_bundle_was_calibrated_for(
    plain: Bundle, tmp_path: Path
) -> None:
    bundle = measured(plain, tmp_path, "torch/f32", "openvino/f32")
    chain = candidates(bundle, "auto", "auto")
    assert [c.engine for c in chain] == [e for e in available_runtimes() if e != "null/none"]
    usable = [c.engine for c in chain if not c.fault]
    assert usable == ["openvino/f32", "torch/f32"]
    assert choose(bundle, "auto", "auto") == ("openvino", "f32")
    [int8] = [c for c in chain if c.engine == "openvino/int8"]
    assert int8.unmeasured
    assert "--runtime openvino/int8" in int8.fault


@no_gpu
def test_int8_is_taken_once_calibrated_and_calibrated_when_named(
    plain: Bundle, tmp_path: Path
) -> None:
    fastest = ("openvino", "bf16" if cpu_bf16_is_fast() else "f32")
    assert choose(plain, "auto", "auto", calibrating=True) == fastest
    assert choose(plain, "openvino", "auto", calibrating=True) == fastest
    assert choose(plain, "auto", "int8", calibrating=True) == ("openvino", "int8")
    assert choose(plain, "openvino", "int8", calibrating=True) == ("openvino", "int8")
    bundle = with_ranges(plain, tmp_path, "openvino/int8", "openvino/f32")
    assert open_runtime(bundle, threads=1).engine_id == "openvino/int8/cpu"
    # And a bundle without any thresholds is not told to begin with int8.
    with pytest.raises(RuntimeUnavailable, match=rf"--runtime {'/'.join(fastest)}"):
        open_runtime(plain)


def test_int8_without_ranges_is_a_bundle_to_calibrate_again(plain: Bundle, tmp_path: Path) -> None:
    bundle = measured(plain, tmp_path, "openvino/int8", "openvino/f32")
    with pytest.raises(BundleError, match=r"no ranges for int8 .*--runtime openvino/int8"):
        open_runtime(bundle)


def test_what_the_gate_refuses_is_followed_by_the_next_and_said(
    plain: Bundle, tmp_path: Path
) -> None:
    bundle = measured(plain, tmp_path, "mine/f32", "openvino/f32", "torch/f32")
    said: list[str] = []
    runtime = open_runtime(
        bundle, BROKEN, fallback=["torch/f32", "openvino/f32"], threads=1, say=said.append
    )
    assert runtime.engine_id == "torch/f32/cpu"
    [sentence] = said
    assert sentence.startswith(f"{BROKEN} refused: mine/f32/cpu: a reference map")
    assert sentence.endswith("; torch/f32 is taken instead")


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16 arithmetic")
@pytest.mark.parametrize("calibrating", [True, False])
@no_gpu
def test_auto_falls_back_from_bf16_to_f32(delicate: Bundle, calibrating: bool) -> None:
    bundle = delicate
    said: list[str] = []
    runtime = open_runtime(bundle, threads=1, calibrating=calibrating, say=said.append)
    assert runtime.engine_id == "openvino/f32/cpu"
    if cpu_bf16_is_fast():
        [sentence] = said
        assert sentence.startswith("openvino/bf16 refused: openvino/bf16/cpu: a reference map")
        assert sentence.endswith("; openvino/f32 is taken instead")
    else:
        assert said == []  # f32 is tried first
    # By name it is taken or refused, and nothing else is tried.
    for precision in ("auto", "bf16") if cpu_bf16_is_fast() else ("bf16",):
        with pytest.raises(ParityError, match=r"^openvino/bf16/cpu: .*report it$"):
            open_runtime(bundle, "openvino", precision, threads=1, calibrating=calibrating)


@no_gpu
def test_what_the_machine_cannot_run_is_passed_over(plain: Bundle, tmp_path: Path) -> None:
    bundle = measured(plain, tmp_path, "cuda/fp16", "tensorrt/f32", "torch/f32")
    said: list[str] = []
    chain = ["tensorrt/f32", "torch/f32"]
    runtime = open_runtime(bundle, "cuda", "fp16", fallback=chain, threads=1, say=said.append)
    assert runtime.engine_id == "torch/f32/cpu"
    [sentence] = said
    assert sentence.startswith("cuda/fp16 refused: cuda/fp16 cannot run here")
    assert "; tensorrt/f32 refused: " in sentence
    assert sentence.endswith("; torch/f32 is taken instead")
    # Without a fallback it is an error, even with an engine at hand that would serve.
    with pytest.raises(RuntimeUnavailable, match="cuda/fp16 cannot run here"):
        open_runtime(bundle, "cuda", "fp16")


class _Buffers:
    """What an engine has taken, such as memory of a GPU."""


HELD: list[weakref.ref[_Buffers]] = []


def full_engine(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """Takes something, and then there is no more."""
    taken = _Buffers()
    HELD.append(weakref.ref(taken))
    try:
        raise MemoryError
    except MemoryError as error:
        raise RuntimeError("out of memory") from error


def test_what_was_refused_holds_nothing_while_the_next_opens(plain: Bundle, tmp_path: Path) -> None:
    HELD.clear()
    bundle = measured(plain, tmp_path, "torch/f32")
    alive: list[list[bool]] = []

    def say(sentence: str) -> None:  # just before the next one is opened
        alive.append([held() is not None for held in HELD])

    full = f"{__name__}:full_engine"
    runtime = open_runtime(bundle, full, fallback=["torch/f32"], threads=1, say=say)
    assert runtime.engine_id == "torch/f32/cpu"
    assert alive == [[False]]
    with pytest.raises(RuntimeUnavailable, match=r"RuntimeError: out of memory.*worker\.fallback"):
        open_runtime(bundle, full)


@no_gpu
def test_when_none_is_left_the_first_error_has_the_reasons_of_all(
    plain: Bundle, tmp_path: Path
) -> None:
    bundle = measured(plain, tmp_path, "mine/f32", "cuda/fp16")
    said: list[str] = []
    with pytest.raises(ParityError) as caught:
        open_runtime(bundle, BROKEN, fallback=["cuda/fp16"], say=said.append)
    assert str(caught.value).startswith("mine/f32/cpu: a reference map")
    assert "; cuda/fp16 refused: no NVIDIA driver" in str(caught.value)
    assert said == []


@pytest.mark.parametrize("runtime", ["torch", "auto", "openvino"])
def test_a_fallback_without_thresholds_is_an_error_though_not_needed(
    plain: Bundle, tmp_path: Path, runtime: str
) -> None:
    bundle = measured(plain, tmp_path, "torch/f32", "openvino/f32")
    with pytest.raises(RuntimeUnavailable, match=r"calibrate .* --runtime openvino/bf16 --good"):
        open_runtime(bundle, runtime, fallback=["openvino/bf16"])
    with pytest.raises(RuntimeUnavailable, match="name a bundle"):
        open_runtime(None, "null", fallback=["openvino/f32"])


@pytest.mark.parametrize("name", ["null/none", "torch", "torch/int8", "onnx/f32", "auto/f32", ""])
def test_a_fallback_that_there_is_not(plain: Bundle, tmp_path: Path, name: str) -> None:
    bundle = measured(plain, tmp_path, "torch/f32")
    with pytest.raises(RuntimeUnavailable, match=r"fallback .* found, expected one of tensorrt"):
        open_runtime(bundle, "torch", fallback=[name])


def test_a_damaged_bundle_ends_the_chain(plain: Bundle, tmp_path: Path) -> None:
    path = write_bundle(
        tmp_path,
        variant=plain.variant,
        in_channels=1,
        scales=plain.scales,
        weights=plain.weights(),
        provenance={"note": "to be damaged"},
        calibration=measured(plain, tmp_path, "torch/f32", "openvino/f32").calibration,
        references=plain.references(),
    )
    bundle = Bundle.load(path)
    (path / "reference.npz").write_bytes(b"")
    said: list[str] = []
    with pytest.raises(BundleError, match="the file has changed") as caught:
        open_runtime(bundle, say=said.append)
    assert not isinstance(caught.value, ParityError)
    assert said == []


def told(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """Keeps what it was told, and refuses."""
    options.say(f"batches of {options.max_batch}, {[m.size for m in options.memory]} bytes")
    raise RuntimeUnavailable("not here")


def test_an_engine_is_told_of_batches_and_memory() -> None:
    said: list[str] = []
    memory: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]] = [np.zeros(12, np.uint8)]
    with pytest.raises(RuntimeUnavailable, match=r"^not here$"):
        open_runtime(None, f"{__name__}:told", max_batch=8, memory=memory, say=said.append)
    assert said == ["batches of 8, [12] bytes"]


def out_of_memory(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """What a GPU's library does."""
    raise RuntimeError("out of memory")


def test_a_library_that_gives_up_is_no_riddle(plain: Bundle, tmp_path: Path) -> None:
    bundle = measured(plain, tmp_path, "openvino/f32")
    mine = f"{__name__}:out_of_memory"
    with pytest.raises(RuntimeUnavailable, match="cannot be opened: RuntimeError: out of memory"):
        open_runtime(bundle, mine, threads=1)
    engine = open_runtime(bundle, mine, fallback=["openvino/f32"], threads=1)
    assert engine.engine_id == "openvino/f32/cpu"


@no_gpu
def test_auto_does_not_pass_over_a_calibrated_engine_in_silence(
    plain: Bundle, tmp_path: Path
) -> None:
    bundle = measured(plain, tmp_path, "cuda/fp16", "openvino/f32")
    said: list[str] = []
    engine = open_runtime(bundle, threads=1, say=said.append)
    assert engine.engine_id == "openvino/f32/cpu"
    [sentence] = said
    assert "cuda/fp16 refused: " in sentence
    assert sentence.endswith("openvino/f32 is taken instead")


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2 avx512_bf16\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: avx2\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 amx_bf16 amx_tile\n", True),
        ("vendor_id\t: GenuineIntel\nflags\t\t: avx512_bf16 avx512_fp16\n", False),
        ("Features\t: fp asimd bf16\n", True),
        ("", False),
    ],
)
def test_which_cpus_are_fast_at_bf16(cpuinfo: str, fast: bool) -> None:
    assert cpu_bf16_is_fast(cpuinfo) is fast
