"""A short version of `python -m tools.faults delivery`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.journal import Journal
from pipeline.verdicts import part_of
from tools.faults_delivery import Found, _compare, faults
from tools.faults_roles import synthetic


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        results=2000,
        kills=6,
        freeze_s=0.5,
        slow_s=0.5,
        rate=1000,
        durability="process",
        seed=3,
    )
    assert found.good, found
    assert found.messages == 4000
    assert (found.kills["publisher"], found.kills["subscriber"]) == (3, 3)


@pytest.mark.parametrize(
    ("log", "fault"),
    [
        ("s\nr frame/cam/ 1\nr part/ 2\na\n", ""),
        ("s\nr frame/cam/ 1\ns\nr frame/cam/ 1\nr part/ 2\n", "twice_before_ack"),
        ("s\nr frame/cam/ 1\n", "lost"),
        ("s\nr frame/cam/ 1\nr part/ 2\na\ns\nr part/ 2\n", "twice_after_ack"),
        ("s\nr frame/cam/ 1\nr part/ 2\nr frame/cam/ 1\n", "out_of_order"),
        ("s\nr frame/cam/ 1\nr part/ 2\nm part/ 3\n", "missed"),
    ],
)
def test_what_the_comparison_finds(tmp_path: Path, log: str, fault: str) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    verdict = synthetic(1)
    journal.commit([(verdict, part_of(verdict))])
    journal.close()
    (tmp_path / "received.log").write_text(log)
    found = Found(1)
    _compare(tmp_path, found)
    assert found.good == (fault in ("", "twice_before_ack"))
    assert not fault or getattr(found, fault)
