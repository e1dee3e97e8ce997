"""Verdicts without a map, and the parts that follow from verdicts."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from pipeline.types import FrameRef, Label, Reason, Verdict
from pipeline.verdicts import invalid, part_of, utc_ns
from pipeline.wire import decode, encode

REF = FrameRef("left", 3, 17, 2, 9, 1_000_000, trigger_id=5, part_id="p1", source_pts=77)
FAULTS = [reason for reason in Reason if reason not in (Reason.OK, Reason.DEFECT)]


@pytest.mark.parametrize("reason", FAULTS)
def test_invalid(reason: Reason) -> None:
    found = invalid("s", REF, reason, 3_500_000)
    assert (found.label, found.reason) == (Label.INVALID, reason)
    assert (found.station, found.camera, found.epoch, found.frame_id) == ("s", "left", 3, 17)
    assert (found.trigger_id, found.part_id, found.source_pts) == (5, "p1", 77)
    assert (found.image_score, found.defects, found.engine_id) == (0.0, (), "")
    assert found.latency_ms == {"total": 2.5}
    assert decode(encode(found)) == found
    assert part_of(found).label is Label.INVALID
    assert part_of(found).reason is reason


def test_the_time_of_capture() -> None:
    now, wall = time.monotonic_ns(), time.time_ns()
    ref = replace(REF, t_capture_ns=now - 5_000_000_000)
    assert abs(invalid("s", ref, Reason.LATE, now).t_capture_utc_ns - (wall - 5 * 10**9)) < 10**9
    assert abs(utc_ns(now, now) - wall) < 10**9


@pytest.mark.parametrize(
    ("label", "reason"),
    [(Label.PASS, Reason.OK), (Label.FAIL, Reason.DEFECT), (Label.INVALID, Reason.TORN)],
)
@pytest.mark.parametrize(("part_id", "expected"), [("p7", "p7"), ("", "left/3/17")])
def test_a_part_of_one_view(label: Label, reason: Reason, part_id: str, expected: str) -> None:
    frame = Verdict("s", "left", 3, 17, label, reason, part_id=part_id, trigger_id=4)
    part = part_of(frame)
    assert (part.label, part.reason, part.part_id) == (label, reason, expected)
    assert (part.station, part.trigger_id, part.views) == ("s", 4, (("left", 3, 17),))
    assert decode(encode(part)) == part
