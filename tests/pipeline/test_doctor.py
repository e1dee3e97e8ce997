"""The doctor: it finds what is wrong with a machine and a configuration, and changes nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from models.bundle import Bundle, Calibration, EngineThresholds, recalibrated
from models.runtimes import available_runtimes
from models.runtimes.machine import driver_fault
from models.untrained import untrained_bundle
from pipeline.cli import run
from pipeline.config import LineConfig, load
from pipeline.doctor import Finding, Level, cpu_flags, cpu_quota, examine_machine, size_text
from pipeline.doctor_line import examine_line, file_system


def line(tmp_path: Path, extra: str = "", camera: str = "", source: str = "") -> LineConfig:
    path = tmp_path / "line.yaml"
    source = source or "{kind: synthetic, width: 64, height: 48, frames: 1}"
    path.write_text(
        f"station: doctor\nrun_dir: run\nstate_dir: state\nshm_dir: .\n"
        f"cameras:\n  left:\n    source: {source}\n{camera}"
        f"publish: {{endpoint: 'ipc://out.sock'}}\nworker: {{runtime: 'null'}}\n{extra}"
    )
    return load(path)


def levels(findings: list[Finding]) -> dict[str, Level]:
    return {finding.name: finding.level for finding in findings}


def finding(findings: list[Finding], name: str) -> Finding:
    return next(f for f in findings if f.name == name)


def test_every_finding_that_is_not_ok_says_what_to_do() -> None:
    findings = examine_machine()
    names = {f.name for f in findings}
    assert {"python", "cores", "cpu features", "/dev/shm", "open files", "gpu"} <= names
    assert {"runtime auto", "locked memory", "memory", "packages"} <= names
    for f in findings:
        assert f.found
        assert bool(f.remedy) == (f.level is not Level.OK)


def test_a_sound_line_has_no_errors_and_nothing_is_written(tmp_path: Path) -> None:
    findings = examine_line(line(tmp_path))
    assert Level.ERROR not in levels(findings).values(), findings
    assert [path.name for path in tmp_path.iterdir()] == ["line.yaml"]
    assert "synthetic 64x48, grey" in finding(findings, "camera left").found


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    config = line(tmp_path, source="{kind: video, path: none.mkv}")
    found = finding(examine_line(config), "camera left")
    assert found.level is Level.ERROR
    assert "none.mkv" in found.found


def test_rings_that_do_not_fit(tmp_path: Path) -> None:
    source = "{kind: synthetic, width: 65536, height: 65536, frames: 0}"
    config = line(tmp_path, source=source, camera="    slots: 4096\n")
    found = finding(examine_line(config), f"shm_dir {tmp_path}")
    assert found.level is Level.ERROR
    assert "fewer slots" in found.remedy


def test_a_socket_path_that_is_too_long(tmp_path: Path) -> None:
    config = line(tmp_path).model_copy(update={"run_dir": "/run/" + "x" * 100})
    found = finding(examine_line(config), "run_dir")
    assert found.level is Level.ERROR
    assert "107" in found.found


def test_an_endpoint_that_somebody_holds(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        endpoint = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        config = line(tmp_path)
        publish = config.publish.model_copy(update={"endpoint": endpoint})
        config = config.model_copy(update={"publish": publish})
        found = finding(examine_line(config), "publish.endpoint")
    assert found.level is Level.ERROR
    assert "in use" in found.found
    assert "pid" in found.found
    assert finding(examine_line(config), "publish.endpoint").level is Level.OK


def test_an_ipc_endpoint_that_somebody_holds(tmp_path: Path) -> None:
    config = line(tmp_path)
    with socket.socket(socket.AF_UNIX) as holder:
        holder.bind(str(tmp_path / "out.sock"))
        holder.listen()
        assert levels(examine_line(config))["publish.endpoint"] is Level.ERROR
    # The file stays when its holder has gone, and is no hindrance.
    assert levels(examine_line(config))["publish.endpoint"] is Level.OK


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    config = line(tmp_path)
    (tmp_path / "file").write_text("")
    config = config.model_copy(update={"state_dir": str(tmp_path / "file" / "state")})
    assert levels(examine_line(config))["state_dir"] is Level.ERROR
    config = config.model_copy(update={"shm_dir": str(tmp_path / "none")})
    assert Level.ERROR in levels(examine_line(config)).values()


@pytest.mark.parametrize("worker", ["{bundle: none}", "{runtime: torch}"])
def test_a_bundle_that_is_missing(tmp_path: Path, worker: str) -> None:
    path = tmp_path / "line.yaml"
    line(tmp_path)
    path.write_text(path.read_text().replace("{runtime: 'null'}", worker))
    found = finding(examine_line(load(path)), "worker")
    assert found.level is Level.ERROR
    assert "bundle" in found.found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated for torch/f32 and openvino/f32."""
    folder = tmp_path_factory.mktemp("bundle")
    plain = Bundle.load(untrained_bundle(folder))
    thresholds = EngineThresholds(0.5, 0.4, 10, 0, 0.3, 0.95, "for a test")
    engines = dict.fromkeys(("torch/f32", "openvino/f32", "cuda/fp16"), thresholds)
    return recalibrated(plain, folder, Calibration(0.1, 0.2, engines))


