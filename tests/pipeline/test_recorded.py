"""Recordings of a line: pixels and ids come back, whatever cut the file off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config.sources import RecordedSource
from pipeline.errors import SourceError, SourceLost
from pipeline.record.recordings import (
    RecordingWriter,
    find_evidence,
    is_recording,
    make_room,
    read_evidence,
    recording_path,
)
from pipeline.sources import open_source, probe
from pipeline.sources.base import Grab
from pipeline.sources.recorded import RecordingHead, known_frames, read_head
from pipeline.sources.recording import write_recording
from pipeline.sources.sidecar import RecordedFrame, read_side, side_path
from pipeline.sources.stamp import read_stamp, write_stamp
from pipeline.types import Reason

SHAPE = (64, 256, 1)


def frame_of(number: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """Noise with a stamp."""
    pixels = np.random.default_rng(number).integers(90, 140, shape, dtype=np.uint8)
    write_stamp(pixels, number)
    return pixels


def known(frame_id: int, camera: str = "left", epoch: int = 3) -> RecordedFrame:
    return RecordedFrame(
        camera,
        epoch,
        frame_id,
        t_capture_utc_ns=1_700_000_000_000_000_000 + frame_id * 40_000_000,
        trigger_id=1000 + frame_id,
        part_id=f"part-{frame_id}",
        label="pass",
        reason="ok",
        image_score=0.25,
        image_threshold=1.0,
    )


def record(
    path: Path, ids: Sequence[int], shape: tuple[int, int, int] = SHAPE, *, close: bool = True
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = RecordingHead("line-1", "left", "0.1", "abc", '{"gain": 2}')
    writer = RecordingWriter(path, shape, head)
    for number in ids:
        writer.write(frame_of(number, shape), known(number))
    if close:
        writer.close()
    return path


def read_all(path: Path, start: int = 0) -> tuple[list[Grab], list[int | None]]:
    """Grabs, and the stamps in their pixels."""
    source = open_source(RecordedSource(kind="recording", path=str(path)), start)
    pixels = np.empty(source.shape_hwc, np.uint8)
    grabs, stamps = [], []
    try:
        while (grab := source.read()) is not None:
            grabs.append(grab)
            if grab.fault is None:
                grab.write(pixels)
            stamps.append(None if grab.fault else read_stamp(pixels))
    finally:
        source.close()
    return grabs, stamps


@pytest.mark.parametrize("shape", [SHAPE, (33, 300, 3), (480, 641, 1)], ids=str)
def test_pixels_and_ids_come_back(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    ids = [5, 6, 9]
    path = record(tmp_path / "a.mkv", ids, shape)
    config = RecordedSource(kind="recording", path=str(path))
    assert probe(config) == shape
    source = open_source(config)
    pixels = np.empty(shape, np.uint8)
    for index, number in enumerate(ids):
        grab = source.read()
        assert grab is not None
        assert (grab.index, grab.fault) == (index, None)
        assert (grab.pts, grab.trigger_id, grab.part_id) == (
            known(number).t_capture_utc_ns,
            1000 + number,
            f"part-{number}",
        )
        grab.write(pixels)
        assert np.array_equal(pixels, frame_of(number, shape))
    assert source.read() is None
    source.close()
    assert [k and k.frame_id for k in known_frames(path)] == ids
    assert read_head(path) == RecordingHead("line-1", "left", "0.1", "abc", '{"gain": 2}')


def test_consecutive_files_are_one_recording(tmp_path: Path) -> None:
    ids = list(range(1, 12))
    for first, last in ((1, 4), (5, 5), (6, 11)):
        record(recording_path(tmp_path, 3, first), range(first, last + 1))
    assert is_recording(tmp_path)
    grabs, stamps = read_all(tmp_path)
    assert [g.index for g in grabs] == list(range(11))
    assert stamps == ids
    assert [g.follows for g in grabs] == [False, *[True] * 10]
    for start in range(12):
        grabs, stamps = read_all(tmp_path, start)
        assert [g.index for g in grabs] == list(range(start, 11))
        assert stamps == ids[start:]


def test_a_file_cut_anywhere_gives_what_it_has(tmp_path: Path) -> None:
    whole = record(tmp_path / "whole.mkv", range(8))
    data = whole.read_bytes()
    lines = side_path(whole).read_bytes()
    head = 1 + data.index(b"\x1f\x43\xb6\x75")
    places = np.linspace(head, len(data) - 1, 60).astype(int)
    most = 0
    for place in places.tolist():
        path = tmp_path / f"cut{place}.mkv"
        path.write_bytes(data[:place])
        side_path(path).write_bytes(lines)
        try:
            grabs, stamps = read_all(path)
        except SourceError:
            assert most == 0  # cut before its first frame
            continue
        whole_ones = [n for n in stamps if n is not None]
        assert whole_ones == list(range(len(whole_ones)))
        assert len(whole_ones) >= most
        most = len(whole_ones)
        # What the side file names and the file has lost is a broken frame with its ids.
        assert [g.trigger_id for g in grabs] == list(range(1000, 1008))
        assert {g.fault for g in grabs[most:]} <= {Reason.BROKEN_FRAME}
    assert most == 7


def test_a_recorder_that_died_leaves_a_recording(tmp_path: Path) -> None:
    path = record(tmp_path / "killed.mkv", range(5), close=False)
    grabs, stamps = read_all(path)
    assert stamps == list(range(5))
    assert [g.trigger_id for g in grabs] == list(range(1000, 1005))


def test_a_cut_file_hides_no_later_one(tmp_path: Path) -> None:
    first = record(recording_path(tmp_path, 1, 1), range(1, 5))
    os.truncate(first, first.stat().st_size * 6 // 10)
    empty = record(recording_path(tmp_path, 1, 5), range(5, 7))
    os.truncate(empty, 10)
    record(recording_path(tmp_path, 1, 7), range(7, 9))
    grabs, stamps = read_all(tmp_path)
    assert stamps == [1, 2, None, None, None, None, 7, 8]
    assert [g.trigger_id for g in grabs] == list(range(1001, 1009))
    for start in range(9):
        assert read_all(tmp_path, start)[1] == stamps[start:]


def test_without_a_side_file_it_is_a_video(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", range(4))
    side_path(path).unlink()
    assert not is_recording(path)
    grabs, stamps = read_all(path)
    assert stamps == [0, 1, 2, 3]
    assert [(g.trigger_id, g.part_id, g.pts) for g in grabs[:2]] == [
        (0, "", 0),
        (0, "", 40_000_000),
    ]
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(SourceLost, match="cut off"):
        read_all(path)


def test_older_recordings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.mkv"
    write_recording(path, [frame_of(n) for n in range(4)])
    assert read_all(path)[1] == [0, 1, 2, 3]
    assert known_frames(path) == [None] * 4
    assert read_head(path) == RecordingHead()


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b'{"index":-1}',
        b'{"index":true,"camera":"left"}',
        b'"x"',
        b"",
        b'{"index":1e400}',
        b"9" * 5000,
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_damaged_lines_cost_their_own_frame_only(tmp_path: Path, damage: bytes) -> None:
    path = record(tmp_path / "a.mkv", range(4))
    lines = side_path(path).read_bytes().split(b"\n")
    lines[1] = damage
    side_path(path).write_bytes(b"\n".join(lines))
    grabs, stamps = read_all(path)
    assert stamps == [0, 1, 2, 3]
    assert [g.trigger_id for g in grabs] == [1000, 0, 1002, 1003]


def test_a_damaged_number_promises_no_million_of_frames(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", range(4))
    text = side_path(path).read_bytes()
    side_path(path).write_bytes(text.replace(b'"index":2,', b'"index":2222222,'))
    assert len(read_all(path)[0]) == 4


def test_a_side_file_torn_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", range(3))
    data = side_path(path).read_bytes()
    for place in range(len(data)):
        side_path(path).write_bytes(data[:place])
        assert sorted(read_side(path).frames) == list(range(data[:place].count(b"\n")))


def test_files_of_another_shape_are_of_the_wrong_size(tmp_path: Path) -> None:
    record(recording_path(tmp_path, 1, 1), [1, 2])
    record(recording_path(tmp_path, 1, 3), [3], (70, 256, 1))
    grabs, stamps = read_all(tmp_path)
    assert stamps == [1, 2, None]
    assert grabs[2].fault is Reason.WRONG_SIZE


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no recordings in it"):
        read_all(tmp_path)
    (tmp_path / "a.mkv").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="not a video"):
        read_all(tmp_path)


def test_evidence_is_found_by_id(tmp_path: Path) -> None:
    left = tmp_path / "left"
    for epoch in (1, 2):
        for ids in ([1, 4, 9], [12, 20]):
            path = recording_path(left, epoch, ids[0])
            path.parent.mkdir(exist_ok=True)
            writer = RecordingWriter(path, SHAPE, RecordingHead())
            for number in ids:
                writer.write(frame_of(100 * epoch + number), known(number, epoch=epoch))
            writer.close()
    found = find_evidence(tmp_path, "left", 2, 20)
    assert found is not None
    assert found[1] == 1
    assert read_stamp(read_evidence(*found)) == 220
    assert find_evidence(tmp_path, "left", 1, 9) == (
        recording_path_of(left, "000001-0000000001"),
        2,
    )
    for camera, epoch, frame_id in (
        ("left", 1, 5),
        ("left", 3, 1),
        ("right", 1, 1),
        ("left", 1, 0),
    ):
        assert find_evidence(tmp_path, camera, epoch, frame_id) is None
    with pytest.raises(SourceError, match="no such frame"):
        read_evidence(found[0], 7)


def recording_path_of(folder: Path, begins: str) -> Path:
    (path,) = folder.glob(f"{begins}*.mkv")
    return path


def test_the_oldest_recordings_make_room(tmp_path: Path) -> None:
    paths = [record(recording_path(tmp_path / "left", 1, n), [n]) for n in range(1, 6)]
    for age, path in enumerate(paths):
        os.utime(path, ns=(age * 10**9, age * 10**9))
    size = sum(p.stat().st_size + side_path(p).stat().st_size for p in paths) // 5
    assert make_room(tmp_path, 6 * size) == []
    deleted = make_room(tmp_path, 3 * size + size // 2, keep=frozenset(paths[:1]))
    assert deleted == paths[1:3]
    assert sorted(tmp_path.rglob("*.jsonl")) == [side_path(p) for p in (paths[0], *paths[3:])]
    assert make_room(tmp_path, 0, keep=frozenset()) == [paths[0], *paths[3:]]
    assert make_room(tmp_path / "absent", 0) == []


def test_a_new_recording_takes_no_other_ones_place(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", [1])
    with pytest.raises(FileExistsError):
        record(path, [2])
    shutil.copy(path, tmp_path / "b.mkv")
    side_path(tmp_path / "c.mkv").touch()
    with pytest.raises(FileExistsError):
        record(tmp_path / "c.mkv", [2])
    assert not (tmp_path / "c.mkv").exists()
