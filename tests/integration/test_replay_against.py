"""Replay as a regression test: exact, and a diff that names every flipped verdict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pipeline.cli import run
from pipeline.journal import Journal
from pipeline.record.recordings import RecordingWriter, recording_path
from pipeline.replay import frame_rate, source_of
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.sidecar import RecordedFrame
from pipeline.sources.stamp import write_stamp
from pipeline.types import Label, Reason, Verdict

SHAPE = (96, 260, 1)
STAMPS = range(80, 130)
"""The fake runtime's score of a frame is the number in its pixels."""
MS = 1_000_000


def record(folder: Path, ids: Sequence[int], gap_ms: int = 10) -> Path:
    """Two consecutive files of camera `left`, epoch 4: frame id n has the stamp n + 79."""
    folder.mkdir(parents=True)
    half = len(ids) // 2
    for part in (ids[:half], ids[half:]):
        writer = RecordingWriter(recording_path(folder, 4, part[0]), SHAPE, RecordingHead())
        for frame_id in part:
            pixels = np.full(SHAPE, 60, np.uint8)
            write_stamp(pixels, frame_id + 79)
            known = RecordedFrame(
                "left", 4, frame_id, frame_id * gap_ms * MS, 500 + frame_id, f"part-{frame_id}"
            )
            writer.write(pixels, known)
        writer.close()
    return folder


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("recordings") / "left", range(1, 51))


@pytest.fixture(scope="module")
def first(recording: Path) -> Path:
    """Results with a threshold of 100."""
    out = recording.parent / "first.jsonl"
    assert replay(recording, 100.0, out) == 0
    return out


def replay(recording: Path, threshold: float, out: Path, *options: str) -> int:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(f"image_threshold: {threshold}\npixel_threshold: 1.0\n")
    runtime = ("--runtime", "tests.fakes:stamp", "--recipe", str(recipe))
    return run(["replay", str(recording), *runtime, "--out", str(out), *options])


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_replay_repeats_ids_and_times_and_is_exact(
    recording: Path, first: Path, tmp_path: Path
) -> None:
    rows = results(first)
    assert [row["trigger_id"] for row in rows] == [500 + n for n in range(1, 51)]
    assert [row["part_id"] for row in rows] == [f"part-{n}" for n in range(1, 51)]
    assert [row["source_pts"] for row in rows] == [n * 10 * MS for n in range(1, 51)]
    assert [row["raw_peak"] for row in rows] == list(STAMPS)
    again = tmp_path / "again.jsonl"
    assert replay(recording, 100.0, again, "--against", str(first)) == 0
    assert again.read_bytes() == first.read_bytes()


def test_a_threshold_of_five_percent_more_names_what_flips(
    recording: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [
        row["frame_id"] for row in results(first) if 100.0 <= row["image_score"] < 105.0
    ]  # recomputed from the first replay's scores
    assert len(expected) == 5
    options = ["--against", str(first), "--overlays", str(tmp_path / "flips"), "--json"]
    assert replay(recording, 105.0, tmp_path / "new.jsonl", *options) == 1
    found = json.loads(capsys.readouterr().out)["against"]
    assert [flip["frame_id"] for flip in found["flips"]] == expected
    for flip in found["flips"]:
        assert (flip["before"]["label"], flip["now"]["label"]) == ("fail", "pass")
        assert (flip["before"]["image_threshold"], flip["now"]["image_threshold"]) == (100.0, 105.0)
        assert flip["before"]["image_score"] == flip["now"]["image_score"] == flip["frame_id"] + 79
        picture = cv2.imread(flip["overlay"])
        assert picture is not None
        assert picture.shape == (SHAPE[0] + 34, 2 * SHAPE[1] + 8, 3)
    assert len(list((tmp_path / "flips").iterdir())) == 5
    assert (found["compared"], found["changed_scores"], found["only_now"]) == (50, 0, [])
    assert (
        replay(recording, 105.0, tmp_path / "x.jsonl", "--against", str(first), "--allow", "5") == 0
    )
    assert "5 flipped, 5 allowed" in capsys.readouterr().out


def test_frames_of_one_side_only_are_named_and_count(
    recording: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorter = tmp_path / "shorter.jsonl"
    lines = first.read_text().splitlines(keepends=True)
    shorter.write_text("".join(lines[:-2]))
    (tmp_path / "out").mkdir()
    new = tmp_path / "out" / "new.jsonl"
    assert replay(recording, 100.0, new, "--against", str(shorter)) == 1
    assert "2 frames only in these results: cam0 #49, cam0 #50" in capsys.readouterr().out
    one_file = sorted(recording.glob("*.mkv"))[0]
    assert replay(one_file, 100.0, new, "--against", str(first), "--json") == 1
    found = json.loads(capsys.readouterr().out)["against"]
    assert found["only_before"] == [["cam0", 0, n] for n in range(26, 51)]


def test_a_journal_is_matched_by_the_frames_that_the_line_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [3, 7, 21, 22, 23, 30]  # evidence: some of the line's frames
    recording = record(tmp_path / "left", kept)
    journal = Journal(tmp_path / "journal.sqlite")
    for frame_id in range(1, 51):
        score = float(frame_id + 79)
        failed = score >= 102
        verdict = Verdict(
            "line-1",
            "left",
            4,
            frame_id,
            Label.FAIL if failed else Label.PASS,
            Reason.DEFECT if failed else Reason.OK,
            score,
            102.0,
        )
        journal.commit([(verdict, None)])
    journal.close()
    new = tmp_path / "new.jsonl"
    against = ("--against", str(tmp_path / "journal.sqlite"), "--json")
    assert replay(recording, 100.0, new, *against) == 1
    found = json.loads(capsys.readouterr().out)["against"]
    assert (found["compared"], found["only_now"], found["only_before"]) == (6, [], [])
    (before, now) = ([f[when]["frame_id"] for f in found["flips"]] for when in ("before", "now"))
    assert before == [21, 22]
    assert now == [3, 4]
    assert replay(recording, 102.0, new, *against) == 0


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (None, 9, "results of a replay"),
        (b"", 2, "none of its frames"),
        (b"{}\n", 9, "line 1 is no verdict"),
        (b"[" * 100_000, 9, "line 1 is no verdict"),
        (b"\xff", 9, "cannot be read"),
    ],
    ids=range(5),
)
def test_what_cannot_be_compared_is_an_error(
    recording: Path, tmp_path: Path, text: bytes | None, code: int, words: str
) -> None:
    path = tmp_path / "old.jsonl"
    if text is not None:
        path.write_bytes(text)
    program = [sys.executable, "-m", "pipeline.cli", "replay", str(recording)]
    options = ["--runtime", "tests.fakes:stamp", "--out", str(tmp_path / "new.jsonl")]
    answer = subprocess.run(
        [*program, *options, "--against", str(path)], capture_output=True, text=True, check=False
    )
    assert answer.returncode == code
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_video_of_the_verdicts(recording: Path, tmp_path: Path) -> None:
    out = tmp_path / "seen.mp4"
    assert replay(recording, 100.0, tmp_path / "r.jsonl", "--annotate", str(out)) == 0
    with av.open(str(out)) as video:
        assert video.streams.video[0].codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 50
    assert frames[0].shape == (SHAPE[0] + 34, SHAPE[1], 3)
    # The bar's left edge has the verdict's colour: green to the threshold, red from it on.
    reds = [int(frame[17, 3, 0]) > int(frame[17, 3, 1]) for frame in frames]
    assert reds == [stamp >= 100 for stamp in STAMPS]


