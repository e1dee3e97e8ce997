"""What people ask a journal, and its limits."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
import time
from pathlib import Path

import pytest
from journals import opened, pairs, verdict

from pipeline.catch_up import JournalReader
from pipeline.cli import run
from pipeline.commands.journals import parsed_time
from pipeline.config import PublishConfig, load
from pipeline.errors import ConfigError, ResourceError
from pipeline.journal import KEEP_ROWS, Journal, read_verdicts
from pipeline.journal_queries import Entry, Wanted, find, statistics, vacuum
from pipeline.lock import hold_station
from pipeline.station import Station
from pipeline.types import Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import Ask

NONE = Wanted()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.sqlite"
    failed = verdict(3, "right", label=Label.FAIL, reason=Reason.DEFECT, part_id="tray 1")
    late = verdict(4, label=Label.INVALID, reason=Reason.LATE)
    with opened(path) as journal:
        journal.commit([*pairs(1, 2), *pairs(1, camera="right")])
        journal.commit([(failed, part_of(failed)), (late, part_of(late))])
    return path


def keys(path: Path, wanted: Wanted) -> list[str]:
    return [f"{e.plain()['kind']} {e.plain()['views']}" for e in find(path, wanted)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (NONE, 10),
        (Wanted(kind="frame"), 5),
        (Wanted(kind="part"), 5),
        (Wanted(camera="right"), 4),
        (Wanted(camera="none"), 0),
        (Wanted(label="fail"), ["frame right/1/3", "part right/1/3"]),
        (Wanted(reason="late", kind="frame"), ["frame left/1/4"]),
        (Wanted(part_id="tray 1"), ["frame right/1/3", "part right/1/3"]),
        (Wanted(part_id="left/1/2"), ["frame left/1/2", "part left/1/2"]),
        (Wanted(part_id="'; DROP TABLE verdict; --"), 0),
        (Wanted(limit=2), ["frame left/1/4", "part left/1/4"]),
        (Wanted(since_utc_ns=2**62), 0),
        (Wanted(until_utc_ns=0), 0),
        (Wanted(since_utc_ns=0, until_utc_ns=2**62), 10),
    ],
)
def test_find(path: Path, wanted: Wanted, expected: int | list[str]) -> None:
    found = keys(path, wanted)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_who_reads_slowly_does_not_keep_the_log_from_beginning_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with opened(path) as journal:
        fill(journal, 1, 1200)
        frames, verdicts = find(path, Wanted(kind="frame", limit=1100)), read_verdicts(path)
        assert next(frames).message.seq == 2 * 100 + 1
        assert next(verdicts).frame_id == 1
        fill(journal, 1201, 100)
        with contextlib.closing(sqlite3.connect(path)) as base:
            busy, _, _ = base.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        assert [e.message.seq for e in frames] == [2 * n + 1 for n in range(101, 1200)]
        assert [verdict.frame_id for verdict in verdicts] == list(range(2, 1301))


def test_find_by_time(path: Path) -> None:
    time.sleep(0.01)
    now = time.time_ns()
    with opened(path) as journal:
        journal.commit(pairs(9))
    assert len(keys(path, Wanted(since_utc_ns=now))) == 2
    assert len(keys(path, Wanted(until_utc_ns=now))) == 10


def test_statistics(path: Path) -> None:
    found = statistics(path)
    assert (found.rows, found.oldest_seq, found.newest_seq, found.streams) == (10, 1, 10, 1)
    assert found.labels["frame/left/"] == {"invalid/late": 1, "pass/ok": 2}
    assert 0 < found.first_commit_utc_ns <= found.last_commit_utc_ns <= time.time_ns()


def test_no_journal(tmp_path: Path) -> None:
    for ask in (lambda p: list(find(p, NONE)), statistics, vacuum):
        with pytest.raises(ResourceError, match="check state_dir"):
            ask(tmp_path / "none.sqlite")


@pytest.mark.parametrize("text", ["yesterday", "5 m", "", "99999-01-01", "5w"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected one like"):
        parsed_time(text)
    assert parsed_time(None) is None
    assert abs((parsed_time("2m") or 0) + 120e9 - time.time_ns()) < 5e9
    assert parsed_time("2026-11-22T14:00+00:00") == 1795356000 * 10**9


def test_commands(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["journal", "find", str(path), "--label", "fail", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["frame", "part"]
    assert lines[0]["part_id"] == "tray 1"
    assert run(["journal", "find", str(path), "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [int(row["seq"]) for row in table] == list(range(1, 11))
    assert run(["journal", "find", str(path), "--part", "tray 1"]) == 0
    assert "defect" in capsys.readouterr().out
    assert run(["journal", "find", str(path), "--kind", "map"]) == 2
    assert run(["journal", "stats", str(path)]) == 0
    assert "10 rows" in capsys.readouterr().out
    assert run(["journal", "stats", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10
    assert run(["journal", "stats", str(tmp_path / "none.sqlite")]) == 7


def test_export(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="the parquet extra is not installed")
    out = tmp_path / "out.parquet"
    assert run(["journal", "export", str(path), "--parquet", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 10
    table = parquet.read_table(out).to_pylist()
    assert [row["seq"] for row in table] == list(range(1, 11))
    assert {row["label"] for row in table} == {"pass", "fail", "invalid"}
    assert run(["journal", "export", str(path), "--parquet", f"{tmp_path}/no/x"]) == 7
    assert [p.name for p in tmp_path.iterdir() if "journal" not in p.name] == ["out.parquet"]


def test_vacuum_is_for_a_line_that_is_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "line.yaml"
    config.write_text(
        "station: s\nrun_dir: run\nstate_dir: .\ncameras: {a: {source: {kind: synthetic}}}\n"
    )
    station = Station.of(load(config))
    with opened(station.journal) as journal:
        journal.commit(pairs(*range(1, 5000)))
        stream = journal.stream_id
    with sqlite3.connect(station.journal) as base:
        base.execute("DELETE FROM verdict WHERE seq < 9000")
    base.close()
    before = [v.frame_id for v in read_verdicts(station.journal)]
    with hold_station(station):
        assert run(["journal", "vacuum", str(config)]) == 6
    assert "another linewatch" in capsys.readouterr().err
    assert run(["journal", "vacuum", str(config), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)
    assert sizes["after_bytes"] < sizes["before_bytes"] / 2
    assert [v.frame_id for v in read_verdicts(station.journal)] == before
    with opened(station.journal) as journal:
        assert journal.stream_id == stream


# Limits


def fill(journal: Journal, first: int, count: int) -> None:
    for n in range(first, first + count, 500):
        journal.commit(pairs(*range(n, min(n + 500, first + count))))


def test_by_age(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, PublishConfig(keep_days=1e-9))
    journal.commit(pairs(1, camera="once"))
    rounds = KEEP_ROWS // 2 + 4000
    fill(journal, 1, rounds)
    found = statistics(path)
    assert found.newest_seq == 2 + 2 * rounds
    # Never more than the limit and what one commit brings, and never fewer than stay.
    assert KEEP_ROWS <= found.rows <= KEEP_ROWS + 1001
    last = journal.last
    assert last["frame/once/"] == 1
    journal.close()
    journal = Journal(path, PublishConfig(keep_days=1e-9))
    assert journal.last == last
    rows = journal.commit(pairs(1, camera="once"))  # long ago, and its row is still there
    assert rows == []
    rows = journal.commit(pairs(2, camera="once"))
    assert rows[0].seq == 3 + 2 * rounds
    journal.close()
    journal = Journal(path)  # the first of that camera has gone, as it is the last no more
    assert [e.message.seq for e in find(path, Wanted(camera="once", kind="frame"))] == [rows[0].seq]
    journal.close()


def test_a_clock_that_is_set_costs_no_rows(tmp_path: Path) -> None:
    """A machine begins in 1970, inspects, and then learns what day it is."""
    path, shift = tmp_path / "journal.sqlite", [-time.time_ns()]
    journal = Journal(path, PublishConfig(keep_days=30), utc_ns=lambda: time.time_ns() + shift[0])
    fill(journal, 1, 1000)
    shift[0] = 0
    rounds = KEEP_ROWS // 2 + 4000
    fill(journal, 1001, rounds)
    assert statistics(path).oldest_seq == 1
    journal.close()
    journal = Journal(path, PublishConfig(keep_days=30))  # another run, which sees old rows
    fill(journal, 20_000, 1000)
    assert statistics(path).oldest_seq > 1
    journal.close()


def test_by_size_the_file_stops_growing(tmp_path: Path) -> None:
    """Rows of 4 kB: those that always stay are more than the limit of 64 MiB."""
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, PublishConfig(keep_mb=64))
    text = "x" * 4000
    sizes = []
    for n in range(1, 30_000, 50):
        whole = [verdict(m, engine_id=text) for m in range(n, n + 50)]
        journal.commit((each, None) for each in whole)
        sizes.append(statistics(path).file_bytes if n % 5000 == 1 else 0)
    most = 64 * 2**20
    kept = KEEP_ROWS * 4300
    assert max(sizes) <= max(most, kept) * 1.3
    found = statistics(path)
    assert found.newest_seq == 30_000
    assert found.rows < 22_000
    reader = JournalReader(path)
    rows, bodies = reader.rows(Ask("", "frame/left/", 0, 1))
    assert rows.gone
    assert len(bodies) == 1
    reader.close()
    journal.close()


def test_without_limits_nothing_goes(tmp_path: Path) -> None:
    with opened(tmp_path / "journal.sqlite") as journal:
        fill(journal, 1, KEEP_ROWS)
    assert statistics(tmp_path / "journal.sqlite").rows == 2 * KEEP_ROWS


def test_durability_power(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite", PublishConfig(durability="power"))
    assert len(journal.commit(pairs(1, 2))) == 4
    journal.close()
    entries = list(find(tmp_path / "journal.sqlite", NONE))
    assert all(isinstance(e, Entry) for e in entries)
    assert {type(e.message) for e in entries} == {Verdict, PartVerdict}
