"""What `linewatch doctor` looks at on a machine: a row for each need, with what to do.

A check is a function that yields findings and changes nothing; `examine_machine` calls all of
`CHECKS`. What one configuration needs beyond that is in `pipeline.doctor_line`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

MIB = 2**20
CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "bf16", "i8mm",
)  # fmt: skip
MIN_FILES = 1024
GOOD_CLOCKS = {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen"}


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row. `remedy` is empty when there is nothing to do."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def examine_machine() -> list[Finding]:
    """All findings. Raises nothing for what it is there to find."""
    return [finding for check in CHECKS for finding in check()]


def judge(name: str, good: bool, found: str, remedy: str, bad: Level = Level.WARNING) -> Finding:
    return Finding(name, Level.OK, found) if good else Finding(name, bad, found, remedy)


# The machine


def check_python() -> Iterator[Finding]:
    yield judge(
        "python",
        sys.version_info >= (3, 11),
        f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "use Python 3.11 or newer",
        Level.ERROR,
    )
    yield judge(
        "system",
        sys.platform == "linux",
        f"{platform.system()} {platform.release()}",
        "the line needs Linux: /dev/shm, flock and Unix sockets",
        Level.ERROR,
    )


def check_cpu() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    text = f"{cores} cores" + (f", limited to {quota:g} by the control group" if quota else "")
    usable = min(cores, quota or cores)
    yield judge("cores", usable >= 2, text, "give it two or more: stages run side by side")
    flags = cpu_flags()
    shown = [flag for flag in CPU_FEATURES if flag in flags]
    yield judge(
        "cpu features",
        "avx2" in flags or platform.machine() in ("aarch64", "arm64"),
        ", ".join(shown) or "none of " + ", ".join(CPU_FEATURES),
        "inference will be slow on this CPU: use one with AVX2, better AVX-512, or a GPU",
    )
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor.exists():
        name = governor.read_text().strip()
        yield judge(
            "cpu governor",
            name != "powersave" or (governor.parent / "energy_performance_preference").exists(),
            name,
            "clocks rise late: `cpupower frequency-set -g performance`",
        )


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets that the kernel names; empty where it names none."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return frozenset()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Cores that a container may use, None without a limit."""
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def check_clock() -> Iterator[Finding]:
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if path.exists():
        name = path.read_text().strip()
        remedy = "time stamps are slow: see in the kernel's log why tsc was marked unstable"
        yield judge("clock source", name in GOOD_CLOCKS, name, remedy)


def check_limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge(
        "open files",
        files == resource.RLIM_INFINITY or files >= MIN_FILES,
        "unlimited" if files == resource.RLIM_INFINITY else f"up to {files}",
        f"`ulimit -n {MIN_FILES}`, or LimitNOFILE={MIN_FILES} in the service",
    )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = locked == resource.RLIM_INFINITY
    yield judge(
        "locked memory",
        unlimited or shutil.which("nvidia-smi") is None,
        "unlimited" if unlimited else f"up to {locked // 1024} KiB",
        "page-locking the ring for the GPU may fail: `ulimit -l unlimited`, or "
        "LimitMEMLOCK=infinity in the service",
    )


def check_memory() -> Iterator[Finding]:
    yield from shared_memory(Path("/dev/shm"), 256 * MIB)
    memory = psutil.virtual_memory()
    yield judge(
        "memory",
        memory.available >= 1024 * MIB,
        f"{size_text(memory.available)} of {size_text(memory.total)} available",
        "a worker needs about 1 GiB: stop other programs, or add memory",
    )


def shared_memory(path: Path, wanted: int) -> Iterator[Finding]:
    try:
        usage = shutil.disk_usage(path)
    except OSError as error:
        yield Finding(
            str(path),
            Level.ERROR,
            f"{error.strerror}",
            f"mount a tmpfs there, or set shm_dir: {path}",
        )
        return
    found = f"{size_text(usage.free)} of {size_text(usage.total)} free"
    remedy = (
        f"frames need {size_text(wanted)}: `mount -o remount,size={-(-wanted * 2 // MIB)}M "
        f"{path}`, in a container `--shm-size`; or fewer slots"
    )
    if not os.access(path, os.W_OK | os.X_OK):
        yield Finding(str(path), Level.ERROR, "not writable", "run as a user who may write there")
    else:
        yield judge(str(path), usage.free >= wanted, found, remedy)
    left = [entry.name for entry in path.glob("linewatch-*")]
    if left:
        yield Finding("stations here", Level.OK, ", ".join(sorted(left)))


def check_packages() -> Iterator[Finding]:
    versions = []
    for package in ("linewatch", "numpy", "pyzmq", "msgpack", "av", "opencv-python"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(
                "packages",
                Level.ERROR,
                f"{package} is not installed",
                "`pip install 'linewatch[station]'`",
            )
    yield Finding("packages", Level.OK, ", ".join(versions))


def check_runtimes() -> Iterator[Finding]:
    from models.errors import RuntimeUnavailable
    from models.runtimes import RUNTIMES, available_runtimes, choose

    for engine, fault in available_runtimes().items():
        package = RUNTIMES[engine.partition("/")[0]].packages[0]
        if fault:
            # One engine fewer is no fault of the line; `auto` below says when none is left.
            yield Finding(f"runtime {engine}", Level.OK, f"not here: {fault}")
        else:
            version = importlib.metadata.version(package)
            yield Finding(f"runtime {engine}", Level.OK, f"{package} {version}")
    try:
        taken = "/".join(choose(None, "auto", "auto", calibrating=True))
        yield Finding(
            "runtime auto", Level.OK, f"takes {taken}, if the bundle has thresholds for it"
        )
    except RuntimeUnavailable as error:
        yield Finding("runtime auto", Level.ERROR, str(error), "install one of the runtimes")


def check_gpu() -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        yield Finding("gpu", Level.OK, "no NVIDIA GPU: the CPU runtimes serve")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("gpu", Level.WARNING, f"nvidia-smi: {error}", "see whether the driver works")
        return
    lines = answer.stdout.strip().splitlines()
    yield judge(
        "gpu",
        answer.returncode == 0 and bool(lines),
        "; ".join(lines or (answer.stderr.strip() or "none").splitlines()[:1]),
        "see `nvidia-smi` and whether the driver fits the kernel",
    )


def size_text(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_cpu,
    check_memory,
    check_limits,
    check_clock,
    check_runtimes,
    check_gpu,
)
