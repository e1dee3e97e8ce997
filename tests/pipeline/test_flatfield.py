"""Flat field: what is made of frames, what is refused, what a damaged file says, the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import cli
from pipeline.config import load
from pipeline.config.prepare import PreparationConfig
from pipeline.errors import ConfigError, DataError
from pipeline.prepare.flatfield import LEAST_GAIN, MOST_GAIN, FlatField
from pipeline.prepare.flatfield_making import make_flatfield, typical_frame
from pipeline.prepare.preparation import Preparation
from pipeline.sources.base import FrameFormat
from pipeline.sources.raw_frames import frames_of_camera
from pipeline.sources.recording import write_recording

FORMATS = [
    FrameFormat(48, 64),
    FrameFormat(48, 64, 3),
    FrameFormat(49, 65, bits=12, bayer="GB"),
    FrameFormat(48, 64, bits=10),
    FrameFormat(48, 64, bits=16),
]


class Sensor:
    """Pixels that answer unevenly: a vignette, pixel to pixel gain, colours, and dark current."""

    def __init__(self, source: FrameFormat) -> None:
        self.source = source
        self.rng = np.random.default_rng(3)
        y, x = np.mgrid[-1 : 1 : source.height * 1j, -1 : 1 : source.width * 1j]
        answer = (1 - 0.3 * (x**2 + y**2))[:, :, None] * np.ones(source.channels)
        answer = answer * self.rng.normal(1, 0.02, source.shape_hwc)
        if source.channels == 3:
            answer = answer * np.array([1.0, 0.9, 0.7])
        if source.bayer:
            answer[::2, ::2] *= 0.7
            answer[1::2, 1::2] *= 0.8
        self.answer = answer
        self.top = 2**source.bits - 1
        self.dark = self.rng.uniform(0, 0.02 * self.top, source.shape_hwc)

    def frames(self, level: float, count: int = 12) -> list[NDArray[Any]]:
        """Of an even surface that reaches `level` of the largest value."""
        light = self.answer * level * self.top + self.dark
        return [self.quantised(light) for _ in range(count)]

    def quantised(self, light: NDArray[np.float64]) -> NDArray[Any]:
        noisy = light + self.rng.normal(0, 0.004 * self.top, light.shape)
        return np.clip(np.rint(noisy), 0, self.top).astype(self.source.dtype)


@pytest.mark.parametrize("source", FORMATS, ids=str)
def test_a_flat_surface_becomes_flat_and_keeps_its_level_and_colours(
    source: FrameFormat, tmp_path: Path
) -> None:
    sensor = Sensor(source)
    field, report, picture = make_flatfield(sensor.frames(0), sensor.frames(0.7), source)
    assert report.before > 0.08
    assert report.after < report.before / 8
    assert (report.saturated, report.clamped) == (0, 0)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3

    path = tmp_path / "flat.npz"
    field.save(path)
    config = PreparationConfig(flatfield=str(path))
    color = source.channels == 3
    plain = FrameFormat(source.height, source.width, source.channels, source.bits)
    one = sensor.frames(0.35, 1)[0].astype(float) - sensor.dark
    corrected = (sensor.frames(0.35, 1)[0].astype(float) - field.dark) * field.gain
    for start in [(0, 0), (0, 1), (1, 0), (1, 1)] if source.bayer else [(0, 0)]:
        step = 2 if source.bayer else 1
        part = np.s_[start[0] :: step, start[1] :: step]
        even = np.atleast_3d(corrected[part])
        assert even.mean((0, 1)) == pytest.approx(np.atleast_3d(one[part]).mean((0, 1)), rel=0.02)
        assert (even.std((0, 1)) / even.mean((0, 1)) < 0.03).all()
    if plain == source:
        out = np.empty(source.shape_hwc, np.uint8)
        Preparation(config, source, color).apply(sensor.frames(0.7, 1)[0], out)
        assert (out.std((0, 1)) / out.mean((0, 1)) < 0.02).all()


def test_dust_that_moves_falls_out() -> None:
    sensor = Sensor(FrameFormat(48, 64))
    clean = make_flatfield(sensor.frames(0), sensor.frames(0.7), sensor.source)[0]
    bright = sensor.frames(0.7)
    for number, frame in enumerate(bright):
        frame[4 * number : 4 * number + 8, 10:20] = 20
    dusty = make_flatfield(sensor.frames(0), bright, sensor.source)[0]
    assert np.abs(dusty.gain / clean.gain - 1).max() < 0.04


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_typical_is_the_mean_of_the_middle_half(count: int) -> None:
    rng = np.random.default_rng(count)
    frames = list(rng.integers(0, 4096, (count, 5, 7, 1), dtype=np.uint16))
    ordered = np.sort(np.stack(frames).astype(np.float64), axis=0)
    expected = ordered[count // 4 : count - count // 4].mean(axis=0)
    assert np.allclose(typical_frame(frames), expected)


def test_a_dead_pixel_gets_a_limited_gain() -> None:
    sensor = Sensor(FrameFormat(48, 64))
    bright, dark = sensor.frames(0.6), sensor.frames(0)
    for frame in bright:
        frame[3, 4], frame[5, 6] = 0, 30
    field, report, _ = make_flatfield(dark, bright, sensor.source)
    assert field.gain[3, 4] == field.gain[5, 6] == MOST_GAIN
    assert field.gain.min() >= LEAST_GAIN
    assert report.clamped == pytest.approx(2 / (48 * 64))


@pytest.mark.parametrize(
    ("dark", "bright", "text"),
    [
        (0.0, 1.2, r"[\d.]+% of the bright frames' pixels saturated .* expose shorter"),
        (0.0, 0.1, r"bright frames [\d.]+% of the largest value above the dark .* expose longer"),
        (0.0, 0.0, "expose longer"),
        (0.5, 0.7, r"dark frames at [\d.]+% of the largest value found, .* cover the lens"),
    ],
)
def test_light_that_is_wrong(dark: float, bright: float, text: str) -> None:
    sensor = Sensor(FrameFormat(48, 64, bits=12))
    with pytest.raises(DataError, match=text):
        make_flatfield(sensor.frames(dark), sensor.frames(bright), sensor.source)


def test_frames_that_are_wrong() -> None:
    source = FrameFormat(48, 64, bits=12)
    sensor = Sensor(source)
    dark, bright = sensor.frames(0), sensor.frames(0.6)
    with pytest.raises(DataError, match="3 bright frames found, expected at least 4"):
        make_flatfield(dark, bright[:3], source)
    with pytest.raises(DataError, match="0 dark frames found"):
        make_flatfield([], bright, source)
    with pytest.raises(DataError, match=r"bright frame 0: uint16 \(24, 64, 1\) found, expected"):
        make_flatfield(dark, [frame[:24] for frame in bright], source)
    with pytest.raises(DataError, match=r"bright frame 0: the value .* expected at most 4095"):
        make_flatfield(dark, [frame << 4 for frame in bright], source)
    half = [np.where(np.arange(64)[:, None] < 5, frame // 16, frame) for frame in bright]
    with pytest.raises(DataError, match=r"7.8% of the pixels with under 25%"):
        make_flatfield(dark, half, source)


def test_a_file_comes_back(tmp_path: Path) -> None:
    source = FrameFormat(48, 64, bits=12, bayer="BG")
    sensor = Sensor(source)
    field = make_flatfield(sensor.frames(0), sensor.frames(0.6), source)[0]
    path = tmp_path / "flat.npz"
    field.save(path)
    assert [each.name for each in tmp_path.iterdir()] == ["flat.npz"]
    found = FlatField.load(path)
    assert (found.format, found.made, found.sha256) == (source, field.made, field.sha256)
    assert np.array_equal(found.dark, field.dark)
    assert np.array_equal(found.gain, field.gain)
    assert (found.dark_frames, found.bright_frames) == (12, 12)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    source = FrameFormat(48, 64)
    field = FlatField(
        source, np.zeros((48, 64, 1), np.uint8), np.ones((48, 64, 1), np.float32), "today", 4, 4
    )
    path = tmp_path / "flat.npz"
    field.save(path)
    data = path.read_bytes()
    with np.load(path) as stored:
        arrays = dict(stored)
    for cut in (0, 1, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ConfigError, match=r"prepare\.flatfield: .*flat\.npz is no flat field"):
            FlatField.load(path)
    for name in arrays:
        np.savez(path, **{key: value for key, value in arrays.items() if key != name})
        with pytest.raises(ConfigError, match="is no flat field"):
            FlatField.load(path)
    for change in (
        {"gain": arrays["gain"] * 1.01},
        {"gain": arrays["gain"].astype(np.float64)},
        {"dark": arrays["dark"] + np.uint8(1)},
        {"dark": arrays["dark"][:10]},
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(ConfigError, match="the content that its checksum tells"):
            FlatField.load(path)
    about = json.loads(str(arrays["about"])) | {"version": 2}
    np.savez(path, **(arrays | {"about": np.array(json.dumps(about))}))
    with pytest.raises(ConfigError, match="has version 2, expected 1"):
        FlatField.load(path)
    np.savez(path, **(arrays | {"about": np.array([field], dtype=object)}))
    with pytest.raises(ConfigError, match="is no flat field"):  # a pickle is not opened
        FlatField.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        FlatField.load(tmp_path / "nothing.npz")
    with pytest.raises(DataError, match="cannot be written"):
        field.save(tmp_path / "nowhere" / "flat.npz")


def write_images(folder: Path, frames: list[NDArray[Any]]) -> Path:
    folder.mkdir()
    for number, frame in enumerate(frames):
        picture = frame[:, :, ::-1] if frame.shape[2] == 3 else frame
        assert cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


def station(tmp_path: Path, source: str) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(f"station: line-1\ncameras:\n  left:\n    source: {source}\n")
    return path


def test_the_command_takes_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = FrameFormat(48, 64, bits=12, bayer="RG")
    sensor = Sensor(source)
    config = station(
        tmp_path,
        "{kind: basler, serial: '1', pixel_format: BayerRG12, color: true, width: 64, height: 48}",
    )
    dark = write_images(tmp_path / "dark", sensor.frames(0))
    bright = write_images(tmp_path / "bright", sensor.frames(0.7))
    out = tmp_path / "left.npz"
    arguments = ["flatfield", str(config), "left", "--dark", str(dark), "--bright", str(bright)]
    assert cli.run([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "12 dark and 12 bright frames of 64 x 48 px, Bayer RG, 12 bits" in text
    assert "non-uniformity" in text
    assert FlatField.load(out).format == source
    picture = cv2.imread(str(tmp_path / "left.png"))
    assert picture is not None
    assert picture.shape[1] == 1920

    assert cli.run([*arguments, "--out", str(out), "--frames", "6", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["dark_frames"], figures["bright_frames"]) == (6, 6)
    assert figures["sha256"] == FlatField.load(out).sha256
    assert figures["after"] < figures["before"]

    arguments[-1] = str(dark)
    assert cli.run([*arguments, "--out", str(tmp_path / "b.npz")]) == DataError.exit_code
    assert "expose longer" in capsys.readouterr().err
    assert not (tmp_path / "b.npz").exists()


def test_the_command_takes_recordings(tmp_path: Path) -> None:
    sensor = Sensor(FrameFormat(48, 64, 3))
    for name, level in (("dark", 0.0), ("bright", 0.7)):
        write_recording(tmp_path / f"{name}.mkv", sensor.frames(level))
    config = station(tmp_path, "{kind: video, path: bright.mkv}")
    recordings = [str(tmp_path / f"{name}.mkv") for name in ("dark", "bright")]
    options = ["--dark", recordings[0], "--bright", recordings[1], "--out", str(tmp_path / "f.npz")]
    assert cli.run(["flatfield", str(config), "left", *options]) == 0
    assert FlatField.load(tmp_path / "f.npz").format == sensor.source


def test_frames_of_a_camera_and_what_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conveyor is no even surface: its frames are taken, and refused with numbers."""
    config = station(tmp_path, "{kind: rendered, width: 320, height: 240, frame_rate: 100}")
    counts: list[int] = []
    frames, source = frames_of_camera(
        load(config).cameras["left"], 5, lambda done, total: counts.append(done)
    )
    assert source == FrameFormat(240, 320)
    assert counts == [1, 2, 3, 4, 5]
    assert len({frame.tobytes() for frame in frames}) == 5
    dark = write_images(tmp_path / "dark", [np.zeros((240, 320, 1), np.uint8)] * 4)
    options = ["--dark", str(dark), "--bright", "5", "--yes", "--out", str(tmp_path / "f.npz")]
    assert cli.run(["flatfield", str(config), "left", *options]) == DataError.exit_code
    assert re.search(r"0\.\d\d% of the bright frames' pixels saturated", capsys.readouterr().err)


