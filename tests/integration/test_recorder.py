"""A recorder beside a line that runs: what it keeps, and that the line does not feel it."""

from __future__ import annotations

import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from recorders import RecordingLine, lost, recorded, recording_line

from pipeline.config import LineConfig
from pipeline.config.sources import RecordedSource
from pipeline.evidence import fetch_picture
from pipeline.journal import read_verdicts
from pipeline.record.recordings import find_evidence, read_evidence, stored
from pipeline.sources import open_source
from pipeline.sources.recorded import read_head
from pipeline.sources.stamp import read_stamp
from pipeline.station import Station
from pipeline.subscriber import Subscriber
from pipeline.supervisor import Line, Progress
from pipeline.types import Label, Verdict

FRAMES = 80
STAMP = "tests.fakes:stamp"


def with_threshold(config: LineConfig, threshold: float) -> LineConfig:
    """Frames fail whose stamp reaches the threshold."""
    cameras = {
        name: camera.model_copy(
            update={"recipe": camera.recipe.model_copy(update={"image_threshold": threshold})}
        )
        for name, camera in config.cameras.items()
    }
    return config.model_copy(update={"cameras": cameras})


def check_line(config: LineConfig) -> None:
    """The line itself: a verdict for every frame, and none that the recorder cost."""
    verdicts = list(read_verdicts(Station.of(config).journal))
    for camera in config.cameras:
        mine = [v for v in verdicts if v.camera == camera]
        assert [v.frame_id for v in mine] == list(range(1, FRAMES + 1))
        assert [v.raw_peak for v in mine] == [v.frame_id - 1 for v in mine]
        assert all(v.label is not Label.INVALID for v in mine)


def check_recording(config: LineConfig, camera: str) -> list[int]:
    """Ids of the recorded frames; their pixels are those of the frames that they say they are."""
    frames = recorded(config, camera)
    folder = Station.of(config).recordings / camera
    source = open_source(RecordedSource(kind="recording", path=str(folder)))
    pixels = np.empty(source.shape_hwc, np.uint8)
    seen = []
    while (grab := source.read()) is not None:
        assert grab.fault is None
        grab.write(pixels)
        stamp = read_stamp(pixels)
        assert stamp is not None
        seen.append(stamp + 1)
    source.close()
    assert seen == [frame.frame_id for frame in frames]
    assert seen == sorted(set(seen))
    times = [frame.t_capture_utc_ns for frame in frames]
    assert times == sorted(times)
    return seen


def test_all_frames_are_recorded_with_their_verdicts(tmp_path: Path) -> None:
    config = recording_line(tmp_path, {"record": "all"}, frames=FRAMES, fps=20.0, runtime=STAMP)
    RecordingLine(config).run()
    check_line(config)
    verdicts = {(v.camera, v.frame_id): v for v in read_verdicts(Station.of(config).journal)}
    for camera in config.cameras:
        ids = check_recording(config, camera)
        missed = [frame.frame_id for frame, _ in lost(config, camera)]
        assert sorted(ids + missed) == list(range(1, FRAMES + 1))
        assert len(ids) > FRAMES // 2  # a machine under load may miss some, and says which
        for frame in recorded(config, camera):
            verdict = verdicts[camera, frame.frame_id]
            assert (frame.label, frame.reason) == (verdict.label, verdict.reason)
            assert frame.image_score == verdict.image_score
            assert abs(frame.t_capture_utc_ns - verdict.t_capture_utc_ns) < 60 * 10**9
        head = read_head(Station.of(config).recordings / camera)
        assert (head.station, head.camera) == (config.station, camera)


def test_evidence_is_what_failed_and_what_came_before(tmp_path: Path) -> None:
    options = {"record": "evidence", "before": 3, "after": 0}
    config = recording_line(tmp_path, options, frames=FRAMES, fps=20.0, cameras=1, runtime=STAMP)
    config = with_threshold(config, 60.0)
    RecordingLine(config).run()
    check_line(config)
    ids = check_recording(config, "cam0")
    missed = [frame.frame_id for frame, _ in lost(config, "cam0")]
    failed = list(range(61, FRAMES + 1))
    assert set(failed) <= {*ids, *missed}
    assert set(ids) <= {*failed, 58, 59, 60}
    station = Station.of(config)
    found = find_evidence(station.recordings, "cam0", 1, ids[-1])
    assert found is not None
    assert read_stamp(read_evidence(*found)) == ids[-1] - 1
    assert find_evidence(station.recordings, "cam0", 1, 5) is None


