"""The accuracy benchmark counts right, and runs from images to a table."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from models.errors import DataError as ModelsDataError
from models.untrained import textured_frame
from pipeline.errors import DataError
from tools.accuracy import PLANS, run_seed, toy_auroc
from tools.accuracy_figures import Looked, figures, print_table
from tools.bench import main
from tools.bench_accuracy import goals_of
from tools.image_sets import TILE_TYPES, load_set

COUNTS = {"train": 6, "val": 12, "test": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both sets in small: textures, and on the defective ones a dark square."""
    root = tmp_path_factory.mktemp("data")
    for part, count in COUNTS.items():
        for name in ("deeppcb", "magnetic_tile"):
            _write(root / name / part / "good", count, 0)
        if part == "train":
            continue
        # Half of val's set thresholds, by a policy that wants five.
        _write(root / "deeppcb" / part / "defect", 10 if part == "val" else 2, 1)
        for kind in TILE_TYPES:
            _write(root / "magnetic_tile" / part / kind, 3, 1, prefix=part + kind)
            masks = root / "magnetic_tile" / "ground_truth" / kind
            masks.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((96, 112), np.uint8)
            if kind != "fray":  # the real set has empty masks too
                mask[40:52, 50:62] = 255
            for k in range(3):
                cv2.imwrite(str(masks / f"{part}{kind}{k}.png"), mask)
    boxes = root / "deeppcb" / "boxes"
    boxes.mkdir()
    for k in range(10):
        (boxes / f"{k}.txt").write_text("50 40 62 52 2\n\n")
    return root


def _write(folder: Path, count: int, marks: int, prefix: str = "") -> None:
    folder.mkdir(parents=True)
    for k in range(count):
        frame = textured_frame(96, 112, 1, seed=100 * hash_of(folder) + k)
        frame[40:52, 50 : 50 + 12 * marks] = 0
        cv2.imwrite(str(folder / f"{prefix}{k}.png"), frame)


def hash_of(folder: Path) -> int:
    return sum(map(ord, f"{folder.parent.parent.name}{folder.parent.name}{folder.name}"))


def test_sets_are_read_with_their_truth(data: Path) -> None:
    boards = load_set(data, "deeppcb")
    assert (len(boards.train), len(boards.val.good), len(boards.test.good)) == (6, 12, 5)
    truth = boards.test.bad[0].truth((96, 112))
    (defect,) = truth.defects
    assert (defect.kind, defect.box_xyxy) == ("short", (50, 40, 62, 52))
    assert truth.mask.sum() == 144
    tiles = load_set(data, "magnetic_tile")
    each = [kind for kind in TILE_TYPES for _ in range(3)]
    assert [sorted(bad.kinds) for bad in tiles.val.bad] == [[kind] for kind in each]
    truths = [bad.truth((96, 112)) for bad in tiles.val.bad]
    assert [len(truth.defects) for truth in truths] == [1] * 9 + [0] * 3 + [1] * 3
    assert truths[0].mask.sum() == 144
    with pytest.raises(DataError, match="not there"):
        load_set(data / "no", "deeppcb")


def looked(good: list[float], peaks: list[list[tuple[str, float]]], found: int) -> Looked:
    return Looked(
        good=good,
        bad=[max(value for _, value in image) for image in peaks],
        bad_kinds=[sorted({kind for kind, _ in image}) for image in peaks],
        peaks=[(k, kind, value) for k, image in enumerate(peaks) for kind, value in image],
        good_failed=1,
        bad_failed=2,
        defects_failed=[True, False, True],
        boxes=4,
        found=found,
        pixel_auroc=0.9,
        au_pro=0.8,
    )


def test_figures_are_counted_by_hand() -> None:
    good = [float(k) for k in range(20)]
    peaks = [[("a", 30.0), ("b", 18.5)], [("a", 10.5)]]
    table = figures([looked(good, peaks, 2), looked(good, peaks, 3)])
    assert table["image_auroc"][0] == pytest.approx((1 + 11 / 20) / 2)
    assert table["recall_at_1"][0] == pytest.approx(1 / 3)  # none of 20 may be above
    assert table["recall_at_5"][0] == pytest.approx(2 / 3)
    assert table["kinds"]["b"]["recall_at_5"][0] == 1
    assert table["kinds"]["b"]["image_auroc"][0] == 1
    assert table["frozen_false_rejects"] == [0.05, 0.05, 0.05]
    assert table["frozen_recall"][0] == pytest.approx(2 / 3)
    low, high = 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4), 2 * 1 * (3 / 4) / (1 + 3 / 4)
    assert table["box_f"] == pytest.approx([(low + high) / 2, low, high])
    for values in (table["image_auroc"], table["recall_at_5"]):
        assert values[1] <= values[0] <= values[2]