def test_two_cameras_have_two_videos_and_a_wrong_name_is_refused(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cameras", "2", "--annotate", str(tmp_path / "seen.mp4")]
    assert replay(recording, 100.0, tmp_path / "r.jsonl", *options) == 0
    assert sorted(p.name for p in tmp_path.glob("*.mp4")) == ["seen-cam0.mp4", "seen-cam1.mp4"]
    assert replay(recording, 100.0, tmp_path / "r.jsonl", "--annotate", "seen.txt") == 2
    assert "such as out.mp4" in capsys.readouterr().err


def test_in_real_time_a_replay_takes_as_long_as_it_took(tmp_path: Path) -> None:
    recording = record(tmp_path / "left", range(1, 21), gap_ms=50)
    out = tmp_path / "r.jsonl"
    options = ["--realtime", "--deadline-ms", "60000", "--json"]
    began = time.monotonic()
    assert replay(recording, 1000.0, out, *options) == 0
    assert time.monotonic() - began >= 19 * 0.05
    assert [row["raw_peak"] for row in results(out) if row["reason"] == "ok"] == [
        n + 79.0 for n in range(1, 21)
    ]


def test_in_real_time_what_is_late_is_invalid(tmp_path: Path) -> None:
    recording = record(tmp_path / "left", range(1, 11), gap_ms=20)
    out = tmp_path / "r.jsonl"
    options = ["--realtime", "--deadline-ms", "0.001", "--json"]
    assert replay(recording, 1000.0, out, *options) == 0
    rows = results(out)
    assert len(rows) == 10
    assert {row["label"] for row in rows} == {"invalid"}


def test_images_have_no_pace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "1.png"), np.zeros((64, 64), np.uint8))
    assert replay(tmp_path / "images", 1.0, tmp_path / "r.jsonl", "--realtime") == 2
    assert "no pace of their own" in capsys.readouterr().err


def test_a_stations_folder_is_all_its_cameras(tmp_path: Path) -> None:
    for camera in ("left", "right"):
        record(tmp_path / "line-1" / camera, [1, 2, 3, 4])
    out = tmp_path / "r.jsonl"
    assert replay(tmp_path / "line-1", 100.0, out) == 0
    assert [row["camera"] for row in results(out)] == ["cam0"] * 4 + ["cam1"] * 4


def test_two_preparations_in_one_recording_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = record(tmp_path / "left", [1, 2])
    writer = RecordingWriter(recording_path(folder, 5, 1), SHAPE, RecordingHead(preparation="abc"))
    writer.write(np.zeros(SHAPE, np.uint8), RecordedFrame("left", 5, 1))
    writer.close()
    assert replay(folder, 100.0, tmp_path / "r.jsonl") == 0
    assert "recorded with 2 preparations, none, abc" in capsys.readouterr().out


def test_how_a_recording_is_read(recording: Path, tmp_path: Path) -> None:
    assert source_of(recording).kind == "recording"
    assert source_of(sorted(recording.glob("*.mkv"))[0]).kind == "recording"
    assert source_of(tmp_path / "a.mkv").kind == "video"
    assert source_of(tmp_path).kind == "folder"
    assert frame_rate(source_of(recording)) is None


def test_an_interrupted_replay_is_none(tmp_path: Path) -> None:
    """It says so, and what it has is not where whole results would be."""
    folder, out = record(tmp_path / "left", range(1, 401), gap_ms=100), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pipeline.cli", "replay", str(folder), "--realtime"]
    command += ["--runtime", "tests.fakes:stamp", "--deadline-ms", "5000", "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(8)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted after" in told
    assert not out.exists()
    assert len(results(tmp_path / "out.partial.jsonl")) < 400
