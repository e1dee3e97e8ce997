"""Int8: its ranges, how near it comes to float32, and when it is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.calibration import calibrate
from calibrate.quantised import MOST_AUROC_LOSS, MOST_FLIPS, Cost, compare, with_defect, with_ranges
from calibrate.scores import GoodMap
from models.bundle import Bundle, EngineThresholds
from models.errors import BundleError, DataError, RuntimeUnavailable
from models.runtimes import Runtime, open_runtime
from models.runtimes.base import EngineOptions
from models.runtimes.openvino_ import OpenVinoRuntime, activation_peaks, open_engine
from models.schema import check_calibration, parse_calibration
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_bundle
from models.variants import FRAME_MARGIN_PX, map_hw
from pipeline.config import Recipe


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(untrained_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def frames() -> list[NDArray[np.uint8]]:
    return [textured_frame(96, 128, 1, seed=50 + k) for k in range(24)]


def infer(runtime: Runtime, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    found = np.empty(map_hw(*frame.shape[:2]), np.float32)
    runtime.infer([pad_frame(frame, FRAME_MARGIN_PX)], [found])
    return found


def plain(bundle: Bundle) -> Runtime:
    return open_runtime(bundle, "openvino", "f32", threads=2, calibrating=True)


def choose(maps: Sequence[GoodMap]) -> EngineThresholds:
    highest = max(float(found.raw_map.max()) for found in maps)
    return EngineThresholds(highest, highest / 2, len(maps), 0, 0.1, 0.95, "for a test")


class Blurred:
    """An engine that is wrong by a share of its map, here more and there less."""

    engine_id = "openvino/int8/cpu"

    def __init__(self, engine: Runtime, share: float) -> None:
        self._engine, self._share = engine, share
        self._rng = np.random.default_rng(0)

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self._engine.infer(padded, out)
        for found in out:
            np.multiply(found, np.exp(self._rng.normal(0, self._share)), out=found)
        return [float(found.max()) for found in out]

    def close(self) -> None:
        self._engine.close()


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_int8_comes_near_to_float(tmp_path: Path, channels: int, scales: tuple[int, ...]) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path, in_channels=channels, scales=scales))
    some = [textured_frame(96, 128, channels, seed=50 + k) for k in range(8)]
    measured = with_ranges(bundle, some, 2, None)
    engine = open_engine(measured, EngineOptions("int8", 2))
    assert engine.engine_id == "openvino/int8/cpu"
    for seed in range(3):
        frame = textured_frame(77, 130, channels, seed=seed)
        frame[30:50, 40:60] = 230
        expected, found = infer(plain(bundle), frame), infer(engine, frame)
        error = np.abs(found - expected) / expected.max()
        # A student that is its teacher but for 5 % is the hardest case: all that counts is what
        # both do not have in common.
        assert error.max() < 0.2
        assert np.sqrt((error**2).mean()) < 0.03


def test_int8_in_strips_equals_int8_whole(bundle: Bundle, frames: list[NDArray[np.uint8]]) -> None:
    peaks = with_ranges(bundle, frames, 2, None).calibration.activation_peaks
    frame = textured_frame(301, 90, 1)
    maps = []
    for strip_bytes in (1 << 30, 1 << 20):
        options = EngineOptions("int8", 2)
        runtime = OpenVinoRuntime(bundle.graph(), options, peaks, strip_bytes=strip_bytes)
        maps.append(infer(runtime, frame))
    np.testing.assert_allclose(maps[1], maps[0], rtol=1e-5, atol=1e-6 * maps[0].max())


def test_ranges_are_the_highest_outputs(bundle: Bundle, frames: list[NDArray[np.uint8]]) -> None:
    graph = bundle.graph()
    padded = [pad_frame(frame, FRAME_MARGIN_PX) for frame in frames[:4]]
    each = [activation_peaks(graph, [frame], 2)["scale1"] for frame in padded]
    both = activation_peaks(graph, padded, 2)["scale1"]
    assert len(both) == len(graph.branches[0].layers) - 1
    first = len(graph.branches[0].layers[0].bias) // 2
    assert [len(side) for side in both[0]] == [first, first]
    assert {len(side) for layer in both[1:] for side in layer} == {1}
    for layer, pair in enumerate(both):
        for side, peaks in enumerate(pair):
            highest = np.max([found[layer][side] for found in each], axis=0)
            np.testing.assert_array_equal(peaks, highest)
    with pytest.raises(DataError, match="no frames"):
        activation_peaks(graph, [], 2)


def test_a_drawn_defect_is_there_and_always_the_same() -> None:
    for channels in (1, 3):
        frame = textured_frame(96, 128, channels)
        marred = with_defect(frame, 3)
        assert marred.shape == frame.shape
        assert 4 < (marred != frame).any(axis=2).sum() < frame.shape[0] * frame.shape[1] / 2
        np.testing.assert_array_equal(marred, with_defect(frame, 3))
        assert (marred != with_defect(frame, 4)).any()


@pytest.mark.parametrize(("share", "refused"), [(0.0, False), (0.5, True)])
def test_what_changes_verdicts_is_refused(
    bundle: Bundle, frames: list[NDArray[np.uint8]], share: float, refused: bool
) -> None:
    ticks: list[tuple[int, int]] = []
    cost = compare(
        plain(bundle),
        Blurred(plain(bundle), share),
        frames,
        bundle=bundle,
        recipes=Recipe(),
        choose=choose,
        progress=lambda done, total: ticks.append((done, total)),
    )
    assert cost.verdicts == 2 * len(frames)
    assert ticks[-1] == (2 * len(frames), 2 * len(frames))
    assert cost.refused is refused
    assert ("is refused" in cost.sentence) is refused
    if not refused:
        assert (cost.flips, cost.auroc) == (0, cost.auroc_quantised)


@pytest.mark.parametrize(
    ("auroc", "flips", "refused"),
    [
        (0.9, 0, False),
        (0.9 - MOST_AUROC_LOSS / 2, 1, False),
        (0.9 - 2 * MOST_AUROC_LOSS, 0, True),
        (0.95, int(MOST_FLIPS * 200) + 1, True),
    ],
)
def test_the_stated_bounds(auroc: float, flips: int, refused: bool) -> None:
    cost = Cost("openvino/f32", 0.9, auroc, 200, flips, 10)
    assert cost.refused is refused


def test_calibrating_for_int8(
    bundle: Bundle, frames: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    for k, frame in enumerate(frames):
        cv2.imwrite(str(tmp_path / f"{k:02}.png"), frame)
    notes: list[str] = []
    ticks: list[tuple[int, int]] = []
    path = calibrate(
        bundle.path,
        sorted(tmp_path.glob("*.png")),
        runtimes=["openvino/int8", "openvino/f32"],
        out_dir=tmp_path / "out",
        threads=2,
        note=notes.append,
        progress=lambda done, total: ticks.append((done, total)),
    )
    shares = [done / total for done, total in ticks]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    calibrated = Bundle.load(path)
    [compared] = [note for note in notes if "AUROC of drawn defects" in note]
    if "is refused" in compared:
        assert set(calibrated.calibration.engines) == {"openvino/f32"}
        assert not calibrated.calibration.activation_peaks
        return
    assert set(calibrated.calibration.engines) == {"openvino/f32", "openvino/int8"}
    assert open_runtime(calibrated, threads=2).engine_id == "openvino/int8/cpu"
    # What is calibrated later keeps the ranges that the thresholds of int8 belong to.
    again = Bundle.load(
        calibrate(
            calibrated.path,
            sorted(tmp_path.glob("*.png")),
            runtimes=["torch/f32"],
            out_dir=tmp_path / "again",
            threads=2,
        )
    )
    assert again.calibration.activation_peaks == calibrated.calibration.activation_peaks


def test_auto_never_calibrates_for_int8(
    bundle: Bundle, frames: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    path = calibrate(bundle.path, frames, runtimes=["auto"], out_dir=tmp_path, threads=2)
    assert "openvino/int8" not in Bundle.load(path).calibration.engines


def test_without_ranges_it_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"linewatch calibrate .* --runtime openvino/int8"):
        open_engine(bundle, EngineOptions("int8", 2))
    with pytest.raises((BundleError, RuntimeUnavailable), match=r"calibrate .* openvino/int8"):
        open_runtime(bundle, "openvino", "int8")


@pytest.mark.parametrize(
    "layers",
    [
        [[[1.0, -1.0], [1.0]]],
        [[[float("nan")], [1.0]]],
        [[[0.0, 0.0], [1.0]]],
        [[[], [1.0]]],
        [],
        [[[1.0]]],
        "x",
    ],
)
def test_damaged_ranges_are_refused(bundle: Bundle, layers: object) -> None:
    content = {"q_a": 0.1, "q_b": 0.2, "engines": {}, "images": []}
    text = json.dumps(content | {"activation_peaks": {"scale1": layers}})
    with pytest.raises(BundleError, match="calibrat"):
        parse_calibration(bundle.path, text.encode())
    fine = dataclasses.replace(
        bundle.calibration, activation_peaks={"scale1": (((1.0, 0.0), (2.0,)),)}
    )
    check_calibration(fine, "here")
