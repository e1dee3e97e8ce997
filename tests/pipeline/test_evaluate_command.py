"""calibrate, evaluate, compare and explain, one after the other, on small labelled images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.labelled import load_labels
from models.bundle import Bundle
from models.untrained import textured_frame, untrained_bundle
from pipeline.cli import run

HW = (96, 128)
Answer = Callable[..., dict[str, Any]]


def marked(seed: int, x: int, y: int) -> NDArray[np.uint8]:
    """A good frame with a chequered square: even an untrained network differs on it."""
    frame = textured_frame(*HW, 1, seed=seed)
    frame[y : y + 16, x : x + 16] = 255 * (np.indices((16, 16)).sum(0) % 2)[:, :, None]
    return frame


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 good images, 6 of each of two types of defects, masks and boxes."""
    root = tmp_path_factory.mktemp("data")
    for folder in ("good", "bad/chip", "bad/spot", "masks/chip", "masks/spot", "boxes"):
        (root / folder).mkdir(parents=True)
    for k in range(30):
        cv2.imwrite(str(root / "good" / f"g{k:02}.png"), textured_frame(*HW, 1, seed=k))
    for k in range(12):
        kind = ("chip", "spot")[k % 2]
        x, y = 20 + 5 * k, 30 + 2 * k
        cv2.imwrite(str(root / "bad" / kind / f"b{k:02}.png"), marked(200 + k, x, y))
        mask = np.zeros(HW, np.uint8)
        mask[y : y + 16, x : x + 16] = 255
        cv2.imwrite(str(root / "masks" / kind / f"b{k:02}.png"), mask)
        (root / "boxes" / f"b{k:02}.txt").write_text(f"{x} {y} {x + 16} {y + 16} {kind}\n")
    return root


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command line with --json and gives what it printed."""

    def ask(*arguments: object) -> dict[str, Any]:
        assert run([*map(str, arguments), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def calibrated(bundle: Path, data: Path, answer: Answer) -> Path:
    found = answer(
        "calibrate", bundle, "--good", data / "good", "--bad", data / "bad",
        "--masks", data / "masks", "--runtime", "torch", "--test-share", 0.4, "--policy", "f",
    )  # fmt: skip
    engine = found["engines"]["torch/f32"]
    assert engine["policy"] == "f"
    assert [engine["images"], engine["bad_images"]] == [18, 8]
    assert any("16 of 42 images are kept apart" in note for note in found["notes"])
    assert any("best F-score over pixels" in note for note in found["notes"])
    return Path(found["bundle"])


def test_evaluate_looks_at_exactly_what_was_kept_apart(
    calibrated: Path, data: Path, answer: Answer, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    found = answer(
        "evaluate", calibrated, "--good", data / "good", "--bad", data / "bad",
        "--masks", data / "masks", "--report", page, "--title", "A try",
    )  # fmt: skip
    assert len(found["images"]) == 16
    assert sum(found["confusion"].values()) == 16
    assert any("left out: 26 image(s) that hold up its thresholds" in n for n in found["notes"])
    known = set(Bundle.load(calibrated).calibration.images)
    assert len(known) == 26
    assert set(found["types"]) == {"chip", "spot"}
    assert found["figures"]["image_auroc"]["value"] > 0.9
    assert found["figures"]["pixel_auroc"]["value"] > 0.9
    text = page.read_text()
    assert "<title>A try</title>" in text
    everything = answer(
        "evaluate", calibrated, "--good", data / "good", "--bad", data / "bad",
        "--boxes", data / "boxes", "--seen", "--report", page, "--display", "0,2", "--iou", 0.1,
    )  # fmt: skip
    assert len(everything["images"]) == 42
    assert everything["figures"]["box_f"]["value"] is not None
    assert (
        run(["evaluate", str(calibrated), "--bad", str(data / "bad"), "--report", str(page)]) == 0
    )


def test_several_cameras_have_their_own_recipes(
    calibrated: Path, data: Path, answer: Answer, tmp_path: Path
) -> None:
    recipe = tmp_path / "blind.yaml"
    recipe.write_text("image_threshold: 1000000.0\n")
    plain = tmp_path / "plain.yaml"
    plain.write_text("merge_px: 8\n")
    found = answer(
        "evaluate", calibrated, "--good", f"a={data / 'good'}", "--bad", f"a={data / 'bad/chip'}",
        "--bad", f"b={data / 'bad/spot'}", "--seen", "--recipe", f"b={recipe}",
        "--report", tmp_path / "r.html", "--recipe", f"a={plain}",
    )  # fmt: skip
    by_camera = {image["camera"]: image["threshold"] for image in found["images"]}
    assert by_camera["b"] == 1e6 > by_camera["a"]
    assert found["cameras"]["b"]["recall"]["value"] == 0
    assert found["cameras"]["a"]["recall"]["value"] > 0.5


def test_cameras_are_calibrated_with_their_own_zones(
    bundle: Path, data: Path, answer: Answer, tmp_path: Path
) -> None:
    """Camera b sees a marked corner that its recipe excludes: the threshold is a's alone."""
    corner = tmp_path / "b"
    corner.mkdir()
    for k in range(12):
        frame = textured_frame(*HW, 1, seed=400 + k)
        frame[4:28, 4:28] = 255
        cv2.imwrite(str(corner / f"b{k}.png"), frame)
    zones = tmp_path / "b.yaml"
    zones.write_text("zones:\n- {polygon: [[0, 0], [60, 0], [60, 60], [0, 60]]}\n")
    plain = tmp_path / "a.yaml"
    plain.write_text("merge_px: 8\n")
    folders = ["--good", f"a={data / 'good'}", "--good", f"b={corner}", "--runtime", "torch"]
    recipes = ["--recipe", f"a={plain}", "--recipe"]
    apart = answer("calibrate", bundle, *folders, *recipes, f"b={zones}")
    blind = answer("calibrate", bundle, *folders, *recipes, f"b={plain}")
    high, low = (a["engines"]["torch/f32"]["image_threshold"] for a in (blind, apart))
    assert low < 0.8 * high
    assert run(["calibrate", str(bundle), *map(str, folders), "--still-px", "8"]) == 9


