"""How far an application has come in a stream, in a file that survives it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError, ResourceError

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Position:
    """Everything up to these seqs is done with, of topics that are not named nothing."""

    stream_id: str
    topics: tuple[str, ...]
    """Prefixes that were subscribed to."""
    seqs: Mapping[str, int]


def read_position(path: Path) -> Position | None:
    """None when there is none yet. Raises `ConfigError` for a file that is not a position."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    match found:
        case {"v": 1, "stream_id": str() as stream_id, "topics": list() as topics, "seqs": dict()}:
            seqs = found["seqs"]
            if all(isinstance(seq, int) for seq in seqs.values()) and all(
                isinstance(topic, str) for topic in topics
            ):
                return Position(stream_id, tuple(topics), seqs)
    raise _damaged(path, "another content")


def _damaged(path: Path, found: str) -> ConfigError:
    return ConfigError(
        f"cursor {path}: {found} found, expected the file of a subscriber: give it another path, "
        "or remove the file to begin with what is published from now on"
    )


def write_position(path: Path, position: Position) -> None:
    """On disk when it returns, whole or not at all. Raises `ResourceError`."""
    aside = path.with_name(f"{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w") as file:
            json.dump({"v": _VERSION, **asdict(position)}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        if os.name == "posix":  # elsewhere a folder cannot be synced
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise ResourceError(
            f"cursor {path}: {error.strerror}; expected a file that can be written: check the "
            "disk's space and rights"
        ) from error
