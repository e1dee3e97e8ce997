"""Cameras that come and go: the line goes on, and every trigger has a part verdict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from live import LiveLine, until

from pipeline.config import dump_resolved
from pipeline.errors import ControlError
from pipeline.types import Label, Reason

BOX = {"box": {"views": {"a": 1, "b": 2}, "deadline_ms": 3000.0}}


def stamps(live: LiveLine, camera: str) -> list[int]:
    """What was read from the pixels of the camera's frames, in order."""
    return [
        int(v.raw_peak)
        for v in live.verdicts()
        if v.camera == camera and v.label is not Label.INVALID
    ]


def test_a_free_running_camera_is_absent_frozen_and_hangs_and_the_line_goes_on(
    tmp_path: Path,
) -> None:
    live = LiveLine(tmp_path, {"a": "free", "b": "free"})
    live.fault("a", "absent")
    with live.running():
        live.wait_for("b", "ready")
        assert live.status()["cameras"]["a"] in ("connecting", "lost")
        live.fault("a", None)
        live.wait_for("a", "ready")
        for fault, state in (("freeze", "frozen"), ("hang", "frozen"), ("absent", "lost")):
            live.fault("a", fault)
            live.wait_for("a", state)
            assert live.status()["cameras"]["b"] == "ready"
            live.fault("a", None)
            live.wait_for("a", "ready")
        live.kill("capture.a")
        seen = live.line.progress().captured
        until(lambda: live.line.progress().captured > seen + 50, "50 more frames")
    verdicts = live.verdicts()
    for camera in "ab":
        ids = [v.frame_id for v in verdicts if v.camera == camera]
        assert ids == list(range(1, len(ids) + 1))
    assert stamps(live, "b") == list(range(len(stamps(live, "b"))))


def test_frames_that_the_camera_counted_and_that_never_arrived(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "free"}, source={"frozen_ms": 20_000.0})
    with live.running():
        live.wait_for("a", "ready")
        live.fault("a", "drop")
        time.sleep(0.3)
        live.fault("a", None)
        seen = live.line.progress().captured
        until(lambda: live.line.progress().captured > seen + 5, "5 more frames")
    verdicts = live.verdicts()
    lost = [v for v in verdicts if v.reason is Reason.NO_FRAME]
    assert lost
    # Pixels say which frames arrived; every id between them has a verdict of its own.
    known = {v.frame_id: int(v.raw_peak) for v in verdicts if v.label is not Label.INVALID}
    assert {frame_id - stamp for frame_id, stamp in known.items()} == {1}


def test_every_nth(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "every"}, every=4)
    with live.running():
        until(lambda: live.line.progress().captured > 5, "5 frames")
    found = stamps(live, "a")
    assert found == [4 * n for n in range(len(found))]
    assert [v.trigger_id for v in live.verdicts()] == list(range(1, len(found) + 1))


def test_a_trigger_takes_all_views_and_its_id_comes_back(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "software", "b": "software"}, parts=BOX)
    with live.running():
        live.wait_for("a", "ready")
        live.wait_for("b", "ready")
        for number in range(20):
            live.control.trigger(trigger_id=1000 + number, part_id=f"P{number}", timeout_ms=5000)
            until(lambda n=number: len(live.parts()) > n, "its part")  # type: ignore[misc]  # n: bound now
        status = live.control.status()
        assert (status["captured"], status["refused"]) == (60, 0)
    parts = live.parts()
    assert [(p.trigger_id, p.part_id) for p in parts] == [(1000 + n, f"P{n}") for n in range(20)]
    assert all(len(part.views) == 3 for part in parts)
    assert stamps(live, "a") == list(range(20))
    assert stamps(live, "b") == list(range(40))
    # A view's frame is the one that its trigger made: by the stamp in its pixels.
    stamp = {(v.camera, v.frame_id): int(v.raw_peak) for v in live.verdicts()}
    for number, part in enumerate(parts):
        found = sorted((camera, stamp[camera, frame_id]) for camera, _, frame_id in part.views)
        assert found == [("a", number), ("b", 2 * number), ("b", 2 * number + 1)]


