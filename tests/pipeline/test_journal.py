"""The journal: real SQLite, real files."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from journals import check, meta, opened, pairs, rows, set_meta, verdict

from pipeline.errors import ResourceError, WireError
from pipeline.journal import Journal, Row, read_verdicts
from pipeline.journal_schema import SCHEMA
from pipeline.types import Defect, Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import decode


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def test_a_new_journal(path: Path) -> None:
    with opened(path) as journal:
        assert journal.last == {}
        assert journal.decided("left", 1) == set()
        assert len(journal.stream_id) == 32
        assert list(read_verdicts(path)) == []


def test_seq_goes_on_without_gaps(path: Path) -> None:
    told: list[Row] = []
    for n in range(1, 20, 4):
        with opened(path) as journal:
            for camera in ("left", "right"):
                told += journal.commit(pairs(n, n + 1, camera=camera))
            told += journal.commit([(verdict(n + 2), None)])
            told += journal.commit([])
            last = journal.last
        assert last == {row.topic: row.seq for row in told}
    assert rows(path) == told
    assert len(told) == 5 * 9
    check(told)


def test_the_last_seq_of_each_topic_is_found_again(path: Path) -> None:
    with opened(path) as journal:
        for n in range(1, 4):
            journal.commit((verdict(n, f"cam{c}"), None) for c in range(0, 150, n))
        journal.commit(pairs(9, camera="~last"))
        expected = journal.last
    assert len(expected) == 152
    with opened(path) as journal:
        assert journal.last == expected


def test_a_frame_is_decided_once(path: Path) -> None:
    with opened(path) as journal:
        first = journal.commit(pairs(1, 2))
        assert len(first) == 4
        other = verdict(1, label=Label.INVALID, reason=Reason.LATE)
        assert journal.commit([(other, part_of(other))]) == []
        again = journal.commit([*pairs(2), *pairs(3)])
        assert [decode(row.body).topic for row in again] == ["frame/left/", "part/"]
        # The same id of another camera or another run is another frame.
        assert len(journal.commit([*pairs(1, camera="right"), *pairs(1, epoch=2)])) == 4
    with opened(path) as journal:
        assert journal.commit(pairs(1, 2, 3)) == []
    check(rows(path))
    labels = {(v.camera, v.epoch, v.frame_id): v.label for v in read_verdicts(path)}
    assert len(labels) == 5
    assert set(labels.values()) == {Label.PASS}


def test_a_frame_twice_in_one_commit(path: Path) -> None:
    with opened(path) as journal:
        assert len(journal.commit([*pairs(1), *pairs(1), *pairs(2)])) == 4
    check(rows(path))


def test_decided(path: Path) -> None:
    with opened(path) as journal:
        journal.commit(pairs(1, 2, 5))
        journal.commit(pairs(3, camera="right"))
        journal.commit(pairs(4, epoch=2))
        assert journal.decided("left", 1) == {1, 2, 5}
        assert journal.decided("left", 1, after=2) == {5}
        assert journal.decided("left", 2) == {4}
        assert journal.decided("right", 1) == {3}
        assert journal.decided("none", 1) == set()


def test_epochs_never_come_again(path: Path) -> None:
    epochs = []
    for _ in range(3):
        with opened(path) as journal:
            epochs += [journal.next_epoch(), journal.next_epoch()]
    assert epochs == [1, 2, 3, 4, 5, 6]


def test_an_error_in_the_middle_changes_nothing(path: Path) -> None:
    def broken() -> Iterator[tuple[Verdict, PartVerdict | None]]:
        yield from pairs(3, 4)
        raise KeyError("in the middle")

    unsendable = verdict(3, raw_peak=float("nan"))
    with opened(path) as journal:
        journal.commit(pairs(1, 2))
        before = journal.last
        with pytest.raises(KeyError):
            journal.commit(broken())
        with pytest.raises(WireError):
            journal.commit([*pairs(3), (unsendable, part_of(unsendable))])
        assert journal.last == before
        assert journal.decided("left", 1) == {1, 2}
        journal.commit(pairs(3, 4))
    assert len(rows(path)) == 8
    check(rows(path))


def test_a_second_writer_loses_no_verdict_in_silence(path: Path) -> None:
    """The lock forbids two; should they be there, the later one must not think it has written."""
    with opened(path) as one, opened(path) as two:
        one.commit(pairs(1))
        with pytest.raises(ResourceError, match="its only writer"):
            two.commit(pairs(2))
        assert two.last == {}
        one.commit(pairs(2))
    assert [v.frame_id for v in read_verdicts(path)] == [1, 2]
    check(rows(path))


def test_two_writers_in_turn(path: Path) -> None:
    """As the supervisor and decision have it."""
    streams = set()
    for n in range(1, 7):
        with opened(path) as journal:
            streams.add(journal.stream_id)
            journal.commit(pairs(n))
    assert len(streams) == 1
    check(rows(path))


def test_five_hundred_defects(path: Path) -> None:
    defects = tuple(Defect((n, n, n + 4, n + 4), 16, 1.0 + n) for n in range(500))
    full = verdict(1, label=Label.FAIL, reason=Reason.DEFECT, defects=defects)
    with opened(path) as journal:
        journal.commit([(full, part_of(full))])
    (found,) = read_verdicts(path)
    assert found.defects == defects


def test_reading_is_by_camera_and_frame(path: Path) -> None:
    ids = [(camera, epoch, n) for camera in "ba" for epoch in (2, 1) for n in (10, 9, 100)]
    random.Random(3).shuffle(ids)
    with opened(path) as journal:
        for camera, epoch, n in ids:
            journal.commit(pairs(n, camera=camera, epoch=epoch))
        # While it is written.
        found = [(v.camera, v.epoch, v.frame_id) for v in read_verdicts(path)]
        assert found == sorted(ids)
        one = [(v.camera, v.epoch, v.frame_id) for v in read_verdicts(path, epoch=2)]
        assert one == sorted(key for key in ids if key[1] == 2)
        assert list(read_verdicts(path, epoch=3)) == []


@pytest.mark.parametrize("name", ["with space", "50%41", "a?b#c", "übung", "x&mode=memory"])
def test_odd_paths(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "journal.sqlite"
    with opened(path) as journal:
        journal.commit(pairs(1))
    assert len(list(read_verdicts(path))) == 1


# Boots and streams


@pytest.mark.parametrize(
    ("clean", "boot", "same"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_a_new_stream_after_an_unclean_boot_only(
    path: Path, clean: bool, boot: bool, same: bool
) -> None:
    with opened(path) as journal:
        journal.commit(pairs(1, 2))
        stream = journal.stream_id
        assert meta(path)["clean"] == "no"
    assert meta(path)["clean"] == "yes"
    if not clean:
        set_meta(path, "clean", "no")
    if not boot:
        set_meta(path, "boot", "another")
    for _ in range(2):  # and that stream goes on
        with opened(path) as journal:
            assert (journal.stream_id == stream) == same
            told = journal.commit(pairs(len(rows(path)) + 1))
            again = decode(told[0].body)
            assert isinstance(again, Verdict)
            assert again.stream_id == journal.stream_id
            stream, same = journal.stream_id, True
    check(rows(path))


def test_closed_twice(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()


# What is refused


def test_another_schema_is_left_as_it_is(path: Path) -> None:
    with opened(path) as journal:
        journal.commit(pairs(1))
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE meta SET value = ? WHERE name = 'schema'", (str(SCHEMA + 1),))
        base.execute("DROP INDEX verdict_topic")
    before = path.read_bytes()
    told = f"schema {SCHEMA + 1} found, expected {SCHEMA}; move it away"
    with pytest.raises(ResourceError, match=told):
        Journal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all" * 100, b"SQLite format 3\0" * 200])
def test_a_file_that_is_no_journal(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ResourceError, match=r"journal\.sqlite"):
        Journal(path)
    with pytest.raises(ResourceError, match=r"journal\.sqlite"):
        list(read_verdicts(path))
    assert path.read_bytes() == content


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="check the disk's space and rights"):
        Journal(tmp_path / "file" / "journal.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match="check the disk's space and rights"):
        Journal(tmp_path / "folder")
    with pytest.raises(ResourceError):
        Journal(Path("/proc/linewatch/journal.sqlite"))
    with pytest.raises(ResourceError, match="check state_dir"):
        list(read_verdicts(tmp_path / "none"))


def test_nothing_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        with opened(path) as journal:
            journal.commit(pairs(n))
            assert len(list(read_verdicts(path))) == n + 1
    for bad in (path.parent, path / "below"):
        with pytest.raises(ResourceError):
            Journal(bad)
    assert len(os.listdir("/proc/self/fd")) == before
