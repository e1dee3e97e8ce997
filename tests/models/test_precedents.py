"""What was seen on good parts is found again, wherever it lies; what was not is not."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from striped import random_view

from models.bundle import Bundle, recalibrated
from models.images import read_image
from models.precedents import (
    MOST_PX,
    POWER,
    POWER_BESIDE_WIDE,
    WINDOW_PX,
    Precedents,
    around,
    choose_images,
    highest_places,
    learn_coarse,
    window_corners,
)
from models.references import save_detector
from models.runtimes import open_runtime
from models.runtimes.looking_up import LookingUp
from models.settings import TrainingSettings
from models.tiles import pad_frame
from models.training import train
from models.untrained import untrained_model
from models.variants import FRAME_MARGIN_PX


def board(seed: int, height: int = 200, width: int = 240, channels: int = 1) -> NDArray[np.uint8]:
    """Tracks and pads, as seeds have them: none like another's."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width), 255, np.uint8)
    for _ in range(14):
        ends = rng.integers(0, (width, height), (2, 2)).tolist()
        cv2.line(image, ends[0], ends[1], 0, int(rng.integers(3, 9)))
        cv2.circle(
            image, rng.integers(0, (width, height)).tolist(), int(rng.integers(4, 12)), 0, -1
        )
    return np.repeat(image[..., None], channels, axis=2)


@pytest.fixture(scope="module")
def known() -> Precedents:
    images = [board(seed) for seed in range(6)]
    return Precedents(images, learn_coarse(images, 0))


@pytest.mark.parametrize("shift", [(0, 0), (1, 2), (3, 5), (7, 4), (6, 1)])
def test_known_structure_is_found_at_any_shift(known: Precedents, shift: tuple[int, int]) -> None:
    frame = board(3)[shift[0] :, shift[1] :]
    centres = np.random.default_rng(0).integers(0, frame.shape[:2], (60, 2))
    found = known.differences(frame, centres)
    assert (found < 1e-3).mean() >= 0.9  # the coarse search looks into the nearest lists only


def test_a_mark_has_no_precedent(known: Precedents) -> None:
    frame = board(3)
    cv2.circle(frame, (120, 100), 5, 128, -1)
    marked, clean = known.differences(frame, np.array([(100, 120), (60, 60)]))
    assert marked > 10
    assert clean == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("centre", [(0, 0), (199, 239), (0, 120), (100, 239)])
def test_windows_stay_inside(known: Precedents, centre: tuple[int, int]) -> None:
    frame = board(2)
    (corner,) = window_corners(frame.shape, np.array([centre]), 0)
    assert (corner >= 0).all()
    assert (corner + WINDOW_PX <= frame.shape[:2]).all()
    assert known.differences(frame, np.array([centre])) == pytest.approx(0, abs=1e-3)
    padded = pad_frame(frame, FRAME_MARGIN_PX)
    there = np.array([centre]) + FRAME_MARGIN_PX
    assert known.differences(padded, there, FRAME_MARGIN_PX) == pytest.approx(0, abs=1e-3)


def test_maps_fall_where_it_is_known_and_rise_where_not(known: Precedents) -> None:
    frame = board(1)
    cv2.line(frame, (60, 60), (72, 75), 128, 5)
    raw_map = np.full((50, 60), 0.1, np.float32)
    raw_map[17, 16] = raw_map[40, 50] = 2.0
    before = raw_map.copy()
    known.weigh(pad_frame(frame, FRAME_MARGIN_PX), raw_map, 0.5)
    assert raw_map[17, 16] > 2.0
    assert raw_map[40, 50] < 2.0
    far = np.ones_like(raw_map, bool)
    for row, column in ((17, 16), (40, 50)):
        far[around(row), around(column)] = False
    assert (raw_map[far] == before[far]).all()


def test_a_quiet_map_is_left_alone(known: Precedents) -> None:
    raw_map = np.full((50, 60), 0.1, np.float32)
    known.weigh(pad_frame(board(9), FRAME_MARGIN_PX), raw_map, 0.5)
    assert (raw_map == np.float32(0.1)).all()


def test_places_are_the_highest_and_apart() -> None:
    rng = np.random.default_rng(0)
    raw_map = rng.random((40, 50), np.float32)
    cells = highest_places(raw_map, 0.5, 12)
    values = [raw_map[cell] for cell in cells]
    assert len(cells) == 12
    assert values == sorted(values, reverse=True)
    assert values[0] == raw_map.max()
    for k, (row, column) in enumerate(cells):
        for other_row, other_column in cells[:k]:
            assert max(abs(row - other_row), abs(column - other_column)) > 3
    assert highest_places(raw_map, 1.5, 12) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_same(channels: int) -> None:
    images = [board(seed, 90, 110, channels) for seed in range(3)]
    images[0][..., 0] //= 2
    first = Precedents(images, learn_coarse(images, 0))
    second = Precedents.of_arrays(first.arrays())
    for one, other in zip(first.images, second.images, strict=True):
        np.testing.assert_array_equal(one, other)
    frame, centres = board(7, 90, 110, channels), np.array([(30, 30), (60, 80)])
    np.testing.assert_array_equal(
        first.differences(frame, centres), second.differences(frame, centres)
    )


