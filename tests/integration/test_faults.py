"""Stages killed and frozen in mid-replay: every frame has one verdict, by the ids in the pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from lines import KILL, STOP, Saboteur, comparable, leftovers, line_config, run_line

from pipeline.types import Label, Reason, Verdict

FRAMES = 200
CAMERAS = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], str]:
    verdicts = run_line(line_config(tmp_path_factory.mktemp("line"), frames=FRAMES))
    check_every_frame_once(verdicts)
    assert all(verdict.label is not Label.INVALID for verdict in verdicts)
    return {(v.camera, v.frame_id): comparable(v) for v in verdicts}


def check_every_frame_once(verdicts: list[Verdict]) -> None:
    """One verdict for each frame of each camera, made of that frame's pixels."""
    for camera in {verdict.camera for verdict in verdicts}:
        mine = [verdict for verdict in verdicts if verdict.camera == camera]
        assert [verdict.frame_id for verdict in mine] == list(range(1, FRAMES + 1))
        for verdict in mine:
            if verdict.label is not Label.INVALID:
                assert verdict.raw_peak == verdict.frame_id - 1
    assert len({verdict.camera for verdict in verdicts}) == CAMERAS


@pytest.mark.parametrize(
    ("plan", "allowed"),
    [
        ({60: ("capture.cam0", KILL)}, {Reason.TORN}),
        ({60: ("worker", KILL)}, set()),
        ({60: ("decision", KILL)}, set()),
        ({60: ("worker", STOP)}, set()),
        ({60: ("decision", STOP)}, set()),
        ({60: ("capture.cam1", STOP)}, {Reason.TORN}),
        (
            {
                50: ("worker", KILL),
                100: ("capture.cam0", KILL),
                150: ("decision", KILL),
                200: ("worker", STOP),
                250: ("capture.cam1", KILL),
                300: ("decision", KILL),
            },
            {Reason.TORN},
        ),
    ],
    ids=lambda value: (
        "+".join(f"{s}-{n.name}" for s, n in value.values()) if isinstance(value, dict) else ""
    ),
)
def test_a_disturbed_line_gives_the_undisturbed_verdicts(
    tmp_path: Path,
    undisturbed: dict[tuple[str, int], str],
    plan: dict[int, tuple[str, int]],
    allowed: set[Reason],
) -> None:
    config = line_config(tmp_path, frames=FRAMES)
    saboteur = Saboteur(dict(plan))
    verdicts = run_line(config, watch=saboteur.watch)
    assert saboteur.done == [stage for stage, _ in plan.values()]
    check_every_frame_once(verdicts)
    invalid = [verdict for verdict in verdicts if verdict.label is Label.INVALID]
    assert {verdict.reason for verdict in invalid} <= allowed
    assert len(invalid) <= len(plan)
    for verdict in verdicts:
        if verdict.label is not Label.INVALID:
            assert comparable(verdict) == undisturbed[verdict.camera, verdict.frame_id]
    seqs = sorted(verdict.seq for verdict in verdicts)
    assert seqs == list(range(1, 2 * len(verdicts), 2))
    assert leftovers(config) == []
