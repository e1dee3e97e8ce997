"""What can be told from a compressed packet without decoding it."""

from __future__ import annotations

import zlib
from typing import Final

from typing_extensions import Buffer

_RESETS: Final = {"h264": (0, 31, (5,)), "hevc": (1, 63, (19, 20))}
"""Where the type of a NAL unit stands in its first byte, and the types of an IDR picture."""
_REVERSED_BITS: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FOOTER_BYTES: Final = 8  # of an FFV1 slice: size (3), error status (1), CRC (4)


def slices_intact(packet: Buffer) -> bool | None:
    """Whether all slice checksums of an FFV1 version 3 packet hold; None if it has none.

    RFC 9043, section 4.9: CRC-32 with the bits the other way round than zlib's, which reversing
    the bits of each byte makes up for; over the slice with its checksum it is 0.
    """
    data = bytes(packet)
    end = len(data)
    intact = True
    while end > 0:
        start = end - _FOOTER_BYTES - int.from_bytes(data[end - 8 : end - 5], "big")
        if end < _FOOTER_BYTES or start < 0:
            return None
        residue = zlib.crc32(data[start:end].translate(_REVERSED_BITS), 0xFFFFFFFF)
        intact = intact and residue == 0xFFFFFFFF
        end = start
    return intact


def is_reset(codec: str, packet: Buffer) -> bool:
    """Whether a key frame needs nothing that came before it: of H.264 and HEVC an IDR picture."""
    if codec not in _RESETS:
        return True
    data = bytes(packet)
    shift, mask, kinds = _RESETS[codec]
    if data.startswith((b"\0\0\1", b"\0\0\0\1")):
        return any(nal and nal[0] >> shift & mask in kinds for nal in data.split(b"\0\0\1"))
    place = 0
    while place + 4 < len(data):
        if data[place + 4] >> shift & mask in kinds:
            return True
        place += 4 + int.from_bytes(data[place : place + 4], "big")
    return False