def test_compare_names_the_verdicts_that_differ(
    bundle: Path, calibrated: Path, data: Path, answer: Answer
) -> None:
    options = ["--good", data / "good", "--bad", data / "bad", "--runtime", "torch"]
    lax = answer("calibrate", bundle, *options[:2], "--runtime", "torch", "--false-rejects", 0.5)
    found = answer("compare", calibrated, lax["bundle"], *options, "--seen")
    assert found["differences"]["false_rejects"]["value"] > 0.1
    assert all(flip["failed"] == [False, True] for flip in found["flipped"])
    assert found["differences"]["image_auroc"]["value"] == pytest.approx(0, abs=0.05)
    assert run(["compare", str(calibrated), str(calibrated), *map(str, options), "--seen"]) == 0


def test_explain_names_the_place_and_what_would_turn_it_round(
    calibrated: Path, data: Path, answer: Answer, tmp_path: Path
) -> None:
    image = data / "bad" / "chip" / "b00.png"
    picture = tmp_path / "why.png"
    found = answer("explain", image, "--bundle", calibrated, "--out", picture)
    assert found["verdict"] == "fail"
    x0, y0, x1, y1 = found["places"][0]["box_xyxy"]
    assert x0 < 36
    assert x1 > 20
    assert y0 < 46
    assert y1 > 30
    assert found["places"][0]["fails"]
    assert found["places"][0]["grown"] == [["student", pytest.approx(found["score"])]]
    assert cv2.imread(str(picture)) is not None
    above = tmp_path / "above.yaml"
    above.write_text(
        f"image_threshold: {found['score'] * 1.01}\nzones:\n"
        "- {name: all, mode: include, polygon: [[0, 0], [128, 0], [128, 96], [0, 96]]}\n"
    )
    passed = answer("explain", image, "--bundle", calibrated, "--out", picture, "--recipe", above)
    assert passed["verdict"] == "pass"
    assert passed["places"][0]["zone"] == "all"
    assert "it would fail with an image threshold of" in passed["turned"]
    large = tmp_path / "large.yaml"
    large.write_text("min_area_px: 1000000\n")
    passed = answer("explain", image, "--bundle", calibrated, "--out", picture, "--recipe", large)
    assert passed["because"].startswith("decided at the minimum area")
    high = tmp_path / "high.yaml"
    high.write_text("pixel_threshold: 1000.0\nimage_threshold: 1000.0\n")
    passed = answer("explain", image, "--bundle", calibrated, "--out", picture, "--recipe", high)
    assert passed["because"].startswith("decided at the pixel threshold")
    assert run(["explain", str(image), "--bundle", str(calibrated), "--out", str(picture)]) == 0