@pytest.mark.parametrize("how", ["absent", "freeze", "hang", "kill", "stop"])
def test_a_trigger_without_its_frame_is_invalid_in_time(tmp_path: Path, how: str) -> None:
    parts = {"box": {"views": {"a": 1, "b": 1}, "deadline_ms": 1500.0}}
    live = LiveLine(tmp_path, {"a": "software", "b": "software"}, parts=parts)
    with live.running():
        live.wait_for("a", "ready")
        live.wait_for("b", "ready")
        live.control.trigger("box", trigger_id=1, timeout_ms=5000)
        until(lambda: len(live.parts()) == 1, "the first part")
        match how:
            case "kill" | "stop":
                live.kill("capture.a", signal.SIGKILL if how == "kill" else signal.SIGSTOP)
            case _:
                live.fault("a", how)
        began = time.monotonic()
        live.control.trigger("box", trigger_id=2, timeout_ms=5000)
        until(lambda: len(live.parts()) == 2, "the second part")
        assert time.monotonic() - began < 20
        if how not in ("kill", "stop"):
            live.fault("a", None)
        live.wait_for("a", "ready")
        for number in range(3, 30):  # the first ones may still meet a camera that is being opened
            live.control.trigger("box", trigger_id=number, timeout_ms=5000)
            until(lambda n=number: len(live.parts()) == n, "its part")  # type: ignore[misc]  # n: bound now
            if live.parts()[-1].reason in (Reason.OK, Reason.DEFECT):
                break
    found = live.parts()
    assert [part.trigger_id for part in found] == list(range(1, len(found) + 1))
    assert found[0].reason in (Reason.OK, Reason.DEFECT)
    second = found[1]
    assert second.label is not Label.PASS
    assert (second.label, second.reason) in (
        (Label.INVALID, Reason.NO_FRAME),
        (Label.INVALID, Reason.CAMERA_LOST),
        (Label.FAIL, Reason.DEFECT),  # the other camera's view
    )
    assert found[-1].reason in (Reason.OK, Reason.DEFECT)


def test_decision_and_worker_are_killed_between_triggers(tmp_path: Path) -> None:
    parts = {"box": {"views": {"a": 1, "b": 1}, "deadline_ms": 10_000.0}}
    cameras = {"a": "software", "b": "software"}
    runtime = "tests.fakes:slow_stamp"
    live = LiveLine(tmp_path, cameras, parts=parts, runtime=runtime, restarts=5)
    sent = 0
    with live.running():
        live.wait_for("a", "ready")
        live.wait_for("b", "ready")
        while sent < 40:
            try:
                live.control.trigger("box", trigger_id=sent + 1, timeout_ms=5000)
            except ControlError:  # not ready: a stage is being started
                assert live.error is None
                time.sleep(0.05)
                continue
            sent += 1
            if sent in (10, 30):
                live.kill("decision")
            if sent == 20:
                live.kill("worker")
            time.sleep(0.02)
        until(lambda: len(live.parts()) == sent, "all parts")
    found = live.parts()
    assert sorted(part.trigger_id for part in found) == list(range(1, sent + 1))
    by_frame = {(v.camera, v.frame_id): int(v.raw_peak) for v in live.verdicts()}
    for part in found:
        assert len(part.views) == 2
        assert {by_frame[camera, frame_id] for camera, _, frame_id in part.views} == {
            part.trigger_id - 1
        }


def test_hardware_triggers_that_are_announced_have_their_ids(tmp_path: Path) -> None:
    """The rendered camera runs freely, as if its own line was triggered 25 times a second."""
    live = LiveLine(tmp_path, {"a": "hardware"}, source={"frame_rate": 5.0})
    with live.running():
        live.wait_for("a", "ready")
        until(lambda: len(live.parts()) > 2, "frames without a word")
        for number in range(3):
            live.control.trigger("a", trigger_id=7000 + number, timeout_ms=5000)
            until(
                lambda n=number: 7000 + n in [p.trigger_id for p in live.parts()],  # type: ignore[misc]  # n: bound now
                "the announced frame",
            )
    ids = [part.trigger_id for part in live.parts()]
    assert ids[:3] == [1, 2, 3]
    assert [i for i in ids if i >= 7000] == [7000, 7001, 7002]