def test_a_recorder_that_is_killed_costs_frames_of_the_recording_alone(tmp_path: Path) -> None:
    config = recording_line(
        tmp_path, {"record": "all"}, frames=FRAMES, fps=16.0, cameras=1, runtime=STAMP
    )
    killed: list[int] = []

    def kill(progress: Progress, pid: int) -> None:
        due = len(killed) < 2 and progress.captured > 15 * (len(killed) + 1)
        if due and pid and pid not in killed:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    RecordingLine(config, kill).run()
    assert len(killed) == 2
    check_line(config)
    ids = check_recording(config, "cam0")
    missed = [frame.frame_id for frame, _ in lost(config, "cam0")]
    assert set(ids) | set(missed) == set(range(1, FRAMES + 1))
    assert ids[-1] > 50  # the last one that was started recorded on


def test_a_disk_that_fills_pauses_the_recording_and_nothing_else(tmp_path: Path) -> None:
    config = recording_line(
        tmp_path, {"record": "all"}, frames=FRAMES, fps=20.0, cameras=1, runtime=STAMP
    )
    limit = 400_000
    limited: list[int] = []

    def fill(progress: Progress, pid: int) -> None:
        if pid and pid not in limited:
            # No file of this process may grow beyond that: the disk is full for it alone.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
            limited.append(pid)

    RecordingLine(config, fill).run()
    assert len(limited) == 1
    check_line(config)
    station = Station.of(config)
    ids = check_recording(config, "cam0")
    assert 0 < len(ids) < FRAMES
    assert all(one.path.stat().st_size <= limit for one in stored(station.recordings))
    log = station.log("recorder").read_text()
    assert log.count("recording pauses, inspection goes on") == 1


@pytest.mark.parametrize("options", [{"keep_free_gb": 1e9}, {"folder": "/dev/null/no"}], ids=str)
def test_where_nothing_can_be_recorded_the_line_runs_on(
    tmp_path: Path, options: dict[str, object]
) -> None:
    config = recording_line(
        tmp_path, {"record": "all"} | options, frames=FRAMES, fps=100.0, cameras=1, runtime=STAMP
    )
    RecordingLine(config).run()
    check_line(config)
    assert list(stored(Station.of(config).recordings)) == []
    log = Station.of(config).log("recorder").read_text()
    assert log.count("recording pauses, inspection goes on") == 1


def test_the_picture_of_a_failure_is_there_as_soon_as_one_can_ask(tmp_path: Path) -> None:
    """Also after the process that serves pictures was killed; the line does not feel it."""
    config = recording_line(tmp_path, {}, frames=None, fps=10.0, cameras=1, runtime=STAMP)
    config = with_threshold(config, 5.0)
    pictures = Station.of(config).pictures
    fetched: dict[int, int | None] = {}
    before: list[int] = []

    def enough() -> bool:
        return bool(before) and len(fetched) > len(before) + 3

    def ask() -> None:
        with Subscriber(config.publish.endpoint, topics=["frame/cam0/"]) as stream:
            while not enough():
                event = stream.receive(timeout_ms=20_000)
                assert isinstance(event, Verdict)
                if event.label is Label.FAIL:
                    found = fetch_picture(pictures, "cam0", 1, event.frame_id, timeout_s=30)
                    assert found is not None
                    grey = cv2.imdecode(np.frombuffer(found.data, np.uint8), cv2.IMREAD_UNCHANGED)
                    fetched[event.frame_id] = read_stamp(np.asarray(grey, np.uint8)[..., None])

    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(ask)

        def kill(progress: Progress) -> None:
            pid = progress.pids.get("pictures", 0)
            if len(fetched) > 3 and pid and not before:
                before.extend(fetched)
                os.kill(pid, signal.SIGKILL)

        Line(config).run(watch=kill, stop=asked.done)
        asked.result()
    verdicts = list(read_verdicts(Station.of(config).journal))
    assert [v.frame_id for v in verdicts] == list(range(1, len(verdicts) + 1))
    assert all(v.label is not Label.INVALID for v in verdicts)
    assert all(stamp == frame_id - 1 for frame_id, stamp in fetched.items())
