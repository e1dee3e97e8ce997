"""The notice board, wake-ups, and stages whose supervisor is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from pipeline.board import DONE, DRAIN, GO_ON, QUIT, READY, STARTING, Board
from pipeline.config import LineConfig, dump_resolved
from pipeline.errors import ResourceError
from pipeline.ring import RUNNING, FrameRing
from pipeline.ringfile import create_ring
from pipeline.stage import Stage, drain, wake
from pipeline.station import Station

NAMES = ["capture.left", "worker", "decision"]


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    board = Board(tmp_path / "board", NAMES, create=True)
    yield board
    board.close()


def test_a_new_board(board: Board, tmp_path: Path) -> None:
    assert board.order == GO_ON
    assert board.maker == os.getpid()
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o600
    for name in NAMES:
        assert (board.pid(name), board.incarnation(name), board.state(name)) == (0, 0, STARTING)
        assert board.busy_limit_ms(name) == 0


def test_what_one_writes_the_others_read(board: Board, tmp_path: Path) -> None:
    other = Board(tmp_path / "board", NAMES)
    for n, name in enumerate(NAMES):
        board.set_starting(name, n + 1)
        board.set_pid(name, 100 + n)
        other.set_busy_limit_ms(name, 12.6 + n)
    other.set_state("worker", READY)
    other.set_state("decision", DONE)
    board.set_order(DRAIN)
    assert other.order == DRAIN
    assert [other.pid(name) for name in NAMES] == [100, 101, 102]
    assert [other.incarnation(name) for name in NAMES] == [1, 2, 3]
    assert [board.state(name) for name in NAMES] == [STARTING, READY, DONE]
    assert [board.busy_limit_ms(name) for name in NAMES] == [13, 14, 15]
    board.set_order(QUIT)
    assert other.order == QUIT
    other.close()


def test_a_stage_that_is_started_again_begins_anew(board: Board) -> None:
    board.set_starting("worker", 1)
    board.set_pid("worker", 7)
    board.set_state("worker", READY)
    board.set_busy_limit_ms("worker", 500)
    board.set_starting("worker", 2)
    assert (board.state("worker"), board.pid("worker")) == (STARTING, 0)
    # The stage itself may be quicker than the supervisor's note of its process.
    board.set_state("worker", READY)
    board.set_pid("worker", 8)
    assert (board.state("worker"), board.pid("worker")) == (READY, 8)
    assert (board.busy_limit_ms("worker"), board.incarnation("worker")) == (0, 2)


def test_a_sentence_for_people(board: Board, tmp_path: Path) -> None:
    other = Board(tmp_path / "board", NAMES)
    assert [board.note(name) for name in NAMES] == ["", "", ""]
    other.set_note("worker", "compiles für ein paar Minuten")
    assert [board.note(name) for name in NAMES] == ["", "compiles für ein paar Minuten", ""]
    other.set_note("worker", "ü" * 1000)
    assert 200 < len(board.note("worker")) < 400
    assert set(board.note("worker")) <= {"ü", "\N{REPLACEMENT CHARACTER}"}
    assert (board.note("decision"), board.state("decision")) == ("", STARTING)
    other.set_note("worker", "short")
    assert board.note("worker") == "short"
    board.set_starting("worker", 2)
    assert other.note("worker") == ""
    other.close()


def test_heartbeats(board: Board) -> None:
    board.set_starting("worker", 1)
    time.sleep(0.03)
    board.beat("decision")
    assert board.silent_ms("worker") >= 30
    assert board.silent_ms("decision") < board.silent_ms("worker")
    board.set_state("worker", READY)
    assert board.silent_ms("worker") < 30


def test_boards_of_another_line(board: Board, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"No such file.*a line that runs"):
        Board(tmp_path / "none", NAMES)
    with pytest.raises(ResourceError, match="expected 2560: another line"):
        Board(tmp_path / "board", [*NAMES, "capture.right"])
    with pytest.raises(ResourceError, match=r"File exists.*no board yet"):
        Board(tmp_path / "board", NAMES, create=True)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ResourceError, match="0 bytes found"):
        Board(tmp_path / "empty", NAMES)
    assert board.maker == os.getpid()


def test_a_board_that_does_not_fit_leaves_no_file(tmp_path: Path) -> None:
    script = """
        import resource, sys
        from pathlib import Path
        from pipeline.board import Board
        from pipeline.errors import ResourceError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            Board(Path(sys.argv[1]), ["worker"], create=True)
        except ResourceError as error:
            sys.exit(error.exit_code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "board")], check=False
    )
    assert done.returncode == ResourceError.exit_code
    assert list(tmp_path.iterdir()) == []


