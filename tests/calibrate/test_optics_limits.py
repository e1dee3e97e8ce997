"""Limits for the optics guard, from calibration's images to the bundle and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from calibrate.calibration import calibrate
from calibrate.optics import OpticsMaterial
from calibrate.scores import GoodMap
from models.bundle import Bundle, Calibration, recalibrated
from models.errors import BundleError
from models.untrained import textured_frame, untrained_bundle
from pipeline.config import Recipe
from pipeline.config.optics import OpticsConfig
from pipeline.optics.guard import Level, open_guard
from pipeline.optics.measure import OpticsLimits, measure

KNOWN = Calibration(0.1, 0.2, {})


def maps(count: int, camera: str = "", peak: float = 0.15, width: int = 96) -> list[GoodMap]:
    found = []
    for k in range(count):
        pixels = textured_frame(64, width, 1, seed=k)
        raw_map = np.full((16, width // 4), 0.1, np.float32)
        raw_map[3, 4] = peak
        found.append(GoodMap(str(k), (64, width), raw_map, camera=camera, optics=measure(pixels)))
    return found


def test_a_calibrated_bundle_opens_the_guard(tmp_path: Path) -> None:
    plain = untrained_bundle(tmp_path / "plain")
    images = [textured_frame(64, 96, 1, seed=k) for k in range(12)]
    notes: list[str] = []
    path = calibrate(plain, images, runtimes=["torch"], out_dir=tmp_path, note=notes.append)
    calibration = Bundle.load(path).calibration
    assert not [note for note in notes if "optics" in note]
    guard, why = open_guard(calibration.optics, "any", (64, 96), OpticsConfig(), "torch/f32")
    assert not why
    assert guard is not None
    assert guard.see(measure(images[3])).level is Level.OK
    assert guard.see(measure(np.zeros((64, 96, 1), np.uint8))).level is Level.INVALID
    assert set(OpticsLimits.of_plain(calibration.optics[""]).scores) == {"torch/f32"}


def test_each_camera_has_its_own_limits_and_scores_by_the_bundles_quantiles() -> None:
    material = OpticsMaterial()
    both = [*maps(10, "left", 0.15), *maps(12, "right", 0.19, width=104)]
    for engine in ("a/f32", "b/f32"):
        material.add(engine, both, KNOWN, Recipe())
    said: list[str] = []
    found = material.limits({}, said.append)
    assert not said
    left, right = (OpticsLimits.of_plain(found[name]) for name in ("left", "right"))
    assert (left.images, right.images) == (10, 12)
    for engine in ("a/f32", "b/f32"):
        assert left.scores[engine] == pytest.approx((0.05,) * 3, rel=1e-4)
        assert right.scores[engine] == pytest.approx((0.09,) * 3, rel=1e-4)


def test_what_calibration_cannot_say_now_stays_as_it_was() -> None:
    first = OpticsMaterial()
    first.add("a/f32", maps(10), KNOWN, Recipe())
    before = first.limits({}, lambda _: None)
    again = OpticsMaterial()
    again.add("b/f32", maps(11), KNOWN, Recipe())
    found = OpticsLimits.of_plain(again.limits(before, lambda _: None)[""])
    assert (found.images, set(found.scores)) == (11, {"a/f32", "b/f32"})

    few = OpticsMaterial()
    few.add("b/f32", maps(3), KNOWN, Recipe())
    said: list[str] = []
    assert few.limits(before, said.append) == before
    assert few.limits({}, said.append) == {}
    assert ["as before" in said[0], "not be watched" in said[1]] == [True, True]


def test_a_bundle_of_before_has_no_limits_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path))
    assert bundle.calibration.optics == {}
    odd = dataclasses.replace(bundle.calibration, optics={"": 3})  # type: ignore[dict-item]
    with pytest.raises(BundleError, match="calibrate again"):
        Bundle.load(recalibrated(bundle, tmp_path, odd))
