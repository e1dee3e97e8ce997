"""Compiled engines on disk, so that a station compiles once and not at every start. No torch here.

    <folder>/                     mode 0700, this user's
        <key>.pt2                 an engine (.blob: OpenVINO's); a hash of all that it depends on
        <key>.pt2.sha256          the digest of its name and of what is in it, written with it
        <key>.lock                held by the process that looks for, compiles or writes it
        timing-<machine>.bin      TensorRT's measurements: the next engine is compiled sooner

1. `holding(key)`: one process at a time. A second one waits, and then finds what the first wrote.
2. `find(key)`: the engine's file, if its digest is right. Anything else is deleted, with a warning.
3. `put(key, write)`: written under another name, synced, then renamed. A writer that is killed
   leaves no half engine; what it leaves is swept up by the next one. Then those that were not used
   for longest go, until all of them have no more than `MOST_BYTES`.

Loading an engine runs pickle, so a file from elsewhere could run anything. The digest tells damage;
that nobody else can have written both is the folder's doing, which is therefore refused when others
may write into it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from models.errors import RuntimeUnavailable
from models.fused import FusedGraph

FORMAT = 2
"""Part of every key. Count it up when `models.runtimes.module` computes something else, or
engines are written in another way."""
SUFFIX = ".pt2"
MOST_BYTES = 8 << 30
NO_ENGINES = (".sha256", ".lock", ".bin")
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine is compiled for and with."""

    torch: str
    torch_tensorrt: str
    tensorrt: str
    gpu: str
    """Its name, such as `nvidia-h200`."""
    capability: tuple[int, int]
    """CUDA's compute capability, such as (9, 0)."""


@dataclass(frozen=True, slots=True)
class EngineKey:
    """All that an engine depends on. Two that differ anywhere are two engines."""

    weights: str
    """See `constants_sha256`."""
    shape: tuple[int, int, int, int]
    """(N, rows, columns, C) of the padded frames or strips."""
    precision: str
    machine: Any
    """What it is compiled for and with, a dataclass: `Machine`, or another runtime's."""
    format: int = FORMAT

    @property
    def name(self) -> str:
        return _digest(asdict(self))


