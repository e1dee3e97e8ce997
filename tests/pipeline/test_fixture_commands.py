"""`linewatch fixture teach` and `linewatch fixture try`, from pictures to a recipe and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.cli import run
from pipeline.config import load_recipe
from pipeline.config.fixture import TemplateFixture, ThresholdFixture
from pipeline.recipes import history
from pipeline.sources.synthetic import SyntheticLine

ZONES = "zones: [{mode: include, polygon: [[100, 90], [500, 90], [500, 300]]}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    line = SyntheticLine(640, 480, seed=2)
    (tmp_path / "frames").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{k}.png"), line.render(k, good=True)[0])
    cv2.imwrite(str(tmp_path / "frames" / "9.png"), np.full((480, 640), 30, np.uint8))
    cv2.imwrite(str(tmp_path / "taught.png"), line.render(0, good=True)[0])
    (tmp_path / "front.yaml").write_text(ZONES)
    return tmp_path


def teach(folder: Path, *options: str) -> int:
    fixed = ["--recipe", str(folder / "front.yaml"), "--out", str(folder / "shown.png")]
    return run(["fixture", "teach", str(folder / "taught.png"), *fixed, *options])


def tried(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    out = str(folder / "tried")
    options = ["--recipe", str(folder / "front.yaml"), "--out", out, "--json"]
    assert run(["fixture", "try", str(folder / "frames"), *options]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--max-turn", "20"), ThresholdFixture),
        (("--box", "200,140,440,340", "--max-turn", "8"), TemplateFixture),
    ],
)
def test_what_is_taught_is_found(
    folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], kind: type
) -> None:
    assert teach(folder, *options) == 0
    assert "the part lies at" in capsys.readouterr().out
    recipe = load_recipe(folder / "front.yaml")
    assert isinstance(recipe.fixture, kind)
    assert recipe.zones == load_recipe(folder / "front.yaml").zones != ()
    assert history(folder / "front.yaml")[-1].reason == "fixture taught on taught.png"
    shown = cv2.imread(str(folder / "shown.png"))
    assert shown.shape == (480, 640, 3)
    assert np.ptp(shown.astype(int), axis=2).max() > 100  # something is drawn in colour
    rows = tried(folder, capsys)
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png", "9.png"]
    assert [len(row["parts"]) for row in rows] == [1, 1, 1, 0]
    assert all(part["counts"] for row in rows for part in row["parts"])
    assert "no part found" in rows[3]["because"]
    first = rows[0]["parts"][0]
    assert (first["x"], first["y"]) == pytest.approx(
        (recipe.fixture.taught_x, recipe.fixture.taught_y), abs=0.2
    )
    assert len(list((folder / "tried").iterdir())) == 4
    # As a table too.
    assert (
        run(["fixture", "try", str(folder / "frames"), "--recipe", str(folder / "front.yaml")]) == 0
    )
    assert "parts in 3 of 4 frames, 3 of them count" in capsys.readouterr().out


def test_a_template_is_named_by_what_it_shows(folder: Path) -> None:
    assert teach(folder, "--box", "200,140,440,340") == 0
    first = load_recipe(folder / "front.yaml")
    assert teach(folder, "--box", "200,140,440,342") == 0
    second = load_recipe(folder / "front.yaml")
    assert first != second
    assert len(list(folder.glob("front-template-*.png"))) == 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--box", "1,2,3"), 2, "expected X0,Y0,X1,Y1"),
        (("--box", "0,0,641,20"), 2, "within 640x480"),
        (("--box", "0,0,9,9"), 2, "a template of 9x9 pixels"),
        (("--part", "pink"), 2, "part"),
        (("--level", "254"), 9, "no part found"),
        (("--part", "dark"), 9, "edge"),
    ],
)
def test_what_cannot_be_taught_says_why_and_changes_nothing(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    assert teach(folder, *options) == code
    assert words in capsys.readouterr().err
    assert (folder / "front.yaml").read_text() == ZONES


def test_a_recipe_without_a_fixture_cannot_be_tried(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--recipe", str(folder / "front.yaml")]
    assert run(["fixture", "try", str(folder / "frames"), *options]) == 2
    assert "fixture teach" in capsys.readouterr().err
