"""`linewatch prepare`: images of a camera become what the line would make of its frames."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from models.good_images import check_images
from pipeline import cli
from pipeline.commands.stations import camera_of
from pipeline.prepare.preparation import Preparation
from pipeline.sources.base import FrameFormat

RNG = np.random.default_rng(4)


def station(tmp_path: Path, camera: str) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(f"station: line-1\ncameras:\n  left:\n{camera}")
    return path


BAYER = """\
    source: {kind: basler, pixel_format: BayerGB12, color: true, width: 60, height: 50}
    prepare: {roi_xyxy: [3, 2, 57, 46], rotate: 90, window: {black: 20, white: 3000, gamma: 0.5}}
"""


def test_images_become_what_live_frames_become(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = station(tmp_path, BAYER)
    raw = RNG.integers(0, 4096, (3, 50, 60, 1), dtype=np.uint16)
    (tmp_path / "raw").mkdir()
    for number, frame in enumerate(raw):
        cv2.imwrite(str(tmp_path / "raw" / f"{number}.tiff"), frame)
    arguments = ["prepare", str(config), "left", str(tmp_path / "raw")]
    out = tmp_path / "new" / "good"
    assert cli.run([*arguments, "--out", str(out)]) == 0
    assert f"3 images of 44 x 54 px, RGB, in {out}" in capsys.readouterr().out
    source = FrameFormat(50, 60, bits=12, bayer="GB")
    live = Preparation(camera_of(config, "left").prepare, source, True)
    expected = np.empty(live.shape_hwc, np.uint8)
    for number, frame in enumerate(raw):
        live.apply(frame, expected)
        found = cv2.imread(str(out / f"{number}.png"))
        assert found is not None
        assert np.array_equal(found[:, :, ::-1], expected)

    assert cli.run([*arguments, "--out", str(tmp_path / "b"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 3
    assert figures["shape_hwc"] == [54, 44, 3]
    assert figures["sha256"] == live.sha256


@pytest.mark.parametrize(("black", "white"), [(0, 4095), (100, 3000)])
def test_training_converts_16_bit_images_to_the_same_pixels(
    black: int, white: int, tmp_path: Path
) -> None:
    """`linewatch train --levels` and the line's window are one arithmetic."""
    raw = tmp_path / "a.png"
    cv2.imwrite(str(raw), np.arange(4096, dtype=np.uint16).reshape(64, 64))
    camera = "    source: {kind: basler, pixel_format: Mono12, width: 64, height: 64}\n"
    camera += f"    prepare: {{window: {{black: {black}, white: {white}}}}}\n"
    config = station(tmp_path, camera)
    out = tmp_path / "out"
    assert cli.run(["prepare", str(config), "left", str(raw), "--out", str(out)]) == 0
    trained = check_images([raw], levels=(black, white), convert_into=tmp_path / "train")
    ours, theirs = (
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (out / "a.png", trained.paths[0])
    )
    assert ours is not None
    assert theirs is not None
    assert ours.dtype == theirs.dtype == np.uint8
    assert np.array_equal(ours, theirs)


def test_recordings_are_prepared_from_their_size(tmp_path: Path) -> None:
    picture = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    folder = tmp_path / "frames"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture)
    camera = "    source: {kind: folder, path: frames, color: true}\n    prepare: {rotate: 180}\n"
    config = station(tmp_path, camera)
    assert cli.run(["prepare", str(config), "left", str(folder), "--out", str(tmp_path / "o")]) == 0
    found = cv2.imread(str(tmp_path / "o" / "1.png"))
    assert found is not None
    assert np.array_equal(found, picture[::-1, ::-1])


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = station(tmp_path, BAYER)

    def refused(code: int, text: str, *words: str) -> None:
        assert cli.run(["prepare", str(config), *words, "--out", str(tmp_path / "out")]) == code
        assert text in capsys.readouterr().err

    good, wrong = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(good), np.zeros((50, 60), np.uint16))
    cv2.imwrite(str(wrong), np.zeros((50, 60), np.uint8))
    refused(2, "camera 'right' found on the command line", "right", str(good))
    refused(9, "uint8 pixels, 60 x 50 of 1 channels found, expected uint16", "left", str(wrong))
    refused(3, "cannot be read", "left", str(tmp_path / "nothing.png"))
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "a.png").write_bytes(b"")
    refused(9, "a.png is there already, expected names that are free", "left", str(good))
    (tmp_path / "c").mkdir()
    cv2.imwrite(str(tmp_path / "c" / "b.png"), np.zeros((50, 60), np.uint16))
    refused(9, "two images of one name", "left", str(wrong), str(tmp_path / "c"))
