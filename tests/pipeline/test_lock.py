"""One daemon per station, whoever dies how; and what a daemon may remove."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import LineConfig, dump_resolved
from pipeline.errors import ConfigError, ResourceError, StationBusy
from pipeline.lock import hold_stage, hold_station
from pipeline.station import Station


@pytest.fixture
def station(tmp_path: Path) -> Station:
    config = LineConfig.model_validate(
        {
            "station": "lock",
            "run_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"),
            "cameras": {"left": {"source": {"kind": "synthetic"}}},
        }
    )
    (tmp_path / "line.json").write_text(dump_resolved(config))
    return Station.of(config)


HOLDER = """
    import sys, time
    from pathlib import Path
    from pipeline.errors import LinewatchError
    from pipeline.lock import hold_stage, hold_station
    from pipeline.station import Station

    station = Station.attach(Path(sys.argv[1]))
    try:
        if sys.argv[2] == "stage":
            descriptor = hold_stage(station)
            print("held", flush=True)
            time.sleep(float(sys.argv[3]))
        else:
            with hold_station(station):
                print("held", flush=True)
                time.sleep(float(sys.argv[3]))
    except LinewatchError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


@contextlib.contextmanager
def holder(folder: Path, who: str, seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the station, or a stage of it."""
    source = textwrap.dedent(HOLDER)
    arguments = [sys.executable, "-c", source, str(folder), who, str(seconds)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_daemon_is_refused(station: Station, tmp_path: Path) -> None:
    with holder(tmp_path, "station") as other:
        with pytest.raises(StationBusy, match="station lock: another linewatch holds") as busy:
            hold_station(station).__enter__()
        assert busy.value.exit_code == 6
        assert other.poll() is None
    with hold_station(station):  # killed: the kernel has let go
        source = textwrap.dedent(HOLDER)
        arguments = [sys.executable, "-c", source, str(tmp_path), "station", "0"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 6
        assert "give this one another `station` name" in done.stdout


def test_the_second_one_removes_nothing_of_the_first(station: Station) -> None:
    with hold_station(station):
        socket = station.run_dir / "worker.ipc"
        socket.write_text("in use")
        for _ in range(2):
            with pytest.raises(StationBusy):
                hold_station(station).__enter__()
        assert socket.exists()
    assert not socket.exists()


def test_held_again_and_again(station: Station) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with hold_station(station):
            assert station.run_dir.stat().st_mode & 0o777 == 0o700
            (station.run_dir / "line.json").write_text("{}")
            (station.run_dir / "engine.123").write_text("{}")
        assert {path.name for path in station.run_dir.iterdir()} == {"daemon.lock", "stages.lock"}
    with pytest.raises(KeyError), hold_station(station):
        raise KeyError("in the line")
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_a_killed_daemon_left_is_removed(station: Station, tmp_path: Path) -> None:
    with holder(tmp_path, "station") as other:
        (station.run_dir / "decision.ipc").write_text("")
        (station.run_dir / "worker.fault").write_text("")
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (station.run_dir / "decision.ipc").exists()
    with hold_station(station):
        assert {path.name for path in station.run_dir.iterdir()} == {"daemon.lock", "stages.lock"}


def test_it_waits_for_the_stages_of_a_killed_daemon(station: Station, tmp_path: Path) -> None:
    station.run_dir.mkdir()
    (station.run_dir / "daemon.lock").touch()
    with holder(tmp_path, "stage", 0.4) as stage:
        start = time.monotonic()
        with hold_station(station):
            assert stage.poll() is not None or time.monotonic() - start >= 0.3
            assert stage.wait() == 0


def test_stages_that_do_not_end(station: Station, tmp_path: Path) -> None:
    station.run_dir.mkdir()
    (station.run_dir / "daemon.lock").touch()
    with holder(tmp_path, "stage") as stage:
        start = time.monotonic()
        with pytest.raises(StationBusy):
            hold_station(station, patience_s=0.2).__enter__()
        assert time.monotonic() - start >= 0.2
        threading.Timer(0.2, stage.kill).start()
        with hold_station(station):
            assert stage.wait() == -signal.SIGKILL


def test_stages_hold_together_under_their_daemon(station: Station) -> None:
    with hold_station(station):
        descriptors = [hold_stage(station) for _ in range(3)]
        for descriptor in descriptors:
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)


@pytest.mark.parametrize("name", ["station.yaml", "photo.png", "other.lock"])
def test_a_folder_with_another_use_is_left_alone(station: Station, name: str) -> None:
    """`run_dir: .` must not cost anybody the configuration that it stands in."""
    station.run_dir.mkdir(mode=0o755)
    (station.run_dir / name).write_text("precious")
    with pytest.raises(ConfigError, match="choose another"):
        hold_station(station).__enter__()
    assert [path.name for path in station.run_dir.iterdir()] == [name]
    assert station.run_dir.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_will_do(station: Station) -> None:
    station.run_dir.mkdir(mode=0o755)  # as systemd makes it
    with hold_station(station):
        assert station.run_dir.stat().st_mode & 0o777 == 0o700


def test_folders_in_it_stay(station: Station) -> None:
    with hold_station(station):
        (station.run_dir / "mine").mkdir()
    with hold_station(station):
        assert (station.run_dir / "mine").is_dir()


def test_places_where_no_folder_can_be(station: Station) -> None:
    station.run_dir.write_text("a file")
    with pytest.raises(ResourceError, match="check the rights"):
        hold_station(station).__enter__()
