"""Views to parts: every part has one verdict, and no missing view ever makes it a pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import CameraConfig, LineConfig, PartConfig, SyntheticSource
from pipeline.config.sources import TriggerConfig
from pipeline.parts import PartTable
from pipeline.triggers import TriggerLog
from pipeline.types import Defect, FrameRef, Label, PartVerdict, Reason, Verdict

MS = 1_000_000
EPOCH = 3


def config(deadline_ms: float = 100.0) -> LineConfig:
    """Cameras a and b (two frames) are a box; c is triggered alone; d is in no part."""
    source = SyntheticSource(kind="synthetic")
    triggered = TriggerConfig(mode="hardware")
    return LineConfig(
        station="parts",
        cameras={
            "a": CameraConfig(source=source, trigger=triggered),
            "b": CameraConfig(source=source, trigger=triggered),
            "c": CameraConfig(source=source, trigger=triggered, deadline_ms=30.0),
            "d": CameraConfig(source=source),
        },
        parts={"box": PartConfig(views={"a": 1, "b": 2}, deadline_ms=deadline_ms)},
    )


class Line:
    """A table, its triggers, and a count of frames."""

    def __init__(self, folder: Path) -> None:
        self.triggers = TriggerLog(folder / "triggers", create_epoch=EPOCH)
        self.table = PartTable(config(), self.triggers)
        self.frame_id = 0

    def frame(
        self, camera: str, index: int = 0, label: Label = Label.PASS, **ids: object
    ) -> tuple[Verdict, FrameRef]:
        self.frame_id += 1
        reasons = {Label.PASS: Reason.OK, Label.FAIL: Reason.DEFECT, Label.INVALID: Reason.LATE}
        ref = FrameRef(
            camera,
            EPOCH,
            self.frame_id,
            0,
            1,
            self.frame_id,
            trigger_index=index,
            **ids,  # type: ignore[arg-type]  # ids of a frame
        )
        verdict = Verdict(
            "parts",
            camera,
            EPOCH,
            self.frame_id,
            label,
            reasons[label],
            image_score=1.0 if label is Label.FAIL else 0.25,
            image_threshold=0.5,
            trigger_id=ref.trigger_id,
            part_id=ref.part_id,
        )
        return verdict, ref

    def see(self, camera: str, index: int = 0, label: Label = Label.PASS, **ids: object) -> None:
        assert self.table.add(*self.frame(camera, index, label, **ids)) is None

    def due(self, now_ns: int = 0, *, all_of_them: bool = False) -> list[PartVerdict]:
        self.table.admit()
        return [part for _, part in self.table.due(now_ns, all_of_them=all_of_them)]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.triggers.close()


def test_a_frame_of_no_part_is_a_part_of_its_own(line: Line) -> None:
    verdict, ref = line.frame("d", label=Label.FAIL)
    part = line.table.add(verdict, ref)
    assert part is not None
    assert (part.label, part.views) == (Label.FAIL, (("d", EPOCH, 1),))
    assert line.due(all_of_them=True) == []


def test_a_part_waits_for_all_of_its_views(line: Line) -> None:
    line.triggers.add("box", 0, trigger_id=4711, part_id="A-17")
    for camera in ("b", "a"):
        line.see(camera, 1)
        assert line.due() == []
    line.see("b", 1)
    (part,) = line.due()
    assert (part.label, part.reason) == (Label.PASS, Reason.OK)
    assert (part.trigger_id, part.part_id) == (4711, "A-17")
    assert [camera for camera, _, _ in part.views] == ["b", "a", "b"]
    assert line.due(10**18) == []


def test_any_view_that_fails_fails_the_part(line: Line) -> None:
    line.triggers.add("box", 0)
    line.see("a", 1)
    line.see("b", 1, Label.FAIL)
    line.see("b", 1, Label.INVALID)
    (part,) = line.due()
    assert (part.label, part.image_score, part.image_threshold) == (Label.FAIL, 1.0, 0.5)


def test_a_missing_view_makes_it_invalid_at_the_deadline(line: Line) -> None:
    line.triggers.add("box", 5 * MS)
    line.see("a", 1)
    line.see("b", 1)
    assert line.due(105 * MS - 1) == []
    (part,) = line.due(105 * MS)
    assert (part.label, part.reason, len(part.views)) == (Label.INVALID, Reason.NO_FRAME, 2)
    line.see("b", 1)  # too late: nothing changes any more
    assert line.due(10**18) == []


def test_a_trigger_without_any_frame_has_its_verdict(line: Line) -> None:
    line.triggers.add("box", 0, trigger_id=1)
    line.triggers.add("c", 0, trigger_id=2)
    assert [p.trigger_id for p in line.due(30 * MS)] == [2]
    assert [p.trigger_id for p in line.due(100 * MS)] == [1]
    assert line.table.waiting == 0


def test_who_did_not_give_a_view_says_why(line: Line) -> None:
    line.table = PartTable(
        config(), line.triggers, lambda c: Reason.CAMERA_LOST if c == "b" else Reason.NO_FRAME
    )
    line.triggers.add("box", 0)
    line.see("a", 1)
    (part,) = line.due(10**18)
    assert part.reason is Reason.CAMERA_LOST


def test_without_a_trigger_views_are_joined_by_part_id_or_trigger_id(line: Line) -> None:
    line.see("a", part_id="p1", trigger_id=1)
    line.see("b", part_id="p2", trigger_id=1)
    line.see("b", part_id="p1", trigger_id=2)
    line.see("b", part_id="p1", trigger_id=3)
    (part,) = line.due()
    assert (part.part_id, part.label) == ("p1", Label.PASS)
    for camera in "abb":
        line.see(camera, trigger_id=9)
    (part,) = line.due()
    assert (part.trigger_id, part.label) == (9, Label.PASS)
    (rest,) = line.due(all_of_them=True)
    assert (rest.part_id, rest.label) == ("p2", Label.INVALID)


def test_a_new_decision_takes_up_what_the_old_one_had_begun(line: Line) -> None:
    line.triggers.add("box", 0, trigger_id=1)
    line.triggers.add("box", 0, trigger_id=2)
    old = [line.frame("a", 1), line.frame("b", 1), line.frame("b", 1)]
    half = [line.frame("a", 2), line.frame("b", 2)]
    for verdict, ref in (*old, *half):
        line.table.add(verdict, ref)
    done = line.due()
    refs = {verdict.frame_id: ref for verdict, ref in (*old, *half)}
    line.table = PartTable(config(), line.triggers)
    messages = [*(verdict for verdict, _ in (*old, *half)), *done]
    line.table.recover([1], messages, lambda verdict: refs.get(verdict.frame_id))
    assert line.due() == []
    line.see("b", 2)
    (part,) = line.due()
    assert (part.trigger_id, part.label, len(part.views)) == (2, Label.PASS, 3)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_comes_every_trigger_has_one_verdict_and_no_pass_is_given_away(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    line = Line(tmp_path_factory.mktemp("line"))
    seen: dict[int, list[tuple[str, Label]]] = {}
    parts: list[PartVerdict] = []
    now = 0
    try:
        for _ in range(data.draw(st.integers(0, 40))):
            match data.draw(st.sampled_from(["trigger", "frame", "time"])):
                case "trigger":
                    trigger = line.triggers.add("box", now, trigger_id=line.triggers.last + 1)
                    seen[trigger.index] = []
                case "frame" if line.triggers.last:
                    index = data.draw(st.integers(1, line.triggers.last))
                    camera = data.draw(st.sampled_from("ab"))
                    label = data.draw(st.sampled_from(list(Label)))
                    line.see(camera, index, label)
                    if index not in {part.trigger_id for part in parts}:
                        seen[index].append((camera, label))
                case _:
                    now += data.draw(st.integers(0, 60)) * MS
            parts += line.due(now)
        parts += line.due(now, all_of_them=True)
    finally:
        line.triggers.close()
    assert sorted(part.trigger_id for part in parts) == sorted(seen)
    for part in parts:
        views = seen[part.trigger_id]
        cameras = [camera for camera, _ in views]
        whole = cameras.count("a") >= 1 and cameras.count("b") >= 2
        good = whole and all(label is Label.PASS for _, label in views)
        assert (part.label is Label.PASS) == good
        assert (part.label is Label.FAIL) == any(label is Label.FAIL for _, label in views)


def test_the_defects_are_those_of_the_worst_view(line: Line) -> None:
    defect = Defect((0, 0, 4, 4), 16, 1.0)
    line.triggers.add("c", 0)
    verdict, ref = line.frame("c", 1, Label.FAIL)
    line.table.add(replace(verdict, defects=(defect,)), ref)
    (part,) = line.due()
    assert part.defects == (defect,)
