"""A folder into which another program puts images: each becomes a frame, once, when it is whole.

1. A file counts when it has not changed for `settle_ms`. One that was renamed into place counts at
   once, if it is a PNG or JPEG whose end is there: a rename, unlike a write, makes a file's time of
   change later than that of its content.
2. Files are taken in the order of their times, then of their names. One that is whole and cannot be
   read is a broken frame.
3. What is to become of a file is done when the next one is asked for: a line that is killed before
   takes it again, and so does one that stops while it waits for room. One that cannot be read is
   never deleted.
4. With `keep`, what was taken is known by name, inode and time, for as long as this process lives;
   what was there before it is passed over, unless `existing` says otherwise.

New names are looked for each `poll_ms` when the folder's time has changed; of the files that were
taken some are looked at again each time, so that tens of thousands of them hold nothing up.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.config.sources import TriggerConfig, WatchedSource
from pipeline.errors import ConfigError, SourceError, SourceLost
from pipeline.sources.base import Camera, FrameFormat, Grab, no_pixels
from pipeline.sources.folder import SUFFIXES, natural_key, read_image
from pipeline.triggers import PART_ID_BYTES
from pipeline.types import Reason

_ENDS_SHOW: Final = frozenset({".png", ".jpg", ".jpeg"})
_AGAIN_AT_ONCE: Final = 200
"""Files taken before that are looked at again in one look."""
_TICK_S: Final = 0.1
"""File systems' clocks are coarser than ours: a folder that changed is looked at for this long."""


@dataclass(frozen=True, slots=True)
class _Version:
    """What tells a file from one of the same name before it."""

    inode: int
    mtime_ns: int
    size: int


@dataclass(slots=True)
class _Arriving:
    """A file that is not known to be whole: how it was at `since_s`, and whether it was renamed."""

    version: _Version
    since_s: float
    renamed: bool

    @classmethod
    def of(cls, found: os.stat_result) -> Self:
        return cls(_version(found), time.monotonic(), found.st_ctime_ns > found.st_mtime_ns)


_TAKEN: Final[dict[str, dict[str, _Version]]] = {}
"""Folder -> name -> what was taken of it: a folder that was lost and is back is not taken anew."""


