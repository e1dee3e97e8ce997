"""The journal under a killed writer and on a full disk."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from journals import check, meta, opened, pairs, rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


WRITER = """
    import itertools, resource, sys, time
    from pathlib import Path
    from pipeline.errors import ResourceError
    from pipeline.journal import Journal
    from pipeline.types import Label, Reason, Verdict
    from pipeline.verdicts import part_of

    def verdicts(first, count):
        for n in range(first, first + count):
            v = Verdict("station", "left", 1, n, Label.PASS, Reason.OK, engine_id="x" * 500)
            yield v, part_of(v)

    path = Path(sys.argv[1])
"""


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(WRITER) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_kill_9_while_it_writes(path: Path) -> None:
    """What was acknowledged is there, again and again, and the stream is the same."""
    script = """
        journal = Journal(path)
        done = len(journal.decided("left", 1))
        print(journal.stream_id, flush=True)
        for first in itertools.count(done + 1, 7):
            told = journal.commit(verdicts(first, 7))
            print(told[-1].seq, flush=True)
    """
    acknowledged = 0
    streams = set()
    for turn in range(4):
        with python(script, str(path)) as writer:
            assert writer.stdout is not None
            streams.add(writer.stdout.readline().strip())
            # The last turn is long enough for checkpoints of the WAL.
            until = acknowledged + (4000 if turn == 3 else 50 + 37 * turn)
            while acknowledged < until:
                acknowledged = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                acknowledged = int(line) if line.endswith("\n") else acknowledged
        with contextlib.closing(sqlite3.connect(path)) as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = rows(path)
        assert len(found) >= acknowledged
        check(found)
    assert len(streams) == 1
    with opened(path) as journal:
        assert journal.stream_id in streams
        assert journal.last["part/"] == len(rows(path))


def test_a_full_disk(path: Path) -> None:
    """The file-size limit stands for it. Nothing half-written; with room again it goes on."""
    script = """
        def fill(room):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            first = len(journal.decided("left", 1)) + 1
            for first in itertools.count(first, 5):
                before = journal.last
                try:
                    journal.commit(verdicts(first, 5))
                except ResourceError as error:
                    assert journal.last == before
                    assert "check the disk's space and rights" in str(error)
                    assert len(journal.decided("left", 1)) == first - 1
                    return

        journal = Journal(path)
        fill(200_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        journal.commit(verdicts(len(journal.decided("left", 1)) + 1, 5))
        fill(1_000_000)
        journal.close()  # no other error
        try:
            Journal(path).commit(verdicts(10**6, 10**6))
        except ResourceError:
            print("refused")
    """
    with python(script, str(path)) as writer:
        out, err = writer.communicate(timeout=60)
    assert (out, err, writer.returncode) == ("refused\n", "", 0)
    count = len(rows(path))
    assert count > 200
    check(rows(path))
    with opened(path) as journal:
        journal.commit(pairs(10**7))
    assert len(rows(path)) == count + 2
    check(rows(path))


@pytest.mark.parametrize("again", [(), ("again",)])
def test_a_sync_that_fails_is_not_kept_secret(path: Path, again: tuple[str, ...]) -> None:
    """There is room in the WAL, and none for its checkpoint: commits must not go on as if."""
    script = """
        journal = Journal(path)
        journal.commit(verdicts(1, 4000))
        journal.close()
        room = path.stat().st_size - 100_000
        assert room > 4_600_000, room
        journal = Journal(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            for first in itertools.count(4001, 5):
                journal.commit(verdicts(first, 5))
                time.sleep(0.005)
        except ResourceError as error:
            wal = Path(f"{path}-wal").stat().st_size
            assert 4_194_304 < wal < room - 100_000, wal
            print("noticed")
        if "again" in sys.argv:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            for _ in range(2000):
                try:
                    journal.commit(verdicts(10**6, 5))
                    break
                except ResourceError:
                    time.sleep(0.01)
            else:
                print("and never again")
        journal.close()
    """
    with python(script, str(path), *again) as writer:
        out, err = writer.communicate(timeout=60)
    assert (out, err, writer.returncode) == ("noticed\n", "", 0)
    assert meta(path)["clean"] == ("yes" if again else "no")
    check(rows(path))


def test_what_waits_for_room_is_written_when_the_line_ends(path: Path) -> None:
    """Only a part waits, all frames are decided: the loop ends, and the part is not forgotten."""
    script = """
        import logging, zmq
        from pipeline.config import LineConfig
        from pipeline.decision import Decided, Scribe, end_parts
        from pipeline.parts import PartTable
        from pipeline.publish import Publisher
        from pipeline.types import PartKey

        camera = {"source": {"kind": "synthetic"}}
        table = PartTable(
            LineConfig.model_validate({"station": "disk", "cameras": {"left": camera}}), None
        )
        journal = Journal(path)
        publisher = Publisher(zmq.Context(), f"ipc://{path}.ipc", 50)
        scribe = Scribe(journal, publisher, logging.getLogger("decision"))
        ((_, part),) = verdicts(1, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        assert not scribe.write(Decided([], [(PartKey("trigger", "box", 1, 1), part)], []))
        end_parts(table, scribe)
        assert scribe.waits
        assert not journal.last, journal.last
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        end_parts(table, scribe)
        assert not scribe.waits
        print(journal.last["part/"])
        publisher.close()
        journal.close()
    """
    with python(script, str(path)) as writer:
        out, err = writer.communicate(timeout=60)
    assert (out, writer.returncode) == ("1\n", 0), err
    (row,) = rows(path)
    assert row.topic.startswith("part/")