def test_explain_tells_what_each_stage_of_the_engine_brought(
    data: Path, answer: Answer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = untrained_bundle(tmp_path, global_branch=True)
    options = ["--good", data / "good", "--runtime", "openvino/f32"]
    calibrated = answer("calibrate", whole, *options)["bundle"]
    low = tmp_path / "low.yaml"
    low.write_text("pixel_threshold: 0.01\nimage_threshold: 0.01\n")
    arguments = ["explain", data / "bad" / "spot" / "b01.png", "--bundle", calibrated,
                 "--out", tmp_path / "why.png", "--recipe", low]  # fmt: skip
    place = answer(*arguments)["places"][0]
    (first, alone), (second, together) = place["grown"]
    assert (first, second) == ("student", "global branch")
    assert together == pytest.approx(place["score"])
    assert alone != pytest.approx(together)
    assert run([str(argument) for argument in arguments]) == 0
    assert "score with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no images found, expected --good"),
        (["--masks", "masks"], "no images found"),
        (["--good", "good", "--masks", "masks"], "without defective images"),
        (["--good", "good", "--types", "1"], "KEY=NAME"),
        (["--good", "good", "--display", "2,1"], "LOW,HIGH"),
        (["--good", "good", "--runtime", "openvino/f32"], "thresholds for torch/f32 found"),
        (["--good", "none"], "expected a folder of images"),
        (["--good", "good", "--seen", "--recipe", "front=recipe.yaml"], "recipes for 'front'"),
        (["--good", "good", "--seen", "--part", "("], "a regular expression"),
    ],
)
def test_wrong_arguments_are_one_line(
    calibrated: Path,
    data: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (data / "recipe.yaml").write_text("merge_px: 8\n")
    arguments = [word.replace("=recipe", f"={data}/recipe") for word in arguments]
    places = [str(data / word) if (data / word).exists() else word for word in arguments]
    assert run(["evaluate", str(calibrated), *places]) not in (0, 1)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_ring_about_a_speck_in_another_zone_is_explained(
    calibrated: Path, answer: Answer, tmp_path: Path
) -> None:
    """Boxes overlap, and so do zones: the place of a defect is that of its own peak."""
    frame = textured_frame(*HW, 1, seed=3)
    frame[20:76:2, 40:100] = 255
    frame[40:56, 60:80] = textured_frame(16, 20, 1, seed=4)
    cv2.imwrite(str(tmp_path / "ring.png"), frame)
    recipe = tmp_path / "zones.yaml"
    recipe.write_text(
        "spread_px: 40\nzones:\n"
        "- {name: all, mode: include, polygon: [[0, 0], [128, 0], [128, 96], [0, 96]]}\n"
        "- {name: core, mode: include, min_area_px: 99999, "
        "polygon: [[60, 40], [80, 40], [80, 56]]}\n"
    )
    found = answer("explain", tmp_path / "ring.png", "--bundle", calibrated, "--recipe", recipe,
                   "--out", tmp_path / "p.png")  # fmt: skip
    assert found["verdict"] in ("pass", "fail")
    assert (found["verdict"] == "fail") == any(place["fails"] for place in found["places"])
    assert run(["explain", str(tmp_path / "ring.png"), "--bundle", str(calibrated),
                "--out", str(tmp_path / "no" / "p.png")]) == 9  # fmt: skip


def test_calibrating_with_nothing_says_what_was_left_out(
    bundle: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--bad", str(data / "bad")], ["--good", str(data / "good"), "--policy", "f"]):
        assert run(["calibrate", str(bundle), *options]) == 9
        said = capsys.readouterr().err
        assert "expected good ones, and defective ones for a policy" in said
        assert said.count("\n") == 1


def test_only_what_was_seen_is_nothing_to_evaluate(
    calibrated: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = Bundle.load(calibrated).calibration.images[0]
    (image,) = [i for i in load_labels([str(data / "good")], [str(data / "bad")]).images
                if i.sha256 == known]  # fmt: skip
    (tmp_path / image.path.name).write_bytes(image.path.read_bytes())
    assert run(["evaluate", str(calibrated), "--good", str(tmp_path)]) != 0
    assert "no image is left that the bundle has not seen" in capsys.readouterr().err
