"""The thread that writes recordings: rotation, quota, and a disk that refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.record import RecordingConfig
from pipeline.config.sources import RecordedSource
from pipeline.record.evidence import Evidence
from pipeline.record.keeping import Copy
from pipeline.record.recordings import find_evidence, stored
from pipeline.sources import open_source
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.sidecar import RecordedFrame, read_side

SHAPE = (300, 400, 1)
NOISE = np.random.default_rng(1).integers(0, 256, SHAPE, dtype=np.uint8)
"""Which no codec makes smaller: a file grows by 120 kB a frame."""


def evidence(folder: Path, **options: object) -> Evidence:
    config = RecordingConfig.model_validate({"record": "all", "keep_free_gb": 0.0} | options)
    return Evidence(
        folder,
        config,
        {"left": SHAPE},
        head=lambda camera: RecordingHead("line-1", camera),
        done=lambda copy: None,
        retry_s=0.1,
    )


def write(target: Evidence, first: int, count: int) -> None:
    for number in range(first, first + count):
        target.write(Copy(RecordedFrame("left", 1, number), NOISE))


def end(target: Evidence) -> None:
    target.end()
    until(lambda: target.ended)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def replayed(folder: Path) -> int:
    source = open_source(RecordedSource(kind="recording", path=str(folder)))
    count = 0
    while (grab := source.read()) is not None:
        assert grab.fault is None
        count += 1
    source.close()
    return count


def test_files_end_by_size_and_are_one_recording(tmp_path: Path) -> None:
    target = evidence(tmp_path, file_mb=1)
    write(target, 1, 30)
    end(target)
    files = sorted((tmp_path / "left").glob("*.mkv"))
    assert len(files) >= 3
    assert all(file.stat().st_size < 1_300_000 for file in files)
    assert replayed(tmp_path / "left") == 30
    assert target.recorded["left"] == 30
    assert target.size_bytes > 30 * NOISE.size


def test_files_end_by_age(tmp_path: Path) -> None:
    target = evidence(tmp_path, file_s=0.001)
    for number in range(1, 4):
        write(target, number, 1)
        until(lambda number=number: target.recorded["left"] == number)  # type: ignore[misc]
        time.sleep(0.002)
    end(target)
    assert len(list(stored(tmp_path))) == 3


def test_the_quota_costs_the_oldest_files(tmp_path: Path) -> None:
    target = evidence(tmp_path, quota_gb=0.004)
    write(target, 1, 100)
    end(target)
    assert sum(one.size_bytes for one in stored(tmp_path)) < 5_500_000
    ids = sorted(
        frame.frame_id for one in stored(tmp_path) for frame in read_side(one.path).frames.values()
    )
    assert ids == list(range(ids[0], 101))  # the newest
    assert 20 < len(ids) < 50
    assert replayed(tmp_path / "left") == len(ids)
    assert find_evidence(tmp_path, "left", 1, 1) is None
    assert find_evidence(tmp_path, "left", 1, 100) is not None


def test_too_little_free_disk_pauses_once_and_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        target = evidence(tmp_path, keep_free_gb=1e9)
        write(target, 1, 20)
        end(target)
    assert target.lost["left"] == 20
    assert target.recorded["left"] == 0
    assert list(stored(tmp_path)) == []
    assert "keep_free_gb" in target.paused
    assert sum("recording pauses" in text for text in caplog.messages) == 1


def test_a_folder_that_refuses_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "disk"
    folder.write_text("a file in the place of the folder")
    with caplog.at_level(logging.INFO):
        target = evidence(folder)
        write(target, 1, 3)
        until(lambda: target.lost["left"] == 3)
        folder.unlink()
        number = 3
        while not target.recorded["left"]:
            number += 1
            assert number < 3000
            write(target, number, 1)
            time.sleep(0.02)
        end(target)
    assert not target.paused
    assert target.lost["left"] + target.recorded["left"] == number
    pauses = [text for text in caplog.messages if "recording pauses" in text]
    assert len(pauses) == 1
    assert "File exists" in pauses[0] or "Not a directory" in pauses[0]
    assert "recording goes on" in caplog.messages
    # What was lost is named in the recording that follows.
    (one,) = stored(folder)
    assert [frame.frame_id for frame, _ in read_side(one.path).lost][:3] == [1, 2, 3]


def test_a_recorder_without_a_frame_leaves_no_file(tmp_path: Path) -> None:
    target = evidence(tmp_path)
    target.lose(RecordedFrame("left", 1, 1), "away")
    end(target)
    assert list(tmp_path.rglob("*.*")) == []
    assert target.lost["left"] == 1
