"""Views to parts: ids that come back or are missing, late views, what a dead line left half."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import LineConfig
from pipeline.journal import Journal
from pipeline.ledger import settle
from pipeline.parts import PartTable
from pipeline.ring import FrameRing
from pipeline.ringfile import create_ring
from pipeline.station import Station
from pipeline.triggers import TriggerLog
from pipeline.types import FrameRef, Label, PartVerdict, Reason, Verdict

MS = 1_000_000
BOX = {"a": 1, "b": 1}
FOREVER = 10**18


def config(folder: Path, views: Mapping[str, int] = BOX, mode: str = "hardware") -> LineConfig:
    camera = {"source": {"kind": "synthetic"}, "trigger": {"mode": mode}}
    return LineConfig.model_validate(
        {
            "station": "parts",
            "run_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
            "shm_dir": str(folder / "shm"),
            "cameras": {"a": camera, "b": camera},
            "parts": {"box": {"views": dict(views), "deadline_ms": 100.0}} if views else {},
        }
    )


class Feed:
    """A table, the frames that it is told of, and the parts that it gave."""

    def __init__(self, table: PartTable) -> None:
        self.table = table
        self.verdicts: list[Verdict] = []
        self.parts: list[PartVerdict] = []
        self._refs: dict[int, FrameRef] = {}

    def see(self, camera: str, t_ms: int = 0, label: Label = Label.PASS, **ids: Any) -> None:
        frame_id = len(self.verdicts) + 1
        ref = FrameRef(camera, 1, frame_id, 0, 1, t_ms * MS, **ids)
        verdict = Verdict(
            *("parts", camera, 1, frame_id, label, Reason.OK),
            trigger_id=ref.trigger_id,
            part_id=ref.part_id,
        )
        self._refs[frame_id] = ref
        self.verdicts.append(verdict)
        own = self.table.add(verdict, ref)
        self.parts += [own] if own is not None else []

    def due(self, now_ms: int = FOREVER // MS) -> list[PartVerdict]:
        """What is due now is due no more."""
        found = [part for _, part in self.table.due(now_ms * MS)]
        self.parts += found
        return found

    def killed(self, config: LineConfig) -> None:
        """Another decision takes up what this one has told the journal."""
        self.table = PartTable(config, None)
        recent: list[Verdict | PartVerdict] = [*self.verdicts, *self.parts]
        self.table.recover([], recent, lambda verdict: self._refs[verdict.frame_id])


def test_views_without_any_id_are_joined_to_nothing(tmp_path: Path) -> None:
    """Two cameras that run freely: which frames show the same part nobody knows, so none passes."""
    feed = Feed(PartTable(config(tmp_path, mode="free"), None))
    for n in range(10):
        feed.see("a", 1000 * n)
        feed.see("b", 1000 * n)
        feed.due(1000 * n + 500)
    views = [view for part in feed.parts for view in part.views]
    assert len(set(views)) == len(views) == 20
    assert {(part.label, part.reason) for part in feed.parts} == {(Label.INVALID, Reason.NO_FRAME)}


@pytest.mark.parametrize("name", ["part_id", "trigger_id"])
def test_an_id_that_comes_back_is_a_new_part(tmp_path: Path, name: str) -> None:
    """Pallets that go round, or a counter that began anew."""
    feed = Feed(PartTable(config(tmp_path), None))
    for n in range(12):
        value = f"P{n % 4}" if name == "part_id" else n % 4 + 1
        for camera in "ab":
            ids: dict[str, Any] = {name: value}
            feed.see(camera, 1000 * n, **ids)
        feed.due(1000 * n + 1)
    feed.due()
    assert [(part.label, len(part.views)) for part in feed.parts] == [(Label.PASS, 2)] * 12


@pytest.mark.parametrize("killed", ["never", "before the late view", "after it"])
def test_a_view_that_is_late_begins_no_second_part(tmp_path: Path, killed: str) -> None:
    """Its part ended at the deadline without it: it was captured in time, and scored too late."""
    feed = Feed(PartTable(config(tmp_path), None))
    feed.see("a", 0, part_id="P")
    assert [part.label for part in feed.due(100)] == [Label.INVALID]
    if killed == "before the late view":
        feed.killed(config(tmp_path))
    feed.see("b", 90, part_id="P")
    if killed == "after it":
        feed.killed(config(tmp_path))
    assert feed.due() == []


def test_the_log_knows_up_to_where_all_triggers_have_their_part(tmp_path: Path) -> None:
    """What a decision that starts has to read does not grow with the line's day."""
    log = TriggerLog(tmp_path / "triggers", create_epoch=1)
    feed = Feed(PartTable(config(tmp_path), log))
    for index in range(1, 6):
        log.add("box", 0)
        feed.see("a", trigger_index=index)
    for index, decided in ((2, 0), (1, 2), (5, 2), (3, 3), (4, 5)):
        feed.see("b", trigger_index=index)
        assert len(feed.due(0)) == 1
        feed.table.committed()
        assert log.decided == decided
    table = PartTable(config(tmp_path), log)
    table.admit()
    assert table.waiting == 0
    log.close()


def test_a_frame_that_decision_did_not_see_in_time_makes_no_second_part(tmp_path: Path) -> None:
    """The ring's log was overwritten: whose frame it was is not known; its trigger has a part."""
    log = TriggerLog(tmp_path / "triggers", create_epoch=1)
    log.add("a", 0)
    feed = Feed(PartTable(config(tmp_path, views={}, mode="software"), log))
    feed.table.admit()
    feed.see("a", label=Label.INVALID)
    feed.due()
    assert [(part.label, part.views) for part in feed.parts] == [(Label.INVALID, ())]
    log.close()


def test_a_part_half_seen_does_not_pass_under_the_next_starts_configuration(
    tmp_path: Path,
) -> None:
    """The line died while b's view was missing; then b was taken out of the part."""
    station = Station.of(config(tmp_path))
    station.shm_dir.mkdir(parents=True)
    for camera in "ab":
        create_ring(station.ring(camera), (64, 64, 1), 4, 1)
    log = TriggerLog(station.triggers, create_epoch=1)
    trigger = log.add("box", time.monotonic_ns(), trigger_id=5)
    log.close()
    ring = FrameRing(station.ring("a"))
    now = time.monotonic_ns()
    ref = ring.begin(t_capture_ns=now, source_index=0, slot=0, trigger_index=trigger.index)
    ring.commit(ref, now)
    ring.close()
    journal = Journal(station.journal)
    journal.commit([(Verdict("parts", "a", 1, 1, Label.PASS, Reason.OK), None)])
    settle(Station.of(config(tmp_path, views={"a": 1})), journal)
    (part,) = [m for m in journal.recent(1, 100) if isinstance(m, PartVerdict)]
    journal.close()
    assert (part.label, part.reason, part.trigger_id) == (Label.INVALID, Reason.LINE_DIED, 5)
