"""Decision killed at any point between the commit and the words that it notes in shared memory.

Real journal, rings and triggers; the steps are those of `decision.decide_round`.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import LineConfig
from pipeline.journal import Journal
from pipeline.parts import PartTable, recover
from pipeline.ring import FrameRing
from pipeline.ringfile import create_ring
from pipeline.triggers import TriggerLog
from pipeline.types import Label, PartVerdict, Reason, Verdict

EPOCH = 1
STEPS = 120
VIEWS = {"a": 1, "b": 2}
EACH_VIEW = [camera for camera, count in VIEWS.items() for _ in range(count)]


class Line:
    """Cameras a and b (two frames) are a box; c is triggered alone. One decision after another."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        camera = {"source": {"kind": "synthetic"}, "trigger": {"mode": "hardware"}}
        self.config = LineConfig.model_validate(
            {
                "station": "kills",
                "cameras": dict.fromkeys("abc", camera),
                "parts": {"box": {"views": VIEWS, "deadline_ms": 30.0}},
            }
        )
        self.journal = Journal(folder / "journal.sqlite")
        self.triggers = TriggerLog(folder / "triggers", create_epoch=EPOCH)
        self.rings: dict[str, FrameRing] = {}
        for name in self.config.cameras:
            create_ring(folder / name, (36, 36, 1), 2, EPOCH)
            self.rings[name] = FrameRing(folder / name)
        self.untold = 0
        self._rng = rng
        self._to_come: list[tuple[str, int]] = []
        self._begin()

    def close(self) -> None:
        for ring in self.rings.values():
            ring.close()
        self.triggers.close()
        self.journal.close()

    def _begin(self) -> None:
        """A decision's start."""
        self._table = PartTable(self.config, self.triggers)
        recover(self._table, self.journal, self.rings, EPOCH)
        self._seen = {name: ring.decided_id for name, ring in self.rings.items()}

    def happens(self) -> None:
        """A trigger, one of its frames (most come), views that were not triggered, or time."""
        rng = self._rng
        match rng.randrange(4):
            case 0:
                target = rng.choice(["box", "box", "c"])
                index = self.triggers.add(target, time.monotonic_ns()).index
                views = EACH_VIEW if target == "box" else ["c"]
                self._to_come += [(name, index) for name in views if rng.random() < 0.9]
            case 1 if self._to_come:
                name, index = self._to_come.pop(rng.randrange(len(self._to_come)))
                self._take(name, index)
            case 2:
                self.untold += 1
                for name in rng.sample(EACH_VIEW, rng.randint(1, len(EACH_VIEW))):
                    self._take(name, part_id=f"U{self.untold}")
            case _:
                time.sleep(rng.random() * 0.01)

    def _take(self, camera: str, trigger_index: int = 0, part_id: str = "") -> None:
        self.rings[camera].begin(
            t_capture_ns=time.monotonic_ns(),
            source_index=0,
            slot=None,
            fault=Reason.DROPPED,
            trigger_index=trigger_index,
            part_id=part_id,
        )

    def decide(self, killed: float = 1.0, *, at_end: bool = False) -> None:
        """A round. killed: below 0.2 somewhere in it, and another decision begins."""
        self._table.admit()
        frames: list[tuple[Verdict, PartVerdict | None]] = []
        for name, ring in self.rings.items():
            done = self.journal.decided(name, EPOCH, ring.decided_id)
            while self._seen[name] < ring.last_id:
                self._seen[name] += 1
                taken = ring.taken(self._seen[name])
                assert taken is not None
                if self._seen[name] in done:
                    continue
                verdict = Verdict(
                    *("kills", name, EPOCH, self._seen[name], Label.PASS, Reason.OK),
                    part_id=taken.ref.part_id,
                )
                frames.append((verdict, self._table.add(verdict, taken.ref)))
        parts = self._table.due(time.monotonic_ns(), all_of_them=at_end)
        if killed < 0.07:
            return self._begin()
        self.journal.commit(frames, parts)
        if killed < 0.14:
            return self._begin()
        for name, ring in self.rings.items():
            ring.set_decided_id(self._seen[name])
        if killed < 0.2:
            return self._begin()
        return self._table.committed()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    return random.Random(request.param)


@pytest.fixture
def line(tmp_path: Path, rng: random.Random) -> Iterator[Line]:
    line = Line(tmp_path, rng)
    yield line
    line.close()


@pytest.mark.parametrize("rng", range(10), indirect=True)
def test_every_frame_and_every_part_has_one_verdict(line: Line, rng: random.Random) -> None:
    """Each trigger one part, each view in one part at most, and no pass without all its views."""
    for _ in range(STEPS):
        line.happens()
        line.decide(rng.random())
    line.decide(at_end=True)
    messages = line.journal.recent(EPOCH, 10**6)
    frames = Counter((m.camera, m.frame_id) for m in messages if isinstance(m, Verdict))
    assert frames == Counter(
        (name, n) for name, ring in line.rings.items() for n in range(1, ring.last_id + 1)
    )
    parts = [m for m in messages if isinstance(m, PartVerdict)]
    assert line.triggers.decided == line.triggers.last
    assert len(line.journal.decided_triggers(EPOCH)) == line.triggers.last
    untold = [part.part_id for part in parts if part.part_id]
    assert sorted(untold) == sorted(f"U{n}" for n in range(1, line.untold + 1))
    assert len(parts) == line.triggers.last + line.untold
    assert max(Counter(view for part in parts for view in part.views).values()) == 1
    for part in parts:
        cameras = sorted(camera for camera, _, _ in part.views)
        assert (part.label is Label.PASS) == (cameras in (EACH_VIEW, ["c"]))
