"""The gate lets the right engine through at every shape, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import ParityError
from models.fused import fuse
from models.runtimes import RUNTIMES, cpu_has_bf16, open_runtime
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.null import NullRuntime
from models.runtimes.openvino_ import OpenVinoRuntime
from models.runtimes.parity import TOLERANCE, check_parity
from models.runtimes.torch_ import TorchRuntime
from models.untrained import untrained_bundle
from models.variants import map_hw


class ScaledRuntime:
    """A real runtime whose map is wrong, by a factor, in some of its cells: a broken engine.

    rows, columns: of the map, where it is wrong; None: in all of them.
    """

    def __init__(
        self,
        engine: Runtime,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        factor: float = 1.5,
    ) -> None:
        self._engine, self._factor = engine, np.float32(factor)
        self._rows, self._columns = rows, columns
        self.engine_id = engine.engine_id
        self.frames = 0
        """How many it was given."""

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self._engine.infer(padded, out)
        self.frames += len(padded)
        for raw_map in out:
            rows = range(raw_map.shape[0]) if self._rows is None else self._rows
            columns = range(raw_map.shape[1]) if self._columns is None else self._columns
            raw_map[np.ix_([*rows], [*columns])] *= self._factor
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        self._engine.close()


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


STRIP_BYTES = 12 << 20


def in_strips(bundle: Bundle, shape: tuple[int, int, int]) -> tuple[OpenVinoRuntime, list[int]]:
    """An engine whose frames of this shape go through in strips, and the first rows of these."""
    graph = bundle.graph()
    pieces = graph.pieces(map_hw(*shape[:2]), STRIP_BYTES)
    options = EngineOptions(threads=1, shapes=(shape,))
    engine = OpenVinoRuntime(graph, options, strip_bytes=STRIP_BYTES)
    return engine, sorted({piece.rows.first for piece in pieces})[1:]


@pytest.mark.parametrize("shape", [(488, 496, 1), (640, 200, 1), (517, 411, 1)])
def test_every_seam_and_the_last_columns_and_rows_are_compared(
    bundle: Bundle, shape: tuple[int, int, int]
) -> None:
    right, seams = in_strips(bundle, shape)
    assert len(seams) >= 2
    assert check_parity(right, bundle, (shape,)) < 1e-4
    rows, columns = map_hw(*shape[:2])
    # Cells that hang on the last, odd pixels of a frame cannot be compared.
    last = 1 if all(side % 8 == 0 for side in shape[:2]) else 3
    wrong: list[tuple[list[int] | None, list[int] | None]]
    wrong = [([seam], None) for seam in (seams[0], seams[-1] - 1)]
    wrong += [(None, [columns - last]), ([rows - last], None), (None, [0]), ([0], None)]
    for in_rows, in_columns in wrong:
        engine = ScaledRuntime(right, in_rows, in_columns)
        with pytest.raises(ParityError, match=f"of a {shape[0]}x{shape[1]} frame's map"):
            check_parity(engine, bundle, (shape,))


@pytest.mark.parametrize(("shape", "frames"), [((1024, 1280, 1), 1), ((600, 96, 1), 3)])
def test_a_large_frame_is_inferred_once(
    bundle: Bundle, shape: tuple[int, int, int], frames: int
) -> None:
    engine = OpenVinoRuntime(bundle.graph(), EngineOptions(threads=1, shapes=(shape,)))
    counted = ScaledRuntime(engine, factor=1.0)
    check_parity(counted, bundle, (shape,))
    assert counted.frames == frames


def test_every_precision_of_ours_has_a_tolerance_of_its_own() -> None:
    precisions = {p for name, row in RUNTIMES.items() for p in row.precisions if name != "null"}
    assert set(TOLERANCE) == precisions
    assert TOLERANCE["f32"] < TOLERANCE["fp16"] < TOLERANCE["bf16"] < TOLERANCE["int8"]


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


def test_batches_are_compared_too(bundle: Bundle) -> None:
    right = OpenVinoRuntime(bundle.graph(), EngineOptions(threads=1))

    class WrongInPairs(ScaledRuntime):
        """Right for one frame at a time."""

        def infer(
            self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
        ) -> list[float]:
            engine = super() if len(padded) > 1 else right
            return engine.infer(padded, out)

    engine = WrongInPairs(right)
    shape = (136, 200, 1)
    assert check_parity(engine, bundle, (shape,), batches=(1, 1)) < 1e-4
    with pytest.raises(ParityError):
        check_parity(engine, bundle, (shape,), batches=(1, 1, 2, 2))
