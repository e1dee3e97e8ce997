"""A training's state on disk, so that a killed one goes on exactly where it was.

A state holds weights, the optimiser's moments, the random generator and the places to come back to.
It appears under its name only when it is whole: written beside with its SHA-256, synced, renamed.
It belongs to one `key` (`training_key`); another training's state is not taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from models.compute import compute_type
from models.errors import DataError

FORMAT = 4
DIGEST_BYTES = hashlib.sha256().digest_size


def _program() -> str:
    """Hash of this package's sources: what is drawn, measured and stepped by."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


PROGRAM = _program()
"""Of the modules that run: an update in the middle of a training does not mix two programs."""


def training_key(files: Sequence[Path], about: Sequence[Any], device: str) -> str:
    """Of all that decides the weights: the images, what else is named, machine and program."""
    stats = [(file, file.stat()) for file in files]
    seen = [[str(file.absolute()), each.st_size, each.st_mtime_ns] for file, each in stats]
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    on = torch.device(device)
    machine = [torch.get_num_threads(), processes, on.type, str(compute_type(on))]
    program = [torch.__version__, PROGRAM]
    whole = json.dumps([seen, *about, machine, program])
    return hashlib.sha256(whole.encode()).hexdigest()


def save_state(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts of them. Raises `DataError` if it cannot."""
    whole = io.BytesIO()
    torch.save({"format": FORMAT, "key": key, **state}, whole)
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for orphan in path.parent.glob(f".{path.name}-*"):  # of one that was killed
            orphan.unlink(missing_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            name = file.name
            # torch loads what disks turn over.
            file.write(hashlib.sha256(whole.getbuffer()).digest())
            file.write(whole.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except OSError as error:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise DataError(
            f"{path}: the training's state cannot be written ({error}): make room, then go on "
            "from the last state with --resume"
        ) from error


def load_state(path: Path, key: str) -> dict[str, Any] | None:
    """What `save_state` wrote for this key, or None: not there, damaged, or another training's."""
    try:
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError):  # another torch's
        return None
    if (found["format"], found["key"]) != (FORMAT, key):
        return None
    return dict(found)
