"""What two sets of verdicts have in common, and what not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.flips import Comparison, Key, by_origin, by_position, compare, read_results
from pipeline.replay import write_results
from pipeline.sources.sidecar import RecordedFrame
from pipeline.types import Defect, Label, Reason, Verdict


def verdict(frame_id: int, score: float, threshold: float = 1.0, camera: str = "cam0") -> Verdict:
    failed = score >= threshold
    return Verdict(
        "line-1",
        camera,
        9,
        frame_id,
        Label.FAIL if failed else Label.PASS,
        Reason.DEFECT if failed else Reason.OK,
        score,
        threshold,
        defects=(Defect((1, 2, 3, 4), 4, score),) if failed else (),
    )


def invalid(frame_id: int) -> Verdict:
    return Verdict("line-1", "cam0", 9, frame_id, Label.INVALID, Reason.BROKEN_FRAME)


def test_nothing_and_nothing() -> None:
    assert compare({}, {}) == Comparison(0, [], [], [], 0, 0.0)


def test_flips_scores_and_frames_of_one_side() -> None:
    before = by_position([verdict(1, 0.5), verdict(2, 0.9), verdict(3, 2.0), verdict(5, 0.1)])
    now = by_position([verdict(1, 0.5), verdict(2, 1.1), invalid(3), verdict(4, 0.2)])
    found = compare(before, now)
    assert [(f.before.frame_id, f.before.label, f.now.label) for f in found.flips] == [
        (2, "pass", "fail"),
        (3, "fail", "invalid"),
    ]
    assert (found.compared, found.changed_scores, found.largest_change) == (3, 2, 2.0)
    assert (found.only_before, found.only_now) == ([("cam0", 0, 5)], [("cam0", 0, 4)])
    assert found.differing == 4


@pytest.mark.parametrize(
    ("score", "changed"), [(0.5, 0), (0.500001, 0), (0.5001, 1), (0.0, 1), (0.4999, 1)]
)
def test_rounding_is_no_change(score: float, changed: int) -> None:
    before, now = by_position([verdict(1, 0.5)]), by_position([verdict(1, score)])
    assert compare(before, now).changed_scores == changed


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    verdicts = [verdict(1, 0.5), verdict(2, 1.5), invalid(3), verdict(1, 2.0, camera="cam1")]
    write_results(path, verdicts)
    found = read_results(path)
    assert compare(found, by_position(verdicts)).differing == 0
    assert found["cam0", 0, 2].defects == verdicts[1].defects


def test_a_frame_with_two_verdicts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(path, [verdict(1, 0.5), verdict(1, 0.6)])
    with pytest.raises(DataError, match="1 frames have two verdicts"):
        read_results(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label", "good"),
        ("reason", None),
        ("image_score", "high"),
        ("image_score", float("nan")),
        ("frame_id", "1"),
        ("defects", [{"box_xyxy": [1, 2, 3]}]),
        ("defects", None),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "results.jsonl"
    write_results(path, [verdict(1, 0.5), verdict(2, 0.5)])
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {key: value})
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line 2 is no verdict"):
        read_results(path)


def test_a_replays_frames_are_those_that_the_line_took() -> None:
    origins = {"cam0": [RecordedFrame("left", 3, 17), None]}
    verdicts = [verdict(1, 0.5), verdict(2, 0.5), verdict(3, 0.5)]
    keys: list[Key] = [("left", 3, 17), ("cam0", 0, 2), ("cam0", 0, 3)]
    assert list(by_origin(verdicts, origins)) == keys
    assert by_origin([], origins) == {}
    with pytest.raises(DataError, match="do not say which frames"):
        by_origin(verdicts, {"cam0": []})