@pytest.mark.parametrize("size", [(33, 33), (33, 200), (30, 24)])
def test_small_images_and_few_windows(size: tuple[int, int]) -> None:
    images = [board(seed, *size) for seed in range(2)]
    precedents = Precedents(images, learn_coarse(images, 0))
    if min(size) >= 33:
        found = precedents.differences(images[0], np.array([(16, 16)]))
        assert found == pytest.approx(0, abs=1e-3)


def test_plain_images_give_no_precedent() -> None:
    plain = [np.full((80, 80, 1), 200, np.uint8)] * 2
    precedents = Precedents(plain, learn_coarse([*plain, board(0)], 0))
    frame = plain[0].copy()
    frame[40:44, 40:44] = 0
    assert precedents.differences(frame, np.array([(42, 42)])) == WINDOW_PX**2


def test_images_are_chosen_evenly(tmp_path: Path) -> None:
    for k in range(9):
        cv2.imwrite(str(tmp_path / f"{k}.png"), np.full((40, 40), 10 * k, np.uint8))
    paths = sorted(tmp_path.iterdir())
    assert MOST_PX >= 1 << 28
    chosen = choose_images(paths, 1, most_px=5 * 1600)
    assert [int(image[0, 0, 0]) for image in chosen] == [0, 20, 40, 60, 80]
    assert len(choose_images(paths, 1)) == 9


def test_a_bundle_brings_them_to_the_engine(tmp_path: Path) -> None:
    for seed in range(6):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), board(seed))
    paths = sorted(tmp_path.glob("*.png"))
    settings = TrainingSettings(steps=2, batch=1, crop_px=64, tile=128, precedents=True)
    trained = train(paths, settings=settings)
    assert trained.precedents is not None
    assert len(trained.precedents.images) == 5  # one is held out
    path = save_detector(
        tmp_path / "bundles",
        trained.model,
        q_a=trained.q_a,
        q_b=trained.q_b,
        provenance=trained.provenance,
        frames=[read_image(paths[0])],
        precedents=trained.precedents,
    )
    bundle = Bundle.load(
        recalibrated(Bundle.load(path), tmp_path / "bundles", Bundle.load(path).calibration)
    )
    engine = open_runtime(bundle, "openvino", "f32", calibrating=True)
    assert isinstance(engine, LookingUp)
    frame = read_image(paths[1], 1)
    raw_map = np.empty((50, 60), np.float32)
    (highest,) = engine.infer([pad_frame(frame, FRAME_MARGIN_PX)], [raw_map])
    assert highest == raw_map.max()
    again = np.empty_like(raw_map)
    engine.infer([pad_frame(frame, FRAME_MARGIN_PX)], [again])
    np.testing.assert_array_equal(raw_map, again)
    engine.close()


@pytest.mark.parametrize("wide", [False, True])
def test_beside_a_wide_view_precedents_count_for_more(wide: bool, tmp_path: Path) -> None:
    images = [board(seed) for seed in range(4)]
    precedents = Precedents(images, learn_coarse(images, 0))
    path = save_detector(
        tmp_path,
        untrained_model(),
        q_a=0.0,
        q_b=1e-6,
        provenance={},
        frames=[images[0]],
        precedents=precedents,
        wide=[random_view(1)] if wide else [],
    )
    engine = open_runtime(Bundle.load(path), "openvino", "f32", calibrating=True)
    assert isinstance(engine, LookingUp)
    frame = pad_frame(board(9), FRAME_MARGIN_PX)
    found, expected = np.empty((2, 50, 60), np.float32)
    engine.infer([frame], [found])
    engine.inner.infer([frame], [expected])
    before = expected.copy()
    precedents.weigh(frame, expected, 1e-6, POWER_BESIDE_WIDE if wide else POWER)
    assert (expected != before).any()
    np.testing.assert_array_equal(found, expected)
    engine.close()


@pytest.mark.parametrize("broken", ["png", "mean", "centres", "ends", "none"])
def test_damaged_files_are_refused(known: Precedents, broken: str) -> None:
    arrays = known.arrays()
    if broken == "png":
        arrays["png"] = arrays["png"][::-1].copy()
    elif broken == "mean":
        arrays["mean"] = arrays["mean"][:5]
    elif broken == "ends":
        arrays["ends"] = np.array([0, arrays["ends"][-1]])
    elif broken == "centres":
        arrays["centres"] = np.full_like(arrays["centres"], np.nan)
    else:
        del arrays["ends"]
    with pytest.raises(ValueError, match=r"found|no PNG"):
        Precedents.of_arrays(arrays)
