"""`linewatch cameras` and `linewatch cameras snap`, on emulated cameras."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.cli import run
from pipeline.config import load
from pipeline.sources.discover import Found, as_yaml

ROOT = Path(__file__).parents[2]
SERIALS = [f"0815-000{number}" for number in range(4)]

Station = Callable[..., Path]


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """Writes a configuration whose camera `left` has these lines, its source's first."""

    def write(source: str, more: str = "") -> Path:
        path = tmp_path / "station.yaml"
        path.write_text(
            f"station: s\ncameras:\n  left:\n    source: {{{source}}}\n{more}"
            "  film:\n    source: {kind: synthetic}\n"
        )
        return path

    return write


def basler(folder: Path, pixel_format: str, more: str = "") -> str:
    return (
        f"kind: basler, serial: 0815-0002, width: 40, height: 36, pixel_format: {pixel_format}, "
        f"features: {{TestImageSelector: 'Off', ImageFilename: {folder}, ImageFileMode: 'On'}}"
        f"{more}"
    )


def test_json_lists_what_is_connected(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cameras", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = {one["serial"]: one for one in answer["cameras"] if one["kind"] == "basler"}
    assert list(found) == SERIALS
    assert found["0815-0001"]["model"] == "Emulation"
    assert "BayerBG16" in found["0815-0001"]["formats"]
    assert "basler" not in answer["notes"]


def test_the_table_names_serials_and_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cameras"]) == 0
    text = capsys.readouterr().out
    assert all(serial in text for serial in (*SERIALS, "Mono12"))


def test_yaml_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cameras", "--yaml"]) == 0
    path = tmp_path / "line.yaml"
    path.write_text("station: line-1\n" + capsys.readouterr().out)
    cameras = load(path).cameras
    assert {f"basler-{serial}" for serial in SERIALS} <= set(cameras)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Found("basler", "a", "7:b/c", "10.0.0.1"), ["\n  basler-7-b-c:\n    source:"]),
        (
            Found("basler", "a", "7", "", source={"serial": "7"}, note="in\nuse"),
            ["\n  # in use\n  # basler-7:\n  #   source:\n  #     serial"],
        ),
        (Found("v4l2", "a", "", "/dev/video0", source={"kind": "v4l2"}), ["v4l2-1:"]),
        (Found("basler", "a", "x" * 80, ""), [f"basler-{'x' * 41}:"]),
        (Found("basler", "a", "0815", "", source={"serial": "0815"}), ['serial: "0815"']),
    ],
)
def test_names_and_values_of_the_yaml_are_ones_that_are_read(
    found: Found, words: list[str]
) -> None:
    text = as_yaml([found])
    assert all(word in text for word in words), text


def test_no_camera_is_an_empty_list() -> None:
    assert as_yaml([]) == "cameras:"


def without(package: str, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run linewatch as if `package` was not installed."""
    code = f"raise ModuleNotFoundError('no {package}', name={package!r})\n"
    (tmp_path / f"{package}.py").write_text(code)
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("option", [[], ["--yaml"]])
def test_a_library_that_is_missing_hides_no_other_camera(tmp_path: Path, option: list[str]) -> None:
    answer = without("pypylon", tmp_path, "cameras", *option)
    assert answer.returncode == 0, answer.stderr
    assert "pip install 'linewatch[basler]'" in answer.stdout
    assert "Traceback" not in answer.stderr


def test_snap_without_the_library_names_the_extra(tmp_path: Path, station: Station) -> None:
    path = station("kind: basler, width: 40, height: 36")
    answer = without("pypylon", tmp_path, "cameras", "snap", str(path), "left", "--out", "a.png")
    assert answer.returncode == 5
    assert "pip install 'linewatch[basler]'" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_snap_keeps_all_bits(
    tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(1).integers(0, 2**16, (36, 40), np.uint16)
    image[0, :18] = 2**16 - 1
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), image)
    path = station(basler(folder, "Mono12"), "    trigger: {mode: software}\n")
    out = tmp_path / "left.png"
    assert run(["cameras", "snap", str(path), "left", "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    saved = np.asarray(cv2.imread(str(out), cv2.IMREAD_UNCHANGED))
    assert saved.dtype == np.uint16
    assert np.array_equal(saved, image >> 4)
    assert (answer["bits"], answer["min"], answer["max"]) == (12, int((image >> 4).min()), 4095)
    assert answer["mean"] == pytest.approx((image >> 4).mean())
    assert answer["saturated"] == pytest.approx((image >> 4 == 4095).mean())
    assert answer["settings"]["DeviceSerialNumber"] == "0815-0002"


def test_snap_of_colour_is_in_colour(
    tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(2).integers(0, 256, (36, 40, 3), np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "0.png"), image)
    path = station(basler(folder, "BGR8Packed", ", color: true"))
    out = tmp_path / "left.png"
    assert run(["cameras", "snap", str(path), "left", "--out", str(out)]) == 0
    assert np.array_equal(np.asarray(cv2.imread(str(out), cv2.IMREAD_UNCHANGED)), image)
    text = capsys.readouterr().out
    assert "40 x 36 px, 8 bits" in text
    assert f"values {image.min()} to {image.max()} of 0 to 255, mean {image.mean():.1f}" in text


def test_snap_works_with_any_camera(
    tmp_path: Path, station: Station, capsys: pytest.CaptureFixture[str]
) -> None:
    path = station("kind: rendered, width: 300, height: 64")
    assert run(["cameras", "snap", str(path), "left", "--out", str(tmp_path / "a.png")]) == 0
    assert "300 x 64 px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "more", "arguments", "code", "words"),
    [
        ("", "", ["right", "--out", "a.png"], 2, "camera 'right' found, expected one of"),
        ("", "", ["film", "--out", "a.png"], 2, "film is a synthetic source"),
        ("", "", ["left", "--out", "a.jpg"], 2, "expected the name of a PNG file"),
        ("", "", ["left", "--out", "no/such/a.png"], 2, "cannot be written"),
        (
            "kind: basler, serial: '1', width: 40, height: 36",
            "",
            ["left", "--out", "a.png"],
            3,
            "no Basler camera serial 1 found",
        ),
        (
            "kind: basler, serial: 0815-0000, width: 40, height: 36",
            "    trigger: {mode: hardware}\n",
            ["left", "--out", "a.png", "--wait", "0.2"],
            3,
            "no whole frame of left found within 0.2 s",
        ),
        (
            "kind: basler, serial: 0815-0000, width: 40, height: 36, "
            "features: {ForceFailedBufferCount: 1024, ForceFailedBuffer: true}",
            "",
            ["left", "--out", "a.png", "--wait", "0.5"],
            3,
            "the last one was broken_frame: The buffer was incompletely grabbed",
        ),
    ],
)
def test_snap_that_cannot_be_taken(
    station: Station,
    capsys: pytest.CaptureFixture[str],
    *,
    source: str,
    more: str,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    path = station(source or "kind: rendered, width: 300, height: 64", more)
    here = [a if not a.endswith("g") else str(path.parent / a) for a in arguments]
    assert run(["cameras", "snap", str(path), *here]) == code
    assert words in capsys.readouterr().err
    assert not list(path.parent.glob("*.png"))
