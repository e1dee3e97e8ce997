from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Recipe, Zone
from pipeline.errors import DataError
from pipeline.sources.truth import (
    TrueDefect,
    Truth,
    frame_truth,
    load_truth,
    save_truth,
    truth_path,
)

SHAPE = (480, 640, 1)


@st.composite
def _defects(draw: st.DrawFn) -> TrueDefect:
    x0, y0 = draw(st.integers(0, 639)), draw(st.integers(0, 479))
    return TrueDefect(
        box_xyxy=(x0, y0, draw(st.integers(x0 + 1, 640)), draw(st.integers(y0 + 1, 480))),
        type=draw(st.text(min_size=1, max_size=9)),
        contrast_sigma=draw(st.none() | st.floats(2, 8)),
    )


@given(frames=st.lists(st.lists(_defects(), max_size=3), max_size=5), note=st.text(max_size=9))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, frames: list[list[TrueDefect]], note: str
) -> None:
    zone = Zone(name="seam", polygon=((0, 0), (9, 0), (9, 9)))
    truth = Truth(
        shape_hwc=SHAPE,
        note=note,
        recipe=Recipe(zones=(zone,)),
        frames=tuple(frame_truth(i, tuple(found), note) for i, found in enumerate(frames)),
    )
    path = tmp_path_factory.mktemp("truth") / "x.truth.json"
    save_truth(path, truth)
    assert load_truth(path) == truth


def test_the_name_of_the_side_file(tmp_path: Path) -> None:
    assert truth_path(Path("a/monday.mkv")) == Path("a/monday.truth.json")
    folder = tmp_path / "lot.4"
    folder.mkdir()
    assert truth_path(folder) == tmp_path / "lot.4.truth.json"


def _plain(**changes: Any) -> dict[str, Any]:
    defect = {"box_xyxy": [1, 2, 3, 4], "type": "dent"}
    frames = [{"index": 0}, {"index": 1, "label": "defect", "defects": [defect]}]
    return {"schema": 1, "shape_hwc": [480, 640, 1], "frames": frames} | changes


def _with_box(box: list[Any]) -> dict[str, Any]:
    defects = [{"box_xyxy": box, "type": "dent"}]
    return _plain(frames=[{"index": 0, "label": "defect", "defects": defects}])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_plain(schema=2), "schema"),
        (_plain(extra=1), "extra"),
        (_plain(shape_hwc=[480, 640]), "shape_hwc"),
        (_plain(frames=[{"index": 1}]), "in order from index 0"),
        (_plain(frames=[{"index": 0, "label": "defect"}]), 'the label "defect"'),
        (_plain(frames=[{"index": 0, "label": "bad"}]), "label"),
        (_with_box([3, 2, 3, 4]), "x0 < x1"),
        (_with_box([-1, 2, 3, 4]), "0 <= x0"),
        (_with_box([1, 2, 641, 4]), "boxes inside 640 x 480"),
        (_with_box([1.5, 2, 3, 4]), "integer"),
        (_with_box([1, 2, 3]), "box_xyxy"),
        ([], "the file"),
    ],
)
def test_refuses_a_side_file(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "x.truth.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=says):
        load_truth(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"null"])
def test_refuses_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.truth.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        load_truth(path)


def test_no_side_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_truth(tmp_path / "absent.truth.json")
    truth = Truth(shape_hwc=SHAPE, frames=())
    with pytest.raises(DataError, match="cannot be written"):
        save_truth(tmp_path / "absent" / "x.truth.json", truth)
