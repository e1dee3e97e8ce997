"""Every change of a recipe is a revision with date, reason and hash."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.cli import run
from pipeline.config import Recipe, load, load_recipe
from pipeline.config.optics import OpticsConfig
from pipeline.errors import ConfigError, DataError
from pipeline.recipes import BY_HAND, history, record, revise, revision_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipes" / "front.yaml"


def test_each_change_is_written_down(file: Path) -> None:
    first = revise(file, {"min_area_px": 64}, "dust")
    second = revise(file, {"image_threshold": 1.5, "min_area_px": None}, "8D 17")
    assert [r.number for r in history(file)] == [1, 2]
    assert [r.reason for r in history(file)] == ["dust", "8D 17"]
    assert load_recipe(file) == Recipe(image_threshold=1.5)
    assert second.revision == revision_of(load_recipe(file)) != first.revision
    assert first.recipe["min_area_px"] == 64
    assert all(r.when.endswith("+00:00") for r in history(file))


def test_a_key_within_a_key(file: Path) -> None:
    revise(file, {"optics.watch": "warn", "optics.warn_at": 1.5}, "by hand")
    revise(file, {"optics.warn_at": None}, "as it was")
    assert load_recipe(file).optics == OpticsConfig(watch="warn")
    revise(file, {"optics.watch": None, "min_area_px": 3}, "back")
    assert load_recipe(file) == Recipe(min_area_px=3)


def test_a_change_by_hand_is_found(file: Path) -> None:
    revise(file, {"min_area_px": 64}, "dust")
    file.write_text("min_area_px: 12\n")
    revise(file, {"merge_px": 4}, "two scratches are one")
    assert [r.reason for r in history(file)] == ["dust", BY_HAND, "two scratches are one"]
    assert load_recipe(file) == Recipe(min_area_px=12, merge_px=4)
    assert record(file).number == 3


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({"min_aera": 3}, "x", "did you mean 'min_area_px'"),
        ({"min_area_px": -1}, "x", "at least 0"),
        ({"image_threshold": "high"}, "x", "a number"),
        ({"merge_px": 1}, "  ", "no reason found"),
        ({"optics.wach": "off"}, "x", r"optics.wach.*did you mean 'watch'"),
        ({"min_area_px.watch": 1}, "x", r"min_area_px.*found.*expected a"),
    ],
)
def test_what_is_no_recipe_changes_nothing(
    file: Path, change: dict[str, object], reason: str, words: str
) -> None:
    revise(file, {"min_area_px": 64}, "dust")
    before = file.read_bytes(), history(file)
    with pytest.raises(ConfigError, match=words) as caught:
        revise(file, change, reason)
    assert ".part" not in str(caught.value)
    assert (file.read_bytes(), history(file)) == before
    assert sorted(p.name for p in file.parent.iterdir()) == ["front.history.jsonl", "front.yaml"]


def test_a_power_cut_in_the_history_costs_only_the_change_that_was_not_made(file: Path) -> None:
    revise(file, {"min_area_px": 64}, "dust")
    log = file.with_suffix(".history.jsonl")
    log.write_bytes(log.read_bytes() + b'{"number": 2, "wh')
    assert len(history(file)) == 1
    revise(file, {"min_area_px": 65}, "again")
    assert [r.reason for r in history(file)] == ["dust", "again"]
    log.write_text("what is this\n" + log.read_text())
    with pytest.raises(DataError, match=r"history\.jsonl:1: no revision"):
        history(file)


def test_a_station_names_the_file(file: Path, tmp_path: Path) -> None:
    revise(file, {"min_area_px": 64}, "dust")
    station = tmp_path / "station.yaml"
    station.write_text(
        "station: s\ncameras:\n  front:\n    source: {kind: synthetic}\n"
        "    recipe: recipes/front.yaml\n"
    )
    assert load(station).cameras["front"].recipe.min_area_px == 64
    file.write_text("min_area_px: many\n")
    with pytest.raises(ConfigError, match=r"front\.yaml:1: min_area_px: found the text 'many'"):
        load(station)
    file.unlink()
    with pytest.raises(ConfigError, match=r"front\.yaml"):
        load(station)


def test_the_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipe", "set", str(file), "min_area_px=64", "--reason", "dust", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["number"] == 1
    zone = "zones=[{mode: include, polygon: [[0, 0], [9, 0], [9, 9]]}]"
    assert run(["recipe", "set", str(file), zone, "min_area_px=", "--reason", "edge"]) == 0
    assert "revision 2" in capsys.readouterr().out
    assert run(["recipe", "log", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["current"] == answer["revisions"][-1]["revision"]
    file.write_text("merge_px: 3\n")
    assert run(["recipe", "log", str(file)]) == 0
    out = capsys.readouterr().out
    assert "dust" in out
    assert "edited by hand" in out
    assert run(["recipe", "set", str(file), "min_area_px", "--reason", "x"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_a_line_whose_end_an_editor_took_is_kept(file: Path) -> None:
    for k in range(3):
        revise(file, {"min_area_px": k}, f"r{k}")
    log = file.with_suffix(".history.jsonl")
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    revise(file, {"merge_px": 1}, "last")
    assert [r.reason for r in history(file)] == ["r0", "r1", "r2", "last"]


def test_two_at_once_lose_no_revision(file: Path) -> None:
    def change(k: int) -> None:
        revise(file, {"min_area_px": k}, f"r{k}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(change, range(24)))
    found = history(file)
    assert [r.number for r in found] == list(range(1, 25))
    assert {r.reason for r in found} == {f"r{k}" for k in range(24)}


def test_a_folder_that_is_none_and_words_in_brackets(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f.txt").write_text("")
    assert run(["recipe", "set", str(tmp_path / "f.txt" / "r.yaml"), "merge_px=1", "--reason", "x"])
    assert "cannot be written" in capsys.readouterr().err
    revise(file, {"merge_px": 1}, "dust [/8D] [see 17]")
    assert run(["recipe", "log", str(file)]) == 0
    assert "[see 17]" in capsys.readouterr().out.replace("\n", " ").replace("│", "")
