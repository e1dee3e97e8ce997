"""The gate lets the right engine through at every shape, and no other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.bundle import Bundle
from models.errors import ParityError
from models.fused import fuse
from models.runtimes import cpu_has_bf16, open_runtime
from models.runtimes.base import EngineOptions
from models.runtimes.null import NullRuntime
from models.runtimes.openvino_ import OpenVinoRuntime
from models.runtimes.parity import TOLERANCE, check_parity
from models.runtimes.torch_ import TorchRuntime
from models.untrained import untrained_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(untrained_bundle(tmp_path_factory.mktemp("bundle"), scales=(1, 2)))


@pytest.mark.parametrize(
    "shapes",
    [(), ((96, 96, 1),), ((480, 640, 1),), ((33, 41, 1), (97, 203, 1)), ((128, 33, 1),)],
)
def test_right_engines_pass_well_under_the_tolerance(
    bundle: Bundle, shapes: tuple[tuple[int, int, int], ...]
) -> None:
    assert check_parity(TorchRuntime(bundle.graph(), EngineOptions()), bundle, shapes) < 1e-4
    engine = OpenVinoRuntime(bundle.graph(), EngineOptions(threads=2))
    assert check_parity(engine, bundle, shapes) < 1e-4


@pytest.mark.skipif(not cpu_has_bf16(), reason="this CPU has no bfloat16 arithmetic")
def test_bf16_passes_with_room_to_spare(bundle: Bundle) -> None:
    options = EngineOptions("bf16", threads=2)
    engine = OpenVinoRuntime(bundle.graph(), options)
    worst = check_parity(engine, bundle, ((128, 160, 1),))
    assert 1e-4 < worst < 0.7 * TOLERANCE["bf16"]


@pytest.mark.parametrize(
    "tensor", ["scale2.student.conv1.bias", "scale1.feature_std", "input_mean"]
)
def test_slightly_wrong_weights_are_refused(bundle: Bundle, tensor: str) -> None:
    weights = bundle.weights()
    weights[tensor] = weights[tensor] * np.float32(1.02)
    engine = TorchRuntime(fuse(weights, bundle.variant, 1, bundle.scales), EngineOptions())
    with pytest.raises(ParityError, match=r"torch/f32/cpu: .* off by .* at most 0.002"):
        check_parity(engine, bundle)


def test_an_engine_that_does_nothing_or_gives_nan_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ParityError, match="null/none"):
        check_parity(NullRuntime(), bundle)
    weights = bundle.weights()
    graph = fuse(weights, bundle.variant, 1, bundle.scales)
    graph.branches[0].layers[0].bias[0] = np.nan
    with pytest.raises(ParityError, match="nan"):
        check_parity(TorchRuntime(graph, EngineOptions()), bundle)


def refused(bundle: Bundle | None, options: EngineOptions) -> NullRuntime:
    return NullRuntime()


def test_the_gate_stands_before_users_own_engines(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        open_runtime(bundle, f"{__name__}:refused", calibrating=True)
