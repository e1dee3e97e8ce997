"""Training: repeatable, on any sizes, and worth something at the end."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.efficientad import hard_feature_loss
from models.errors import DataError
from models.images import read_image
from models.masks import FindObject, object_finder
from models.measure import map_quantiles, measure_teacher
from models.references import reference_map
from models.settings import TrainingSettings, check_settings
from models.teacher import Teacher
from models.tiles import build_tiles, pad_frame
from models.trained import TrainedDetector
from models.training import split, train
from models.untrained import textured_frame, untrained_model
from models.validation import ValidationImages
from models.variants import FRAME_MARGIN_PX
from pipeline.training_config import load_training, settings_of

QUICK = TrainingSettings(steps=3, batch=2, crop_px=64)


def random_teacher(channels: int) -> Teacher:
    model = untrained_model("pdn_tiny", channels).pair(1)
    return Teacher(model.teacher, model.input_mean, model.input_std, "random", "none")


def write(folder: Path, sizes: list[tuple[int, int]], channels: int = 1) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for k, (height, width) in enumerate(sizes):
        paths.append(folder / f"{k}.png")
        cv2.imwrite(str(paths[-1]), textured_frame(height, width, channels, seed=k))
    return paths


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> TrainedDetector:
    paths = write(tmp_path_factory.mktemp("texture"), [(160, 192)] * 10)
    settings = TrainingSettings(steps=400, batch=2, crop_px=96, tile=128)
    return train(paths, settings=settings)


def test_a_spot_stands_out(texture: TrainedDetector) -> None:
    frame = textured_frame(160, 192, 1, seed=77)
    good, bad = frame, frame.copy()
    cv2.circle(bad, (100, 80), 5, 30, -1)
    with torch.inference_mode():
        padded = [torch.from_numpy(pad_frame(f, FRAME_MARGIN_PX)[None]) for f in (good, bad)]
        maps = [texture.model(frame)[0].numpy() for frame in padded]
    rise = maps[1] - maps[0]
    row, column = np.unravel_index(rise.argmax(), rise.shape)
    assert abs(4 * row - 80) <= 16
    assert abs(4 * column - 100) <= 16
    assert maps[1][row, column] > 2 * maps[0][row, column]
    assert maps[1][row, column] > texture.q_a


def test_losses_fall(texture: TrainedDetector) -> None:
    assert len(texture.losses) == 400
    assert np.mean(texture.losses[-10:]) < 0.7 * np.mean(texture.losses[:10])


def test_quantiles_are_those_of_the_held_out_images(texture: TrainedDetector) -> None:
    tiles = build_tiles(texture.held_out, 1, tile=128)
    pair = texture.model.pair(1)
    with torch.inference_mode():
        maps = [
            pair(torch.from_numpy(np.array(tiles[k])[None]))[0].numpy() for k in range(len(tiles))
        ]
    low, high = np.quantile(np.stack(maps), [0.9, 0.995])
    assert texture.q_a == pytest.approx(low, rel=1e-3)
    assert texture.q_b == pytest.approx(high, rel=1e-3)


def test_provenance_is_plain_and_whole(texture: TrainedDetector) -> None:
    about = json.loads(json.dumps(texture.provenance, allow_nan=False))
    assert about["images"] == 8
    assert about["held_out"] == 2
    assert len(about["sha256"]) == 10
    assert about["settings"]["steps"] == 400
    assert about["teacher"].startswith("linewatch-pdn_tiny-")
    assert about["channels"] == 1


def test_one_seed_one_result(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(100, 120)] * 4)
    runs = [
        train(paths, settings=replace(QUICK, seed=seed), cache_dir=tmp_path / "cache")
        for seed in (1, 1, 2)
    ]
    states = [run.model.state_dict() for run in runs]
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
    assert not torch.equal(
        states[0]["pairs.0.student.conv1.weight"], states[2]["pairs.0.student.conv1.weight"]
    )
    assert (runs[0].q_a, runs[0].q_b, runs[0].losses) == (runs[1].q_a, runs[1].q_b, runs[1].losses)


def test_two_scales_side_by_side(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(200, 260)] * 4)
    settings = replace(QUICK, scales=(1, 2))
    told: list[tuple[str, int, int]] = []
    runs = [
        train(paths, settings=settings, progress=lambda *about: told.append(about))
        for _ in range(2)
    ]
    assert runs[0].model.scales == (1, 2)
    assert runs[0].losses == runs[1].losses
    assert len(runs[0].losses) == 2 * QUICK.steps
    last = [about for about in told if about[0].startswith("train student")][-1]
    assert last[1:] == (2 * QUICK.steps, 2 * QUICK.steps)
    # Each of the scales learned as it would have alone, however the threads were shared out.
    alone = train(paths, settings=replace(settings, scales=(2,)))
    assert alone.losses == pytest.approx(runs[0].losses[QUICK.steps :], rel=0.05)
    first, second = (runs[0].model.pair(scale) for scale in (1, 2))
    assert first.teacher is second.teacher
    assert not torch.equal(first.student.state_dict()["conv4.bias"], second.feature_mean)
    assert math.isfinite(runs[0].q_b)


def test_when_one_scale_fails_the_other_stops(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(200, 260)] * 4)
    settings = replace(QUICK, scales=(1, 2), steps=10_000, learning_rate=1e30, optimiser="adam")
    threads = torch.get_num_threads()
    with pytest.raises(DataError, match="expected finite ones"):
        train(paths, settings=settings)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_smaller_than_tiles_and_crops(tmp_path: Path, channels: int) -> None:
    sizes = [(33, 33), (40, 300), (300, 40), (90, 70), (270, 270)]
    paths = write(tmp_path / "good", sizes, channels)
    detector = train(paths, teacher=random_teacher(channels), settings=QUICK, channels=channels)
    assert detector.model.in_channels == channels
    assert detector.q_b > detector.q_a > 0


def test_channels_are_seen_from_the_images(tmp_path: Path) -> None:
    grey_in_colour = tmp_path / "grey"
    grey_in_colour.mkdir()
    for k in range(2):
        frame = textured_frame(50, 50, 1, seed=k)
        cv2.imwrite(str(grey_in_colour / f"{k}.png"), np.repeat(frame, 3, axis=2))
    coloured = write(tmp_path / "colour", [(50, 50)] * 2, 3)
    for paths, expected in ((sorted(grey_in_colour.iterdir()), 1), (coloured, 3)):
        assert train(paths, settings=replace(QUICK, steps=1)).model.in_channels == expected


def test_penalty_on_pictures_of_nothing(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(80, 80)] * 2)
    plain, punished = (
        train(paths, settings=replace(QUICK, penalty=penalty)).losses for penalty in (0.0, 1.0)
    )
    assert punished[0] > plain[0]


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(80, 80)] * 2)
    with pytest.raises(DataError, match=r"found at step [2-9] of 20, expected finite ones: lower"):
        train(paths, settings=replace(QUICK, steps=20, learning_rate=1e12))


def test_flat_images(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path in paths:
        cv2.imwrite(str(path), np.full((80, 80), 128, np.uint8))
    with pytest.raises(DataError, match="flat"):
        train(paths, settings=QUICK)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images(tmp_path: Path, count: int) -> None:
    paths = write(tmp_path / "good", [(80, 80)] * count)
    with pytest.raises(DataError, match="expected at least 2"):
        train(paths, settings=QUICK, channels=1)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_split(count: int) -> None:
    images = [Path(f"{k}.png") for k in range(count)]
    learn, held_out = split(images, TrainingSettings())
    assert sorted([*learn, *held_out]) == sorted(images)
    assert len(held_out) == max(1, round(0.2 * count))
    assert learn == sorted(learn, key=images.index)
    if count > 10:
        assert split(images, TrainingSettings(seed=1))[1] != held_out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("crop_px", 32),
        ("learning_rate", math.nan),
        ("learning_rate", 0.0),
        ("hard_quantile", 1.0),
        ("held_out", 1.0),
        ("q_a", 0.999),
        ("decay_at", 0.0),
    ],
)
def test_settings_that_cannot_be_trained_with(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"{name}: {value!r} found"):
        check_settings(replace(TrainingSettings(), **{name: value}))


def test_teacher_statistics_are_exact(tmp_path: Path) -> None:
    tiles = build_tiles(write(tmp_path / "good", [(60, 90), (128, 100), (80, 33)]), 1)
    model = untrained_model().pair(1)
    with torch.inference_mode():
        whole = torch.cat(
            [
                model.teacher(model.normalise(torch.from_numpy(np.array(tiles[k])[None])))[0]
                .flatten(1)
                .double()
                for k in range(len(tiles))
            ],
            dim=1,
        )
    measure_teacher(model, tiles, 0, lambda *_: None)
    torch.testing.assert_close(model.feature_mean.double(), whole.mean(dim=1), rtol=1e-5, atol=1e-6)
    expected = whole.std(dim=1, correction=0)
    torch.testing.assert_close(model.feature_std.double(), expected, rtol=1e-5, atol=1e-6)


def test_quantiles_over_all_tiles(tmp_path: Path) -> None:
    paths = write(tmp_path / "good", [(300, 256)] * 2)
    model = untrained_model(scales=(1, 2))
    inspected = np.zeros((300, 256), np.bool_)
    inspected[:, :128] = True
    low, high = map_quantiles(model, paths, inspected, QUICK, lambda *_: None)
    wholes = [reference_map(model, pad_frame(read_image(p, 1), FRAME_MARGIN_PX)) for p in paths]
    # Two tiles each; the lower one begins 44 px down and repeats the rows between.
    parts = [np.concatenate([whole[:64, :32], whole[11:, :32]]) for whole in wholes]
    assert (low, high) == pytest.approx(tuple(np.quantile(np.stack(parts), [0.9, 0.995])), rel=0.02)


def test_quantiles_are_those_of_the_object(tmp_path: Path) -> None:
    """A part on plain ground that fills one tile of four."""
    frames = [np.full((256, 256), 20, np.uint8) for _ in range(2)]
    for k, frame in enumerate(frames):
        frame[128:, 128:] = np.maximum(textured_frame(128, 128, 1, seed=k)[..., 0], 60)
        cv2.imwrite(str(tmp_path / f"{k}.png"), frame)
    paths = sorted(tmp_path.iterdir())
    model = untrained_model()
    chosen = replace(QUICK, tile=128, mask="otsu_set")
    find = object_finder(chosen.mask, chosen.mask_threshold, paths)

    def silent(what: str, done: int, total: int) -> None:
        pass

    found = map_quantiles(model, paths, None, chosen, silent, find_object=find)
    wholes = [reference_map(model, pad_frame(read_image(p, 1), FRAME_MARGIN_PX)) for p in paths]
    values = np.stack([whole[32:, 32:] for whole in wholes])
    assert found == pytest.approx(tuple(np.quantile(values, [0.9, 0.995])), rel=0.02)
    assert map_quantiles(model, paths, None, chosen, silent) != pytest.approx(found, rel=0.1)
    with pytest.raises(DataError, match="look at the mask"):
        map_quantiles(model, paths, None, chosen, silent, find_object=FindObject(255.0))


@pytest.mark.parametrize("size", [(90, 120), (200, 220)])
def test_a_held_out_image_of_another_size_is_named_before_anything_is_learnt(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    paths = write(tmp_path / "good", [(128, 160)] * 8)
    _, held_out = split(paths, QUICK)
    cv2.imwrite(str(held_out[0]), textured_frame(*size, 1))
    chosen_by = ValidationImages(good=paths[:1], bad=paths[1:2])
    seen = list[str]()
    with pytest.raises(DataError, match=rf"{held_out[0].name}: {size[1]}x{size[0]} found"):
        train(
            paths,
            settings=QUICK,
            inspected=np.ones((128, 160), np.bool_),
            validation=chosen_by,
            progress=lambda what, done, total: seen.append(what),
        )
    assert not any("train" in what for what in seen)


@pytest.mark.parametrize("begin", ["teacher", "random"])
def test_the_papers_student_begins_far_from_its_teacher(tmp_path: Path, begin: str) -> None:
    paths = write(tmp_path / "good", [(128, 160)] * 5)
    config = load_training(Path(__file__).parents[2] / "configs" / "visa_chewinggum.yaml")
    papers = settings_of(config.settings)
    assert (papers.begin, papers.max_gradient, papers.spoiled) == ("random", 0, 0)
    chosen = replace(papers, epochs=0, steps=1, crop_px=64, mask="none", begin=begin)
    told = list[str]()
    trained = train(paths, settings=chosen, progress=lambda what, *_: told.append(what))
    assert any(what.startswith("train student") and "tiles/s" in what for what in told)
    # Features are normalised: two that have nothing in common differ by about 1 and more.
    assert (trained.q_a > 0.5) == (begin == "random")
    assert trained.provenance["validated_on"] == "drawn defects on held-out good images"


def test_hard_loss_is_the_mean_of_the_largest() -> None:
    squared = torch.arange(1000.0)
    assert float(hard_feature_loss(squared, 0.99)) == pytest.approx(np.mean(range(990, 1000)))
    assert float(hard_feature_loss(squared, 0.0)) == pytest.approx(499.5)
    assert float(hard_feature_loss(torch.ones(3), 0.999)) == 1
