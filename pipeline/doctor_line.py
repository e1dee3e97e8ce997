"""What `linewatch doctor` looks at for one configuration: see `pipeline.doctor`."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from pipeline.board import STARTING, Board
from pipeline.config import IPC_PATH_LIMIT, LineConfig
from pipeline.doctor import MIB, Finding, Level, judge, shared_memory, size_text
from pipeline.errors import ConfigError, LinewatchError
from pipeline.prepare.preparation import prepared_shape
from pipeline.ringfile import ring_bytes
from pipeline.sources import probe
from pipeline.station import Station

VERDICT_BYTES = 1000
"""What a frame takes in the journal, with its part: measured, rounded up."""
NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}


def examine_line(config: LineConfig) -> list[Finding]:
    """All findings about this configuration on this machine. A line that runs has its endpoint."""
    return [finding for check in LINE_CHECKS for finding in check(config)]


def check_station(config: LineConfig) -> Iterator[Finding]:
    try:
        station = Station.of(config)
    except ConfigError as error:
        yield Finding("run_dir", Level.ERROR, str(error), "set a shorter run_dir")
        return
    longest = max(len(str(station.socket(stage)).encode()) for stage in station.stages)
    yield judge(
        "socket paths",
        longest <= IPC_PATH_LIMIT,
        f"{longest} bytes of {IPC_PATH_LIMIT}",
        "set a shorter run_dir",
        Level.ERROR,
    )
    yield _writable("run_dir", station.run_dir)
    yield _writable("state_dir", station.state_dir)
    kind = file_system(station.state_dir)
    yield judge(
        "journal's file system",
        kind not in NETWORK_FILE_SYSTEMS,
        kind or "unknown",
        "SQLite's journal is not safe on a network file system: set state_dir on a local disk",
        Level.ERROR,
    )
    free = shutil.disk_usage(_existing(station.state_dir)).free
    frames = free // VERDICT_BYTES / 1e6
    yield judge(
        "journal's disk",
        free >= 1024 * MIB,
        f"{size_text(free)} free, room for the verdicts of {frames:.3g} million frames",
        "free some, or set state_dir elsewhere",
        Level.ERROR if free < 100 * MIB else Level.WARNING,
    )


def check_cameras(config: LineConfig) -> Iterator[Finding]:
    wanted = 0
    for name, camera in config.cameras.items():
        try:
            shape = prepared_shape(camera, probe(camera.source))
        except LinewatchError as error:
            yield Finding(f"camera {name}", Level.ERROR, str(error), "mend cameras." + name)
            continue
        size = ring_bytes(shape, camera.slots)
        wanted += size
        height, width, channels = shape
        frame = f"{width}x{height}, {'RGB' if channels == 3 else 'grey'}"
        text = f"{camera.source.kind} {frame}, {size_text(size)} of shared memory"
        yield Finding(f"camera {name}", Level.OK, text)
    for finding in shared_memory(Path(config.shm_dir), wanted):
        failed = finding.level is Level.WARNING
        yield Finding(
            "shm_dir " + finding.name if finding.name == config.shm_dir else finding.name,
            Level.ERROR if failed else finding.level,
            finding.found,
            finding.remedy,
        )


def check_endpoint(config: LineConfig) -> Iterator[Finding]:
    endpoint = config.publish.endpoint
    scheme, _, address = endpoint.partition("://")
    holder = _ipc_holder(Path(address)) if scheme == "ipc" else _tcp_holder(address)
    yield judge(
        "publish.endpoint",
        not holder,
        f"{endpoint}, " + (holder or "free"),
        "stop whoever holds it, or choose another endpoint",
        Level.ERROR,
    )


def _ipc_holder(path: Path) -> str:
    """Who answers on a Unix socket, or why it cannot be made; empty when it is free."""
    if not os.access(_existing(path.parent), os.W_OK | os.X_OK):
        return f"{path.parent} is not writable"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe_socket:
        try:
            probe_socket.connect(str(path))
        except OSError:
            return ""
    return "in use"


def _tcp_holder(address: str) -> str:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe_socket:
        probe_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe_socket.bind((host, int(port)))
        except OSError as error:
            return f"{error.strerror}{_listener(int(port))}"
    return ""


def _listener(port: int) -> str:
    """` (by NAME, pid N)` of the process that listens on the port, where we may see it."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.AccessDenied, OSError):
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and getattr(connection.laddr, "port", 0) == port:
            if connection.pid is None:
                return ""
            try:
                return f" (by {psutil.Process(connection.pid).name()}, pid {connection.pid})"
            except psutil.NoSuchProcess:
                return ""
    return ""


