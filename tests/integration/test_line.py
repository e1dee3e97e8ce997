"""A whole line: what it does with frames that it cannot inspect, how it starts and ends, and with
its engine: while it compiles, when it hangs, in batches, on its own cores.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from lines import leftovers, line_config, run_line

from pipeline.config import LineConfig, dump_resolved
from pipeline.doctor_line import examine_line
from pipeline.errors import (
    ConfigError,
    ResourceError,
    RuntimeUnavailable,
    StageFailed,
    StationBusy,
)
from pipeline.journal import Journal, read_verdicts
from pipeline.ringfile import ring_bytes
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.telemetry import LOG_BYTES, empty_long_output
from pipeline.types import Label, Reason, Verdict
from pipeline.worker import MAX_FAILED_BATCHES

CORES = sorted(os.sched_getaffinity(0))
RUNNER = """
import sys
from pipeline.config import load_resolved
from pipeline.supervisor import Line
print("started", flush=True)
Line(load_resolved(open(sys.argv[1]).read())).run()
"""


def reasons(verdicts: list[Verdict]) -> Counter[Reason]:
    return Counter(verdict.reason for verdict in verdicts)


def test_no_frames_at_all(tmp_path: Path) -> None:
    assert run_line(line_config(tmp_path, frames=0)) == []


def test_a_line_whose_cameras_have_ended_says_so(tmp_path: Path) -> None:
    config, out = line_config(tmp_path, frames=150, fps=30), tmp_path / "watched"
    command = [sys.executable, "-m", "pipeline.cli", "watch", config.publish.endpoint, "--json"]
    with out.open("w") as file, subprocess.Popen(command, stdout=file) as watch:
        try:
            run_line(config)
            wait_for(lambda: "not ready: all cameras have ended" in out.read_text())
            assert "the disk" not in out.read_text()
        finally:
            watch.terminate()


def test_what_comes_too_late_is_invalid_at_its_deadline(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=60, deadline_ms=12, slots=32)
    verdicts = run_line(config)
    assert [verdict.frame_id for verdict in verdicts] == list(range(1, 61))
    found = reasons(verdicts)
    # One worker needs 5 ms a frame, and 32 frames come at once.
    assert found[Reason.LATE] >= 10
    assert set(found) <= {Reason.LATE, Reason.OK, Reason.DEFECT}
    for verdict in verdicts:
        if verdict.label is not Label.INVALID:
            assert verdict.raw_peak == verdict.frame_id - 1


def test_what_stages_print_does_not_fill_the_disk(tmp_path: Path) -> None:
    for name, size in (("a.err", LOG_BYTES + 1), ("b.err", LOG_BYTES), ("c.log", LOG_BYTES + 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    empty_long_output(tmp_path)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"a.err": 0, "b.err": LOG_BYTES, "c.log": LOG_BYTES + 1}


def test_a_pause_between_frames_is_no_silence(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=3, fps=0.7, heartbeat_timeout_ms=500)
    seen: list[Progress] = []
    assert len(run_line(config, watch=seen.append)) == 3
    assert seen[-1].restarts == 0


def test_a_stage_that_cannot_be_started_for_a_while_is_started_later(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=400, fps=100)
    output = Station.of(config).log("worker").with_suffix(".err")
    killed_s = 0.0

    def sabotage(progress: Progress) -> None:
        nonlocal killed_s
        if progress.captured > 50 and not killed_s:
            output.unlink()
            output.mkdir()  # no file can be opened there: as when a process may open no more
            os.kill(progress.pids["worker"], signal.SIGKILL)
            killed_s = time.monotonic()
        elif killed_s and time.monotonic() > killed_s + 1 and output.is_dir():
            output.rmdir()

    verdicts = run_line(config, watch=sabotage)
    assert killed_s
    assert len(verdicts) == 400
    assert reasons(verdicts).keys() <= {Reason.OK, Reason.DEFECT}


def test_what_finds_no_slot_is_dropped_and_counted(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=2, frames=150, on_full="drop", slots=2, fps=400)
    verdicts = run_line(config)
    assert Counter(v.camera for v in verdicts) == {"cam0": 150, "cam1": 150}
    found = reasons(verdicts)
    assert found[Reason.DROPPED] >= 20
    assert found[Reason.DROPPED] + found[Reason.OK] + found[Reason.DEFECT] == 300
    assert all(
        verdict.raw_peak == verdict.frame_id - 1
        for verdict in verdicts
        if verdict.reason is not Reason.DROPPED
    )


def test_a_frame_on_which_the_engine_raises_is_invalid_and_no_other(tmp_path: Path) -> None:
    config = line_config(tmp_path, frames=20, runtime="tests.fakes:failing_stamp")
    config = with_worker(config, max_batch=1)
    bad = [verdict for verdict in run_line(config) if verdict.label is Label.INVALID]
    assert [(v.camera, v.frame_id, v.reason) for v in bad] == [
        ("cam0", 8, Reason.INFER_FAILED),
        ("cam1", 8, Reason.INFER_FAILED),
    ]


def test_an_engine_that_fails_on_every_frame_is_opened_anew(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=40, runtime="tests.fakes:breaking_stamp")
    line = Line(with_worker(config, max_batch=1))
    seen: list[Progress] = []
    line.run(watch=seen.append)
    assert seen[-1].restarts == 1
    verdicts = list(read_verdicts(Station.of(config).journal, epoch=line.epoch))
    assert len(verdicts) == 40
    bad = [(v.frame_id, v.reason) for v in verdicts if v.label is Label.INVALID]
    assert bad == [(8 + later, Reason.INFER_FAILED) for later in range(MAX_FAILED_BATCHES)]


def test_a_frame_that_kills_the_worker_is_given_up_after_two_tries(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=20, runtime="tests.fakes:deadly_stamp")
    config = with_worker(config, max_batch=1)
    verdicts = run_line(config)
    bad = [verdict for verdict in verdicts if verdict.label is Label.INVALID]
    assert [(v.frame_id, v.reason) for v in bad] == [(8, Reason.WORKER_DIED)]
    assert len(verdicts) == 20


def test_a_stage_that_will_not_live_ends_the_line_and_its_frames_are_invalid(
    tmp_path: Path,
) -> None:
    config = line_config(
        tmp_path, cameras=1, frames=20, runtime="tests.fakes:deadly_stamp", restarts=0
    )
    line = Line(with_worker(config, max_batch=1))
    with pytest.raises(StageFailed, match="worker: ended with 99"):
        line.run()
    verdicts = list(read_verdicts(Station.of(config).journal, epoch=line.epoch))
    assert len(verdicts) == line.captured
    assert verdicts[7].label is Label.INVALID
    assert leftovers(config) == []


def test_sigkill_of_the_supervisor_is_accounted_for_at_the_next_start(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=2, frames=None, fps=100)
    station = Station.of(config)
    with daemon_of(config, tmp_path):
        wait_for(
            lambda: station.journal.exists() and len(list(read_verdicts(station.journal))) > 50
        )
    rings = sorted(path.name for path in station.shm_dir.glob("*.ring"))
    assert rings == ["cam0.ring", "cam1.ring"]

    later = run_line(line_config(tmp_path, cameras=2, frames=10))
    assert len(later) == 20
    earlier = list(read_verdicts(station.journal, epoch=1))
    for camera in ("cam0", "cam1"):
        mine = [verdict for verdict in earlier if verdict.camera == camera]
        assert [verdict.frame_id for verdict in mine] == list(range(1, len(mine) + 1))
        assert {v.reason for v in mine if v.label is Label.INVALID} <= {Reason.LINE_DIED}
    assert leftovers(config) == []


def test_sigterm_drains(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=2, frames=None, fps=100)
    journal = Station.of(config).journal
    line = Line(config)
    line.run(stop=lambda: line.progress().captured > 100)
    verdicts = list(read_verdicts(journal, epoch=line.epoch))
    assert len(verdicts) == line.captured > 100
    assert Reason.LINE_DIED not in reasons(verdicts)


def test_a_second_daemon_of_one_station_is_refused(tmp_path: Path) -> None:
    config = line_config(tmp_path, frames=5)
    run_dir = Station.of(config).run_dir
    run_dir.mkdir(parents=True)
    with (run_dir / "daemon.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StationBusy, match="one daemon per station") as caught:
            run_line(config)
    assert caught.value.exit_code == 6
    assert len(run_line(config)) == 10


def test_an_endpoint_in_use_is_refused(tmp_path: Path) -> None:
    config = line_config(tmp_path, frames=5)
    with zmq.Context() as context, context.socket(zmq.PUB) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        taken = f"tcp://127.0.0.1:{port}"
        config = config.model_copy(
            update={"publish": config.publish.model_copy(update={"endpoint": taken})}
        )
        with pytest.raises(StationBusy, match=f"{taken}.*free endpoint") as caught:
            run_line(config)
    assert caught.value.exit_code == 6
    assert leftovers(config) == []


def test_shared_memory_too_small_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20, hard))
    try:
        config = line_config(tmp_path, frames=5, slots=64)
        with pytest.raises(ResourceError, match=r"needs \d+ MiB.*lower `slots`") as caught:
            run_line(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 7
    assert leftovers(config) == []


def test_epochs_and_seqs_go_on_over_restarts(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=5)
    first, second = run_line(config), run_line(config)
    assert second[0].epoch == first[0].epoch + 1
    assert [v.seq for v in first + second] == list(range(1, 20, 2))
    journal = Journal(Station.of(config).journal)
    assert journal.last == {"frame/cam0/": 19, "part/": 20}
    journal.close()


@contextlib.contextmanager
def daemon_of(config: LineConfig, work: Path) -> Iterator[None]:
    """A supervisor in a process of its own, killed at the end."""
    path = work / "config.json"
    path.write_text(dump_resolved(config))
    command = [sys.executable, "-c", RUNNER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "started\n"
            yield
        finally:
            daemon.kill()


def with_worker(config: LineConfig, **changes: object) -> LineConfig:
    return config.model_copy(update={"worker": config.worker.model_copy(update=changes)})


def wait_for(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_sigterm_to_the_command_ends_with_zero(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=1, frames=None, fps=50)
    path = tmp_path / "station.json"
    path.write_text(dump_resolved(config))  # JSON is YAML
    command = [sys.executable, "-m", "pipeline.cli", "run", str(path)]
    daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journal = Station.of(config).journal
    wait_for(lambda: journal.exists() and len(list(read_verdicts(journal))) > 20)
    os.kill(daemon.pid, signal.SIGTERM)
    _, stderr = daemon.communicate(timeout=20)
    assert (daemon.returncode, stderr) == (0, b"")
    assert leftovers(config) == []


def with_start_timeout(config: LineConfig, milliseconds: int) -> LineConfig:
    limits = config.supervision.model_copy(update={"start_timeout_ms": milliseconds})
    return config.model_copy(update={"supervision": limits})


def what_the_line_is_at(config: LineConfig) -> str:
    return next((f.found for f in examine_line(config) if f.name == "line"), "")


def test_an_engine_may_compile_for_longer_than_a_start_may_take(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, the line is not ready with that sentence, and a death meanwhile is noticed."""
    config = line_config(tmp_path, cameras=1, frames=20, runtime="tests.fakes:compiling_stamp")
    config = with_start_timeout(config, 4000)
    caplog.set_level(logging.INFO, "supervisor")
    seen: list[str] = []
    killed: list[int] = []
    restarts = 0

    def watch(progress: Progress) -> None:
        nonlocal restarts
        restarts = progress.restarts
        if len(seen) < 3 and (text := what_the_line_is_at(config)) not in seen:
            seen.append(text)
        if "compiler" in seen[-1] and not killed:
            killed.append(progress.pids["worker"])
            os.kill(killed[0], signal.SIGKILL)

    verdicts = run_line(config, watch)
    assert [v.raw_peak for v in verdicts] == list(range(20))
    assert restarts == 1, "killed by us, and not by the supervisor"
    assert f"pid {os.getpid()}" in seen[0]
    assert "not ready: worker: starts" in seen[0]
    assert "not ready: worker: the test's compiler takes some minutes" in " ".join(seen)
    assert what_the_line_is_at(config) == ""
    assert "worker: the test's compiler takes some minutes" in caplog.text
    assert "worker: engine stamp/none/none, " in caplog.text
    log = (tmp_path / "state" / "log" / "worker.log").read_text()
    assert log.count("the test's compiler takes some minutes") == 2