class EngineCache:
    """The folder. Made if it is not there. suffix: of this runtime's engines.

    Raises `RuntimeUnavailable` if it cannot be made or written into, belongs to someone else, or is
    one that others may write into; every call looks again.
    """

    def __init__(self, folder: Path, suffix: str = SUFFIX, *, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._suffix, self._most_bytes = folder, suffix, most_bytes
        with _writable(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check()

    @contextmanager
    def holding(self, key: EngineKey, *, wait: bool = True) -> Iterator[bool]:
        """Keep other processes from this engine; waits for one that holds it. Gives whether it is
        held, which it may not be without `wait`."""
        with self._locked(f"{key.name}.lock", wait=wait) as held:
            yield held

    def find(self, key: EngineKey) -> Path | None:
        """The engine's file, checked; None if there is none. Call it while `holding(key)`."""
        self._check()
        path = self._path(key)
        fault = _fault(path)
        if fault is None:
            with suppress(OSError):
                os.utime(path)  # used
            return path
        if os.path.lexists(path):
            log.warning("%s: %s: deleted, and compiled again", path, fault)
        self.drop(key)
        return None

    def put(self, key: EngineKey, write: Callable[[Path], None]) -> Path:
        """Keep what `write` writes into the file that it is given. Call it while `holding(key)`.

        Raises `OSError` (a full disk, say), and whatever `write` raises; nothing is kept then.
        """
        self._check()
        path = self._path(key)
        # torch looks at the suffix.
        handle, name = tempfile.mkstemp(self._suffix, f".{key.name}-", self.folder)
        os.close(handle)
        partial, digest = Path(name), Path(f"{name}.sha256")
        try:
            write(partial)
            _sync(partial)
            with partial.open("rb") as file:
                digest.write_text(f"{_named_digest(path, file)}\n")
            _sync(digest)
            # A digest without an engine is no engine; an engine without one is no engine either.
            digest.replace(_digest_of(path))
            partial.replace(path)
            _sync(self.folder)
        finally:
            partial.unlink(missing_ok=True)
            digest.unlink(missing_ok=True)
        self._make_room(path)
        return path

    def _make_room(self, kept: Path) -> None:
        """Delete what killed writers left, and what was not used for longest, whatever runtime's,
        but what was just kept and what somebody holds."""
        for orphan in self.folder.glob(".*-*"):
            name = orphan.name[1:].partition("-")[0]
            if name == "timing":
                continue
            with self._locked(f"{name}.lock", wait=False) as held:
                if held or kept.stem == name:
                    orphan.unlink(missing_ok=True)
        engines = []
        for path in self.folder.glob("[!.]*"):
            with suppress(OSError):
                about = path.stat()
                if path.suffix not in NO_ENGINES and stat.S_ISREG(about.st_mode):
                    engines.append((about.st_mtime_ns, about.st_size, path))
        spare = sum(size for _, size, _ in engines) - self._most_bytes
        for _, size, path in sorted(engines):
            if spare <= 0:
                return
            if path == kept:
                continue
            with self._locked(f"{path.stem}.lock", wait=False) as held:
                if held:
                    path.unlink(missing_ok=True)
                    _digest_of(path).unlink(missing_ok=True)
                    spare -= size

    def drop(self, key: EngineKey) -> None:
        """Forget an engine. Call it while `holding(key)`."""
        path = self._path(key)
        path.unlink(missing_ok=True)
        _digest_of(path).unlink(missing_ok=True)

    @contextmanager
    def timing(self, machine: Machine) -> Iterator[Path]:
        """A file with TensorRT's measurements on this machine so far, for one compiler at a time.

        Those that compile measure kernels on the GPU, and would disturb one another. TensorRT
        writes the file in place and takes a damaged one badly, so it gets a copy, which takes the
        file's place when all went well. One for each machine: TensorRT refuses other versions'.
        """
        self._check()
        kept = self.folder / f"timing-{_digest(asdict(machine))[:12]}.bin"
        with self._locked("timing.lock"):
            for orphan in self.folder.glob(".timing-*"):
                shutil.rmtree(orphan, ignore_errors=True)
            with _writable(self.folder):
                scratch = Path(tempfile.mkdtemp(prefix=".timing-", dir=self.folder))
            try:
                copy = scratch / "timing.bin"
                with suppress(OSError):
                    shutil.copyfile(kept, copy)
                yield copy
                # Without them the next engine takes longer, and nothing else is lost.
                with suppress(OSError):
                    _sync(copy)
                    copy.replace(kept)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _path(self, key: EngineKey) -> Path:
        return self.folder / f"{key.name}{self._suffix}"

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        with _writable(self.folder):
            handle = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(handle)

    def _check(self) -> None:
        with _writable(self.folder):
            about = self.folder.stat()
        if about.st_uid != os.geteuid() or about.st_mode & OTHERS_WRITE:
            raise RuntimeUnavailable(
                f"{self.folder}: mode {stat.S_IMODE(about.st_mode):04o} of user {about.st_uid} "
                f"found, expected a folder of user {os.geteuid()} that nobody else may write into, "
                "since loading an engine runs what is in it: `chmod 700` it, or name another one"
            )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeUnavailable(
            f"{folder}: cannot be made or written into ({error.strerror}), expected a folder for "
            "compiled engines: make room there, or name another one"
        ) from error


def constants_sha256(graph: FusedGraph) -> str:
    """SHA-256 over all that a fused graph computes with: structure, weights, biases, offset."""
    found = hashlib.sha256(f"{graph.variant} {graph.in_channels}".encode())
    found.update(graph.offset.tobytes())
    for branch in graph.branches:
        for layer in branch.layers:
            about = (branch.scale, layer.weight.shape, layer.groups, layer.relu, layer.pool)
            found.update(repr(about).encode())
            found.update(layer.weight.tobytes())
            found.update(layer.bias.tobytes())
    return found.hexdigest()


def _fault(path: Path) -> str | None:
    """Why this file must not be loaded; None if it may be."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & OTHERS_WRITE:
                return f"user {about.st_uid} wrote it, or others may"
            found = _named_digest(path, file)
        expected = _digest_of(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        return f"the engine or its digest cannot be read ({error})"
    if found != expected:
        return f"SHA-256 {found[:12]}... found, expected {expected[:12]!r}..."
    return None


def _digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _named_digest(path: Path, file: BufferedReader) -> str:
    """Of an engine and of the name that it is kept by: restored by another name it is another's."""
    return hashlib.file_digest(file, lambda: hashlib.sha256(path.name.encode())).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
