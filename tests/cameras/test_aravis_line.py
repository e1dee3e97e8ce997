"""Whole lines with an Aravis camera that is absent, killed, frozen or on a bad cable."""

from __future__ import annotations

from pathlib import Path

from fake_camera import ADDRESS, FIRST_ID, FakeCamera
from integration.live import LiveLine, until

from pipeline.types import Label, Reason, Verdict

SOURCE = {
    **{"kind": "aravis", "address": ADDRESS, "width": 320, "height": 256},
    **{"exposure_us": 10000.0, "gain": 0.0, "frame_rate": 25.0},
    **{"frozen_ms": 1000.0, "retry_s": 0.5},
}


def line(work: Path, mode: str, **trigger: float) -> LiveLine:
    return LiveLine(work, {"a": mode}, source=SOURCE, runtime="tests.fakes:corner", **trigger)


def more_frames(live: LiveLine, count: int) -> None:
    seen = live.line.progress().captured
    until(lambda: live.line.progress().captured >= seen + count, f"{count} more frames")


def others(live: LiveLine) -> dict[str, int]:
    """Process ids of the stages that have nothing to do with the camera's library."""
    return {name: pid for name, pid in live.line.progress().pids.items() if name != "capture.a"}


def check_ids(verdicts: list[Verdict]) -> None:
    """One verdict for each frame that was taken, in order."""
    assert [verdict.frame_id for verdict in verdicts] == list(range(1, len(verdicts) + 1))


def test_a_camera_that_is_absent_killed_and_frozen_comes_back_without_a_restart(
    tmp_path: Path,
) -> None:
    live, fake = line(tmp_path, "free"), FakeCamera()
    with live.running(), fake.away():
        live.wait_for("a", "lost")
        pids = others(live)
        fake.start()
        live.wait_for("a", "ready")
        more_frames(live, 20)
        fake.kill()
        live.wait_for("a", "lost")
        fake.start()
        live.wait_for("a", "ready")
        more_frames(live, 20)
        fake.freeze()
        live.wait_for("a", "lost")
        fake.thaw()
        live.wait_for("a", "ready")
        more_frames(live, 20)
        assert others(live) == pids
    verdicts = live.verdicts()
    check_ids(verdicts)
    assert len(verdicts) >= 60
    corners = [int(v.raw_peak) for v in verdicts if v.label is not Label.INVALID]
    # Each frame is the one after the one before it, or the first one of a camera opened anew.
    starts = [n for n, corner in enumerate(corners) if n == 0 or corner != corners[n - 1] + 1]
    assert corners[0] == FIRST_ID % 255
    assert len(starts) <= 3


def test_triggers_meant_for_a_camera_that_is_away_are_answered(tmp_path: Path) -> None:
    live, fake = line(tmp_path, "software"), FakeCamera()
    with live.running(), fake.away():
        live.wait_for("a", "lost")
        live.control.trigger("a", trigger_id=1, timeout_ms=5000)
        until(lambda: len(live.parts()) == 1, "the first part")
        fake.start()
        live.wait_for("a", "ready")
        live.control.trigger("a", trigger_id=2, timeout_ms=5000)
        until(lambda: len(live.parts()) == 2, "the second part")
        fake.kill()
        live.control.trigger("a", trigger_id=3, timeout_ms=5000)
        until(lambda: len(live.parts()) == 3, "the third part")
    parts = live.parts()
    assert [part.trigger_id for part in parts] == [1, 2, 3]
    assert parts[0].reason is Reason.CAMERA_LOST
    assert parts[1].reason in (Reason.OK, Reason.DEFECT)
    assert parts[2].reason in (Reason.CAMERA_LOST, Reason.NO_FRAME)
    assert all(part.label is Label.INVALID for part in (parts[0], parts[2]))


def test_frames_that_lost_packets_are_invalid_and_in_their_place(tmp_path: Path) -> None:
    live = line(tmp_path, "free")
    with FakeCamera(lost_per_thousand=10), live.running():
        live.wait_for("a", "ready")
        until(lambda: Reason.BROKEN_FRAME in [v.reason for v in live.verdicts()], "a broken frame")
        more_frames(live, 40)
    verdicts = live.verdicts()
    check_ids(verdicts)
    first, *others = [verdict for verdict in verdicts if verdict.label is not Label.INVALID]
    for verdict in others:  # by the count in the pixels, none is missing between the whole ones
        assert (verdict.raw_peak - first.raw_peak) % 255 == (
            verdict.frame_id - first.frame_id
        ) % 255
    assert {v.reason for v in verdicts if v.label is Label.INVALID} <= {
        Reason.BROKEN_FRAME,
        Reason.NO_FRAME,
    }
