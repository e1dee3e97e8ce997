from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.stamp import (
    STAMP_HEIGHT_PX,
    STAMP_LIMIT,
    STAMP_WIDTH_PX,
    read_stamp,
    write_stamp,
)

numbers = st.integers(0, STAMP_LIMIT - 1)


@given(
    number=numbers,
    width=st.integers(STAMP_WIDTH_PX, 400),
    channels=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 1000),
    gain=st.floats(0.4, 1.0),
)
def test_survives_noise_and_gain(
    number: int, width: int, channels: int, seed: int, gain: float
) -> None:
    rng = np.random.default_rng(seed)
    shape = (40, width, channels) if channels else (40, width)
    frame = rng.integers(0, 256, shape, dtype=np.uint8)
    before = frame.copy()
    write_stamp(frame, number)
    assert read_stamp(frame) == number
    assert np.array_equal(frame[STAMP_HEIGHT_PX:], before[STAMP_HEIGHT_PX:])
    assert np.array_equal(frame[:, STAMP_WIDTH_PX:], before[:, STAMP_WIDTH_PX:])
    noisy = np.clip(frame * gain + rng.normal(0, 20, shape), 0, 255).astype(np.uint8)
    assert read_stamp(noisy) == number


@pytest.mark.parametrize("number", [0, 1, 255, STAMP_LIMIT // 2, STAMP_LIMIT - 1])
def test_the_ends_of_the_range(number: int) -> None:
    frame = np.zeros((16, 256), np.uint8)
    write_stamp(frame, number)
    assert read_stamp(frame) == number


@given(number=numbers, quality=st.integers(40, 100))
def test_survives_mild_lossy_coding(number: int, quality: int) -> None:
    frame = np.full((64, 300, 3), 90, np.uint8)
    write_stamp(frame, number)
    packet = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    assert read_stamp(cv2.imdecode(packet, cv2.IMREAD_COLOR)) == number


@given(number=numbers, cell=st.integers(0, 63))
def test_one_flipped_square_is_noticed(number: int, cell: int) -> None:
    frame = np.zeros((16, 256), np.uint8)
    write_stamp(frame, number)
    row, column = divmod(cell, 32)
    square = frame[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
    square[...] = 255 - square
    assert read_stamp(frame) is None


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 300, 1), np.uint8),
        np.full((64, 300, 1), 255, np.uint8),
        np.random.default_rng(3).integers(0, 256, (64, 300, 1), dtype=np.uint8),
        np.zeros((8, 300, 1), np.uint8),
        np.zeros((64, 255, 1), np.uint8),
    ],
    ids=["black", "white", "noise", "too low", "too narrow"],
)
def test_no_stamp_reads_as_none(frame: np.ndarray) -> None:
    assert read_stamp(frame) is None


@pytest.mark.parametrize("number", [-1, STAMP_LIMIT])
def test_refuses_a_number_that_does_not_fit(number: int) -> None:
    with pytest.raises(ValueError, match="a number from 0 to 4294967295"):
        write_stamp(np.zeros((16, 256), np.uint8), number)


@pytest.mark.parametrize("shape", [(16, 255), (15, 256, 1)])
def test_refuses_a_frame_without_room(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no room for a stamp"):
        write_stamp(np.zeros(shape, np.uint8), 1)


def test_writes_into_a_strided_slot() -> None:
    slot = np.zeros((80, 320, 1), np.uint8)
    inside = slot[16:64, 16:304]
    write_stamp(inside, 77)
    assert read_stamp(inside) == 77
    assert not slot[:16].any()
