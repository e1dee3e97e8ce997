"""What decision makes of one camera's maps: fixture, rule and optics guard, frame by frame.

1. Where the recipe has a fixture, the part is found in the frame first: zones lie on the part. A
   frame without a part that counts is `invalid/no_part`.
2. The rule decides (`pipeline.rules`), once for each part that counts in the frame; any part that
   fails, fails the frame.
3. The optics guard sees every frame that shows a part, as those of calibration do: lens, lamp or
   camera that are not as they were calibrated make it `invalid/optics`, whatever the rule said.

Guard and counter of parts go by the order of frames. What they remember is written down when the
frames are committed, and a decision that was killed goes on with it: else frames would pass until a
dirty lens has been noticed again, and a part in view would count twice.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe
from pipeline.fixture.count import PartCounter
from pipeline.fixture.find import Fixture, Pose
from pipeline.optics.guard import Level, OpticsGuard, open_guard
from pipeline.optics.measure import measure, score_of
from pipeline.rules import Decision, DecisionRule, Thresholds
from pipeline.tolerance import Tolerance, from_text
from pipeline.types import Label, Reason


@dataclass(frozen=True, slots=True)
class Engine:
    """What the worker left of its engine."""

    engine_id: str
    engine: str
    """`runtime/precision`"""
    bundle_sha256: str
    thresholds: Thresholds
    tolerance: Tolerance | None
    optics: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Engine:
        found = json.loads(path.read_text())
        return cls(
            found["engine_id"],
            found.get("engine", ""),
            found["bundle_sha256"],
            Thresholds(**found["thresholds"]),
            from_text(found["tolerance"]),
            found.get("optics", {}),
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """reason: `OK` or `DEFECT`, or why there is no decision. expected: whether a part was."""

    reason: Reason
    decision: Decision | None = None
    detail: str = ""
    expected: bool = True


class Judge:
    """One camera's, for one engine."""

    def __init__(
        self,
        camera: str,
        engine: Engine,
        recipe: Recipe,
        frame_hw: tuple[int, int],
        log: logging.Logger,
        *,
        memory: Path,
    ) -> None:
        """memory: the file of what this camera's judge remembers.

        Raises `ConfigError` for a recipe that cannot be used with these frames."""
        self.engine = engine
        self.rule = DecisionRule(engine.thresholds, recipe, frame_hw, engine.tolerance)
        self._fixture = Fixture(recipe.fixture) if recipe.fixture else None
        self._counter = PartCounter(recipe.fixture) if recipe.fixture else None
        self._guard: OpticsGuard | None
        self._guard, why = open_guard(engine.optics, camera, frame_hw, recipe.optics, engine.engine)
        self._camera = camera
        self._log = log
        self._level = Level.OK
        self._last_id = 0
        self._memory = memory
        self._recall()
        if why:
            log.info("camera %s: %s", camera, why)

    def judge(
        self, frame: NDArray[np.uint8], raw_map: NDArray[np.float32], frame_id: int
    ) -> Judgement:
        """frame: uint8 (H, W, C), its map, its id. Raises `DataError` for a map that is not one."""
        poses = self._fixture.find(frame) if self._fixture else None
        judgement = self._decide(poses, raw_map, frame_id)
        if self._guard is None or poses == []:
            return judgement
        decision = judgement.decision
        score = None
        if decision is not None and decision.label is Label.PASS:
            thresholds = self.engine.thresholds
            score = score_of(decision.raw_peak, thresholds.q_a, thresholds.q_b)
        sight = self._guard.see(measure(frame), score)
        if sight.level is not self._level:
            self._level = sight.level
            self._log.warning(
                "camera %s: optics: %s", self._camera, sight.sentence or "as calibrated again"
            )
        if sight.level is Level.INVALID:
            return Judgement(Reason.OPTICS, None, sight.sentence, judgement.expected)
        return judgement

    def remember(self) -> None:
        """The frames that were judged are committed."""
        if self._guard is None and self._counter is None:
            return
        found = {
            "last_id": self._last_id,
            "guard": self._guard.memory() if self._guard else None,
            "counter": self._counter.memory() if self._counter else None,
        }
        partial = self._memory.with_suffix(".part")
        with contextlib.suppress(OSError):  # no room: what was written before is nearly as good
            partial.write_text(json.dumps(found))
            partial.replace(self._memory)

    def _recall(self) -> None:
        try:
            found = json.loads(self._memory.read_text())
        except OSError:  # the first one of this run
            return
        self._last_id = found["last_id"]
        if self._guard is not None and found["guard"] is not None:
            self._guard.recall(found["guard"])
        if self._counter is not None and found["counter"] is not None:
            self._counter.recall(found["counter"])

    def _decide(
        self, poses: list[Pose] | None, raw_map: NDArray[np.float32], frame_id: int
    ) -> Judgement:
        """poses: what the fixture finds in the frame; None without a fixture."""
        if poses is None or self._fixture is None or self._counter is None:
            return _of(self.rule.decide(raw_map))
        passed = frame_id - self._last_id if self._last_id else 1
        self._last_id = frame_id
        counted = self._counter.count(poses, max(1, passed))
        if not counted.poses:
            return Judgement(Reason.NO_PART, None, counted.sentence, counted.expected)
        rule = self.rule.on_parts([self._fixture.to_frame(pose) for pose in counted.poses])
        if rule is None:
            sentence = "the part lies where none of its zones is in the frame"
            return Judgement(Reason.NO_PART, None, sentence)
        return _of(rule.decide(raw_map))


def _of(decision: Decision) -> Judgement:
    return Judgement(Reason.DEFECT if decision.label is Label.FAIL else Reason.OK, decision)
