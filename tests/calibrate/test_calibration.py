"""From a bundle and good images to a bundle with thresholds that the line's rule works with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.calibration import Material, calibrate, choose_thresholds
from calibrate.labelled import Defect, LabelledImage
from calibrate.scores import GoodMap, raw_maps
from calibrate.thresholds import Promise
from models.bundle import Bundle, Calibration
from models.errors import DataError as ModelsDataError
from models.errors import RuntimeUnavailable
from models.runtimes import open_runtime
from models.untrained import textured_frame, untrained_bundle
from pipeline.config import Recipe, Zone
from pipeline.errors import DataError
from pipeline.rules import Decision, DecisionRule, Thresholds
from pipeline.types import Label, map_hw

SIZES = [(64, 96), (80, 80), (33, 120)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(untrained_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    for k in range(24):
        frame = textured_frame(*SIZES[k % 3], 1, seed=100 + k)
        cv2.imwrite(str(folder / f"{k:02}.png"), frame)
    return sorted(folder.iterdir())


def normal_maps(count: int, seed: int = 0) -> list[GoodMap]:
    """Maps around 0.1 with spots that differ from image to image."""
    rng = np.random.default_rng(seed)
    maps = []
    for k in range(count):
        hw = SIZES[k % 3]
        raw_map = rng.normal(0.1, 0.01, map_hw(*hw)).astype(np.float32)
        raw_map[3:5, 2:6] += np.float32(0.02 + 0.03 * rng.random())
        maps.append(GoodMap(f"{k}", hw, raw_map))
    return maps


CALIBRATION = Calibration(0.1, 0.12, {})


def test_calibrated_bundle_passes_what_it_was_calibrated_on(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    ticks: list[tuple[int, int]] = []
    notes: list[str] = []
    path = calibrate(
        bundle.path,
        images,
        runtimes=["openvino/f32", "torch", "openvino/f32"],
        out_dir=tmp_path,
        threads=2,
        progress=lambda done, total: ticks.append((done, total)),
        note=notes.append,
    )
    calibrated = Bundle.load(path)
    assert calibrated.parent == bundle.sha256
    assert set(calibrated.calibration.engines) == {"openvino/f32", "torch/f32"}
    assert ticks == [(k, 2 * len(images)) for k in range(1, 2 * len(images) + 1)]
    assert {note.partition(":")[0] for note in notes} == {"openvino/f32", "torch/f32", "optics"}
    assert not calibrated.calibration.optics  # images of three sizes
    both = [calibrated.thresholds(engine) for engine in ("openvino/f32", "torch/f32")]
    assert both[0].image_threshold == pytest.approx(both[1].image_threshold, rel=1e-4)
    for thresholds in both:
        assert thresholds.images == len(images)
        assert thresholds.above == 0
        assert 0 < thresholds.pixel_threshold <= thresholds.image_threshold
        assert "574 more are needed" in thresholds.chosen

    runtime = open_runtime(calibrated, "openvino", "f32", threads=2)
    for good in raw_maps(runtime, images, 1, Recipe()):
        assert decide(calibrated, good).label is Label.PASS
    marked = textured_frame(64, 96, 1, seed=5)
    marked[20:44, 30:60] = 255 * (np.indices((24, 30)).sum(0) % 2)[:, :, None]
    decision = decide(calibrated, raw_maps(runtime, [marked], 1, Recipe())[0])
    assert decision.label is Label.FAIL
    runtime.close()


def decide(bundle: Bundle, good: GoodMap) -> Decision:
    engine = bundle.thresholds("openvino/f32")
    numbers = Thresholds(
        bundle.calibration.q_a,
        bundle.calibration.q_b,
        engine.image_threshold,
        engine.pixel_threshold,
    )
    return DecisionRule(numbers, Recipe(), good.frame_hw).decide(good.raw_map)


def test_parts_that_lie_still_get_a_tolerance_for_each_place(
    bundle: Bundle, tmp_path: Path
) -> None:
    frames = [textured_frame(64, 96, 1, seed=k) for k in range(25)]
    path = calibrate(bundle.path, frames, runtimes=["torch"], out_dir=tmp_path, still_px=8)
    calibrated = Bundle.load(path)
    tolerance = calibrated.tolerance("torch/f32")
    assert tolerance is not None
    assert tolerance.shape == (16, 24)
    assert tolerance.max() == 255
    assert calibrated.thresholds("torch/f32").still_px == 8
    again = calibrate(calibrated.path, frames, runtimes=["openvino/f32"], out_dir=tmp_path)
    kept = Bundle.load(again)
    assert kept.tolerance("openvino/f32") is None
    assert np.array_equal(kept.tolerance("torch/f32"), tolerance)
    loose = Bundle.load(calibrate(again, frames, runtimes=["torch"], out_dir=tmp_path))
    assert loose.tolerance("torch/f32") is None


def test_calibrating_one_engine_keeps_the_others(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    first = Bundle.load(calibrate(bundle.path, images, runtimes=["torch"], out_dir=tmp_path))
    second = Bundle.load(
        calibrate(first.path, images, runtimes=["openvino/f32"], out_dir=tmp_path, threads=2)
    )
    assert second.parent == first.sha256
    assert second.thresholds("torch/f32") == first.thresholds("torch/f32")


def test_frames_in_memory_serve_as_well_as_files(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    frames: list[Path | NDArray[np.uint8]] = [
        cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:, :, None] for path in images
    ]
    from_files = calibrate(bundle.path, images, runtimes=["torch"], out_dir=tmp_path)
    from_memory = calibrate(bundle.path, frames, runtimes=["torch"], out_dir=tmp_path)
    by_files, by_memory = Bundle.load(from_files), Bundle.load(from_memory)
    assert by_files.thresholds("torch/f32") == by_memory.thresholds("torch/f32")
    assert len(by_files.calibration.images) == len(images)
    assert by_memory.calibration.images == ()


@pytest.mark.parametrize("share", [0.0, 1.0, 99.99, -1.0, float("nan")])
def test_a_share_that_is_none(share: float, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pixel_quantile .* found, expected a share"):
        calibrate(tmp_path, [], pixel_quantile=share, out_dir=tmp_path)


def test_excluded_zones_do_not_count() -> None:
    maps = normal_maps(30)
    plain, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(), Promise())
    for good in maps:
        good.raw_map[0, 0] = 9.0
    spoilt, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(), Promise())
    corner = Recipe(zones=(Zone(polygon=((0, 0), (3, 0), (3, 3), (0, 3))),))
    zoned, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, corner, Promise())
    assert spoilt.image_threshold > 5 * plain.image_threshold
    assert zoned.image_threshold == pytest.approx(plain.image_threshold)


def test_minimum_area_lets_lonely_peaks_pass_in_calibration_too() -> None:
    maps = normal_maps(30)
    for good in maps:
        good.raw_map[1, 1] = 9.0
    small, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(merge_px=0), Promise())
    recipe = Recipe(merge_px=0, min_area_px=48)
    large, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, recipe, Promise())
    assert large.image_threshold < small.image_threshold / 5


def test_pixel_threshold_lies_in_the_good_tail_and_under_the_image_threshold() -> None:
    maps = normal_maps(60)
    for recipe in (Recipe(), Recipe(min_area_px=64)):
        thresholds, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, recipe, Promise())
        assert 0 < thresholds.pixel_threshold <= thresholds.image_threshold
        cells = np.concatenate([good.raw_map.ravel() for good in maps])
        raw = CALIBRATION.raw(thresholds.pixel_threshold)
        assert 0 < (cells >= raw * (1 - 1e-6)).mean() <= 2e-4
    # With a promise that lets many good images fail, the image threshold sinks below the tail.
    lax, _ = choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(), Promise(0.6, 0.5))
    assert lax.pixel_threshold == lax.image_threshold
    assert lax.above > 20


def test_own_thresholds_of_a_recipe_do_not_hide_the_scores(
    bundle: Bundle, images: list[Path], tmp_path: Path
) -> None:
    plain = calibrate(bundle.path, images, runtimes=["torch"], out_dir=tmp_path)
    recipe = Recipe(image_threshold=50.0, pixel_threshold=40.0)
    again = calibrate(bundle.path, images, runtimes=["torch"], recipe=recipe, out_dir=tmp_path)
    assert again == plain


def test_one_image_that_decides_alone_is_named() -> None:
    maps = normal_maps(30)
    assert len(choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(), Promise())[1]) == 1
    maps[7].raw_map[4, 4] = 3.0
    notes = choose_thresholds(Material.of_good(maps), CALIBRATION, Recipe(), Promise())[1]
    assert len(notes) == 2
    assert notes[1].startswith("7 has a score of")
    assert "look whether it is good" in notes[1]


def test_unfit_images_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no good images"):
        calibrate(bundle.path, [], runtimes=["torch"], out_dir=tmp_path)
    with pytest.raises(DataError, match="1 good parts found, expected at least 5"):
        calibrate(
            bundle.path, [textured_frame(64, 64, 1)] * 2, runtimes=["torch"], out_dir=tmp_path
        )
    with pytest.raises(ModelsDataError, match="channels"):
        calibrate(bundle.path, [textured_frame(64, 64, 3)], runtimes=["torch"], out_dir=tmp_path)
    with pytest.raises(RuntimeUnavailable, match="'onnx' found"):
        calibrate(bundle.path, [], runtimes=["onnx"], out_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def bad_maps(count: int, seed: int = 5) -> tuple[list[GoodMap], list[LabelledImage]]:
    """Good maps with a square of 4x4 cells, 0.3 high and with a skirt, and its true box."""
    maps, labels = [], []
    for k, found in enumerate(normal_maps(count, seed)):
        found.raw_map[2:8, 4:10] = np.maximum(found.raw_map[2:8, 4:10], 0.2)
        found.raw_map[3:7, 5:9] = 0.4
        maps.append(found)
        box = Defect("spot", (18, 10, 34, 26))
        labels.append(LabelledImage(Path(f"{k}.png"), True, kind="spot", boxes=(box,)))
    return maps, labels


def test_boxes_of_defects_set_the_outline() -> None:
    good = normal_maps(60)
    bad, labels = bad_maps(12)
    material = Material(good, range(60), bad, range(12), labels)
    plain, _ = choose_thresholds(Material.of_good(good), CALIBRATION, Recipe(), Promise())
    recipe = Recipe(box_fraction=0.0, merge_px=0)
    drawn, notes = choose_thresholds(material, CALIBRATION, recipe, Promise())
    assert "best F-score of boxes at IoU 0.33, 1.000" in notes[-1]
    assert drawn.image_threshold == plain.image_threshold
    assert drawn.pixel_threshold <= drawn.image_threshold
    assert [drawn.bad_images, drawn.bad_below] == [12, 0]
    assert drawn.escape_bound == pytest.approx(1 - 0.05 ** (1 / 12))
    assert drawn.highest == pytest.approx(0.1 * (0.4 - 0.1) / 0.02, rel=1e-4)


def test_masks_of_defects_set_the_outline(tmp_path: Path) -> None:
    bad, labels = bad_maps(12)
    masked = []
    for k, (found, label) in enumerate(zip(bad, labels, strict=True)):
        mask = np.zeros(found.frame_hw, np.uint8)
        mask[10:26, 18:34] = 255
        cv2.imwrite(str(tmp_path / f"{k}.png"), mask)
        masked.append(dataclasses.replace(label, boxes=None, mask=tmp_path / f"{k}.png"))
    material = Material(normal_maps(60), range(60), bad, range(12), masked)
    drawn, notes = choose_thresholds(material, CALIBRATION, Recipe(), Promise())
    assert "best F-score over pixels" in notes[-1]
    # The square is 1.5 as a score and its skirt 0.5: the threshold tells them apart.
    assert 0.4 < drawn.pixel_threshold <= 1.5


def test_images_of_one_part_count_once(images: list[Path], bundle: Bundle, tmp_path: Path) -> None:
    """Each image twice, with a little noise the second time: as many parts as before."""
    rng = np.random.default_rng(0)
    frames: list[NDArray[np.uint8]] = []
    for path in images[:8]:
        frame = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[:, :, None]
        noisy = np.clip(frame + rng.normal(0, 0.4, frame.shape).round(), 0, 255)
        frames += [frame, noisy.astype(np.uint8)]
    notes: list[str] = []
    path = calibrate(bundle.path, frames, runtimes=["torch"], out_dir=tmp_path, note=notes.append)
    assert Bundle.load(path).thresholds("torch/f32").images == 8
    assert "16 good images show 8 parts" in notes[0]


def test_part_ids_in_names_group_images(bundle: Bundle, images: list[Path], tmp_path: Path) -> None:
    named = []
    for k, path in enumerate(images):
        copy = tmp_path / f"part{k // 2}_view{k % 2}.png"
        copy.write_bytes(path.read_bytes())
        named.append(copy)
    path = calibrate(
        bundle.path, named, runtimes=["torch"], out_dir=tmp_path, part_pattern=r"part(\d+)_"
    )
    assert Bundle.load(path).thresholds("torch/f32").images == len(images) // 2


@pytest.mark.parametrize("seed", range(4))
def test_with_a_minimum_area_the_counts_are_those_of_the_rule_that_serves(seed: int) -> None:
    """Places shrink as the pixel threshold rises: scores of another one would promise nonsense."""
    good = normal_maps(60, seed)
    bad, labels = bad_maps(12, seed + 50)
    for k, found in enumerate(bad):  # hills: large at their feet, small at their tops
        found.raw_map[2:8, 4:10] = 0.13 + 0.002 * k
        found.raw_map[4:6, 6:8] = 0.2 + 0.01 * k
    for recipe in (Recipe(min_area_px=160), Recipe(min_area_px=64, merge_px=0)):
        material = Material(good, range(60), bad, range(12), labels)
        chosen, _ = choose_thresholds(material, CALIBRATION, recipe, Promise())
        thresholds = Thresholds(0.1, 0.12, chosen.image_threshold, chosen.pixel_threshold)

        def fails(found: GoodMap, used: Recipe = recipe, by: Thresholds = thresholds) -> bool:
            return DecisionRule(by, used, found.frame_hw).decide(found.raw_map).label is Label.FAIL

        assert chosen.pixel_threshold <= chosen.image_threshold
        assert chosen.above == sum(map(fails, good))
        assert chosen.bad_below == 12 - sum(map(fails, bad))


def test_a_map_that_is_not_finite_names_its_image(bundle: Bundle) -> None:
    runtime = NanRuntime()
    with pytest.raises(DataError, match=r"frame 1: a map with NaN"):
        raw_maps(runtime, [textured_frame(64, 64, 1)] * 2, 1, Recipe())


class NanRuntime:
    """Good once, then broken."""

    engine_id = "nan/none/none"

    def __init__(self) -> None:
        self._seen = 0

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self._seen += 1
        for raw_map in out:
            raw_map.fill(np.nan if self._seen > 1 else 0.1)
        return [float(raw_map.max()) for raw_map in out]

    def close(self) -> None:
        return
