"""A camera's recipe in a file of its own, and every revision that it ever had.

    recipes/front.yaml             the recipe, to be read and named in the station's configuration
    recipes/front.history.jsonl    a line for each revision: number, date, reason, hash, all of it

1. `revise` changes the recipe, with a reason. The history is written first and reaches the disk;
   then the file is replaced whole.
2. Someone edited the file by hand: the next `revise`, or `record`, writes that down first.
3. `revision_of` a recipe is a hash of its content alone: the same recipe, the same revision.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Recipe, load_recipe
from pipeline.config.file import read_model
from pipeline.errors import ConfigError, DataError

BY_HAND = "edited by hand"


@dataclass(frozen=True, slots=True)
class Revision:
    """when: ISO 8601, UTC. recipe: all of its keys."""

    number: int
    when: str
    reason: str
    revision: str
    recipe: dict[str, Any]


def revision_of(recipe: Recipe) -> str:
    """12 hex digits of the content's SHA-256."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]


def history(path: Path) -> list[Revision]:
    """All revisions of a recipe's file, the first one first; empty where there is no history.

    Raises `DataError` for a damaged history.
    """
    where = _history_path(path)
    try:
        lines = where.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{where}: unreadable ({error.strerror or error})") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Revision(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines):  # torn by a power cut before the recipe was replaced
                break
            raise DataError(
                f"{where}:{number}: no revision ({error}): restore the file from a backup"
            ) from error
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One change at a time, in all processes. Raises `DataError` for a folder that takes none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def record(path: Path, reason: str = BY_HAND) -> Revision:
    """Write down the recipe as it is in the file, unless that is its last revision already."""
    with _alone(path):
        return _record(path, reason)


def _record(path: Path, reason: str = BY_HAND) -> Revision:
    recipe = load_recipe(path)
    known = history(path)
    if known and known[-1].revision == revision_of(recipe):
        return known[-1]
    return _append(path, recipe, reason, len(known) + 1)


def revise(path: Path, changes: dict[str, Any], reason: str) -> Revision:
    """Change keys of the recipe (None: back to the default) and write the revision down.

    A key within a key is `optics.watch`.

    A file that does not exist begins with the defaults. Raises `ConfigError` for keys and values
    that a recipe cannot have, and for a missing reason; the file is then as it was.
    """
    if not reason.strip():
        raise ConfigError("no reason found, expected one: a recipe decides which parts are sold")
    with _alone(path):
        return _revise(path, changes, reason.strip())


def _revise(path: Path, changes: dict[str, Any], reason: str) -> Revision:
    content: dict[str, Any] = {}
    if path.exists():
        _record(path)
        content = load_recipe(path).model_dump(mode="json", exclude_defaults=True)
    for key, value in changes.items():
        _change(content, key, value)
    work = path.with_name(f".{path.name}.part")
    try:
        work.write_text(yaml.safe_dump(content, sort_keys=False))
        recipe = read_model(work, Recipe, {"folder": path.absolute().parent})
        found = _append(path, recipe, reason, len(history(path)) + 1)
        work.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(work), str(path))) from None
    finally:
        with contextlib.suppress(OSError):
            work.unlink(missing_ok=True)
    return found


def _change(content: dict[str, Any], key: str, value: Any) -> None:
    head, _, tail = key.partition(".")
    if tail:
        # A copy: what was loaded is left alone; and the path of a key that has no keys of its own
        # fails as a key of a recipe does, with its name.
        inner = content.get(head)
        inner = dict(inner) if isinstance(inner, dict) else {}
        _change(inner, tail, value)
        value = inner or None
    if value is None:
        content.pop(head, None)
    else:
        content[head] = value


def _append(path: Path, recipe: Recipe, reason: str, number: int) -> Revision:
    found = Revision(
        number=number,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        reason=reason,
        revision=revision_of(recipe),
        recipe=recipe.model_dump(mode="json"),
    )
    where = _history_path(path)
    try:
        whole = where.read_bytes() if where.exists() else b""
        tail = whole.rpartition(b"\n")[2]
        # A last line without its end is a torn one, or an editor took the end off.
        torn = bool(tail) and not _is_json(tail)
        with where.open("r+b" if whole else "wb") as file:
            file.seek(len(whole) - len(tail) if torn else len(whole))
            file.truncate()
            if tail and not torn:
                file.write(b"\n")
            file.write(json.dumps(asdict(found)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{where}: cannot be written ({error.strerror or error})") from error
    return found


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _history_path(path: Path) -> Path:
    return path.with_suffix(".history.jsonl")
