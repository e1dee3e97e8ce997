"""The whole line behind a bridge, and how its passed parts are held against the journal."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.types import Label, Reason, Verdict
from tools.faults_plc import Found, act, add_options, is_good, judge
from tools.plc_machine import Passage

TAKEN, GATE = 10**9, 2 * 10**9
PASSED = Passage(7, TAKEN, GATE, "")
GOOD = Verdict(
    "s",
    "cam",
    1,
    1,
    Label.PASS,
    Reason.OK,
    raw_peak=4 / 2**20,  # picture 3
    trigger_id=7,
    t_capture_utc_ns=TAKEN + 10**8,
)
BAD = replace(GOOD, raw_peak=2 + 1 / 2**20)  # picture 0


def judged(passage: Passage, *frames: Verdict, windows: list[tuple[int, int]]) -> Found:
    found = Found("modbus", 1)
    judge(found, [passage], windows, {7: list(frames)})
    return found


def test_a_good_part_that_passed() -> None:
    found = judged(PASSED, GOOD, windows=[(0, 1)])
    assert (found.wrong, found.good_outside, found.good_outside_passed) == (0, 1, 1)


@pytest.mark.parametrize(
    "frames",
    [
        (),
        (GOOD, GOOD),
        (BAD,),
        (replace(GOOD, raw_peak=6 / 2**20),),  # picture 5, whatever its peak says
        (replace(GOOD, raw_peak=0.0),),
        (replace(GOOD, label=Label.FAIL, reason=Reason.DEFECT),),
        (replace(GOOD, t_capture_utc_ns=TAKEN - 1),),
        (replace(GOOD, t_capture_utc_ns=GATE + 1),),
    ],
)
def test_what_may_not_pass(frames: tuple[Verdict, ...]) -> None:
    assert judged(PASSED, *frames, windows=[]).wrong == 1
    assert judged(replace(PASSED, why="not a pass"), *frames, windows=[]).wrong == 0
    if len(frames) == 1:
        assert not is_good(frames[0], PASSED)


def test_rejects_of_good_parts_count_outside_the_faults_alone() -> None:
    rejected = replace(PASSED, why="no answer")
    assert judged(rejected, GOOD, windows=[]).good_outside == 1
    assert judged(rejected, windows=[]).good_outside == 1
    assert judged(rejected, BAD, windows=[]).good_outside == 0
    assert judged(rejected, GOOD, windows=[(GATE, GATE + 1)]).good_outside == 0


@pytest.mark.slow
def test_the_whole_line_killed(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    options = ["--parts", "150", "--rate", "12", "--kills", "1", "--gate-ms", "1000"]
    found = act(parser.parse_args(options), tmp_path)
    assert found.wrong == 0, found
    assert found.parts == 150
    assert sum(found.kills.values()) > 0
    assert found.passed > 0, found
