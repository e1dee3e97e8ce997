"""Bad input at the command line: a clear error that says what to do, and an exit code."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle, EngineThresholds, recalibrated
from models.untrained import untrained_bundle
from pipeline import cli
from pipeline.overlay import write_png
from pipeline.sources.recording import write_recording
from pipeline.types import map_hw

FRAMES = 12
SHAPE = (256, 320, 1)


def frames(count: int = FRAMES, shape: tuple[int, int, int] = SHAPE) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "line.mkv"
    write_recording(path, frames())
    return path


def replay(tmp_path: Path, *words: str | Path) -> tuple[int, Counter[str]]:
    """Exit code of a replay without an engine, and how many frames got which reason."""
    out = tmp_path / "results.jsonl"
    command = ["replay", *map(str, words), "--out", str(out)]
    code = cli.run([*command, *([] if "--bundle" in words else ["--runtime", "null"])])
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    ids = [row["frame_id"] for row in rows]
    assert ids == list(range(1, len(ids) + 1))
    return code, Counter(row["reason"] for row in rows)


def test_a_sound_recording_ends_with_zero(tmp_path: Path, recording: Path) -> None:
    assert replay(tmp_path, recording) == (0, {"defect": FRAMES})


def test_a_web_in_blocks(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, recording, "--continuous") == (0, {"defect": FRAMES})
    blocks = tmp_path / "blocks"
    blocks.mkdir()
    write_png(blocks / "0.png", np.zeros((60, 80, 1), np.uint8))
    code, _ = replay(tmp_path, blocks, "--continuous")
    assert code == 2
    assert "blocks of 60 lines found" in capsys.readouterr().err


def test_no_such_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, reasons = replay(tmp_path, tmp_path / "nothing.mkv")
    assert (code, reasons) == (3, {})
    assert "nothing.mkv" in capsys.readouterr().err


def test_a_video_without_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "gray"
        container.start_encoding()
    code, reasons = replay(tmp_path, path)
    assert (code, reasons) == (3, {})
    assert "empty.mkv" in capsys.readouterr().err


def test_a_file_that_is_no_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "letter.mkv"
    path.write_text("Dear Sir or Madam")
    assert replay(tmp_path, path) == (3, {})
    assert "letter.mkv" in capsys.readouterr().err


def test_a_truncated_recording_is_read_as_far_as_it_goes(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = recording.read_bytes()
    recording.write_bytes(data[: len(data) * 2 // 3])
    code, reasons = replay(tmp_path, recording)
    assert code == 3
    assert FRAMES // 2 <= reasons["defect"] < FRAMES
    assert "line.mkv" in capsys.readouterr().err


def test_a_corrupt_packet_costs_its_frame_alone(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(recording.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(16)
    recording.write_bytes(data)
    code, reasons = replay(tmp_path, recording)
    assert (code, reasons) == (3, {"defect": FRAMES - 1, "broken_frame": 1})
    assert "1 broken_frame of 12 frames" in capsys.readouterr().err


def test_a_frame_size_that_changes_in_mid_stream(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    sizes = [SHAPE, SHAPE, (128, 320, 1), SHAPE]
    for number, shape in enumerate(sizes):
        write_png(folder / f"{number}.png", frames(1, shape)[0])
    code, reasons = replay(tmp_path, folder)
    assert (code, reasons) == (3, {"defect": 3, "wrong_size": 1})
    assert "1 wrong_size of 4 frames" in capsys.readouterr().err


LENIENT = EngineThresholds(
    image_threshold=1e9,
    pixel_threshold=1e9,
    images=10,
    above=0,
    false_reject_bound=0.3,
    confidence=0.95,
    chosen="for a test",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    untrained = Bundle.load(untrained_bundle(tmp_path / "bundles"))
    calibration = replace(untrained.calibration, engines={"openvino/f32": LENIENT})
    return recalibrated(untrained, tmp_path / "bundles", calibration)


def test_a_bundle_of_openvino_f32_runs(tmp_path: Path, bundle: Path, recording: Path) -> None:
    code, reasons = replay(tmp_path, recording, "--bundle", bundle)
    assert (code, reasons) == (0, {"ok": FRAMES})


@pytest.mark.parametrize("fits", [True, False])
def test_a_tolerance_for_each_place_fits_one_frame_size(
    tmp_path: Path, bundle: Path, recording: Path, capsys: pytest.CaptureFixture[str], fits: bool
) -> None:
    made = Bundle.load(bundle)
    still = replace(made.thresholds("openvino/f32"), still_px=16)
    calibration = replace(made.calibration, engines={"openvino/f32": still})
    rows, columns = map_hw(*SHAPE[:2])
    tolerance = np.full((rows, columns if fits else columns + 1), 200, np.uint8)
    path = recalibrated(made, tmp_path / "bundles", calibration, {"openvino/f32": tolerance})
    code, reasons = replay(tmp_path, recording, "--bundle", path)
    if fits:
        assert (code, reasons) == (0, {"ok": FRAMES})
    else:
        assert (code, reasons) == (2, {})
        assert "the bundle's tolerance for each place" in capsys.readouterr().err


def test_the_null_runtime_needs_no_thresholds(
    tmp_path: Path, bundle: Path, recording: Path
) -> None:
    code, reasons = replay(tmp_path, recording, "--bundle", bundle, "--runtime", "null")
    assert (code, reasons) == (0, {"defect": FRAMES})


def test_a_bundle_with_a_changed_byte(
    tmp_path: Path, bundle: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert replay(tmp_path, recording, "--bundle", bundle) == (4, {})
    assert "weights.safetensors" in capsys.readouterr().err


def test_a_bundle_of_a_newer_schema(
    tmp_path: Path, bundle: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["schema"] += 1
    path.chmod(0o600)
    path.write_text(json.dumps(manifest))
    assert replay(tmp_path, recording, "--bundle", bundle) == (4, {})
    error = capsys.readouterr().err
    assert "schema" in error
    assert str(manifest["schema"]) in error


def test_a_bundle_without_thresholds_for_the_runtime(
    tmp_path: Path, bundle: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (recording, "--bundle", bundle, "--runtime", "torch")
    assert replay(tmp_path, *words) == (5, {})
    assert "linewatch calibrate" in capsys.readouterr().err


def test_a_disk_that_is_full_while_results_are_written(tmp_path: Path, recording: Path) -> None:
    assert cli.run(
        ["replay", str(recording), "--runtime", "null", "--out", "/dev/full/results.jsonl"]
    ) in (7,)


def test_a_configuration_with_a_typo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "station.yaml"
    shutil.copy("configs/replay.yaml", path)
    path.write_text(path.read_text().replace("station:", "staton:"))
    assert cli.run(["run", str(path)]) == 2
    error = capsys.readouterr().err
    assert "staton" in error
    assert "station" in error


@pytest.mark.parametrize("color", [True, False])
def test_a_folder_is_read_as_the_bundle_was_trained(tmp_path: Path, color: bool) -> None:
    folder, made = tmp_path / "images", Bundle.load(untrained_bundle(tmp_path, in_channels=3))
    folder.mkdir()
    for number in range(3):
        write_png(folder / f"{number}.png", frames(1, (*SHAPE[:2], 3 if color else 1))[0])
    calibration = replace(made.calibration, engines={"openvino/f32": LENIENT})
    path = recalibrated(made, tmp_path, calibration)
    assert replay(tmp_path, folder, "--bundle", path) == (0, {"ok": 3})


def test_a_video_of_colours_and_a_bundle_of_greys(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "colour.mkv"
    write_recording(video, frames(3, (*SHAPE[:2], 3)))
    code, reasons = replay(tmp_path, video, "--bundle", bundle)
    assert (code, reasons) == (2, {})
    assert "colour frames found, expected grey" in " ".join(capsys.readouterr().err.split())


def test_a_demo_empties_no_folder_of_yours(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    assert cli.run(["demo", "--out", str(tmp_path)]) == 2
    assert cli.run(["demo", "--out", str(tmp_path / "thesis.txt")]) == 2
    assert (tmp_path / "thesis.txt").read_text() == "all of it"
