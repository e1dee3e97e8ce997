"""Whole lines whose recipe has a fixture: zones go with the part, and each part counts once.

The engine is a fake that says which pixels are white; parts, and what is wrong with them, are
drawn.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import LineConfig, Recipe, WorkerConfig
from pipeline.config.sources import FolderSource
from pipeline.replay import replay, replay_config
from pipeline.station import Station
from pipeline.types import Label, PartVerdict, Reason, Verdict
from pipeline.wire import decode

Frame = NDArray[np.uint8]
Point = tuple[float, float]

WIDTH, HEIGHT = 320, 240
MIDDLE = (160.0, 120.0)
HALF_W, HALF_H = 34, 20
IN_ZONE: Point = (20.0, 5.0)
"""From the part's middle, in the part's own directions."""
ON_PART: Point = (-22.0, -8.0)
BESIDE: Point = (20.0, 46.0)
ZONE = {
    "name": "seat",
    "mode": "include",
    "polygon": ((170, 115), (190, 115), (190, 135), (170, 135)),
}


def part() -> Frame:
    """Upright: light, with a dark pattern."""
    picture = np.full((2 * HALF_H, 2 * HALF_W), 150, np.uint8)
    cv2.circle(picture, (14, 26), 7, 60, -1)
    cv2.rectangle(picture, (30, 4), (36, 16), 70, -1)
    cv2.line(picture, (42, 36), (50, 30), 60, 3)
    return picture


def picture(
    places: Sequence[tuple[float, float, float]], flaws: Sequence[tuple[int, Point]] = ()
) -> Frame:
    """Parts at (x, y, degrees clockwise) on a plain belt; white spots on or beside some of them."""
    frame = np.random.default_rng(3).normal(35, 2, (HEIGHT, WIDTH)).astype(np.uint8)
    for x, y, degrees in places:
        turn = placed(x, y, degrees)
        shape = np.full((2 * HALF_H, 2 * HALF_W), 255, np.uint8)
        onto = turn @ np.array([[1, 0, 0.5 - HALF_W], [0, 1, 0.5 - HALF_H], [0, 0, 1.0]])
        cover = cv2.warpAffine(shape, onto, (WIDTH, HEIGHT)) > 127
        frame[cover] = cv2.warpAffine(part(), onto, (WIDTH, HEIGHT))[cover]
    for number, (u, v) in flaws:
        x, y = placed(*places[number]) @ (u, v, 1.0)
        cv2.circle(frame, (round(x), round(y)), 3, 255, -1)
    return frame


def placed(x: float, y: float, degrees: float) -> NDArray[np.float64]:
    """(2, 3): from a part's own directions to the frame."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, x], [sin, cos, y]])


def write(folder: Path, frames: Sequence[Frame]) -> FolderSource:
    folder.mkdir()
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number:04d}.png"), frame)
    return FolderSource(kind="folder", path=str(folder))


def by_threshold(**changes: Any) -> dict[str, Any]:
    fixture = {"kind": "threshold", "part_min_area_px": 800, "max_turn_degrees": 40.0}
    return {**fixture, "taught_x": MIDDLE[0], "taught_y": MIDDLE[1], **changes}


def by_template(folder: Path) -> dict[str, Any]:
    path = folder / "template.png"
    x, y = map(int, MIDDLE)
    taught = picture([(*MIDDLE, 0)])
    cv2.imwrite(str(path), taught[y - HALF_H : y + HALF_H, x - HALF_W : x + HALF_W])
    fixture = {"kind": "template", "template": str(path), "max_turn_degrees": 40.0}
    # The template's middle lies between four pixels.
    return {**fixture, "taught_x": MIDDLE[0] - 0.5, "taught_y": MIDDLE[1] - 0.5}


@dataclass(frozen=True, slots=True)
class Ran:
    verdicts: dict[str, list[Verdict]]
    parts: dict[str, list[PartVerdict]]


def run(work: Path, cameras: Sequence[tuple[FolderSource, dict[str, Any]]]) -> Ran:
    """Replay each source with its fixture: cam0, cam1, ..."""
    config = replay_config(
        [source for source, _ in cameras], work, worker=WorkerConfig(runtime="tests.fakes:spark")
    )
    named = {
        name: camera.model_copy(
            update={"recipe": Recipe.model_validate({"zones": (ZONE,), "fixture": fixture})}
        )
        for (name, camera), (_, fixture) in zip(config.cameras.items(), cameras, strict=True)
    }
    config = config.model_copy(update={"cameras": named})
    found = replay(config)
    assert found.fault is None
    parts = list(parts_of(config))
    return Ran(
        {name: [v for v in found.verdicts if v.camera == name] for name in named},
        {name: [p for p in parts if p.views[0][0] == name] for name in named},
    )


def parts_of(config: LineConfig) -> Iterator[PartVerdict]:
    with contextlib.closing(sqlite3.connect(Station.of(config).journal)) as base:
        rows = base.execute("SELECT body FROM verdict WHERE kind != 'frame' ORDER BY seq")
        for (body,) in rows.fetchall():
            message = decode(body)
            assert isinstance(message, PartVerdict)
            yield message


# Parts that lie about