def with_worker(tmp_path: Path, worker: str) -> LineConfig:
    line(tmp_path)
    path = tmp_path / "line.yaml"
    path.write_text(path.read_text().replace("{runtime: 'null'}", worker))
    return load(path)


def test_the_chain_of_engines_and_the_one_that_would_be_taken(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_worker(tmp_path, f"{{bundle: {bundle}}}")
    found = examine_line(config)
    rows = [f for f in found if f.name.startswith("engine")]
    engines = [name for name in available_runtimes() if name != "null/none"]
    chain = [f"engine {n}, {engine}" for n, engine in enumerate(engines, 1)]
    assert [f.name for f in rows] == [*chain, "engine"]
    assert {f.level for f in rows} == {Level.OK}
    usable = [f.name.partition(", ")[2] for f in rows if f.found == "usable"]
    if driver_fault():
        assert usable == ["openvino/f32", "torch/f32"]
    assert rows[-1].found == f"{usable[0]}, if it gives the bundle's reference maps"
    refused = finding(found, f"engine {1 + engines.index('openvino/int8')}, openvino/int8")
    assert refused.found.startswith("not usable: ")
    assert "--runtime openvino/int8" in refused.found
    # And by the command, for people and for programs.
    assert run(["doctor", str(tmp_path / "line.yaml")]) == 0
    assert "openvino/int8" in capsys.readouterr().out
    assert run(["doctor", str(tmp_path / "line.yaml"), "--json"]) == 0
    answer = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert answer["engine"]["found"] == rows[-1].found
    assert answer[refused.name]["found"] == refused.found


@pytest.mark.skipif(not driver_fault(), reason="this machine has an NVIDIA GPU")
def test_a_fallback_that_would_be_taken_is_a_warning(tmp_path: Path, bundle: Path) -> None:
    worker = f"{{bundle: {bundle}, runtime: cuda, precision: fp16, fallback: [torch/f32]}}"
    found = examine_line(with_worker(tmp_path, worker))
    assert "no NVIDIA driver" in finding(found, "engine 1, cuda/fp16").found
    assert finding(found, "engine 2, torch/f32").found == "usable"
    taken = finding(found, "engine")
    assert taken.level is Level.WARNING
    assert taken.found.startswith("torch/f32")
    assert "fallback" in taken.remedy
    worker = f"{{bundle: {bundle}, runtime: cuda, precision: fp16}}"
    error = finding(examine_line(with_worker(tmp_path, worker)), "worker")
    assert error.level is Level.ERROR
    assert "no NVIDIA driver" in error.found


def test_a_fallback_without_thresholds_and_cores_that_there_are_not(
    tmp_path: Path, bundle: Path
) -> None:
    worker = f"{{bundle: {bundle}, runtime: torch, fallback: [openvino/bf16], cores: [0, 9999]}}"
    found = examine_line(with_worker(tmp_path, worker))
    assert finding(found, "worker").level is Level.ERROR
    assert "--runtime openvino/bf16" in finding(found, "worker").found
    assert finding(found, "worker.cores").level is Level.ERROR
    assert finding(found, "worker.cores").found.startswith("0, 9999 of ")


def test_cpu_flags(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor: 0\nflags\t\t: fpu avx2 amx_tile\nprocessor: 1\nflags: none\n")
    assert cpu_flags(path) == {"fpu", "avx2", "amx_tile"}
    path.write_text("Features\t: fp asimd bf16\n")
    assert cpu_flags(path) == {"fp", "asimd", "bf16"}
    assert cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None), ("1 2 3\n", None)],
)
def test_cpu_quota(tmp_path: Path, text: str, quota: float | None) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert cpu_quota(path) == quota
    assert cpu_quota(tmp_path / "none") is None


def test_file_system_of_a_path_that_is_not_there_yet() -> None:
    assert file_system(Path("/dev/shm/none/at/all")) == "tmpfs"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2**34, "16 GiB"),
        (2**40, "1024 GiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size_text(count) == text


def test_the_command_prints_rows_or_json_and_ends_with_1_for_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line(tmp_path)
    assert run(["doctor", str(tmp_path / "line.yaml")]) == 0
    assert "publish.endpoint" in capsys.readouterr().out
    line(tmp_path, source="{kind: video, path: none.mkv}")
    assert run(["doctor", str(tmp_path / "line.yaml"), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "level", "found", "remedy"} == set(rows[0])
    assert [row["name"] for row in rows if row["level"] == "error"] == ["camera left"]
