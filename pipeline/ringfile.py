"""A ring's file: how large it is, how it is allocated and mapped. The protocol is in `ring`."""

from __future__ import annotations

import mmap
import os
import stat
import struct
from pathlib import Path

from pipeline.errors import ResourceError
from pipeline.types import MARGIN_PX, MIN_SIDE_PX, map_hw

MAGIC = 0x4C57_5249_4E47_0002  # "LWRING", version 2
PAGE = 4096
LOG_RECORDS = 4096
LOG_WORDS = 17
SLOT_WORDS = 32


class NotARing(ResourceError):
    """A file in which there is nothing of ours to be read."""


HEAD_WORDS = 6
"""Magic, slots, height, width, channels, epoch: written by the supervisor, once."""


def ring_bytes(shape_hwc: tuple[int, int, int], slots: int) -> int:
    """Size of a ring's file."""
    return slots_at(slots) + slots * slot_bytes(shape_hwc)


def slots_at(slots: int) -> int:
    return _pages(PAGE + LOG_RECORDS * LOG_WORDS * 8 + slots * SLOT_WORDS * 8)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def frame_bytes(shape_hwc: tuple[int, int, int]) -> int:
    height, width, channels = shape_hwc
    return _pages((height + 2 * MARGIN_PX) * (width + 2 * MARGIN_PX) * channels)


def slot_bytes(shape_hwc: tuple[int, int, int]) -> int:
    rows, columns = map_hw(*shape_hwc[:2])
    return frame_bytes(shape_hwc) + _pages(rows * columns * 4)


def create_ring(path: Path, shape_hwc: tuple[int, int, int], slots: int, epoch: int) -> None:
    """Allocate a ring's file (supervisor). Raises `ResourceError` where it does not fit."""
    height, width, channels = shape_hwc
    if min(height, width) < MIN_SIDE_PX or channels not in (1, 3):
        raise ResourceError(
            f"camera {path.stem}: frames of {width}x{height} with {channels} channels found, "
            f"expected sides of at least {MIN_SIDE_PX} pixels and 1 or 3 channels"
        )
    size = ring_bytes(shape_hwc, slots)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ResourceError(
            f"{path}: {error.strerror}; expected to make the ring of camera {path.stem} there: "
            f"check the rights and the room of {path.parent}"
        ) from error
    try:
        # A full tmpfs shows here, not as a SIGBUS at the first write.
        os.posix_fallocate(descriptor, 0, size)
        words = (MAGIC, slots, height, width, channels, epoch)
        os.pwrite(descriptor, struct.pack("<6q", *words), 0)
    except OSError as error:
        path.unlink()
        room = os.statvfs(path.parent)
        raise ResourceError(
            f"camera {path.stem}: a ring of {slots} slots needs {size / 2**20:.0f} MiB, "
            f"{path.parent} has {room.f_bavail * room.f_frsize / 2**20:.0f} MiB free "
            f"({error.strerror}); enlarge it or lower `slots`"
        ) from error
    finally:
        os.close(descriptor)


def map_ring(path: Path) -> tuple[mmap.mmap, tuple[int, int, int], int, int]:
    """Mapping, (H, W, C), slots and epoch of an existing ring.

    Raises `ResourceError` when there is none or no room to map it, `NotARing` when it is not one of
    ours.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise ResourceError(
            f"{path}: {error.strerror}; expected the ring of camera {path.stem}: "
            "is the line running?"
        ) from error
    try:
        status = os.fstat(descriptor)
        size = status.st_size
        head = b""
        if stat.S_ISREG(status.st_mode):
            head = os.pread(descriptor, HEAD_WORDS * 8, 0)
        head = head.ljust(HEAD_WORDS * 8, b"\0")
        magic, slots, height, width, channels, epoch = struct.unpack("<6q", head)
        shape = (height, width, channels)
        sound = slots > 0 and min(height, width) >= MIN_SIDE_PX and channels in (1, 3)
        if magic != MAGIC or not sound or size != ring_bytes(shape, slots):
            raise NotARing(
                f"{path}: found {size} bytes that are not a ring of this version; "
                "stop the line and remove the file"
            )
        return mmap.mmap(descriptor, size), shape, slots, epoch
    except OSError as error:
        raise ResourceError(
            f"{path}: {error.strerror}; expected {size / 2**20:.0f} MiB that can be mapped: "
            "raise the limit of this process's memory"
        ) from error
    finally:
        os.close(descriptor)
