"""A Matroska file that only grows: whatever moment cuts it off, all frames before it can be read.

    EBML head | segment of unknown size: info, tags, track | a cluster for each frame

1. A frame is one cluster with one block, written by one call; the file is never behind.
2. Time stamps count frames at a nominal rate, so that a frame's number is known even where the
   file is damaged before it.
3. `close` writes the length into the place that the head keeps free: its absence tells a file that
   was cut off.
4. A write that fails half-way is taken back, so that the file ends with a whole frame.

IDs and layout: RFC 8794 (EBML) and RFC 9559 (Matroska).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pipeline.sources.appendfile import AppendFile

_EBML, _SEGMENT, _INFO, _TRACKS, _CLUSTER, _TAGS = (
    0x1A45DFA3,
    0x18538067,
    0x1549A966,
    0x1654AE6B,
    0x1F43B675,
    0x1254C367,
)
_VOID, _DURATION = 0xEC, 0x4489
_UNKNOWN_SIZE: Final = b"\x01" + b"\xff" * 7
_DURATION_BYTES: Final = 11
_KEY_FRAME: Final = 0x80


class MatroskaFile:
    """One video track, every frame a key frame. Raises `OSError` where the disk refuses."""

    def __init__(
        self,
        path: Path,
        *,
        codec_id: str,
        codec_private: bytes,
        width: int,
        height: int,
        fps: int,
        tags: Mapping[str, str],
    ) -> None:
        """Make a new file. Raises `FileExistsError` where there is one."""
        self.frames = 0
        self._fps = fps
        head, self._duration_at = _head(
            codec_id=codec_id,
            codec_private=codec_private,
            width=width,
            height=height,
            fps=fps,
            tags=tags,
        )
        self._file = AppendFile(path)
        try:
            self._file.append(head)
        except OSError:
            self._file.close()
            path.unlink()
            raise

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def write(self, packet: bytes) -> int:
        """Append a frame; its number, from 0."""
        block = b"\x81\0\0" + bytes([_KEY_FRAME]) + packet
        stamp = _number(0xE7, self._stamp_ms(self.frames))
        self._file.append(_element(_CLUSTER, stamp + _element(0xA3, block)))
        self.frames += 1
        return self.frames - 1

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        """Say how long it is, and close. The file is good without that too, but cut off."""
        try:
            duration = struct.pack(">d", float(self._stamp_ms(self.frames)))
            self._file.overwrite(self._duration_at, _element(_DURATION, duration))
        finally:
            self._file.close()

    def _stamp_ms(self, number: int) -> int:
        return round(number * 1000 / self._fps)


def _head(
    *,
    codec_id: str,
    codec_private: bytes,
    width: int,
    height: int,
    fps: int,
    tags: Mapping[str, str],
) -> tuple[bytes, int]:
    """All that comes before the first cluster, and where in it the duration goes."""
    ebml = b"".join(
        (
            *(_number(element, value) for element, value in ((0x4286, 1), (0x42F7, 1))),
            *(_number(element, value) for element, value in ((0x42F2, 4), (0x42F3, 8))),
            _element(0x4282, b"matroska"),
            *(_number(element, value) for element, value in ((0x4287, 4), (0x4285, 2))),
        )
    )
    start = _element(_EBML, ebml) + _id(_SEGMENT) + _UNKNOWN_SIZE
    room = _element(_VOID, bytes(_DURATION_BYTES - 2))
    names = _element(0x4D80, b"linewatch") + _element(0x5741, b"linewatch")
    info = _number(0x2AD7B1, 1_000_000) + names
    info_head = _id(_INFO) + _size(len(info) + len(room))
    video = _number(0xB0, width) + _number(0xBA, height)
    track = b"".join(
        (
            *(_number(element, 1) for element in (0xD7, 0x73C5, 0x83)),
            _number(0x9C, 0),
            _number(0x23E383, round(1e9 / fps)),
            _element(0x86, codec_id.encode()),
            _element(0x63A2, codec_private),
            _element(0xE0, video),
        )
    )
    simple = b"".join(
        _element(0x67C8, _element(0x45A3, name.encode()) + _element(0x4487, text.encode()))
        for name, text in tags.items()
    )
    tag = _element(_TAGS, _element(0x7373, _element(0x63C0, b"") + simple))
    before = start + info_head
    head = before + room + info + _element(_TRACKS, _element(0xAE, track)) + tag
    return head, len(before)


def _id(element: int) -> bytes:
    return element.to_bytes((element.bit_length() + 7) // 8, "big")


def _size(count: int) -> bytes:
    """A size in eight bytes, or in one where it fits."""
    if count < 0x7F:
        return bytes([0x80 | count])
    return ((1 << 56) | count).to_bytes(8, "big")


def _element(element: int, data: bytes) -> bytes:
    return _id(element) + _size(len(data)) + data


def _number(element: int, value: int) -> bytes:
    return _element(element, value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big"))
