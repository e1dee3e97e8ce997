"""Images of one part are found, and kept together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.parts import kept_apart, near_duplicates, part_ids, part_scores, thumb
from models.untrained import textured_frame
from pipeline.errors import DataError
from pipeline.sources.synthetic import SyntheticLine


def test_a_part_photographed_again_is_one_part_and_another_part_is_not() -> None:
    """Other noise and light; and other parts that lie at the same place."""
    rng = np.random.default_rng(0)
    line = SyntheticLine(640, 480, False, 3, 0.0)
    parts = [line.render(number)[0] for number in range(1, 7)]
    again = [
        np.clip(0.93 * part + rng.normal(0, 2, part.shape), 0, 255).astype(np.uint8)
        for part in parts[:2]
    ]
    found = near_duplicates([thumb(image) for image in [*parts, *again]])
    assert found[6] == found[0]
    assert found[7] == found[1]
    assert len(set(found)) == 6


def test_images_without_a_thumb_stand_for_themselves() -> None:
    one = thumb(textured_frame(64, 64, 1))
    assert len(set(near_duplicates([None, one, None, one]))) == 3
    assert near_duplicates([]) == []


def test_flat_images_are_alike() -> None:
    flat = [np.full((40, 50, 3), level, np.uint8) for level in (10, 200)]
    assert len(set(near_duplicates([thumb(image) for image in flat]))) == 1


def test_ids_come_from_names() -> None:
    assert part_ids(["cam1_p17_a.png", "cam1_p17_b.png"], r"_p(\d+)_") == ["17", "17"]
    assert part_ids(["a12.png"], r"\d+") == ["12"]
    with pytest.raises(DataError, match=r"b\.png: no part id found"):
        part_ids(["a1.png", "b.png"], r"\d")
    with pytest.raises(DataError, match="regular expression"):
        part_ids(["a"], "(")


def test_a_part_has_its_highest_score() -> None:
    assert part_scores([1, 3, 2], ["a", "b", "a"]) == {"a": 2, "b": 3}


@settings(deadline=None)
@given(
    parts=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 9),
)
def test_a_part_is_on_one_side_and_each_stratum_on_both(
    parts: list[int], share: float, seed: int
) -> None:
    strata = [part % 3 for part in parts]
    apart = kept_apart(strata, parts, share, seed)
    sides: dict[int, set[bool]] = {}
    for part, kept in zip(parts, apart, strict=True):
        sides.setdefault(part, set()).add(kept)
    assert all(len(side) == 1 for side in sides.values())
    assert apart == kept_apart(strata, parts, share, seed)
    for stratum in set(strata):
        members = {part for part in parts if part % 3 == stratum}
        count = sum(sides[part] == {True} for part in members)
        if share and len(members) > 1:
            assert 1 <= count < len(members)
            assert abs(count - share * len(members)) <= 1
        elif not share:
            assert count == 0
