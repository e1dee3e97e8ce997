from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import VideoSource
from pipeline.sources import open_source
from pipeline.sources.stamp import read_stamp
from pipeline.sources.truth import load_truth
from tools.make_recording import SEAM_GUARD_PX, Layout, main, make_plan, read_boxes

SIDE = 150
BOX = (60, 70, 90, 85)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """12 good images, grey 20 + n; 5 defective ones, grey 120 + n with a white box."""
    for name in ("good", "defect", "boxes", "masks"):
        (tmp_path / name).mkdir()
    for number in range(12):
        _save(tmp_path / "good" / f"{number}.png", np.full((SIDE, SIDE), 20 + number, np.uint8))
    for number in range(5):
        image = np.full((SIDE, SIDE), 120 + number, np.uint8)
        image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
        image[5:9, 2:6] = 254  # at the border: hidden by a seam, or not
        _save(tmp_path / "defect" / f"d{number}.png", image)
        text = "60 70 90 85 2\n\n2,5,6,9,7\n"
        (tmp_path / "boxes" / f"d{number}.txt").write_text(text)
        _save(tmp_path / "masks" / f"d{number}_mask.png", np.where(image > 200, 255, 0))
    return tmp_path


def _save(path: Path, image: np.ndarray) -> None:
    assert cv2.imwrite(str(path), image.astype(np.uint8))


def _run(data: Path, *more: str, truth: str = "boxes") -> int:
    out = data / "out.mkv"
    parts = ["--good", str(data / "good"), "--defect", str(data / "defect"), "--out", str(out)]
    return main([*parts, f"--{truth}", str(data / truth), *more])


@pytest.mark.parametrize("truth", ["boxes", "masks"])
@pytest.mark.parametrize("stamp", [False, True])
def test_frames_boxes_and_zones_agree(
    data: Path, capsys: pytest.CaptureFixture[str], truth: str, stamp: bool
) -> None:
    more = ["--stamp"] if stamp else []
    assert _run(data, "--frames", "10", "--types", "hole,crack", *more, truth=truth) == 0
    assert "10 frames of 300 x" in capsys.readouterr().out
    known = load_truth(data / "out.truth.json")
    source = open_source(VideoSource(kind="video", path=str(data / "out.mkv")))
    top = 16 if stamp else 0
    assert source.shape_hwc == known.shape_hwc == (2 * SIDE + top, 2 * SIDE, 1)
    assert [frame.label for frame in known.frames].count("defect") == 5
    assert known.recipe is not None
    zones = np.zeros(source.shape_hwc[:2], np.uint8)
    for zone in known.recipe.zones:
        cv2.fillPoly(zones, [np.array(zone.polygon, np.int32)], 1)
    assert zones[top + SIDE - SEAM_GUARD_PX, 0]
    assert zones[-1, SIDE + SEAM_GUARD_PX - 1]
    assert not zones[top + SIDE + SEAM_GUARD_PX + 2, SIDE + SEAM_GUARD_PX + 2]
    out = np.zeros(source.shape_hwc, np.uint8)
    for frame in known.frames:
        grab = source.read()
        assert grab is not None
        grab.write(out)
        assert read_stamp(out) == (frame.index if stamp else None)
        seen = ((out[:, :, 0] >= 254) & (zones == 0)).astype(np.uint8)
        seen[:top] = 0
        _, _, pieces, _ = cv2.connectedComponentsWithStats(seen)
        found = {(x, y, x + w, y + h) for x, y, w, h, _ in pieces[1:].tolist()}
        boxes = {defect.box_xyxy for defect in frame.defects}
        assert {box for box in boxes if box[2] - box[0] == 30} == {
            box for box in found if box[2] - box[0] == 30
        }
        assert len(boxes) == len(found)
        if truth == "boxes":
            assert {defect.type for defect in frame.defects} <= {"crack", "7"}
    assert source.read() is None