def test_an_encoder_makes_the_triggers(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "encoder"}, counts=500)
    with live.running():
        live.wait_for("a", "ready")
        made = 0
        for count in range(0, 5001, 250):
            made += live.control.encoder(count, timeout_ms=5000)
            time.sleep(0.02)
        until(lambda: len(live.parts()) == made, "all parts")
    assert [part.trigger_id for part in live.parts()] == list(range(1, 11))


def test_a_leap_of_the_encoder_has_a_picture_of_the_last_part_alone(tmp_path: Path) -> None:
    parts = {"box": {"views": {"a": 1}, "deadline_ms": 20_000.0}}
    live = LiveLine(tmp_path, {"a": "encoder"}, parts=parts, counts=500, timeout_ms=10_000.0)
    with live.running():
        live.wait_for("a", "ready")
        live.control.encoder(0, timeout_ms=5000)
        assert live.control.encoder(1500, timeout_ms=5000) == 3
        until(lambda: len(live.parts()) == 3 == len(live.verdicts()), "all parts and frames")
    nothing = (Label.INVALID, Reason.NO_FRAME)
    frames = {v.trigger_id: (v.label, v.reason) for v in live.verdicts()}
    found = {p.trigger_id: (p.label, p.reason) for p in live.parts()}
    for answers in (frames, found):
        assert sorted(answers) == [1, 2, 3]
        assert (answers[1], answers[2]) == (nothing, nothing)
        assert answers[3][1] in (Reason.OK, Reason.DEFECT)
    assert stamps(live, "a") == [0]


def test_a_line_that_is_told_to_stop_answers_for_its_triggers(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "software", "b": "software"}, parts=BOX)
    with live.running():
        live.wait_for("b", "ready")
        live.fault("a", "freeze")
        for number in range(5):
            live.control.trigger("box", trigger_id=number, timeout_ms=5000)
    parts = live.parts()
    assert sorted(part.trigger_id for part in parts) == list(range(5))
    assert all(part.label is not Label.PASS for part in parts)


def test_a_person_asks_how_the_line_is_and_triggers_it(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "software"})
    path = tmp_path / "station.yaml"
    path.write_text(yaml.safe_dump(json.loads(dump_resolved(live.config))))

    def linewatch(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "pipeline.cli", *words, "--json"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout

    assert linewatch("status", str(path))[0] == ControlError.exit_code
    with live.running():
        live.wait_for("a", "ready")
        code, text = linewatch("status", str(path))
        assert (code, json.loads(text)["cameras"]) == (0, {"a": "ready"})
        code, text = linewatch("trigger", str(path), "--id", "99", "--part-id", "P")
        part = json.loads(text)
        assert code == {"pass": 0, "fail": 1}[part["label"]]
        assert (part["trigger_id"], part["part_id"]) == (99, "P")
        live.fault("a", "absent")
        live.control.trigger(trigger_id=1)
        live.wait_for("a", "lost")
        assert linewatch("status", str(path))[0] == 1
        assert linewatch("trigger", str(path))[0] == 12
        assert linewatch("trigger", str(path), "nobody")[0] == ControlError.exit_code


def test_a_person_reads_why_the_line_is_not_ready(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "free"})
    endpoint, out = live.config.publish.endpoint, tmp_path / "watched"

    def notes() -> list[str]:
        lines = [json.loads(line) for line in out.read_text().splitlines() if line.endswith("}")]
        return [line["text"] for line in lines if line.get("note") == "line"]

    command = [sys.executable, "-m", "pipeline.cli", "watch", endpoint, "--topic", "part/"]
    with out.open("w") as file, subprocess.Popen([*command, "--json"], stdout=file) as watch:
        try:
            with live.running():
                live.wait_for("a", "ready")
                live.kill("worker")
                until(lambda: bool(notes()), "a line without a worker")
                until(lambda: notes()[-1] == "the line is ready", "another worker")
            until(lambda: notes()[-1] == "not ready: the line is being stopped", "the end")
        finally:
            watch.terminate()
    assert any("worker starts" in note or "engine" in note for note in notes())
