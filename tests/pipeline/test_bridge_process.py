"""A bridge as a stage of the line, from the command line, and in the configuration."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from plc_cell import ROOT, Cell
from ports import free_port

from pipeline.board import DONE, QUIT, READY, Board
from pipeline.bridges.run import MODULES, find
from pipeline.commands.bridge import Kind
from pipeline.config import LineConfig, dump_resolved, load, load_resolved
from pipeline.config.bridges import BEATS, Bridge
from pipeline.errors import ConfigError
from pipeline.station import Station

PATIENCE_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[tuple[Station, Board, Callable[[], subprocess.Popen[bytes]]]]:
    """A line's station and board, as the supervisor makes them, and what starts its bridge."""
    cell = Cell(tmp_path, f"{{kind: modbus, port: {free_port()}}}")
    config = load(cell.config).model_copy(update={"shm_dir": str(tmp_path)})
    station = Station.of(config)
    station.shm_dir.mkdir()
    (station.run_dir / "line.json").write_text(dump_resolved(config))
    board = Board(station.board, station.stages, create=True)
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        board.set_starting("bridge.cell", 1)
        arguments = ["-m", "pipeline.bridges", str(station.run_dir), "cell"]
        started.append(subprocess.Popen([sys.executable, *arguments], cwd=ROOT))
        return started[-1]

    yield station, board, start
    for process in started:
        process.kill()
        process.wait()
    board.close()


def test_a_stage_of_the_line(
    stage: tuple[Station, Board, Callable[[], subprocess.Popen[bytes]]],
) -> None:
    station, board, start = stage
    assert station.stages[-1] == "bridge.cell"
    process = start()
    until(lambda: board.state("bridge.cell") == READY)
    first = board.silent_ms("bridge.cell")
    until(lambda: "Modbus TCP on" in station.log("bridge.cell").read_text())
    until(lambda: board.silent_ms("bridge.cell") < max(first, 100))  # it goes on beating
    board.set_order(QUIT)
    assert process.wait(PATIENCE_S) == 0
    assert board.state("bridge.cell") == DONE


def test_a_stage_that_gives_up_says_why(
    stage: tuple[Station, Board, Callable[[], subprocess.Popen[bytes]]],
) -> None:
    station, _, start = stage
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", station.config.bridges["cell"].port))
        holder.listen()
        assert start().wait(PATIENCE_S) == 6
    kind, _, text = station.fault("bridge.cell").read_text().partition("\n")
    assert kind == "StationBusy"
    assert "choose another `port`" in text


def linewatch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100", "NO_COLOR": "1"},
    )


def test_which_bridge_is_meant(tmp_path: Path) -> None:
    config = Cell(tmp_path, "{kind: modbus}").config
    for arguments, found in (
        (["mqtt", str(config)], "bridges of kind mqtt found: none; expected one"),
        (["modbus", str(config), "--name", "x"], "found: cell; expected one called 'x'"),
    ):
        answer = linewatch("bridge", *arguments)
        assert answer.returncode == 2
        assert found in answer.stderr
    two = "bridges: {a: {kind: modbus}, b: {kind: modbus, port: 5021}}\n"
    config.write_text(config.read_text().partition("bridges:")[0] + two)
    answer = linewatch("bridge", "modbus", str(config))
    assert answer.returncode == 2
    assert "found: a, b; expected one, or --name" in answer.stderr


def test_the_help_names_the_documentation() -> None:
    answer = linewatch("bridge", "--help")
    assert answer.returncode == 0
    assert "docs/plc.md" in answer.stdout
    assert (ROOT / "docs" / "plc.md").exists()


# Configuration


def line(tmp_path: Path, bridge: str, more: str = "") -> LineConfig:
    path = tmp_path / "line.yaml"
    path.write_text(
        f"station: s\ncameras: {{cam: {{source: {{kind: rendered}}}}}}\n"
        f"bridges: {{b: {bridge}}}\n{more}"
    )
    return load(path)


def test_every_kind_has_a_module_and_is_a_word_of_the_command() -> None:
    kinds = {one.model_fields["kind"].annotation for one in Bridge.__subclasses__()}
    names = {kind.__args__[0] for kind in kinds if kind is not None}
    assert names == set(MODULES) == set(Kind)


def test_bridges_survive_the_way_to_a_stage(tmp_path: Path) -> None:
    config = line(tmp_path, "{kind: opcua, certificates: keys}")
    assert load_resolved(dump_resolved(config)) == config
    assert json.loads(dump_resolved(config))["bridges"]["b"]["certificates"] == f"{tmp_path}/keys"


@pytest.mark.parametrize(
    ("bridge", "said"),
    [
        ("{kind: profinet}", "profinet"),
        ("{kind: modbus, host: 10.0.0.5}", "insecure: true"),
        ("{kind: mqtt, host: broker.plant}", "insecure: true"),
        ("{kind: opcua, host: 0.0.0.0}", "trusted"),
        ("{kind: modbus, port: 0}", "port"),
        ("{kind: modbus, unit: 248}", "unit"),
        ("{kind: modbus, target: other}", "a part or a camera of this line"),
        ("{kind: modbus, stale_ms: 100}", "at most a third"),
        ("{kind: mqtt, user: me}", "password_file"),
        ("{kind: mqtt, ca_file: x.pem}", "tls: true"),
        ("{kind: mqtt, prefix: 'a/+/b'}", "prefix"),
        ("{kind: modbus, topic: x}", "topic"),
    ],
)
def test_what_no_bridge_may_be(tmp_path: Path, bridge: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        line(tmp_path, bridge)


@pytest.mark.parametrize(
    "bridge",
    [
        "{kind: modbus, host: 0.0.0.0, insecure: true}",
        "{kind: mqtt, host: broker.plant, tls: true}",
        "{kind: opcua, host: 0.0.0.0, trusted: clients}",
        "{kind: modbus, host: '::1', target: cam}",
    ],
)
def test_what_a_bridge_may_be(tmp_path: Path, bridge: str) -> None:
    assert line(tmp_path, bridge).bridges["b"].stale_ms == 200


def test_heartbeats_must_fit(tmp_path: Path) -> None:
    most = 300 // BEATS
    config = line(tmp_path, "{kind: modbus, stale_ms: 300}", f"publish: {{heartbeat_ms: {most}}}\n")
    assert config.publish.heartbeat_ms == most
    with pytest.raises(ConfigError, match="heartbeat_ms"):
        line(tmp_path, "{kind: modbus}", "publish: {heartbeat_ms: 67}\n")


def test_a_bridge_that_is_not_configured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'x' wanted, b in"):
        find(Station.of(line(tmp_path, "{kind: modbus}")), "x")
