"""`linewatch record`: a station's frames, without inspecting them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import run
from pipeline.config import load
from pipeline.config.prepare import PreparationConfig
from pipeline.config.sources import RecordedSource
from pipeline.prepare.preparation import Preparation
from pipeline.sources import open_source
from pipeline.sources.base import FrameFormat
from pipeline.sources.recorded import read_head
from pipeline.sources.stamp import read_stamp

STATION = """\
station: rec{pid}
run_dir: {work}/run
state_dir: {work}/state
publish: {{endpoint: "ipc://{work}/line.ipc"}}
cameras:
  left:
    source: {{kind: synthetic, width: 320, height: 256, prerender: 2, frames: 12}}
    on_full: wait
    fps: 20
  right:
    source: {{kind: rendered, width: 320, height: 256, frame_rate: 20}}
worker: {{bundle: {work}/no-such-bundle}}
"""


@pytest.fixture
def station(tmp_path: Path) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(STATION.format(pid=os.getpid(), work=tmp_path))
    return path


def stamps(folder: Path) -> list[int | None]:
    source = open_source(RecordedSource(kind="recording", path=str(folder)))
    pixels = np.empty(source.shape_hwc, np.uint8)
    found = []
    while (grab := source.read()) is not None:
        grab.write(pixels)
        found.append(read_stamp(pixels))
    source.close()
    return found


def test_one_camera_until_its_end(
    station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recordings"
    code = run(["record", str(station), "--out", str(out), "--camera", "left", "--json"])
    summary = json.loads(capsys.readouterr().out)
    found = stamps(out / f"rec{os.getpid()}" / "left")
    assert summary["captured"] == 12
    assert summary["recorded"] == len(found) == summary["cameras"]["left"]["recorded"]
    assert summary["lost"] == 12 - len(found)
    assert code == (1 if summary["lost"] else 0)
    assert found == sorted({stamp for stamp in found if stamp is not None})
    assert summary["bytes"] > 0
    # Nothing of it is the station's: no verdict in its journal, nothing on its endpoint.
    assert not (tmp_path / "state").exists()


def test_all_cameras_for_so_many_frames(
    station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recordings"
    # More than the left camera's 12: the right one may be the last to begin.
    assert run(["record", str(station), "--out", str(out), "--frames", "24"]) in (0, 1)
    assert "frames lost" in capsys.readouterr().out
    assert len(stamps(out / f"rec{os.getpid()}" / "right")) > 0


def test_the_file_says_how_its_frames_were_taken(station: Path, tmp_path: Path) -> None:
    out = tmp_path / "recordings"
    text = station.read_text()
    station.write_text(
        text.replace("frame_rate: 20}", "frame_rate: 20}\n    prepare: {rotate: 90}")
    )
    chosen = ["--camera", "right", "--frames", "5"]
    assert run(["record", str(station), "--out", str(out), *chosen]) in (0, 1)
    folder = out / f"rec{os.getpid()}" / "right"
    head = read_head(folder)
    assert (head.station, head.camera) == (f"rec{os.getpid()}", "right")
    assert json.loads(head.settings)["frame_rate"] == 20
    source_format = FrameFormat(height=256, width=320)
    prepared = Preparation(load(station).cameras["right"].prepare, source_format, color=False)
    assert head.preparation == prepared.sha256
    assert head.preparation != Preparation(PreparationConfig(), source_format, color=False).sha256
    source = open_source(RecordedSource(kind="recording", path=str(folder)))
    assert source.shape_hwc == (320, 256, 1)
    source.close()


def test_for_so_many_seconds(
    station: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "recordings"
    options = ["--camera", "right", "--seconds", "1", "--json"]
    assert run(["record", str(station), "--out", str(out), *options]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["wall_s"] >= 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--camera", "middle"], 2, "left, right"),
        (["--out", "/dev/null/x"], 7, "folder that can be made"),
    ],
)
def test_what_is_wrong_is_said(
    station: Path,
    options: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = station.parent / "recordings"
    assert run(["record", str(station), "--out", str(out), *options]) == code
    assert words in capsys.readouterr().err