def test_the_toy_finds_a_dark_square(data: Path) -> None:
    assert toy_auroc(load_set(data, "deeppcb")) > 0.9


@pytest.mark.slow
def test_both_sets_from_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--data", str(data), "--seeds", "0", "--steps", "2", "--out", str(out)]
    assert main(["accuracy", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads((out / "accuracy.json").read_text()) == found
    assert set(found["sets"]) == {"deeppcb", "magnetic_tile"}
    for name, kinds in (("deeppcb", {"short"}), ("magnetic_tile", set(TILE_TYPES) - {"fray"})):
        table = found["sets"][name]
        assert set(table["kinds"]) == kinds
        assert 0 <= table["image_auroc"][1] <= table["image_auroc"][0] <= table["image_auroc"][2]
        assert all(math.isfinite(value) for value in table["pixel_auroc"])
        assert len(table["runs"]) == 1
        assert len(list(out.glob(f"{name}-0-*.json"))) == 1
    # A seed more costs one training, and another training is no reason to forget the first.
    times = {path: path.stat().st_mtime_ns for path in out.glob("*-0-*.json")}
    more = ["--sets", "magnetic_tile", "--seeds", "0,1"]
    assert main(["accuracy", *options, *more, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["sets"]["magnetic_tile"]["runs"]
    assert len(again) == 2
    assert again[0] == found["sets"]["magnetic_tile"]["runs"][0]
    other = ["--sets", "magnetic_tile", "--random-teacher"]
    assert main(["accuracy", *options, *other, "--json"]) == 0
    baseline = json.loads(capsys.readouterr().out)["sets"]["magnetic_tile"]["runs"]
    assert baseline[0]["bundle"] != again[0]["bundle"]
    # A file that is none is made again.
    (damaged,) = (path for path in out.glob("magnetic_tile-1-*.json"))
    damaged.write_text("{}")
    assert main(["accuracy", *options, *more, "--json"]) == 0
    assert len(json.loads(damaged.read_text())["looked"]["good"]) == COUNTS["test"]
    capsys.readouterr()
    assert list(out.glob("states-*")) == []
    assert {path: path.stat().st_mtime_ns for path in times} == times
    print_table(found)
    assert "image AUROC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "/nowhere"], "not there"),
        (["--sets", "visa"], "--sets visa found, expected some of deeppcb, magnetic_tile"),
        (["--seeds", "one"], "--seeds one found"),
    ],
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accuracy", "--out", str(tmp_path), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("crack", [0.95, 0.949])
def test_a_goal_that_is_missed_is_told(crack: float) -> None:
    good = [0.0] * 1000
    peaks: list[list[tuple[str, float]]] = [[(kind, 1.0)] for kind in ("blowhole", "break")]
    tiles = figures([looked(good, peaks, 2)])
    tiles["kinds"]["crack"] = {"image_auroc": [crack, 0.0, 1.0]}
    boards = figures([looked(good, [[("open", 1.0)]] * 3, 3)])
    goals = goals_of({"magnetic_tile": tiles, "deeppcb": boards})
    met = {goal.name: goal.met for goal in goals}
    assert met == {
        "magnetic_tile: image_auroc": True,
        "magnetic_tile: blowhole AUROC": True,
        "magnetic_tile: break AUROC": True,
        "magnetic_tile: crack AUROC": crack == 0.95,
        "deeppcb: image_auroc": True,
        "deeppcb: recall_at_1": True,
        "deeppcb: box_f": True,
    }


class Killed(Exception):
    pass


@pytest.mark.slow
def test_killed_while_it_looks_it_does_not_learn_again(data: Path, tmp_path: Path) -> None:
    plan = PLANS["deeppcb"]
    plan = replace(plan, settings=replace(plan.settings, steps=2, wide_steps=2))
    told: list[str] = []

    def go(stop: str) -> dict[str, Any]:
        told.clear()

        def report(what: str, done: int, total: int) -> None:
            told.append(what)
            if what == stop:
                raise Killed

        _, about = run_seed(
            load_set(data, "deeppcb"),
            plan,
            variant="pdn_tiny",
            teacher=None,
            work=tmp_path,
            state_dir=tmp_path / "states",
            device="cpu",
            report=report,
        )
        return about

    with pytest.raises(Killed):
        go("look at test images")
    assert any(what.startswith("train student") for what in told)
    assert go("")["resumed"]
    assert not any(what.startswith("train") for what in told)


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deeppcb" / "train" / "good").mkdir(parents=True)
    with pytest.raises(ModelsDataError, match="no image found"):
        load_set(tmp_path, "deeppcb")