@pytest.mark.parametrize("mode", ["software", "encoder"])
def test_a_triggered_camera_is_triggered(mode: str, tmp_path: Path) -> None:
    text = f"{{kind: rendered, width: 320, height: 240}}\n    trigger: {{mode: {mode}}}"
    camera = load(station(tmp_path, text)).cameras["left"]
    frames, _ = frames_of_camera(camera, 3, lambda done, total: None)
    assert len(frames) == 3


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (
            ("right", "dark", "f.npz"),
            2,
            "camera 'right' found on the command line, expected one of",
        ),
        (("left", "nothing", "f.npz"), 3, "nothing"),
        (("left", "dark", "nowhere/f.npz"), 9, "no folder"),
        (("left", "8", "f.npz"), 9, "a number of frames for a folder source found"),
        (
            ("left", "other", "f.npz"),
            9,
            "65 x 48 of 1 channels found, expected uint8, 64 x 48 of 1",
        ),
        (("left", "deep", "f.npz"), 3, "uint16 pixels; expected 8 bit"),
    ],
)
def test_what_the_command_refuses(
    words: tuple[str, str, str],
    code: int,
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    camera, dark, out = words
    write_images(tmp_path / "dark", Sensor(FrameFormat(48, 64)).frames(0))
    write_images(tmp_path / "other", Sensor(FrameFormat(48, 65)).frames(0))
    write_images(tmp_path / "deep", Sensor(FrameFormat(48, 64, bits=12)).frames(0))
    config = station(tmp_path, "{kind: folder, path: dark}")
    place = dark if dark.isdecimal() else str(tmp_path / dark)
    options = ["--dark", place, "--bright", place, "--out", str(tmp_path / out), "--yes"]
    assert cli.run(["flatfield", str(config), camera, *options]) == code
    assert text in capsys.readouterr().err
