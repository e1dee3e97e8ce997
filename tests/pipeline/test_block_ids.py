"""Frame ids of cameras, which wrap at 16 bits without a 0 and may be missing, as indices."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.block_ids import FrameCounter

STEPS = st.lists(st.integers(1, 32767), max_size=50)


def indices(ids: list[int]) -> list[int]:
    counter = FrameCounter()
    return [counter.index(one) for one in ids]


@given(st.integers(0, 65534), STEPS)
def test_ids_of_16_bits_wrap_past_0(first: int, steps: list[int]) -> None:
    positions = list(accumulate(steps, initial=first))
    ids = [position % 65535 + 1 for position in positions]
    assert indices(ids) == [position - first for position in positions]


@given(st.integers(0, 2**63), STEPS)
def test_ids_of_64_bits_go_on(first: int, steps: list[int]) -> None:
    ids = list(accumulate(steps, initial=first))
    assert indices(ids) == [one - first for one in ids]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_an_index_only_ever_grows(ids: list[int]) -> None:
    found = indices(ids)
    assert found[0] == 0
    assert all(later > earlier for earlier, later in pairwise(found))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([], []),
        ([7], [0]),
        ([65534, 65535, 1, 2], [0, 1, 2, 3]),
        ([65534, 3], [0, 4]),
        ([65535, 0, 1], [0, 1, 2]),  # of a camera that sends the 0
        ([5, 5, 6], [0, 1, 2]),
        ([500, 1, 2], [0, 1, 2]),  # of a camera that counts anew
        ([70000, 1, 2], [0, 1, 2]),
        ([1, 4], [0, 3]),
    ],
)
def test_ids(ids: list[int], expected: list[int]) -> None:
    assert indices(ids) == expected


@given(st.integers(0, 65534), st.lists(st.booleans(), max_size=50))
def test_frames_that_lost_their_id_keep_their_place(first: int, known: list[bool]) -> None:
    counter = FrameCounter()
    for index, has_id in enumerate(known):
        found = counter.index((first + index) % 65535 + 1) if has_id else counter.next()
        assert found == index


def test_a_gap_before_a_frame_without_an_id_shows_at_the_next_one() -> None:
    counter = FrameCounter()
    assert [counter.index(65530), counter.next(), counter.index(3)] == [0, 1, 8]