def test_closed_twice(tmp_path: Path) -> None:
    board = Board(tmp_path / "board", NAMES, create=True)
    board.close()
    board.close()


# Stages


@pytest.fixture
def station(tmp_path: Path) -> Station:
    """A station with its files, whose board is still to be made."""
    config = LineConfig.model_validate(
        {
            "station": "board",
            "run_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"),
            "shm_dir": str(tmp_path),
            "cameras": {
                "left": {"source": {"kind": "synthetic", "width": 36, "height": 33, "frames": 3}}
            },
        }
    )
    station = Station.of(config)
    station.run_dir.mkdir()
    station.shm_dir.mkdir()
    station.log("x").parent.mkdir(parents=True)
    (station.run_dir / "line.json").write_text(dump_resolved(config))
    create_ring(station.ring("left"), (33, 36, 1), 4, 1)
    return station


def capture(station: Station) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "pipeline.capture", str(station.run_dir), "left"]
    return subprocess.Popen(arguments)


def test_a_stage_works_for_the_maker_of_its_board(station: Station) -> None:
    board = Board(station.board, station.stages, create=True)
    board.set_starting("capture.left", 1)
    assert capture(station).wait(60) == 0
    assert board.state("capture.left") == DONE
    ring = FrameRing(station.ring("left"))
    assert (ring.last_id, ring.ended == RUNNING) == (3, False)
    ring.close()
    board.close()


def test_a_stage_whose_supervisor_is_gone_touches_nothing(station: Station) -> None:
    """There may be another supervisor by now, with a stage of its own on this ring."""
    script = """
        import sys
        from pathlib import Path
        from pipeline.board import Board
        from pipeline.station import Station
        station = Station.attach(Path(sys.argv[1]))
        Board(station.board, station.stages, create=True).close()
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(station.run_dir)]
    subprocess.run(arguments, check=True)
    assert capture(station).wait(60) == 1
    ring = FrameRing(station.ring("left"))
    assert (ring.last_id, ring.ended) == (0, RUNNING)
    ring.close()


def test_a_stage_dies_with_its_supervisor(station: Station) -> None:
    script = """
        import subprocess, sys, time
        from pathlib import Path
        from pipeline.board import Board
        from pipeline.station import Station
        station = Station.attach(Path(sys.argv[1]))
        board = Board(station.board, station.stages, create=True)
        worker = subprocess.Popen(
            [sys.executable, "-m", "pipeline.capture", str(station.run_dir), "left"]
        )
        while board.state("capture.left") == 0:
            time.sleep(0.01)
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    # Its source never ends, so that it is there to be killed.
    text = (station.run_dir / "line.json").read_text()
    (station.run_dir / "line.json").write_text(text.replace('"frames":3', '"frames":null'))
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(station.run_dir)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        stage = Path(f"/proc/{int(supervisor.stdout.readline())}")
        assert stage.exists()
        supervisor.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while alive(stage):
        assert time.monotonic() < end, "the stage lives on"
        time.sleep(0.01)


def alive(process: Path) -> bool:
    """Whether it runs; a zombie that nobody reaps does not."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_wake_ups(station: Station) -> None:
    Board(station.board, station.stages, create=True).close()
    decision, worker = Stage(station, "decision"), Stage(station, "worker")
    early = worker.call("decision")
    for _ in range(500):
        wake(early)  # nobody there: it neither waits nor raises
    inbox = decision.listen()
    drain(inbox)
    until_woken(inbox, early)
    for _ in range(500):
        wake(early)
    drain(inbox)
    drain(inbox)
    # However many are on their way still: one look answers them all, and then it is quiet.
    end = time.monotonic() + 10
    while inbox.poll(50):
        assert time.monotonic() < end
        drain(inbox)
    until_woken(inbox, early)
    decision.close()
    for _ in range(500):
        wake(early)  # nobody there any more
    worker.close()


def until_woken(inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes]) -> None:
    end = time.monotonic() + 10
    while not inbox.poll(20):
        assert time.monotonic() < end, "not woken"
        wake(outbox)


def test_a_full_inbox_does_not_hold_up_whoever_wakes(station: Station) -> None:
    Board(station.board, station.stages, create=True).close()
    decision, worker = Stage(station, "decision"), Stage(station, "worker")
    inbox = decision.listen()
    outbox = worker.call("decision")
    until_woken(inbox, outbox)
    start = time.monotonic()
    for _ in range(20_000):
        wake(outbox)
    assert time.monotonic() - start < 5
    assert inbox.poll(0)
    worker.close()
    decision.close()