class WatchedFolder(Camera):
    """See the module. Raises `SourceLost` while there is no folder, `ConfigError` where files could
    not be moved or removed.
    """

    def __init__(self, config: WatchedSource, trigger: TriggerConfig) -> None:
        self._config = config
        self._folder = Path(config.path)
        self._part_id = re.compile(config.part_id) if config.part_id else None
        self._index = 0
        self._given: tuple[Path, bool] | None = None  # and whether it could be read
        self._accounted = False  # whether the line is known to have taken that one
        self._arriving: dict[str, _Arriving] = {}
        self._whole: dict[str, _Version] = {}  # in the order in which they are to be given
        self._folder_mtime_ns = -1
        self._changed_s = self._next_look_s = 0.0
        self._again = iter(list[str]())
        self._taken: dict[str, _Version] = {}
        if config.after != "keep":
            self._check_rights()
        elif config.path in _TAKEN:
            self._taken = _TAKEN[config.path]
        else:
            if not config.existing:
                self._scan()
                self._taken.update((name, file.version) for name, file in self._arriving.items())
                self._arriving.clear()
            _TAKEN[config.path] = self._taken
        self._stat_folder()

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(self._config.height, self._config.width, 3 if self._config.color else 1)

    def read(self, wait_ms: float) -> Grab | None:
        self._finish()
        until = time.monotonic() + wait_ms / 1000
        while True:
            now = time.monotonic()
            if not self._whole and now >= self._next_look_s:
                self._look()
            while self._whole:
                name = next(iter(self._whole))
                self._taken[name] = self._whole.pop(name)
                if (grab := self._grab(name)) is not None:
                    return grab
            now = time.monotonic()
            if now >= until:
                return None
            time.sleep(max(0.0, min(until, self._next_look_s) - now))

    def close(self) -> None:
        if self._accounted:
            with contextlib.suppress(SourceLost):
                self._finish()

    # Looking

    def _look(self) -> None:
        """Find out which files are whole now. Raises `SourceLost` when the folder is gone."""
        began = time.monotonic()
        folder_mtime_ns = self._stat_folder()
        if folder_mtime_ns != self._folder_mtime_ns:
            self._folder_mtime_ns, self._changed_s = folder_mtime_ns, began
        if began - self._changed_s < _TICK_S:
            self._scan()
        self._look_again()
        self._settle()
        took = time.monotonic() - began
        self._next_look_s = began + max(self._config.poll_ms / 1000, 2 * took)

    def _scan(self) -> None:
        """Find the names, and inodes of names, that are new."""
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    name = entry.name
                    taken = self._taken.get(name)
                    if (
                        (taken is None or taken.inode != entry.inode())
                        and name not in self._arriving
                        and name not in self._whole
                        and _is_image(entry)
                    ):
                        with contextlib.suppress(FileNotFoundError):
                            self._arriving[name] = _Arriving.of(entry.stat())
        except OSError as error:
            raise self._lost(error) from error

    def _look_again(self) -> None:
        """Some of the files that were taken may have been written over, or are gone."""
        names = list(itertools.islice(self._again, _AGAIN_AT_ONCE))
        if not names:
            self._again = iter(list(self._taken))
        for name in names:
            taken = self._taken.get(name)
            if taken is None or name in self._arriving or name in self._whole:
                continue
            try:
                file = _Arriving.of(os.stat(os.path.join(self._config.path, name)))
            except FileNotFoundError:
                del self._taken[name]
                continue
            if file.version != taken:
                self._arriving[name] = file

    def _settle(self) -> None:
        """Move those that are whole from `_arriving` to `_whole`, in their order."""
        whole = []
        for name, seen in list(self._arriving.items()):
            path = self._folder / name
            try:
                file = _Arriving.of(path.stat())
            except FileNotFoundError:
                del self._arriving[name]
                continue
            if file.version == seen.version:
                file = seen
            self._arriving[name] = file
            settled = time.monotonic() - file.since_s >= self._config.settle_ms / 1000
            if not settled and file.renamed and path.suffix.lower() in _ENDS_SHOW:
                file.renamed = False  # one try
                with contextlib.suppress(SourceError):
                    read_image(path, self._config.color)
                    settled = True
            if settled:
                whole.append((file.version.mtime_ns, natural_key(name), name))
        for _, _, name in sorted(whole):
            self._whole[name] = self._arriving.pop(name).version

    def _stat_folder(self) -> int:
        try:
            return self._folder.stat().st_mtime_ns
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> SourceLost:
        return SourceLost(
            f"{self._folder}: not a folder that can be read ({error.strerror}); check `path` of "
            "the source, and that its disk is mounted"
        )

    # Taking

    def _grab(self, name: str) -> Grab | None:
        path = self._folder / name
        found = self._part_id.search(name) if self._part_id else None
        part_id = (found["part_id"] or "") if found else ""
        part_id = part_id.encode()[:PART_ID_BYTES].decode(errors="ignore")
        fault: Reason | None = None
        detail = ""
        image = np.empty((0, 0, 0), np.uint8)
        try:
            image = read_image(path, self._config.color)
        except SourceError as error:
            if not path.exists():  # taken away again before it was looked at
                self._stat_folder()
                return None
            fault, detail = Reason.BROKEN_FRAME, str(error)
        else:
            if image.shape != self.format.shape_hwc:
                fault = Reason.WRONG_SIZE
                detail = (
                    f"{path}: {image.shape[1]} x {image.shape[0]} px found, expected "
                    f"{self._config.width} x {self._config.height} as the source says"
                )

        def write(out: NDArray[np.uint8]) -> None:
            out[...] = image
            self._accounted = True

        self._given = path, fault is not Reason.BROKEN_FRAME
        self._accounted = fault is not None
        pts = self._taken[name].mtime_ns
        index = self._index
        self._index += 1
        put = write if fault is None else no_pixels
        return Grab(index, put, pts=pts, part_id=part_id, fault=fault, detail=detail)

    def _finish(self) -> None:
        """Do with the file that was given what is to be done. Raises `SourceLost`."""
        given, self._given = self._given, None
        if given is None or self._config.after == "keep":
            return
        path, readable = given
        try:
            if _version(path.stat()) != self._taken[path.name]:
                del self._taken[path.name]  # another one by now, which is still to be taken
            elif self._config.move_to is not None:
                _move(path, Path(self._config.move_to))
                del self._taken[path.name]
            elif readable:
                path.unlink()
                del self._taken[path.name]
        except FileNotFoundError:
            return
        except OSError as error:
            raise SourceLost(
                f"{path}: was taken and cannot be put away ({error.strerror}); expected a folder "
                "that the line may change: check rights and space on the disk"
            ) from error

    def _check_rights(self) -> None:
        self._stat_folder()
        folders = [self._folder]
        if self._config.move_to is not None:
            folders.append(Path(self._config.move_to))
        for folder in folders:
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{folder}: a folder that the line may change expected, as `after: "
                    f"{self._config.after}` needs; make it, or give the line the right to write it"
                )


def _is_image(entry: os.DirEntry[str]) -> bool:
    return (
        os.path.splitext(entry.name)[1].lower() in SUFFIXES
        and not entry.name.startswith(".")
        and entry.is_file()
    )


def _version(found: os.stat_result) -> _Version:
    return _Version(found.st_ino, found.st_mtime_ns, found.st_size)


def _move(path: Path, folder: Path) -> None:
    """Into the folder, under its name or, where that is taken, with a number behind it."""
    goal = folder / path.name
    number = 1
    while goal.exists():
        number += 1
        goal = folder / f"{path.stem}-{number}{path.suffix}"
    shutil.move(path, goal)
