"""Pixel formats: every value, bit by bit, as a slow reading of the rules gives it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sources.base import FrameFormat
from pipeline.sources.pixel_formats import PIXEL_FORMATS, PixelFormat, pixel_format, unpack


def value_at(pixels: PixelFormat, data: bytes, index: int) -> int:
    """Value `index` of a run of values, one bit after the other."""
    bits = range(pixels.bits)
    if pixels.packing == "bits":
        places = [pixels.bits * index + bit for bit in bits]
    elif pixels.packing == "gige":
        low = pixels.bits - 8
        start = 24 * (index // 2)
        second = index % 2
        places = [start + 8 + 4 * second + bit for bit in range(low)]
        places += [start + 16 * second + bit for bit in range(8)]
    else:
        places = [(8 if pixels.bits == 8 else 16) * index + bit for bit in bits]
    return sum((data[place // 8] >> place % 8 & 1) << bit for bit, place in enumerate(places))


def slowly(
    pixels: PixelFormat, data: bytes, height: int, width: int, padding: int
) -> list[list[list[int]]]:
    line = len(data) // height if padding else 0
    order = (2, 1, 0) if pixels.name.startswith("BGR") else tuple(range(pixels.channels))
    frame = []
    for y in range(height):
        run, skipped = (data[y * line :], 0) if padding else (data, y * width * pixels.channels)
        frame.append(
            [
                [value_at(pixels, run, skipped + x * pixels.channels + c) for c in order]
                for x in range(width)
            ]
        )
    return frame


@given(
    pixels=st.sampled_from(list(PIXEL_FORMATS.values())),
    height=st.integers(1, 5),
    width=st.integers(1, 19),
    padding=st.sampled_from((0, 0, 1, 3)),
    surplus=st.integers(0, 4),
    strided=st.booleans(),
    data=st.data(),
)
@settings(max_examples=400, deadline=None)
def test_every_value_is_what_its_bits_say(
    *,
    pixels: PixelFormat,
    height: int,
    width: int,
    padding: int,
    surplus: int,
    strided: bool,
    data: st.DataObject,
) -> None:
    size = pixels.frame_bytes(height, width, padding)
    # All bits of the unpacked formats beyond the value are zero, as cameras send them.
    found = data.draw(st.binary(min_size=size, max_size=size))
    if pixels.packing == "bytes" and pixels.bits in (10, 12, 14):
        line = size // height if padding else size
        found = b"".join(
            bytes(
                byte & (2 ** (pixels.bits - 8) - 1 if place % 2 else 255)
                for place, byte in enumerate(found[start : start + line])
            )
            for start in range(0, size, line)
        )
    dtype = pixels.of(height, width).dtype
    whole = np.full((height, width + 5, pixels.channels), 7, dtype)
    out = whole[:, 2 : 2 + width] if strided else np.empty((height, width, pixels.channels), dtype)
    unpack(pixels, found + bytes(surplus), out, padding)
    assert out.tolist() == slowly(pixels, found, height, width, padding)
    if strided:
        assert (whole[:, :2] == 7).all()
        assert (whole[:, 2 + width :] == 7).all()


@pytest.mark.parametrize("pixels", PIXEL_FORMATS.values(), ids=lambda pixels: pixels.name)
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)]
)
def test_all_ones_are_the_largest_value(pixels: PixelFormat, kind: type) -> None:
    """In packed formats no bit is lost, and none is a neighbour's."""
    size = pixels.frame_bytes(3, 5)
    data = b"\xff" * size
    if pixels.packing == "bytes" and pixels.bits > 8:
        data = (2**pixels.bits - 1).to_bytes(2, "little") * 15
    out = np.zeros((3, 5, pixels.channels), pixels.of(3, 5).dtype)
    unpack(pixels, kind(data), out)
    assert (out == 2**pixels.bits - 1).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Mono8", FrameFormat(48, 64)),
        ("Mono10", FrameFormat(48, 64, 1, 10)),
        ("Mono12p", FrameFormat(48, 64, 1, 12)),
        ("Mono14", FrameFormat(48, 64, 1, 14)),
        ("Mono16", FrameFormat(48, 64, 1, 16)),
        ("BayerGR8", FrameFormat(48, 64, 1, 8, "GR")),
        ("BayerBG10Packed", FrameFormat(48, 64, 1, 10, "BG")),
        ("BayerGB12p", FrameFormat(48, 64, 1, 12, "GB")),
        ("RGB8", FrameFormat(48, 64, 3)),
        ("BGR8", FrameFormat(48, 64, 3)),
    ],
)
def test_formats_say_what_frames_are(name: str, expected: FrameFormat) -> None:
    assert pixel_format(name).of(48, 64) == expected


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Mono8", 15),
        ("Mono10", 30),
        ("Mono10p", 19),
        ("Mono12p", 23),
        ("Mono10Packed", 23),
        ("RGB8", 45),
    ],
)
def test_bytes_of_fifteen_pixels(name: str, size: int) -> None:
    assert pixel_format(name).frame_bytes(3, 5) == size


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mono8", "did you mean 'Mono8'?"),
        ("YUV422Packed", "one of RGB8, BGR8, RGB8Packed"),
        ("", "one of RGB8"),
    ],
)
def test_an_unknown_format_is_refused_with_those_that_are_known(name: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pixel_format(name)
    assert words in str(caught.value)
    assert "BayerBG12Packed" in str(caught.value)


@pytest.mark.parametrize("pixels", PIXEL_FORMATS.values(), ids=lambda pixels: pixels.name)
def test_a_short_buffer_is_refused_before_anything_is_written(pixels: PixelFormat) -> None:
    out = np.full((3, 5, pixels.channels), 7, pixels.of(3, 5).dtype)
    with pytest.raises(ValueError, match="bytes found, expected the"):
        unpack(pixels, bytes(pixels.frame_bytes(3, 5) - 1), out)
    assert (out == 7).all()
