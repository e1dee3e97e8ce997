"""Which frames are evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.record import RecordingConfig
from pipeline.record.keeping import Copy, Keeper, sampled
from pipeline.sources.sidecar import RecordedFrame

PIXELS = np.zeros((1, 1, 1), np.uint8)


def kept(labels: str, **options: object) -> tuple[list[int], list[int]]:
    """Ids of the kept frames, and of all that came back at all: p, f, i are labels in order."""
    config = RecordingConfig.model_validate({"sample_passes": 0.0} | options)
    keeper = Keeper(config)
    names = {"p": "pass", "f": "fail", "i": "invalid"}
    wanted: list[int] = []
    back: list[int] = []
    results = [
        keeper.add(Copy(RecordedFrame("left", 1, number, label=names[letter]), PIXELS))
        for number, letter in enumerate(labels, 1)
    ]
    for write, forget in [*results, keeper.end()]:
        wanted += [copy.frame.frame_id for copy in write]
        back += [copy.frame.frame_id for copy in [*write, *forget]]
    return wanted, back


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        ("", {}, []),
        ("ppfpip", {}, [3, 5]),
        ("ppfpip", {"record": "all"}, [1, 2, 3, 4, 5, 6]),
        ("pppfppp", {"before": 2}, [2, 3, 4]),
        ("pppfppp", {"after": 2}, [4, 5, 6]),
        ("pppfppfpp", {"before": 1, "after": 1}, [3, 4, 5, 6, 7, 8]),
        ("fpppf", {"before": 9}, [1, 2, 3, 4, 5]),
        ("fppppp", {"after": 99}, [1, 2, 3, 4, 5, 6]),
        ("ppp", {"sample_passes": 1.0}, [1, 2, 3]),
        ("pppf", {"sample_passes": 1.0, "before": 2}, [1, 2, 3, 4]),
        ("fff", {"before": 5, "after": 5}, [1, 2, 3]),
    ],
)
def test_kept_frames(labels: str, options: dict[str, object], expected: Sequence[int]) -> None:
    wanted, back = kept(labels, **options)
    assert wanted == expected  # in the order of their ids
    assert sorted(back) == list(range(1, len(labels) + 1))  # no buffer is lost


def test_memory_that_is_short_takes_frames_that_only_a_later_one_would_want() -> None:
    keeper = Keeper(RecordingConfig(sample_passes=0.0, before=4))
    frames = [RecordedFrame("left", 1, n, label="pass") for n in range(1, 4)]
    for frame in frames:
        assert keeper.add(Copy(frame, PIXELS)) == ([], [])
    first = keeper.shrink()
    assert first is not None
    assert first.frame.frame_id == 1
    write, forget = keeper.add(Copy(RecordedFrame("left", 1, 4, label="fail"), PIXELS))
    assert (write, forget) == ([], [])
    assert keeper.shrink() is None  # all of them are evidence now
    assert [copy.frame.frame_id for copy in keeper.end()[0]] == [2, 3, 4]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_sample_is_the_same_every_time_and_of_its_share(share: float) -> None:
    frames = [RecordedFrame("left", 1, n) for n in range(20_000)]
    chosen = [sampled(frame, share) for frame in frames]
    assert chosen == [sampled(replace(frame, label="pass"), share) for frame in frames]
    assert abs(sum(chosen) / len(frames) - share) < 0.01
