"""The wide view: one network in torch and OpenVINO, blocks that meet, and bridges to learn from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from striped import random_view, stripes

from models.augment import Augmentation
from models.bundle import Bundle, recalibrated
from models.errors import DataError
from models.images import read_image
from models.references import save_detector
from models.runtimes import open_runtime
from models.runtimes.base import stages
from models.runtimes.wide_openvino import open_wide
from models.runtimes.with_wide import WithWide
from models.settings import TrainingSettings
from models.shrink import shrunk
from models.tiles import build_tiles, pad_frame
from models.trained import TrainedDetector
from models.training import train
from models.variants import FRAME_MARGIN_PX, map_hw
from models.wide import (
    BLOCK_PX,
    WideView,
    above_level,
    logits,
    smoothed,
    views_arrays,
    views_of_arrays,
    weigh,
)
from models.wide_fit import WideFit, fit_wide, good_level, train_wide
from models.wide_net import WideNet, open_wide_torch


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("boards")
    for seed in range(6):
        grain = np.random.default_rng(seed).integers(-6, 7, (160, 160))
        cv2.imwrite(str(folder / f"{seed}.png"), (stripes(seed) + grain).astype(np.uint8))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (160, 32)])
def test_openvino_says_what_torch_says(channels: int, shape: tuple[int, int]) -> None:
    view = random_view(channels)
    block = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
    by_torch = open_wide_torch(view, "cpu")(block)
    assert by_torch.shape == (shape[0] // 4, shape[1] // 4)
    np.testing.assert_allclose(open_wide(view, 1)(block), by_torch, rtol=1e-4, atol=1e-4)


def test_the_normalisation_is_folded_into_the_convolutions() -> None:
    torch.manual_seed(1)
    net = WideNet(1, normed=True).train()
    pixels = torch.randint(0, 255, (2, 64, 64, 1), dtype=torch.uint8)
    with torch.no_grad():
        net(pixels)
        plain = net.eval()(pixels)[0].numpy()
    np.testing.assert_allclose(
        open_wide_torch(net.view(), "cpu")(pixels[0].numpy()), plain, rtol=1e-4, atol=1e-4
    )


sides = st.integers(1, 3 * BLOCK_PX)


@settings(deadline=None, max_examples=40)
@given(height=sides, width=st.integers(1, 80), turned=st.booleans())
def test_blocks_meet_without_gap(height: int, width: int, turned: bool) -> None:
    """With a network that looks at one pixel alone, blocks cannot be told from the whole."""
    if turned:
        height, width = width, height
    padded = np.random.default_rng(0).integers(
        0, 256, (height + 2 * FRAME_MARGIN_PX, width + 2 * FRAME_MARGIN_PX, 1), np.uint8
    )
    found = logits(lambda block: block[::4, ::4, 0].astype(np.float32), padded)
    inside = slice(FRAME_MARGIN_PX, -FRAME_MARGIN_PX)
    np.testing.assert_array_equal(found, padded[inside, inside, 0][::4, ::4])


def test_blocks_are_as_good_as_the_whole() -> None:
    """The overlap is more than the view."""
    infer = open_wide(random_view(1), 2)
    wide = np.random.default_rng(0).integers(0, 256, (96, BLOCK_PX + 600, 1)).astype(np.uint8)
    whole = infer(
        np.pad(wide[16:-16, 16:-16], ((0, 0), (0, -(BLOCK_PX + 568) % 32), (0, 0)), mode="edge")
    )
    inside = whole[4:12, 4 : 4 + (BLOCK_PX + 536) // 4]
    np.testing.assert_allclose(logits(infer, wide), inside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hw", [(33, 33), (34, 71), (160, 97)])
@pytest.mark.parametrize("infer", ["torch", "openvino"])
def test_half_the_size_is_looked_at_as_in_training(hw: tuple[int, int], infer: str) -> None:
    view = random_view(1)
    look = open_wide_torch(view, "cpu") if infer == "torch" else open_wide(view, 1)
    frame = np.random.default_rng(1).integers(0, 256, (*hw, 1)).astype(np.uint8)
    padded = pad_frame(frame, FRAME_MARGIN_PX)
    found = logits(look, padded, 2)
    assert found.shape == map_hw(*hw)
    small = shrunk(padded, 2)
    beyond = [(0, -side % 32) for side in small.shape[:2]]
    z = look(np.pad(small, (*beyond, (0, 0)), mode="edge"))[4:, 4:]
    every = found[::2, ::2]
    np.testing.assert_allclose(every, z[: every.shape[0], : every.shape[1]], rtol=1e-4, atol=1e-4)
    between = (every[:, :-1] + every[:, 1:]) / 2
    inner = found[::2, 1::2][:, : between.shape[1]]
    np.testing.assert_allclose(inner, between, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "broken",
    [
        "shape",
        "missing",
        "surplus",
        "nan",
        "dtype",
        "scale",
        "no scale",
        "level",
        "probe",
        "answer",
    ],
)
def test_weights_that_are_none_are_refused(broken: str) -> None:
    arrays = random_view(1).arrays()
    if broken == "shape":
        arrays["stem.bias"] = arrays["stem.bias"][:3]
    elif broken == "missing":
        del arrays["logit.bias"]
    elif broken == "surplus":
        arrays["more.bias"] = arrays["stem.bias"]
    elif broken == "scale":
        arrays["scale"] = np.array(3)
    elif broken == "no scale":
        del arrays["scale"]
    elif broken in ("probe", "answer"):
        del arrays[broken]
    elif broken == "level":
        arrays["level"] = np.array(np.inf)
    elif broken == "nan":
        arrays["stem.bias"] = np.full_like(arrays["stem.bias"], np.nan)
    else:
        arrays["stem.bias"] = arrays["stem.bias"].astype(np.float64)
    with pytest.raises(ValueError, match=r"found|missing"):
        WideView.of_arrays(arrays, 1)


@pytest.mark.parametrize("scales", [(), (1,), (2,), (1, 2)])
def test_a_file_holds_all_of_it(scales: tuple[int, ...]) -> None:
    views = [
        replace(random_view(1, seed=scale), scale=scale, level=-1.25 * scale) for scale in scales
    ]
    again = views_of_arrays(views_arrays(views), 1)
    assert len(again) == len(views)
    for before, after in zip(views, again, strict=True):
        assert (after.scale, after.level) == (before.scale, before.level)
        assert set(after.weights) == set(before.weights)
        for name, weight in before.weights.items():
            np.testing.assert_array_equal(after.weights[name], weight)


@pytest.mark.parametrize("name", ["1.stem.bias", "00.stem.bias", "stem.bias", "x", "2.scale"])
def test_a_view_too_many(name: str) -> None:
    arrays = views_arrays([random_view(1)])
    with pytest.raises(ValueError, match=r"found|missing"):
        views_of_arrays(arrays | {name: np.zeros(24, np.float32)}, 1)


def test_the_highest_of_all_views_counts() -> None:
    """Each less its own level."""
    frame = np.random.default_rng(0).integers(0, 256, (90, 71, 1)).astype(np.uint8)
    padded = pad_frame(frame, FRAME_MARGIN_PX)
    views, looks, each = [], [], []
    for scale in (1, 2):
        view = random_view(1, seed=scale)
        looks.append(open_wide(view, 1))
        z = smoothed(logits(looks[-1], padded, scale))
        level = float(np.median(z))
        views.append(replace(view, scale=scale, level=level))
        each.append(z - np.float32(level))
    assert 0.1 < np.mean(each[0] > each[1]) < 0.9
    found = above_level(views, looks, padded)
    np.testing.assert_allclose(found, np.maximum(*each), atol=1e-6)
    np.testing.assert_allclose(above_level(views[:1], looks[:1], padded), each[0], atol=1e-6)


def test_the_level_is_what_good_images_reach(boards: list[Path]) -> None:
    view = random_view(1)
    done: list[int] = []
    level = good_level(view, boards, progress=lambda number, of: done.append(of - number))
    look = open_wide_torch(view, "cpu")
    padded = [pad_frame(read_image(path, 1), FRAME_MARGIN_PX) for path in boards]
    maps = [smoothed(logits(look, each)) for each in padded]
    # What is beyond a frame's sides is made up: there nothing counts.
    assert level == pytest.approx(np.median([z[4:-4, 4:-4].max() for z in maps]))
    assert done[-1] == 0
    inspected = np.zeros((160, 160), np.bool_)
    inspected[80:84, 40:44] = True
    at_one = good_level(view, boards, inspected, progress=lambda number, of: None)
    assert at_one == pytest.approx(np.median([z[20, 10] for z in maps]))
    inspected[:] = False
    inspected[:8, 40:44] = True  # and if nothing else is looked at, it does
    at_side = good_level(view, boards, inspected, progress=lambda number, of: None)
    assert at_side == pytest.approx(np.median([z[:2, 10].max() for z in maps]))


def fitted(paths: list[Path], steps: int, seed: int = 0) -> WideFit:
    return fit_wide(
        build_tiles(paths, 1, tile=128),
        1,
        steps=steps,
        crop_px=96,
        augmentation=Augmentation(mirror=True),
        seed=seed,
        progress=lambda done, of: None,
    )


def test_a_network_for_each_scale(boards: list[Path], tmp_path: Path) -> None:
    """Each as if it were alone, with a level and a state of its own."""
    wanted = TrainingSettings(wide_view=True, wide_steps=3, wide_crop_px=64, seed=4)
    told: set[str] = set()

    def views(*scales: int) -> tuple[WideView, ...]:
        name = "-".join(map(str, scales))
        fits = train_wide(
            lambda scale: build_tiles(boards, 1, tile=128, scale=scale),
            1,
            boards[:2],
            replace(wanted, wide_scales=scales),
            states=[tmp_path / f"{name}-{scale}" for scale in scales],
            report=lambda what, done, of: told.add(what),
        )
        assert [len(fit.losses) for fit in fits] == [3] * len(scales)
        assert [fit.view.scale for fit in fits] == list(scales)
        return tuple(fit.view for fit in fits)

    both = views(1, 2)
    assert told >= {"train the wide view, scale 1", "the wide view's level, scale 2"}
    assert {path.name for path in tmp_path.iterdir()} == {"1-2-1", "1-2-2"}
    for view in both:
        (alone,) = views(view.scale)
        assert alone.level == view.level
        for name, weight in view.weights.items():
            np.testing.assert_array_equal(weight, alone.weights[name])


def test_it_learns(boards: list[Path]) -> None:
    losses = fitted(boards, 24).losses
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_one_seed_gives_one_result(boards: list[Path]) -> None:
    fit, again = fitted(boards, 3), fitted(boards, 3)
    assert fit.losses == again.losses
    for name, weight in fit.view.weights.items():
        np.testing.assert_array_equal(weight, again.view.weights[name])
    assert fitted(boards, 3, seed=1).losses != fit.losses


class Killed(Exception):
    pass


def test_killed_and_resumed_is_as_not_killed(boards: list[Path], tmp_path: Path) -> None:
    tiles = build_tiles(boards, 1, tile=128)
    told: list[int] = []

    def fit(stop: int, resume: bool, key: str = "a") -> WideFit:
        told.clear()

        def count(done: int, of: int) -> None:
            told.append(done)
            if done == stop:
                raise Killed

        return fit_wide(
            tiles,
            1,
            steps=16,
            crop_px=64,
            augmentation=Augmentation(mirror=True),
            seed=0,
            state=tmp_path / "wide.state",
            key=key,
            resume=resume,
            progress=count,
        )

    whole = fit(0, resume=False)
    with pytest.raises(Killed):
        fit(9, resume=False)
    again = fit(0, resume=True)
    assert told == list(range(9, 17))  # the state of step 8
    assert (whole.resumed_at, again.resumed_at) == (0, 8)
    assert again.losses == whole.losses
    for name, weight in whole.view.weights.items():
        np.testing.assert_array_equal(weight, again.view.weights[name])
    with pytest.raises(Killed):
        fit(1, resume=True, key="b")  # another training's state is not taken
    assert told == [1]


def test_a_training_killed_in_its_second_view_goes_on_there(
    boards: list[Path], tmp_path: Path
) -> None:
    wanted = TrainingSettings(steps=2, batch=1, crop_px=64, tile=128, validations=0)
    wanted = replace(wanted, wide_view=True, wide_scales=(1, 2), wide_steps=8, wide_crop_px=64)
    told: list[tuple[str, int]] = []

    def learn(name: str, stop: tuple[str, int] = ("", 0)) -> TrainedDetector:
        told.clear()

        def count(what: str, done: int, of: int) -> None:
            told.append((what, done))
            if (what, done) == stop:
                raise Killed

        state_dir = tmp_path / name
        return train(boards, settings=wanted, state_dir=state_dir, resume=True, progress=count)

    whole = learn("whole")
    last = "train the wide view, scale 2"
    with pytest.raises(Killed):
        learn("killed", (last, 5))
    again = learn("killed")
    assert [done for what, done in told if what.startswith("train the wide view")] == [6, 7, 8]
    assert (whole.resumed, again.resumed) == (False, True)
    assert [fit.resumed_at for fit in again.wide_fits] == [8, 5]
    for view, same in zip(whole.wide, again.wide, strict=True):
        assert view.level == same.level
        for name, weight in view.weights.items():
            np.testing.assert_array_equal(weight, same.weights[name])


@pytest.mark.parametrize("side", [40, 70])
def test_images_smaller_than_a_crop(tmp_path: Path, side: int) -> None:
    for seed in range(3):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), stripes(seed, side + seed))
    assert np.isfinite(fitted(sorted(tmp_path.iterdir()), 2).losses).all()


@pytest.fixture(scope="module", params=[(1,), (2,), (1, 2)], ids=str)
def trained(boards: list[Path], request: pytest.FixtureRequest) -> TrainedDetector:
    wanted = TrainingSettings(
        steps=2, batch=1, crop_px=64, tile=128, wide_view=True, wide_steps=3, wide_crop_px=64
    )
    wanted = replace(wanted, wide_scales=request.param)
    return train(boards, settings=wanted)


def test_a_bundle_brings_it_to_the_engine(
    trained: TrainedDetector, boards: list[Path], tmp_path: Path
) -> None:
    levels = [view.level for view in trained.wide]
    assert len(levels) == len(trained.provenance["settings"]["wide_scales"])
    assert len(trained.provenance["wide_loss"]) == len(levels)
    assert min(trained.provenance["wide_loss"]) > 0
    names = [f"wide view, scale {fit.view.scale}" for fit in trained.wide_fits]
    assert list(trained.provenance["other_losses"]) == names
    assert trained.provenance["wide_level"] == pytest.approx(levels, abs=1e-3)
    assert 0 not in levels
    engines = []
    for wide in ((), trained.wide):
        path = save_detector(
            tmp_path,
            trained.model,
            q_a=trained.q_a,
            q_b=trained.q_b,
            provenance=trained.provenance,
            frames=[read_image(boards[0])],
            wide=wide,
        )
        first = Bundle.load(path)
        bundle = Bundle.load(recalibrated(first, tmp_path / "again", first.calibration))
        engines.append(open_runtime(bundle, "openvino", "f32", calibrating=True))
    plain, weighed = engines
    assert isinstance(weighed, WithWide)
    assert plain.engine_id == weighed.engine_id
    assert [name for name, _ in stages(weighed)] == ["student", "wide view"]
    frame = pad_frame(read_image(boards[1], 1)[:150, :131], FRAME_MARGIN_PX)
    maps = [np.empty((38, 33), np.float32) for _ in engines]
    peaks = [engine.infer([frame], [out])[0] for engine, out in zip(engines, maps, strict=True)]
    assert peaks == [float(each.max()) for each in maps]
    expected = maps[0].copy()
    looks = [open_wide_torch(view, "cpu") for view in trained.wide]
    weigh(expected, above_level(trained.wide, looks, frame), trained.q_b)
    np.testing.assert_allclose(maps[1], expected, rtol=1e-3, atol=1e-6)
    assert not np.allclose(maps[1], maps[0])
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("name", ["wide_steps", "wide_crop_px", "wide_scales"])
def test_settings_that_cannot_be_trained_with(boards: list[Path], name: str) -> None:
    with pytest.raises(DataError, match=name):
        train(boards, settings=TrainingSettings(**{name: 0}))
