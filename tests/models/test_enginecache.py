"""Compiled engines on disk: found again, told apart, and never loaded when they were touched."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from models.errors import RuntimeUnavailable
from models.fused import fuse
from models.references import weights_of
from models.runtimes.enginecache import (
    FORMAT,
    EngineCache,
    EngineKey,
    Machine,
    constants_sha256,
)
from models.untrained import untrained_model

MACHINE = Machine("2.13.0+cu130", "2.13.0", "11.0.0", "nvidia-h200", (9, 0))
KEY = EngineKey("0" * 64, (1, 2112, 2512, 3), "fp16", MACHINE)
ENGINE = b"an engine" * 1000
WAIT_S = 30


def kept(cache: EngineCache, key: EngineKey = KEY, content: bytes = ENGINE) -> Path:
    def write(path: Path) -> None:
        path.write_bytes(content)

    with cache.holding(key):
        return cache.put(key, write)


def found(cache: EngineCache, key: EngineKey = KEY) -> Path | None:
    with cache.holding(key):
        return cache.find(key)


def test_what_was_kept_is_found_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "engines"
    assert found(EngineCache(folder)) is None
    path = kept(EngineCache(folder))
    assert path.suffix == ".pt2"
    assert found(EngineCache(folder)) == path
    assert path.read_bytes() == ENGINE
    assert folder.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, weights="1" * 64),
        replace(KEY, shape=(2, 2112, 2512, 3)),
        replace(KEY, shape=(1, 2112, 2512, 1)),
        replace(KEY, precision="bf16"),
        replace(KEY, machine=replace(MACHINE, torch="2.12.0+cu130")),
        replace(KEY, machine=replace(MACHINE, torch_tensorrt="2.12.0")),
        replace(KEY, machine=replace(MACHINE, tensorrt="11.0.1")),
        replace(KEY, machine=replace(MACHINE, gpu="nvidia-l4")),
        replace(KEY, machine=replace(MACHINE, capability=(8, 9))),
        replace(KEY, format=FORMAT + 1),
    ],
)
def test_whatever_an_engine_depends_on_tells_it_from_others(
    tmp_path: Path, other: EngineKey
) -> None:
    cache = EngineCache(tmp_path)
    kept(cache)
    assert found(cache, other) is None
    kept(cache, other, b"another")
    assert found(cache) != found(cache, other)


def test_constants_are_told_apart() -> None:
    def digest(seed: int = 0, channels: int = 1, scales: tuple[int, ...] = (1,)) -> str:
        model = untrained_model("pdn_tiny", channels, scales, seed=seed)
        return constants_sha256(fuse(weights_of(model), "pdn_tiny", channels, scales))

    assert digest() == digest()
    assert len({digest(), digest(seed=1), digest(channels=3), digest(scales=(1, 2))}) == 4


@pytest.mark.parametrize("what", ["changed", "cut", "digest changed", "digest gone", "a link"])
def test_what_was_touched_is_deleted_and_not_found(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "engines")
    path = kept(cache)
    digest = path.with_name(path.name + ".sha256")
    if what == "changed":
        path.write_bytes(ENGINE[:-1] + b"!")
    elif what == "cut":
        path.write_bytes(ENGINE[:-1])
    elif what == "digest changed":
        digest.write_text("0" * 64)
    elif what == "digest gone":
        digest.unlink()
    else:
        elsewhere = tmp_path / "elsewhere"
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    with caplog.at_level(logging.WARNING):
        assert found(cache) is None
    assert "deleted, and compiled again" in caplog.text
    assert not os.path.lexists(path)
    assert not digest.exists()
    assert found(cache) is None
    assert kept(cache) == found(cache)


def test_a_miss_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert found(EngineCache(tmp_path)) is None
    assert not caplog.records


def test_an_engine_that_others_may_write_is_not_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path)
    kept(cache).chmod(0o620)
    assert found(cache) is None
    assert "others may" in caplog.text


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "engines"
    cache = EngineCache(folder)
    kept(cache)
    folder.chmod(mode)
    for attempt in (lambda: EngineCache(folder), lambda: found(cache), lambda: kept(cache)):
        with pytest.raises(RuntimeUnavailable, match=f"mode {mode:04o}.*chmod 700"):
            attempt()
    folder.chmod(0o755)  # others may look
    assert found(EngineCache(folder)) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_someone_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(RuntimeUnavailable, match="of user 12345 found"):
        EngineCache(folder)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeUnavailable, match="cannot be made or written into"):
        EngineCache(tmp_path / "file" / "engines")


def test_a_folder_that_was_removed_is_a_clear_error(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    (tmp_path / "engines").rmdir()
    with pytest.raises(RuntimeUnavailable, match="No such file or directory"):
        found(cache)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    kept(cache)

    def full(path: Path) -> None:
        path.write_bytes(ENGINE[:10])
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"), cache.holding(KEY):
        cache.put(KEY, full)
    assert found(cache) is not None  # the one before
    assert len([path for path in tmp_path.iterdir() if path.suffix != ".lock"]) == 2


PROGRAM = f"""
import json, os, sys, time
from pathlib import Path
from models.runtimes.enginecache import EngineCache, EngineKey, Machine
key = {KEY!r}
cache = EngineCache(Path(sys.argv[1]))
def write(path):
    with path.open("wb") as file:
        file.write(b"half")
        file.flush()
        print("half", flush=True)
        time.sleep(float(sys.argv[2]))
        file.write(b" and half")