def test_an_engine_that_hangs_without_a_word_is_still_killed(tmp_path: Path) -> None:
    config = line_config(
        tmp_path, cameras=1, frames=5, runtime="tests.fakes:hanging_stamp", restarts=0
    )
    with pytest.raises(StageFailed, match=r"worker: ended with -9"):
        run_line(with_start_timeout(config, 4000))
    assert leftovers(config) == []


def test_frames_wait_for_each_other_so_long_and_no_longer(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=2, frames=40, fps=50, runtime="tests.fakes:stamp")
    config = with_worker(config, max_batch=4, max_wait_ms=12.0)
    verdicts = run_line(config)
    assert len(verdicts) == 80
    for verdict in verdicts:
        assert verdict.raw_peak == verdict.frame_id - 1
        latency = dict(verdict.latency_ms)
        total = latency.pop("total")
        assert sum(latency.values()) == pytest.approx(total)
    waits = sorted(verdict.latency_ms["batch"] for verdict in verdicts)
    # Two cameras give no four frames in 12 ms: the first of each batch waits its time out, and the
    # machine's own delays come on top for a few.
    assert sum(wait > 6 for wait in waits) >= 30
    assert waits[len(waits) * 3 // 4] < 14


def test_by_default_no_frame_waits_for_another(tmp_path: Path) -> None:
    verdicts = run_line(line_config(tmp_path, cameras=2, frames=20, runtime="tests.fakes:stamp"))
    assert {verdict.latency_ms["batch"] for verdict in verdicts} == {0.0}
    assert Label.INVALID not in {verdict.label for verdict in verdicts}


def test_the_engine_keeps_to_its_cores_and_knows_the_rings(tmp_path: Path) -> None:
    config = line_config(tmp_path, frames=200, fps=200, runtime="tests.fakes:telling_stamp")
    config = with_worker(config, cores=(CORES[-1],), max_batch=3)
    seen: dict[str, set[int]] = {}

    def watch(progress: Progress) -> None:
        if 0 < progress.captured < 300:  # later one may have left
            for name in ("worker", "decision"):
                seen[name] = os.sched_getaffinity(progress.pids[name])

    [engine] = {verdict.engine_id for verdict in run_line(config, watch)}
    assert seen == {"worker": {CORES[-1]}, "decision": set(CORES)}
    size = ring_bytes((256, 320, 1), 6)
    assert engine == f"told/none/1 3 {size}+{size}"


def test_cores_that_there_are_not_end_the_line(tmp_path: Path) -> None:
    config = with_worker(line_config(tmp_path, frames=5), cores=(CORES[0], 9999))
    with pytest.raises(ConfigError, match=r"worker.cores: 9999 found, expected some of 0"):
        run_line(config)
    assert leftovers(config) == []


def test_a_fallback_that_was_not_calibrated_ends_the_line_at_its_start(tmp_path: Path) -> None:
    config = with_worker(line_config(tmp_path, frames=5), fallback=("openvino/f32",))
    with pytest.raises(RuntimeUnavailable, match="name a bundle"):
        run_line(config)