LYING = [
    (*MIDDLE, 0.0),
    (80.0, 60.0, 0.0),
    (230.0, 180.0, 12.0),
    (100.3, 150.6, -35.0),
    (240.0, 70.0, 38.0),
    (70.0, 170.0, -20.0),
]
FLAWS: list[tuple[list[tuple[int, Point]], Label]] = [
    ([], Label.PASS),
    ([(0, IN_ZONE)], Label.FAIL),
    ([(0, ON_PART)], Label.PASS),
    ([(0, BESIDE)], Label.PASS),
]


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    work = tmp_path_factory.mktemp("lying")
    frames = [picture([place], flaws) for place in LYING for flaws, _ in FLAWS]
    source = write(work / "frames", [*frames, picture([]), frames[0]])
    edge = write(
        work / "edge",
        [picture([(20.0, 120.0, 0.0)]), picture([(20.0, 120.0, 0.0)], [(0, IN_ZONE)])],
    )
    return run(
        work / "line",
        [
            (source, by_threshold()),
            (source, by_template(work)),
            (edge, by_threshold()),
            (edge, by_threshold(cut_off="skip")),
            (edge, by_threshold(cut_off="inspect")),
        ],
    )


@pytest.mark.parametrize("camera", ["cam0", "cam1"])
def test_a_zone_is_on_the_part_wherever_it_lies(lying: Ran, camera: str) -> None:
    verdicts = lying.verdicts[camera]
    expected = [label for _ in LYING for _, label in FLAWS]
    assert [v.label for v in verdicts[: len(expected)]] == expected
    for verdict, place in zip(verdicts[1 :: len(FLAWS)], LYING, strict=False):
        [defect] = verdict.defects
        x0, y0, x1, y1 = defect.box_xyxy
        x, y = placed(*place) @ (*IN_ZONE, 1.0)
        assert x0 <= x < x1
        assert y0 <= y < y1


@pytest.mark.parametrize("camera", ["cam0", "cam1"])
def test_a_frame_without_a_part_is_invalid_and_so_is_its_part(lying: Ran, camera: str) -> None:
    verdicts, parts = lying.verdicts[camera], lying.parts[camera]
    without = verdicts[-2]
    assert (without.label, without.reason) == (Label.INVALID, Reason.NO_PART)
    assert "no part found" in without.detail
    assert verdicts[-1].label is Label.PASS
    assert [p.views[0][2] for p in parts] == [v.frame_id for v in verdicts]
    assert [(p.label, p.reason) for p in parts] == [(v.label, v.reason) for v in verdicts]


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        ("cam2", [Reason.NO_PART, Reason.NO_PART]),
        ("cam3", [Reason.NO_PART, Reason.NO_PART]),
        ("cam4", [Reason.OK, Reason.DEFECT]),
    ],
)
def test_what_becomes_of_parts_at_the_edge(lying: Ran, camera: str, expected: list[Reason]) -> None:
    assert [v.reason for v in lying.verdicts[camera]] == expected
    assert [p.reason for p in lying.parts[camera]] == expected


# Parts that travel

TRAVEL = 100.0
TRUTH = [number % 3 == 1 or number == 5 for number in range(10)]
"""Which parts have a defect in their zone."""
BELTS = [(phase, spacing) for phase in (0.0, 41.0, 99.0) for spacing in (125.0, 270.0)]


def travelling(begin: int, end: int) -> dict[str, Any]:
    zone = {"count_zone": (begin, 0, end, 240), "travel_px": (TRAVEL, 0.0)}
    return by_threshold(max_parts=5, travel_tolerance_px=9.0, **zone)


def belt(phase: float, spacing: float, gone: Sequence[int] = ()) -> list[Frame]:
    """Parts that come from the left, shaken; each with its number's truth. gone: frames in which
    there is nothing to be seen.
    """
    rng = np.random.default_rng(round(phase + spacing))
    frames, moved = [], -phase
    tilts = rng.uniform(-8, 8, len(TRUTH))
    while moved - spacing * (len(TRUTH) - 1) < WIDTH + 2 * HALF_W:
        places = [
            (moved - spacing * number, 120.0 + tilt, float(tilt))
            for number, tilt in enumerate(tilts)
        ]
        flaws = [(n, IN_ZONE if bad else ON_PART) for n, bad in enumerate(TRUTH)]
        near = [n for n, (x, _, _) in enumerate(places) if -60 < x < WIDTH + 60]
        shown = [places[n] for n in near]
        frames.append(picture(shown, [(near.index(n), at) for n, at in flaws if n in near]))
        moved += TRAVEL + float(rng.uniform(-8, 8))
    return [picture([]) if n in gone else frame for n, frame in enumerate(frames)]


@pytest.fixture(scope="module")
def belts(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    work = tmp_path_factory.mktemp("belts")
    sources = [write(work / f"{k}", belt(*each)) for k, each in enumerate(BELTS)]
    blinking = write(work / "blinking", belt(*BELTS[1], gone=range(2, 40, 4)))
    return run(
        work / "line",
        [*((source, travelling(100, 220)) for source in sources), (blinking, travelling(60, 280))],
    )


@pytest.mark.parametrize(
    "number", range(len(BELTS)), ids=lambda n: "phase {}, every {} px".format(*BELTS[n])
)
def test_each_part_on_a_belt_has_one_verdict_in_its_order(belts: Ran, number: int) -> None:
    check_belt(belts, f"cam{number}")


def test_a_long_zone_forgives_pictures_without_their_part(belts: Ran) -> None:
    """One in four shows nothing."""
    check_belt(belts, f"cam{len(BELTS)}")


def check_belt(belts: Ran, camera: str) -> None:
    assert [p.label is Label.FAIL for p in belts.parts[camera]] == TRUTH
    assert all(p.label is not Label.INVALID for p in belts.parts[camera])
    views = [p.views[0][2] for p in belts.parts[camera]]
    assert views == sorted(set(views))
    # Frames between have a verdict of their own, and no part.
    between = [v for v in belts.verdicts[camera] if v.frame_id not in views]
    assert {(v.label, v.reason) for v in between} == {(Label.INVALID, Reason.NO_PART)}
