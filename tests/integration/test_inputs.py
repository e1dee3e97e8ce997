"""Whole lines whose frames other programs give: pushed, dropped into a folder, streamed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import cv2
import numpy as np
from integration.live import LiveLine, until
from numpy.typing import NDArray

from pipeline.errors import SourceLost
from pipeline.push import Pusher
from pipeline.sources.stamp import write_stamp
from pipeline.types import Label, Verdict

WIDTH, HEIGHT = 320, 256
COUNT = 40
SIZE = {"width": WIDTH, "height": HEIGHT}


def picture(number: int) -> NDArray[np.uint8]:
    frame = np.full((HEIGHT, WIDTH), 90, np.uint8)
    write_stamp(frame, number)
    return frame


def by_part(verdicts: list[Verdict]) -> dict[str, list[int]]:
    """Part -> the numbers in the pixels of its verdicts, those that are not invalid."""
    found: dict[str, list[int]] = {}
    for verdict in verdicts:
        if verdict.label is not Label.INVALID:
            found.setdefault(verdict.part_id, []).append(round(verdict.raw_peak))
    return found


def test_pushed_frames_have_verdicts_though_capture_is_killed(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/push.sock"
    source = {"kind": "push", "endpoint": endpoint} | SIZE
    live = LiveLine(tmp_path, {"a": "free"}, source=source, on_full="wait")
    with live.running(), Pusher(endpoint, timeout_ms=1000) as program:
        for number in range(COUNT):
            taken = False
            if number == COUNT // 2:
                until(lambda: live.line.progress().captured > 0, "capture at work")
                live.kill("capture.a")
            while not taken:
                with contextlib.suppress(SourceLost):
                    program.push(picture(number), trigger_id=number, part_id=f"p{number}")
                    taken = True
        until(lambda: len(by_part(live.verdicts())) == COUNT, "a verdict for each part")
    verdicts = live.verdicts()
    assert [v.frame_id for v in verdicts] == list(range(1, len(verdicts) + 1))
    assert by_part(verdicts).keys() == {f"p{number}" for number in range(COUNT)}
    for part, numbers in by_part(verdicts).items():
        assert {f"p{number}" for number in numbers} == {part}
    assert all(v.part_id == f"p{v.trigger_id}" for v in verdicts if v.label is not Label.INVALID)


def test_dropped_files_have_verdicts_though_capture_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    source = {"kind": "watched", "path": str(folder), "after": "delete", "settle_ms": 100.0}
    source["part_id"] = r"^(?P<part_id>p\d+)\."
    live = LiveLine(tmp_path, {"a": "free"}, source=source | SIZE, on_full="wait")
    with live.running():
        for number in range(COUNT):
            if number == COUNT // 2:
                until(lambda: live.line.progress().captured > 0, "capture at work")
                live.kill("capture.a")
            done, data = cv2.imencode(".png", picture(number))
            assert done
            (hidden := folder / ".next").write_bytes(data.tobytes())
            hidden.rename(folder / f"p{number}.png")
        until(lambda: len(by_part(live.verdicts())) == COUNT, "a verdict for each file")
        until(lambda: not [*folder.iterdir()], "each file is deleted")
    verdicts = live.verdicts()
    assert [v.frame_id for v in verdicts] == list(range(1, len(verdicts) + 1))
    for part, numbers in by_part(verdicts).items():
        assert {f"p{number}" for number in numbers} == {part}


def test_a_folder_that_vanishes_and_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    source = {"kind": "watched", "path": str(folder), "retry_s": 0.3, "settle_ms": 50.0}
    live = LiveLine(tmp_path, {"a": "free"}, source=source | SIZE)
    with live.running():
        live.wait_for("a", "lost")
        for number in range(2):
            folder.mkdir()
            until(lambda: live.status()["cameras"]["a"] != "lost", "the folder is seen")
            cv2.imwrite(str(folder / f"{number}.png"), picture(number))
            until(lambda n=number: len(live.verdicts()) > n, "a verdict")
            folder.rename(tmp_path / f"gone{number}")
            live.wait_for("a", "lost")
    assert [round(v.raw_peak) for v in live.verdicts()] == [0, 1]


def test_a_camera_whose_own_clock_jumps_changes_nothing(tmp_path: Path) -> None:
    """Back, to nothing, and on by a day: its times are passed on as they are, and nothing else."""
    endpoint = f"ipc://{tmp_path}/push.sock"
    source = {"kind": "push", "endpoint": endpoint} | SIZE
    live = LiveLine(tmp_path, {"a": "free"}, source=source, on_full="wait")
    second = 10**9
    pts = [5000 * second + number * second // 25 for number in range(COUNT)]
    pts[10:20] = [value - 3600 * second for value in pts[10:20]]
    pts[20:30] = range(10)
    pts[30:] = [value + 86400 * second for value in pts[30:]]
    pts[35] = pts[34]
    with live.running(), Pusher(endpoint, timeout_ms=10_000) as program:
        for number, value in enumerate(pts):
            program.push(picture(number), part_id=f"p{number}", pts=value)
        until(lambda: len(live.verdicts()) == COUNT, "a verdict for each frame")
    verdicts = live.verdicts()
    assert [v.source_pts for v in verdicts] == pts
    assert [round(v.raw_peak) for v in verdicts] == list(range(COUNT))
    assert all(v.label is not Label.INVALID for v in verdicts)
    assert [p.part_id for p in live.parts()] == [f"p{number}" for number in range(COUNT)]
    times = [v.t_capture_utc_ns for v in verdicts]
    assert max(times) - min(times) < 60 * second
