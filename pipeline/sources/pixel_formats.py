"""Pixel formats of GenICam cameras, by the names of the PFNC, and their bytes as pixels.

How the values of a pixel lie in a buffer:

1. 8 bits: a byte each. `RGB8` and `BGR8`: three bytes each, delivered as RGB; the first version of
   GigE Vision has them as `RGB8Packed` and `BGR8Packed`.
2. `Mono10`, `BayerRG12`, ...: two bytes each, the lower one first; the value in the low bits.
3. `Mono10p`, `BayerRG12p`, ...: one stream of bits without gaps, each value's lowest bit first,
   that starts with the lowest bit of the first byte.
4. `Mono10Packed`, `BayerRG12Packed`, ... of GigE Vision: two values in three bytes. The outer bytes
   have the high 8 bits of each, the middle one the remaining low bits: of the first value from its
   bit 0 on, of the second one from its bit 4 on.

Lines follow on each other without a gap, in the middle of a byte if need be, unless the camera pads
them: then each starts with a byte of its own.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.sources.base import FrameFormat

Packing = Literal["bytes", "bits", "gige"]
"""`bytes`: 1 and 2 above; `bits`: 3; `gige`: 4."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One row of the PFNC; see the module's docstring."""

    name: str
    bits: int
    """Of a channel: 8, 10, 12, 14 or 16."""
    bayer: str = ""
    """RG, GR, GB or BG; empty for all others."""
    channels: int = 1
    packing: Packing = "bytes"

    @property
    def bits_in_buffer(self) -> int:
        """What a pixel takes there."""
        if self.packing == "bits":
            return self.bits
        if self.packing == "gige":
            return 12
        return (8 if self.bits == 8 else 16) * self.channels

    def of(self, height: int, width: int) -> FrameFormat:
        return FrameFormat(height, width, self.channels, self.bits, self.bayer)

    def frame_bytes(self, height: int, width: int, padding: int = 0) -> int:
        """Bytes of a frame whose lines have `padding` bytes after each (GenICam: PaddingX)."""
        if padding:
            return height * (-(-width * self.bits_in_buffer // 8) + padding)
        return -(-height * width * self.bits_in_buffer // 8)


def _formats() -> dict[str, PixelFormat]:
    rows = [
        PixelFormat(name, 8, channels=3) for name in ("RGB8", "BGR8", "RGB8Packed", "BGR8Packed")
    ]
    for bayer in ("", "RG", "GR", "GB", "BG"):
        family = f"Bayer{bayer}" if bayer else "Mono"
        rows += [PixelFormat(f"{family}{bits}", bits, bayer) for bits in (8, 10, 12, 14, 16)]
        rows += [
            PixelFormat(f"{family}{bits}p", bits, bayer, packing="bits") for bits in (10, 12, 14)
        ]
        rows += [
            PixelFormat(f"{family}{bits}Packed", bits, bayer, packing="gige") for bits in (10, 12)
        ]
    return {row.name: row for row in rows}


PIXEL_FORMATS: Final = _formats()


def pixel_format(name: str) -> PixelFormat:
    """The format of that name. Raises `ConfigError` for one that linewatch does not read."""
    found = PIXEL_FORMATS.get(name)
    if found is None:
        raise ConfigError(f"pixel_format {name!r} found, expected {expected_instead_of(name)}")
    return found


def expected_instead_of(name: str) -> str:
    """What is to be written in the place of an unknown name."""
    guess = difflib.get_close_matches(name, PIXEL_FORMATS, n=1, cutoff=0.6)
    hint = f"; did you mean {guess[0]!r}?" if guess else ""
    return f"one of {', '.join(PIXEL_FORMATS)}{hint}"


def unpack(
    pixels: PixelFormat,
    buffer: bytes | bytearray | memoryview | NDArray[np.uint8],
    out: NDArray[Any],
    padding: int = 0,
) -> None:
    """Write a buffer's frame into `out`: (H, W, C), uint8 or uint16, rows possibly strided.

    `padding`: bytes after each line. What the buffer has beyond the frame is not looked at. Raises
    `ValueError` when it has less.
    """
    height, width, channels = out.shape
    data = np.frombuffer(buffer, np.uint8)
    needed = pixels.frame_bytes(height, width, padding)
    if data.size < needed:
        raise ValueError(
            f"a buffer of {data.size} bytes found, expected the {needed} of {width} x {height} px "
            f"in {pixels.name}"
        )
    data = data[:needed]
    # One row where lines follow on each other within a byte, else a row for each line.
    rows = data.reshape(height, -1) if padding else data.reshape(1, -1)
    count = width * channels * (1 if padding else height)
    values: NDArray[Any]
    if pixels.packing == "bits":
        values = _from_bits(rows, count, pixels.bits)
    elif pixels.packing == "gige":
        values = _from_gige(rows, count, pixels.bits)
    elif pixels.bits == 8:
        values = rows[:, :count]
    else:
        values = np.ascontiguousarray(rows[:, : 2 * count]).view("<u2")
    frame = values.reshape(height, width, channels)
    if pixels.name.startswith("BGR"):
        for channel in range(3):  # seven times as fast as reversing the last axis
            out[:, :, channel] = frame[:, :, 2 - channel]
    else:
        out[...] = frame


def _from_bits(rows: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint16]:
    """`count` values of each row, read as pairs of bytes that overlap."""
    group = 8 // math.gcd(bits, 8)  # values that fill whole bytes
    size = group * bits // 8
    data = _whole_groups(rows, count, group, size)
    shape = len(data), data.shape[1] // size
    values = np.empty((*shape, group), np.uint16)
    for index in range(group):
        first, shift = divmod(index * bits, 8)
        pairs = np.ndarray(shape, "<u2", data, first, (data.strides[0], size))
        value = pairs >> shift
        if shift + bits > 16:
            value |= data[:, first + 2 :: size].astype(np.uint16) << (16 - shift)
        np.bitwise_and(value, 2**bits - 1, out=values[:, :, index])
    return values.reshape(len(data), -1)[:, :count]


def _from_gige(rows: NDArray[np.uint8], count: int, bits: int) -> NDArray[np.uint16]:
    data = _whole_groups(rows, count, 2, 3)
    low = bits - 8
    middle = data[:, 1::3]
    values = np.empty((len(data), data.shape[1] // 3, 2), np.uint16)
    values[:, :, 0] = data[:, 0::3].astype(np.uint16) << low | middle & (2**low - 1)
    values[:, :, 1] = data[:, 2::3].astype(np.uint16) << low | middle >> 4 & (2**low - 1)
    return values.reshape(len(data), -1)[:, :count]


def _whole_groups(rows: NDArray[np.uint8], count: int, values: int, size: int) -> NDArray[np.uint8]:
    """Contiguous, each row with zeros behind it until its last group of `size` bytes is full."""
    wanted = -(-count // values) * size
    if rows.shape[1] == wanted and rows.flags.c_contiguous:
        return rows
    whole = np.zeros((len(rows), wanted), np.uint8)
    filled = min(wanted, rows.shape[1])
    whole[:, :filled] = rows[:, :filled]
    return whole