def test_same_seed_same_bytes(data: Path) -> None:
    results = []
    for seed in ("1", "1", "2"):
        assert _run(data, "--frames", "6", "--seed", seed) == 0
        results.append((data / "out.truth.json").read_text())
    assert results[0] == results[1] != results[2]


def test_images_are_used_once_as_long_as_they_last() -> None:
    good = [Path(f"{n}.png") for n in range(20)]
    plan = make_plan(good, [], 5, 4, seed=3)
    used = [cell for frame in plan.frames for cell in frame]
    assert sorted(map(str, used)) == sorted(map(str, good))
    assert plan.reused == 0
    assert make_plan(good, [], 6, 4, seed=3).reused == 4


def test_only_good_images(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--good", str(data / "good"), "--out", str(data / "g.mkv"), "--frames", "3"]
    assert main([*arguments, "--grid", "1x2", "--color"]) == 0
    known = load_truth(data / "g.truth.json")
    assert known.shape_hwc == (SIDE, 2 * SIDE, 3)
    assert all(frame.label == "good" for frame in known.frames)
    assert known.recipe is not None
    assert len(known.recipe.zones) == 1


def test_one_image_per_frame_has_no_seams() -> None:
    assert Layout(1, 1, (64, 64)).seams() == ()


@pytest.mark.parametrize(
    ("spoil", "more", "code", "says"),
    [
        (lambda data: (data / "boxes" / "d3.txt").unlink(), [], 9, "d3.txt: cannot be read"),
        (lambda data: (data / "boxes" / "d3.txt").write_text(""), [], 9, "no true box"),
        (
            lambda data: (data / "boxes" / "d3.txt").write_text("1 2 3 4 5\n9 9 9 9 1"),
            [],
            9,
            "d3.txt, line 2: '9 9 9 9 1'; expected `x1 y1 x2 y2 type`",
        ),
        (
            lambda data: [
                (data / "boxes" / f"d{n}.txt").write_text("60 70 190 85 1") for n in range(5)
            ],
            [],
            9,
            "reaches out of the image",
        ),
        (
            lambda data: [(data / "boxes" / f"d{n}.txt").write_text("0 0 9 9 1") for n in range(5)],
            [],
            9,
            "all true boxes lie in the seams",
        ),
        (
            lambda data: _save(data / "good" / "3.png", np.zeros((9, 9))),
            [],
            9,
            "all must be of one",
        ),
        (lambda data: (data / "good" / "3.png").write_bytes(b"x"), [], 3, "3.png: not an image"),
        (lambda data: None, ["--good", "absent"], 3, "absent: not a folder"),
        (lambda data: None, ["--out", "x.mp4"], 2, "ends in .mkv"),
        (lambda data: None, ["--frames", "0"], 2, "expected more than 0"),
        (lambda data: None, ["--grid", "1x1", "--stamp"], 2, "--stamp needs"),
    ],
)
def test_says_what_is_wrong(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    spoil: object,
    more: list[str],
    code: int,
    says: str,
) -> None:
    assert callable(spoil)
    spoil(data)
    assert _run(data, "--frames", "12", *more) == code
    assert says in capsys.readouterr().err
    assert not (data / "out.mkv").exists()


@pytest.mark.parametrize("grid", ["2", "0x2", "2x", "axb", "2x2x2"])
def test_refuses_a_grid(data: Path, capsys: pytest.CaptureFixture[str], grid: str) -> None:
    with pytest.raises(SystemExit):
        _run(data, "--grid", grid)
    assert "expected ROWSxCOLUMNS" in capsys.readouterr().err


def test_a_mask_that_is_missing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "masks" / "d1_mask.png").unlink()
    assert _run(data, truth="masks") == 9
    assert "d1.png: no mask" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--good", "--boxes", "seams", "linewatch replay", ".truth.json"):
        assert word in text


def test_boxes_in_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    from pipeline.errors import DataError

    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        read_boxes(path)