with cache.holding(key):
    path = cache.find(key)
    if path is None:
        print("compiles", flush=True)
        path = cache.put(key, write)
    print(path.read_text(), flush=True)
"""


def start(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(pause_s)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_writer_that_is_killed_leaves_no_half_engine(tmp_path: Path) -> None:
    with start(tmp_path, 60) as writer:
        assert writer.stdout
        assert [writer.stdout.readline() for _ in range(2)] == ["compiles\n", "half\n"]
        writer.send_signal(signal.SIGKILL)
        writer.wait(WAIT_S)
    cache = EngineCache(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.read_bytes() == b"half"]
    assert found(cache) is None
    kept(cache)
    assert found(cache) is not None
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_of_two_processes_one_compiles_and_both_have_it(tmp_path: Path) -> None:
    with start(tmp_path, 0.5) as first, start(tmp_path, 0.5) as second:
        said = [
            process.communicate(timeout=WAIT_S)[0].split("\n")[:-1] for process in (first, second)
        ]
    assert sorted(said, key=len) == [["half and half"], ["compiles", "half", "half and half"]]


def test_measurements_are_kept_for_each_machine(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    other = replace(MACHINE, tensorrt="11.0.1")
    with cache.timing(MACHINE) as path:
        assert not path.exists()
        path.write_bytes(b"1")
    with cache.timing(other) as path:
        assert not path.exists()
    with cache.timing(MACHINE) as path:
        assert path.read_bytes() == b"1"
        path.write_bytes(b"12")
    with cache.timing(MACHINE) as path:
        assert path.read_bytes() == b"12"


def test_a_compiler_that_fails_spoils_no_measurements(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    with cache.timing(MACHINE) as path:
        path.write_bytes(b"whole")

    def fail() -> None:
        with cache.timing(MACHINE) as path:
            path.write_bytes(b"ha")
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    with cache.timing(MACHINE) as path:
        assert path.read_bytes() == b"whole"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_cache_needs_no_torch() -> None:
    program = (
        "import json, sys, models.runtimes.enginecache; print(json.dumps('torch' in sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(answer.stdout) is False


def test_holding_lets_go_when_its_holder_dies(tmp_path: Path) -> None:
    """`flock` ends with the process, so no lock is ever left behind."""
    with start(tmp_path, 60) as writer:
        assert writer.stdout
        writer.stdout.readline()
        writer.stdout.readline()
        writer.kill()
        begun = time.monotonic()
        assert found(EngineCache(tmp_path)) is None
        assert time.monotonic() - begun < WAIT_S
