"""`linewatch train` from folders, recordings and files, with what people get wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.bundle import Bundle
from models.settings import TrainingSettings
from models.untrained import textured_frame
from pipeline.cli import run
from pipeline.commands.train import inspected_of
from pipeline.errors import ConfigError
from pipeline.sources.frames import extract_frames
from pipeline.sources.recording import write_recording
from pipeline.training_config import TrainingConfig, load_training, settings_of

QUICK = ["--steps", "2", "--set", "batch=1", "--set", "crop_px=64", "--set", "tile=64"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for k in range(6):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(96, 128, 1, seed=k))
    return folder


def test_a_folder_becomes_a_bundle_with_its_picture(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(good), "--out", str(tmp_path), *QUICK, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    bundle = Bundle.load(Path(answer["bundle"]))
    assert bundle.provenance["validated_on"] == "drawn defects on held-out good images"
    assert answer["curves"]["1"]["auroc"][-1][0] == 2
    names = [f"{bundle.path.name}-{what}.png" for what in ("tiles", "curves")]
    assert [Path(path).name for path in answer["pictures"]] == names
    assert all(cv2.imread(path) is not None for path in answer["pictures"])
    assert answer["left_out"] == []
    assert not list(tmp_path.glob("*.state"))
    assert run(["train", str(good), "--out", str(tmp_path), *QUICK]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"bundle: {bundle.path}"


def test_a_recording_is_as_good_as_its_frames(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [textured_frame(96, 128, 1, seed=k) for k in range(9)]
    recording = tmp_path / "line.mkv"
    write_recording(recording, frames)
    options = ["--every", "2", "--out", str(tmp_path / "out"), *QUICK, "--json"]
    assert run(["train", str(recording), *options]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4  # of 5, one held out
    (folder,) = (tmp_path / "out" / "frames").iterdir()
    found = sorted(folder.iterdir())
    assert [path.name for path in found] == [f"{k:08d}.png" for k in (0, 2, 4, 6, 8)]
    np.testing.assert_array_equal(cv2.imread(str(found[1]), 0), frames[2][..., 0])
    assert extract_frames(recording, tmp_path / "out" / "frames", 2) == folder
    assert extract_frames(recording, tmp_path / "out" / "frames", 3) != folder


def test_a_file_says_it_all_and_options_win(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    cv2.imwrite(str(bad / "0.png"), textured_frame(96, 128, 1, seed=50) // 2)
    (tmp_path / "part.yaml").write_text(
        f"good: {good}\n"
        f"validation: {{good: {good}, defect: [bad]}}\n"
        "color: true\n"
        "settings:\n"
        "  steps: 50\n"
        "  batch: 1\n"
        "  crop_px: 64\n"
        "  tile: 64\n"
        "  scales: [1, 2]\n"
        "  augment: {mirror: true, brightness: 0.1}\n"
    )
    options = ["--steps", "2", "--grey", "--set", "augment.mirror=false", "--json"]
    assert run(["train", str(tmp_path / "part.yaml"), "--out", str(tmp_path), *options]) == 0
    bundle = Bundle.load(Path(json.loads(capsys.readouterr().out)["bundle"]))
    assert bundle.in_channels == 1
    assert bundle.scales == (1, 2)
    settings = bundle.provenance["settings"]
    assert settings["steps"] == 2
    assert settings["augment"]["mirror"] is False
    assert settings["augment"]["brightness"] == 0.1
    assert bundle.provenance["validated_on"] == "6 good and 1 defective images"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settings: {}\n", "good"),
        ("good: x\nvarient: pdn_tiny\n", "did you mean 'variant'"),
        ("good: x\nsettings: {step: 5}\n", "settings.step: no such key"),
        ("good: x\nsettings: {steps: many}\n", "settings.steps: found 'many'"),
        ("good: x\nsettings: {steps: 0}\n", "training setting steps: 0 found"),
        ("good: x\nsettings: {augment: {miror: true}}\n", "did you mean mirror"),
        ("good: x\nsettings: {augment: {turn_degrees: 90}}\n", "augment.turn_degrees"),
        ("good: x\nlevels: [1]\n", "levels"),
    ],
)
def test_faults_in_a_file_are_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "part.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_training(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scales", "3"], "expected 1, 2 or 1,2"),
        (["--scales", "2,1"], "expected 1, 2 or 1,2"),
        (["--variant", "pdn_huge"], "expected one of pdn_tiny"),
        (["--set", "steps"], "expected KEY=VALUE"),
        (["--set", "batch=none"], "settings.batch"),
        (["--set", "batch.size=3"], "batch has no keys"),
        (["--levels", "5"], "two whole numbers"),
        (["--validate-good", "x"], "expected both or none"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_faults_in_options_are_named(
    good: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(good), "--out", str(tmp_path), *QUICK, *options]) != 0
    assert words in capsys.readouterr().err


def test_a_folder_has_no_frames_to_skip(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(good), "--out", str(tmp_path), *QUICK, "--every", "3"]) != 0
    assert "expected a recording" in capsys.readouterr().err


def test_a_teacher_that_contradicts_the_variant_is_refused(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(__file__).parents[2] / "models" / "weights" / "teacher_pdn_tiny.safetensors"
    command = ["train", str(good), "--out", str(tmp_path), *QUICK, "--teacher", str(path)]
    assert run([*command, "--variant", "pdn_small"]) != 0
    assert "leave out one of them" in capsys.readouterr().err
    assert run(command) == 0


def test_a_folder_of_strangers_is_looked_at(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    cv2.imwrite(str(strangers / "0.png"), np.full((40, 300, 3), 250, np.uint8))
    losses = []
    for options in ([], ["--penalty", str(strangers)], ["--set", "penalty=1"]):
        assert run(["train", str(good), "--out", str(tmp_path), *QUICK, *options, "--json"]) == 0
        bundle = Bundle.load(Path(json.loads(capsys.readouterr().out)["bundle"]))
        losses.append(bundle.provenance["last_loss"])
        assert bundle.provenance["settings"]["penalty"] == bool(options)
    assert len(set(losses)) == 3


def test_what_is_too_small_at_half_the_size_is_left_out_by_name(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(good, folder)
    for k in range(6, 12):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(96, 128, 1, seed=k))
    cv2.imwrite(str(folder / "low.png"), textured_frame(60, 128, 1))
    command = ["train", str(folder), "--out", str(tmp_path), *QUICK, "--json"]
    for options in (["--scales", "2"], ["--set", "wide_view=true", "--set", "wide_scales=[2]"]):
        assert run([*command, *options, "--set", "wide_steps=2"]) == 0
        (sentence,) = json.loads(capsys.readouterr().out)["left_out"]
        assert "low.png: 128x60 found, expected at least 65x65" in sentence
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == []
    assert not list(tmp_path.glob(".tiles-*"))


def test_one_image_with_colour_among_many_counts_and_is_told(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(good, folder)
    for k in range(6, 10):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(96, 128, 1, seed=k))
    cv2.imwrite(str(folder / "z.png"), textured_frame(96, 128, 3))
    assert run(["train", str(folder), "--out", str(tmp_path), *QUICK]) == 0
    told = capsys.readouterr().out
    assert "1 of 11 images have colour, the others none" in told
    assert Bundle.load(Path(told.splitlines()[-1].removeprefix("bundle: "))).in_channels == 3


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_an_error(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for k in range(count):
        cv2.imwrite(str(folder / f"{k}.png"), textured_frame(96, 128, 1, seed=k))
    assert run(["train", str(folder), "--out", str(tmp_path), *QUICK]) == 9
    assert "found, expected" in capsys.readouterr().err


def test_the_chewing_gum_experiment_is_the_papers() -> None:
    config = load_training(Path(__file__).parents[2] / "configs" / "visa_chewinggum.yaml")
    settings = settings_of(config.settings)
    assert (config.variant, config.color) == ("pdn_small", True)
    assert (settings.tile, settings.epochs, settings.batch) == (256, 20, 4)
    assert (settings.spoiled, settings.hard_quantile, settings.optimiser) == (0, 0.999, "adam")
    assert (settings.begin, settings.max_gradient) == ("random", 0)
    assert settings.scales == (1,)


@pytest.mark.parametrize("fixture", [True, False])
def test_zones_that_move_with_the_part_are_not_where_it_was_taught(
    good: Path, tmp_path: Path, fixture: bool
) -> None:
    recipe = {"zones": [{"mode": "include", "polygon": [[0, 0], [40, 0], [40, 40], [0, 40]]}]}
    if fixture:
        recipe |= {"fixture": {"kind": "threshold", "taught_x": 20, "taught_y": 20}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    found = inspected_of(
        TrainingConfig(good=str(good), recipe=str(path)), sorted(good.glob("*.png"))
    )
    assert (found is None) == fixture
    assert found is None or (found[:40, :40].all() and not found.all())


def test_settings_by_name() -> None:
    assert settings_of({}) == TrainingSettings()
    assert settings_of({"scales": [1, 2]}).scales == (1, 2)


@pytest.mark.slow
def test_two_processes_make_one_bundle(good: Path, tmp_path: Path) -> None:
    recording = tmp_path / "line.mkv"
    write_recording(recording, [textured_frame(96, 128, 1, seed=k) for k in range(6)])
    out = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    meeting = ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    train = ["-m", "pipeline.cli", "train", str(recording), "--out", str(out), "--threads", "1"]
    command = [*torchrun, *meeting, *train, *QUICK, "--steps", "4", "--set", "validations=2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def go(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *options], capture_output=True, text=True, env=environment, check=False
        )

    first = go("--json")
    assert first.returncode == 0, first.stderr
    bundle = Path(json.loads(first.stdout)["bundle"])
    assert [path.name for path in out.glob("pdn_tiny-*") if path.is_dir()] == [bundle.name]
    assert not list(out.glob("*.state*"))
    again = go("--json", "--resume")
    assert json.loads(again.stdout)["bundle"] == str(bundle)
    assert json.loads(again.stdout)["resumed_at"] == {"1": 0}
