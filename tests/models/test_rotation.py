"""Maps of the strongest directions: how they are chosen, what engines make of them, when not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.crops import GOOD
from models.efficientad import Detector, StudentTeacher
from models.errors import BundleError, DataError
from models.fused import fuse
from models.references import reference_map, weights_of
from models.rotation import rotate, strongest
from models.runtimes import cpu_has_bf16, open_runtime
from models.settings import TrainingSettings
from models.tiles import pad_frame
from models.training import train
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.validation import DrawnCrop
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, map_hw


def crops(count: int = 3) -> list[DrawnCrop]:
    found = []
    for seed in range(count):
        before = pad_frame(textured_frame(64, 64, 1, seed=seed), MARGIN_PX)
        after = before.copy()
        after[40:52, 40:60] = 240
        cells = np.full((16, 16), GOOD)
        cells[6:9, 6:11] = 1
        found.append(DrawnCrop(before, after, cells, np.ones((16, 16), np.bool_)))
    return found


def model_and_pair() -> tuple[Detector, StudentTeacher]:
    model = untrained_model()
    return model, model.pair(1)


def test_all_directions_keep_the_map() -> None:
    model, pair = model_and_pair()
    padded = pad_frame(textured_frame(64, 96, 1), FRAME_MARGIN_PX)
    expected = reference_map(model, padded)
    rotation, share = strongest(pair, crops(), len(pair.feature_mean))
    assert share == pytest.approx(1)
    pair.rotation = rotation
    np.testing.assert_allclose(reference_map(model, padded), expected, rtol=1e-4)


def test_few_directions_keep_most_of_the_map() -> None:
    _, pair = model_and_pair()
    shares = [strongest(pair, crops(), keep)[1] for keep in (1, 8, 32, 64)]
    assert shares == sorted(shares)
    assert shares[0] > 1 / 96
    assert shares[2] > 0.8
    rotation, share = strongest(pair, crops(), 8)
    assert rotation.shape == (8, 96)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(8) / share, rtol=1e-4, atol=1e-5)


def test_a_rotation_that_costs_is_not_done() -> None:
    _, pair = model_and_pair()

    def judge(model: StudentTeacher) -> float:
        return 0.9 if model.rotation is None else 0.8

    told = rotate(pair, crops(), 16, judge)
    assert pair.rotation is None
    assert told["channels"] == 96
    assert (told["auroc"], told["auroc_of_all"]) == (0.8, 0.9)
    told = rotate(pair, crops(), 16, lambda model: 0.9)
    assert pair.rotation is not None
    assert told["channels"] == 16


@pytest.mark.parametrize("scales", [(1,), (1, 2)])
def test_engines_repeat_a_map_of_few_channels(tmp_path: Path, scales: tuple[int, ...]) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path, scales=scales, map_channels=32))
    model = untrained_model(scales=scales, map_channels=32)
    frame = pad_frame(textured_frame(96, 80, 1, seed=5), FRAME_MARGIN_PX)
    expected = reference_map(model, frame)
    engines = [("torch", "f32", 2e-5), ("openvino", "f32", 2e-5)]
    if cpu_has_bf16():
        engines.append(("openvino", "bf16", 0.06))
    for name, precision, most in engines:
        runtime = open_runtime(bundle, name, precision, threads=2, calibrating=True)
        found = np.empty(map_hw(96, 80), np.float32)
        runtime.infer([frame], [found])
        runtime.close()
        assert np.abs(found - expected).max() <= most * expected.max()
    assert bundle.graph().branches[0].layers[-1].weight.shape[0] == 32


@pytest.mark.parametrize("shape", [(0, 96), (97, 96), (16, 95), (16,)])
def test_a_rotation_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    weights = weights_of(untrained_model(map_channels=16))
    weights["scale1.rotation"] = np.zeros(shape, np.float32)
    with pytest.raises(BundleError, match=r"scale1\.rotation: shape"):
        fuse(weights, "pdn_tiny", 1)


def test_too_many_channels_are_refused() -> None:
    with pytest.raises(DataError, match="fewer than the 96 of pdn_tiny"):
        train([], settings=TrainingSettings(map_channels=96), channels=1)
