"""The global branch: one arithmetic in every runtime, and it sees what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated
from models.efficientad import Detector
from models.errors import BundleError, DataError
from models.global_branch import FIXED_POINT, shrunk_images
from models.references import reference_map, save_detector
from models.runtimes import open_runtime
from models.runtimes.whole_openvino import open_whole
from models.runtimes.whole_torch import open_whole_torch
from models.runtimes.with_whole import WithWhole
from models.settings import TrainingSettings, check_settings
from models.tiles import pad_frame
from models.trained import TrainedDetector
from models.training import train
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, map_hw
from models.whole import SIDE_PX, autoencoder_steps, cell_weights, shrink, spread

THRESHOLDS = EngineThresholds(0.5, 0.4, 10, 0, 0.26, 0.95, "for a test")


@pytest.mark.parametrize("variant", ["pdn_tiny", "pdn_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_autoencoder_gives_back_a_map_of_the_students_size(variant: str, channels: int) -> None:
    model = Detector(variant, channels, global_branch=True)
    assert model.whole is not None
    model.eval()
    x = torch.rand(1, channels, SIDE_PX, SIDE_PX)
    assert model.whole.autoencoder(x).shape[2:] == (64, 64)
    assert model.whole.map(x).shape == (1, 64, 64)
    assert autoencoder_steps(variant)[-1].out_channels == model.whole.autoencoder(x).shape[1]


@settings(deadline=None, max_examples=30)
@given(height=st.integers(33, 700), width=st.integers(33, 700), level=st.integers(0, 255))
def test_shrinking_keeps_the_mean_and_spreading_flat_maps_flat(
    height: int, width: int, level: int
) -> None:
    rng = np.random.default_rng(height)
    frame = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
    small = shrink(frame)
    assert small.shape == (SIDE_PX, SIDE_PX, 1)
    assert float(small.mean()) == pytest.approx(float(frame.mean()), abs=0.01)
    flat: NDArray[np.uint8] = np.full((height, width, 3), level, np.uint8)
    assert np.allclose(shrink(flat), level, atol=1e-3)
    spreaded = spread(np.full((64, 64), 2.5, np.float32), (height, width))
    assert spreaded.shape == map_hw(height, width)
    assert np.allclose(spreaded, 2.5, atol=1e-5)


def test_a_place_is_where_it_was() -> None:
    """A bright square of the frame is bright at its own cells again."""
    frame = np.zeros((500, 900, 1), np.uint8)
    frame[300:360, 500:600] = 255
    small = shrink(frame)[..., 0]
    cells = small[::4, ::4]
    found = spread(np.ascontiguousarray(cells), (500, 900))
    rows, columns = np.nonzero(found > 128)
    assert abs(4 * rows.mean() - 329) < 4
    assert abs(4 * columns.mean() - 549) < 8
    assert np.allclose(cell_weights(256), np.eye(64), atol=1e-6)


@pytest.mark.parametrize("runtime", ["torch/f32", "openvino/f32", "openvino/bf16"])
@pytest.mark.parametrize(("channels", "scales"), [(1, (1,)), (3, (1, 2))])
def test_every_runtime_gives_the_reference_map(
    runtime: str, channels: int, scales: tuple[int, ...], tmp_path: Path
) -> None:
    model = untrained_model("pdn_tiny", channels, scales, global_branch=True)
    bundle = Bundle.load(
        untrained_bundle(tmp_path, "pdn_tiny", channels, scales, global_branch=True)
    )
    assert bundle.global_branch
    name, _, precision = runtime.partition("/")
    engine = open_runtime(bundle, name, precision, threads=2, calibrating=True)
    assert isinstance(engine, WithWhole)
    assert engine.engine_id.startswith(runtime)
    for hw in ((96, 128), (333, 250), (40, 37)):
        padded = pad_frame(textured_frame(*hw, channels, seed=7), FRAME_MARGIN_PX)
        raw_map = np.empty(map_hw(*hw), np.float32)
        peaks = engine.infer([padded], [raw_map])
        expected = reference_map(model, padded)
        tolerance = 1e-4 if precision == "f32" else 0.03
        assert np.abs(raw_map - expected).max() <= tolerance * np.abs(expected).max()
        assert peaks == [float(raw_map.max())]
    engine.close()
    # As on the line: compiled for a frame's size, and checked at it.
    shape = (256, 320, channels)
    open_runtime(bundle, name, precision, shapes=[shape], calibrating=True).close()


def test_torch_and_openvino_have_one_branch(tmp_path: Path) -> None:
    graph = Bundle.load(untrained_bundle(tmp_path, global_branch=True)).graph().whole
    assert graph is not None
    rng = np.random.default_rng(0)
    small, padded = (
        rng.normal(size=(1, graph.in_channels, side, side)).astype(np.float32)
        for side in (SIDE_PX, SIDE_PX + 2 * MARGIN_PX)
    )
    found = open_whole_torch(graph, "cpu")(small, padded)
    expected = open_whole(graph, 1)(small, padded)
    assert found.shape == (64, 64)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_bundle_says_whether_it_has_one(tmp_path: Path) -> None:
    with_one = Bundle.load(untrained_bundle(tmp_path, global_branch=True))
    without = Bundle.load(untrained_bundle(tmp_path))
    assert [with_one.global_branch, without.global_branch] == [True, False]
    assert without.graph().whole is None
    again = recalibrated(with_one, tmp_path, Calibration(0.1, 0.2, {"torch/f32": THRESHOLDS}))
    assert Bundle.load(again).global_branch
    with pytest.raises(BundleError, match=r"global\.affine"):
        dataclasses.replace(without, global_branch=True).weights()


def part(
    rng: np.random.Generator, *, missing: bool = False, moved: bool = False
) -> NDArray[np.uint8]:
    """A plate with four bores; each bore's surroundings look alike, so only the whole tells."""
    frame = rng.normal(120, 2, (200, 260, 1))
    for k, (y, x) in enumerate(((60, 70), (60, 190), (140, 70), (140, 190))):
        if missing and k == 2:
            continue
        at = (x + 45, y) if moved and k == 1 else (x, y)
        disc = np.zeros((200, 260), np.uint8)
        cv2.circle(disc, (at[0] + int(rng.integers(-1, 2)), at[1]), 14, 1, -1)
        frame[disc > 0] -= 70
    return np.clip(frame, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("plates")
    rng = np.random.default_rng(0)
    for k in range(40):
        cv2.imwrite(str(folder / f"{k:02}.png"), part(rng))
    return sorted(folder.iterdir())


WHOLE = TrainingSettings(
    steps=40, batch=2, crop_px=64, validations=0, global_branch=True, global_steps=200
)


@pytest.fixture(scope="module")
def trained(plates: list[Path]) -> TrainedDetector:
    return train(plates, channels=1, settings=WHOLE)


@pytest.mark.slow
@pytest.mark.timeout(590)
def test_what_is_missing_or_misplaced_is_seen(trained: TrainedDetector, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bundle = Bundle.load(
        save_detector(
            tmp_path,
            trained.model,
            q_a=trained.q_a,
            q_b=trained.q_b,
            provenance={},
            frames=[part(rng)],
        )
    )
    engine = open_runtime(bundle, "openvino", "f32", calibrating=True)

    def peak(frame: NDArray[np.uint8]) -> float:
        raw_map = np.empty(map_hw(*frame.shape[:2]), np.float32)
        (found,) = engine.infer([pad_frame(frame, FRAME_MARGIN_PX)], [raw_map])
        return found

    good = [peak(part(rng)) for _ in range(12)]
    missing = [peak(part(rng, missing=True)) for _ in range(6)]
    moved = [peak(part(rng, moved=True)) for _ in range(6)]
    engine.close()
    assert min(missing) > max(good)
    assert min(moved) > max(good)


@pytest.mark.timeout(590)
def test_both_maps_have_the_same_quantiles(trained: TrainedDetector) -> None:
    whole, pair = trained.model.whole, trained.model.pair(1)
    assert whole is not None
    frames = np.stack([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in trained.held_out])
    with torch.inference_mode():
        maps = whole(torch.from_numpy(frames[..., None]), pair).numpy()
    # At the cells of the frame, not of the small image: about.
    assert float(np.quantile(maps, 0.995)) == pytest.approx(trained.q_b, rel=0.25)


@pytest.mark.slow
def test_training_repeats(plates: list[Path]) -> None:
    few = dataclasses.replace(WHOLE, steps=4, global_steps=6)
    first, again = (train(plates, channels=1, settings=few).model.state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


def test_a_window_is_all_that_is_looked_at(plates: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    small = shrunk_images(plates[:2], 1, (40, 48, 168, 256), lambda k, n: seen.append((k, n)))
    frame = cv2.imread(str(plates[1]), cv2.IMREAD_GRAYSCALE)[40:168, 48:256, None]
    assert np.abs(small[1] / FIXED_POINT - shrink(frame)).max() <= 0.5 / FIXED_POINT + 1e-3
    assert seen == [(1, 2), (2, 2)]


def test_settings_that_train_nothing() -> None:
    with pytest.raises(DataError, match="global_steps"):
        check_settings(TrainingSettings(global_steps=0))
