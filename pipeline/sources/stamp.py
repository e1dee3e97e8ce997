"""A frame's id as black and white squares in its pixels: the witness that no counter can fake.

1. 64 bits, the most significant first: the id (32 bits), then the CRC-32 of its four bytes, xored
   with a constant, without which the highest id would be 64 white squares.
2. Bit k is the square in row k // 32 and column k % 32 of the frame's top left corner: 8 x 8 px,
   white (255) for 1 and black (0) for 0.
3. Reading takes the mean of each square's inner 4 x 4 px, splits dark from light half-way between
   the darkest and the lightest, and believes the id only when the checksum agrees.

The strip is 256 px wide and 16 px high; what it covers is lost to inspection.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_CELL_PX: Final = 8
_COLUMNS: Final = 32
_ROWS: Final = 2
_MIN_CONTRAST: Final = 48
_XOR: Final = 0x5A3C96C3

STAMP_WIDTH_PX: Final = _COLUMNS * _CELL_PX
STAMP_HEIGHT_PX: Final = _ROWS * _CELL_PX
STAMP_LIMIT: Final = 2**32
"""Ids run from 0 to this, exclusive."""


def write_stamp(frame: NDArray[np.uint8], number: int) -> None:
    """Write `number` into the corner of `frame`, uint8 (H, W) or (H, W, C), in place.

    Raises `ValueError` for a frame under 256 x 16 px and for a number outside 0..2**32 - 1.
    """
    height, width = frame.shape[:2]
    if width < STAMP_WIDTH_PX or height < STAMP_HEIGHT_PX:
        raise ValueError(
            f"a frame of {width} x {height} px has no room for a stamp; it needs at least "
            f"{STAMP_WIDTH_PX} x {STAMP_HEIGHT_PX} px"
        )
    if not 0 <= number < STAMP_LIMIT:
        raise ValueError(f"a stamp holds a number from 0 to {STAMP_LIMIT - 1}, found {number}")
    payload = number.to_bytes(4, "big")
    payload += (zlib.crc32(payload) ^ _XOR).to_bytes(4, "big")
    bits = np.unpackbits(np.frombuffer(payload, np.uint8)).reshape(_ROWS, _COLUMNS)
    strip = (bits * np.uint8(255)).repeat(_CELL_PX, axis=0).repeat(_CELL_PX, axis=1)
    corner = frame[:STAMP_HEIGHT_PX, :STAMP_WIDTH_PX]
    corner[...] = strip if frame.ndim == 2 else strip[:, :, None]


def read_stamp(frame: NDArray[np.uint8]) -> int | None:
    """The number in the corner of `frame`, uint8 (H, W) or (H, W, C); None if there is none."""
    height, width = frame.shape[:2]
    if width < STAMP_WIDTH_PX or height < STAMP_HEIGHT_PX:
        return None
    corner = frame[:STAMP_HEIGHT_PX, :STAMP_WIDTH_PX].reshape(
        _ROWS, _CELL_PX, _COLUMNS, _CELL_PX, -1
    )
    inner = slice(_CELL_PX // 4, _CELL_PX - _CELL_PX // 4)
    levels = corner[:, inner, :, inner].mean(axis=(1, 3, 4)).ravel()
    darkest, lightest = levels.min(), levels.max()
    if lightest - darkest < _MIN_CONTRAST:
        return None
    payload = np.packbits(levels > (darkest + lightest) / 2).tobytes()
    if zlib.crc32(payload[:4]) ^ _XOR != int.from_bytes(payload[4:], "big"):
        return None
    return int.from_bytes(payload[:4], "big")