def check_bundle(config: LineConfig) -> Iterator[Finding]:
    from models.bundle import Bundle
    from models.errors import ModelsError
    from models.runtimes import candidates, choose

    worker = config.worker
    try:
        bundle = Bundle.load(Path(worker.bundle)) if worker.bundle else None
        if bundle:
            yield Finding("bundle", Level.OK, f"{bundle.path.name}, {bundle.variant}, whole")
            optics = bundle.calibration.optics
            blind = [
                name
                for name, camera in config.cameras.items()
                if camera.recipe.optics.watch != "off" and not optics.keys() & {name, ""}
            ]
            yield judge(
                "optics limits",
                not blind,
                f"none for {', '.join(blind)}" if blind else "for every camera that is watched",
                "calibrate with ten good images of each camera or more, or set optics.watch: off",
            )
        chain = candidates(bundle, worker.runtime, worker.precision, worker.fallback)
        for number, each in enumerate(chain, 1):
            # One candidate fewer is no fault of the line, as long as `engine` below names another.
            found = f"not usable: {each.fault}" if each.fault else "usable"
            yield Finding(f"engine {number}, {each.engine}", Level.OK, found)
        taken = next((each.engine for each in chain if not each.fault), None)
        if taken is None:
            choose(bundle, worker.runtime, worker.precision)  # raises, with what to do
        configured = candidates(bundle, worker.runtime, worker.precision)
        yield judge(
            "engine",
            taken in [each.engine for each in configured],
            f"{taken}, if it gives the bundle's reference maps" if bundle else str(taken),
            "this is a fallback: mend what stands before it, or configure it as worker.runtime",
        )
    except ModelsError as error:
        yield Finding(
            "worker",
            Level.ERROR,
            str(error),
            "mend worker.bundle, worker.runtime or worker.fallback",
        )


def check_cores(config: LineConfig) -> Iterator[Finding]:
    if not config.worker.cores:
        return
    allowed = os.sched_getaffinity(0)
    missing = sorted({*config.worker.cores} - allowed)
    yield judge(
        "worker.cores",
        not missing,
        f"{', '.join(map(str, config.worker.cores))} of {', '.join(map(str, sorted(allowed)))}",
        "name cores that this machine has and that the line may use",
        Level.ERROR,
    )


def check_running(config: LineConfig) -> Iterator[Finding]:
    """What the line of this configuration is at, if it runs."""
    try:
        station = Station.of(config)
        board = Board(station.board, station.stages)
    except LinewatchError:
        return  # it does not run, or is one of other cameras
    try:
        if not psutil.pid_exists(board.maker):
            return
        waits = [
            f"{name}: {board.note(name) or 'starts'}"
            for name in ("worker", "decision")
            if board.state(name) == STARTING
        ]
        text = "not ready: " + "; ".join(waits) if waits else f"ready: {board.note('worker')}"
        yield Finding("line", Level.OK, f"runs (pid {board.maker}), {text}")
    finally:
        board.close()


def _writable(name: str, path: Path) -> Finding:
    there = _existing(path)
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    text = str(path) if there == path else f"{path}, to be made in {there}"
    remedy = f"run as a user who may write to {there}, or set {name} elsewhere"
    return judge(name, good, text if good else f"{text}: not writable", remedy, Level.ERROR)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def file_system(path: Path) -> str:
    """The type of the file system that holds the path, such as `ext4`; empty when unknown."""
    there = _existing(path).resolve()
    best = max(
        (p for p in psutil.disk_partitions(all=True) if there.is_relative_to(p.mountpoint)),
        key=lambda partition: len(partition.mountpoint),
        default=None,
    )
    return best.fstype if best else ""


LINE_CHECKS: tuple[Callable[[LineConfig], Iterator[Finding]], ...] = (
    check_station,
    check_cameras,
    check_endpoint,
    check_bundle,
    check_cores,
    check_running,
)
