"""Commands that make bundles, through the command line and on small inputs."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from models.bundle import Bundle
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.openvino_ import OpenVinoRuntime
from models.untrained import textured_frame, untrained_bundle
from pipeline.cli import run
from pipeline.config import load
from pipeline.station import Station


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), textured_frame(96, 128, 1, seed=100 + number))
    return folder


@pytest.fixture(scope="module")
def calibrate(bundle: Path, good: Path) -> list[str]:
    """A command line that works; a later option overrides an earlier one."""
    return ["calibrate", str(bundle), "--good", str(good)]


def test_calibrate_writes_a_new_bundle_beside_the_old_one(
    bundle: Path, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--good", str(good), "--runtime", "openvino/f32", "--threads", "1"]
    assert run(["calibrate", str(bundle), *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    path = Path(answer["bundle"])
    assert path.parent == bundle.parent
    assert Bundle.load(path).parent == Bundle.load(bundle).sha256
    assert set(answer["engines"]) == {"openvino/f32"}
    assert answer["engines"]["openvino/f32"]["images"] == 24
    assert answer["notes"]
    assert run(["calibrate", str(path), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"bundle: {bundle.parent}")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--good", "none"], 9, "expected a folder of images"),
        (["--runtime", "tenserrt"], 5, "tenserrt"),
        (["--runtime", "openvino/f16"], 5, "f16"),
        (["--false-rejects", "2"], 9, "a share between 0 and 1"),
        (["--recipe", "none.yaml"], 2, "no such file"),
        (["--threads", "-1"], 2, "--threads"),
    ],
)
def test_calibrate_says_what_is_wrong(
    calibrate: list[str],
    options: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*calibrate, *options]) == code
    caught = capsys.readouterr()
    assert words in caught.err
    assert "Traceback" not in caught.err


def test_calibrate_refuses_a_changed_bundle(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = untrained_bundle(tmp_path)
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    assert run(["calibrate", str(damaged), "--good", str(good)]) == 4
    assert "weights.safetensors" in capsys.readouterr().err


def test_teacher_train_writes_a_teacher_and_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "teacher.safetensors"
    options = ["--steps", "1", "--threads", "1", "--out", str(out), "--json"]
    assert run(["teacher", "train", *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["teacher"] == str(out)
    assert answer["variant"] == "pdn_tiny"
    assert out.exists()


def test_teacher_train_knows_its_variants(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["teacher", "train", "--variant", "pdn_huge"]) == 2
    assert "expected one of pdn_tiny, pdn_small, pdn_medium" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [[], ["--color"], ["--recipe"], ["--teacher"]], ids=str)
def test_train_writes_a_bundle(
    extra: list[str], good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given"
    if extra == ["--recipe"]:
        file.write_text("zones: [{mode: include, polygon: [[0, 0], [99, 0], [99, 95], [0, 95]]}]")
        extra = ["--recipe", str(file)]
    if extra == ["--teacher"]:
        assert run(["teacher", "train", "--steps", "1", "--out", str(file)]) == 0
        capsys.readouterr()
        extra = ["--teacher", str(file)]
    out = tmp_path / "bundles"
    options = ["--out", str(out), "--steps", "2", "--threads", "1", "--json", *extra]
    assert run(["train", str(good), *options]) == 0
    answer = json.loads(capsys.readouterr().out)
    bundle = Bundle.load(Path(answer["bundle"]))
    assert bundle.path.parent == out.resolve()
    assert bundle.in_channels == (3 if "--color" in extra else 1)
    assert (answer["images"], answer["held_out"]) == (19, 5)
    assert bundle.references()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--variant", "pdn_huge"], 2, "expected one of pdn_tiny"),
        (["--teacher", "none.safetensors"], 9, "none.safetensors"),
        (["--recipe", "none.yaml"], 2, "no such file"),
        (["--steps", "0"], 2, "--steps"),
    ],
)
def test_train_says_what_is_wrong(
    options: list[str], code: int, words: str, good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(good), *options]) == code
    assert words in capsys.readouterr().err


def test_train_needs_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(tmp_path / "none")]) == 9
    assert run(["train", str(tmp_path)]) == 9
    assert "no image found" in capsys.readouterr().err


TOLD: list[EngineOptions] = []


def telling(bundle: Bundle | None, options: EngineOptions) -> Runtime:
    """An engine that keeps what it was told."""
    assert bundle is not None
    TOLD.append(options)
    options.say("this takes some minutes")
    return OpenVinoRuntime(bundle.graph(), EngineOptions(threads=1))


def test_compile_opens_an_engine_as_the_station_would(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "line.yaml"
    config.write_text(
        f"station: compile\nstate_dir: state\nworker: {{bundle: {bundle}, max_batch: 8}}\n"
        "cameras: {left: {source: {kind: synthetic, width: 96, height: 64}}}\n"
    )
    options = ["--shape", "64x96", "--runtime", f"{__name__}:telling"]
    assert run(["compile", "--config", str(config), *options]) == 0
    assert "this takes some minutes" in capsys.readouterr().err
    assert run(["compile", str(bundle), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["opened"][0]["height"] == 64
    assert [told.max_batch for told in TOLD] == [8, 4]
    assert [told.shapes for told in TOLD] == [((64, 96, 1),)] * 2
    # Where the station would look: in its own folder, or in that of all that have none.
    shared = Station.of(load(config).model_copy(update={"state_dir": None}))
    assert [told.cache_dir for told in TOLD] == [tmp_path / "state" / "engines", shared.engines]
    assert shared.engines.parent == shared.state_dir.parent
