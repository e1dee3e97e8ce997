"""Lens calibration: a known camera is found again, straight edges become straight, pixels mm."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from board_views import KnownCamera, Vector, views
from numpy.typing import NDArray

from pipeline import cli
from pipeline.config.prepare import PreparationConfig
from pipeline.errors import ConfigError, DataError
from pipeline.prepare.boards import Board
from pipeline.prepare.lens import Lens, box_mm
from pipeline.prepare.lens_calibration import Seen, calibrate, read_grey, with_scale
from pipeline.prepare.preparation import Preparation
from pipeline.sources.base import FrameFormat

CAMERA = KnownCamera()
SIZE = (CAMERA.width, CAMERA.height)
CHECKERBOARD = Board.of("checkerboard", "9x6", 10, None, "")
CHARUCO = Board.of("charuco", "9x6", 10, 7, "5X5_250")


def seen_from(
    places: Sequence[tuple[Vector, Vector]], noise_px: float = 0.05, camera: KnownCamera = CAMERA
) -> list[Seen]:
    """What would be found of a checkerboard, without any picture."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:6, :9]
    flat = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], axis=1) * 10.0 - [40, 25, 0]
    found = []
    for number, (turn, shift) in enumerate(places):
        points, _ = cv2.projectPoints(
            flat, np.array(turn), np.array(shift), camera.matrix, np.array(camera.distortion)
        )
        noisy = points.reshape(-1, 2) + rng.normal(0, noise_px, (54, 2))
        on_board = flat[:, :2].astype(np.float32)
        found.append(Seen(Path(f"{number}.png"), on_board, noisy.astype(np.float32)))
    return found


def write_views(folder: Path, board: Board, count: int, near_mm: float, far_mm: float) -> Path:
    """Pictures, and plane.png: the board square before the camera, 160 mm away."""
    folder.mkdir()
    for number, (turn, shift) in enumerate(views(count, near_mm, far_mm)):
        cv2.imwrite(str(folder / f"{number}.png"), CAMERA.picture(board, turn, shift))
    plane = CAMERA.picture(board, (0.0, 0.0, 0.02), (0.0, 0.0, 160.0))
    cv2.imwrite(str(folder / "plane.png"), plane)
    return folder


def assert_is(lens: Lens, camera: KnownCamera, focal: float, centre_px: float, px: float) -> None:
    """The camera within shares and pixels; `px` is how far any point may be put wrong."""
    matrix = lens.matrix
    assert (matrix[0, 0], matrix[1, 1]) == pytest.approx(camera.focal, rel=focal)
    assert (matrix[0, 2], matrix[1, 2]) == pytest.approx(camera.centre, abs=centre_px)
    y, x = np.mgrid[40 : camera.height - 40 : 9j, 40 : camera.width - 40 : 9j]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    true = cv2.undistortPoints(
        points.reshape(-1, 1, 2),
        camera.matrix,
        np.array(camera.distortion),
        P=lens.undistorted_matrix,
    ).reshape(-1, 2)
    assert np.abs(lens.undistort_points(points) - true).max() < px


@pytest.mark.parametrize(
    ("board", "near_mm", "far_mm"), [(CHECKERBOARD, 185, 215), (CHARUCO, 125, 160)], ids=str
)
def test_a_rendered_camera_is_found_again(
    board: Board, near_mm: float, far_mm: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_views(tmp_path / "shots", board, 9, near_mm, far_mm)
    out = tmp_path / "lens.json"
    arguments = [str(folder), "--pattern", board.kind, "9x6", "--out", str(out)]
    plane = ["--plane", str(folder / ".." / "shots" / "plane.png")]
    assert cli.run(["calibrate-lens", *arguments, *plane]) == 0
    text = capsys.readouterr().out
    assert "10 views, rms 0.0" in text
    assert "mm per pixel" in text
    lens = Lens.load(out)
    assert_is(lens, CAMERA, focal=0.004, centre_px=2.5, px=1.0)
    assert lens.rms_px < 0.1
    assert len(lens.views) == 10
    assert lens.mm_per_px == pytest.approx(160 / 803, rel=0.003)
    assert lens.mm_per_px_spread < 0.01
    shown = cv2.imread(str(tmp_path / "lens.png"))
    assert shown is not None
    assert shown.shape[1] == 1920

    # What the line then does with the picture of the plane: rows of corners become straight.
    raw = read_grey(folder / "plane.png")[:, :, None]
    preparation = Preparation(
        PreparationConfig(lens=str(out)), FrameFormat(CAMERA.height, CAMERA.width), False
    )
    straight = np.empty_like(raw)
    preparation.apply(raw, straight)
    assert preparation.mm_per_px == lens.mm_per_px
    bent, even = (grid(board, picture[:, :, 0]) for picture in (raw, straight))
    assert bow_px(bent) > 1
    assert bow_px(even) < 0.3
    x0, y0 = even[0, 0]
    x1, y1 = even[-1, -1]
    box = (round(x0), round(y0), round(x1), round(y1))
    left, top, right, bottom = box_mm(box, lens.mm_per_px)
    diagonal = np.hypot(right - left, bottom - top)
    assert diagonal == pytest.approx(np.hypot(80, 50), rel=0.005)


def grid(board: Board, grey: NDArray[np.uint8]) -> NDArray[Any]:
    found = board.find(grey)
    assert found is not None
    assert len(found[1]) == 54
    return found[1].reshape(6, 9, 2)


def bow_px(corners: NDArray[Any]) -> float:
    """How far the outer row's corners lie off the line through its ends, at most."""
    row = corners[0].astype(float)
    along = row[-1] - row[0]
    normal = np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return float(np.abs((row - row[0]) @ normal).max())


def test_corners_of_checkerboards_lie_where_they_are() -> None:
    for turn, shift in views(3, 185, 215):
        found = CHECKERBOARD.find(CAMERA.picture(CHECKERBOARD, turn, shift))
        assert found is not None
        true = seen_from([(turn, shift)], noise_px=0)[0].in_image_px
        off = min(np.abs(found[1] - one).max() for one in (true, true[::-1]))
        assert off < 0.2


@pytest.mark.parametrize("wide", [False, True])
def test_noise_of_a_twentieth_of_a_pixel(wide: bool) -> None:
    lens = calibrate(seen_from(views(15, 150, 190)), CHECKERBOARD, SIZE, wide)
    assert_is(lens, CAMERA, focal=0.003, centre_px=2, px=0.6)
    assert (lens.distortion[4] != 0) is wide
    assert 0.04 < lens.rms_px < 0.1
    assert lens.focal_std < 0.005
    assert 0.5 < lens.coverage <= 1


def test_a_view_that_is_far_off_is_left_out_and_named() -> None:
    seen = seen_from(views(12, 150, 190))
    seen[4].in_image_px[:] += np.random.default_rng(1).normal(0, 4, (54, 2))
    lens = calibrate(seen, CHECKERBOARD, SIZE, False)
    assert [view.file for view in lens.views if not view.used] == ["4.png"]
    assert lens.views[4].error_px > 2
    assert lens.rms_px < 0.1
    assert_is(lens, CAMERA, focal=0.003, centre_px=2, px=0.6)


def test_views_that_tell_nothing() -> None:
    with pytest.raises(DataError, match="3 usable images of the board found, expected at least 4"):
        calibrate(seen_from(views(3, 150, 190)), CHECKERBOARD, SIZE, False)
    with pytest.raises(DataError, match="0 usable images"):
        calibrate([], CHECKERBOARD, SIZE, False)
    wild = seen_from(views(8, 150, 190), noise_px=5)
    with pytest.raises(DataError, match=r"corners \d\.\d\d px off the found ones"):
        calibrate(wild, CHECKERBOARD, SIZE, False)


@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_boards_that_all_lie_alike_tell_no_focal_length(tilt: float) -> None:
    places: list[tuple[Vector, Vector]] = [
        ((tilt, 0.0, 0.1 * i), (3.0 * i - 10, 5.0 * (i % 3) - 5, 140.0 + 8 * i)) for i in range(8)
    ]
    if tilt:
        places = [places[3]] * 8
    with pytest.raises(DataError, match=r"tilted against each other by at most \d degrees"):
        calibrate(seen_from(places), CHECKERBOARD, SIZE, False)


@pytest.mark.parametrize("turn", [0.0, 0.3, -1.5])
def test_the_scale_is_distance_over_focal_length(turn: float) -> None:
    lens = calibrate(seen_from(views(15, 150, 190)), CHECKERBOARD, SIZE, False)
    plane = seen_from([((0.0, 0.0, turn), (3.0, -4.0, 180.0))], noise_px=0)[0]
    scaled = with_scale(lens, plane)
    assert scaled.mm_per_px == pytest.approx(180 / 803, rel=0.003)
    assert scaled.mm_per_px_spread < 0.01


def test_a_plane_that_is_askew_says_how_much() -> None:
    lens = calibrate(seen_from(views(15, 150, 190)), CHECKERBOARD, SIZE, False)
    tilt = np.deg2rad(5)
    plane = seen_from([((tilt, 0.0, 0.0), (0.0, 0.0, 180.0))], noise_px=0)[0]
    # Depth changes by tan(5 degrees) for each unit across: 480 px of 803 of focal length, and the
    # root of an area's scale goes with its power 1.5.
    expected = 1.5 * np.tan(tilt) * 480 / 803
    assert with_scale(lens, plane).mm_per_px_spread == pytest.approx(expected, rel=0.1)


def test_boxes_in_mm() -> None:
    assert box_mm((0, 0, 0, 0), 0.5) == (0, 0, 0, 0)
    assert box_mm((10, 20, 40, 21), 0.25) == (2.5, 5.0, 10.0, 5.25)


@pytest.mark.parametrize(
    "board", [CHECKERBOARD, CHARUCO, Board.of("charuco", "3x4", 2.5, 1.5, "4X4_50")], ids=str
)
def test_a_drawn_board_has_its_size_and_is_found(
    board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "board.png"
    words = [
        "--pattern",
        board.kind,
        f"{board.columns}x{board.rows}",
        "--square-mm",
        str(board.square_mm),
    ]
    if board.marker_mm:
        words += ["--marker-mm", str(board.marker_mm), "--dictionary", board.dictionary]
    assert cli.run(["calibrate-lens", "--board", str(out), *words]) == 0
    assert "Print it at 100 %" in capsys.readouterr().out
    data = out.read_bytes()
    place = data.index(b"pHYs") + 4
    across, down, unit = struct.unpack(">IIB", data[place : place + 9])
    assert (across, unit) == (down, 1)
    sheet = read_grey(out)
    shrink = 400 / sheet.shape[0]
    small = cv2.resize(sheet, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    found = board.find(np.asarray(small, np.uint8))
    assert found is not None
    on_board, in_image = found
    assert len(on_board) == board.columns * board.rows
    spread = np.ptp(in_image, axis=0) / shrink / across * 1000
    assert spread == pytest.approx(np.ptp(on_board, axis=0), rel=0.01)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--pattern", "dots", "9x6"], "the pattern 'dots' '9x6' found, expected checkerboard or"),
        (["--pattern", "charuco", "9 by 6"], "inner corners as 9x6"),
        (["--pattern", "charuco", "2x6"], "2x6 inner corners found, expected 3 to 100"),
        (["--square-mm", "0"], "squares of 0.0 mm found, expected above 0"),
        (["--square-mm", "nan"], "squares of nan mm found"),
        (["--pattern", "charuco", "9x6", "--marker-mm", "11"], "markers of 11.0 mm in squares of"),
        (["--pattern", "charuco", "9x6", "--dictionary", "9X9"], "expected one of 4X4_100"),
        (["--pattern", "charuco", "12x12", "--dictionary", "4X4_50"], "at least the 84 that"),
        (["--pattern", "checkerboard", "90x90", "--square-mm", "500"], "too large to draw"),
    ],
)
def test_boards_that_do_not_exist(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board = ["--board", str(tmp_path / "b.png")]
    assert cli.run(["calibrate-lens", *board, *words]) == ConfigError.exit_code
    assert text in capsys.readouterr().err
    assert not (tmp_path / "b.png").exists()


def test_what_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(code: int, text: str, *words: str) -> None:
        assert cli.run(["calibrate-lens", *words]) == code
        assert text in capsys.readouterr().err

    out = ["--out", str(tmp_path / "lens.json")]
    blank = tmp_path / "blank"
    blank.mkdir()
    cv2.imwrite(str(blank / "1.png"), np.full((48, 64), 128, np.uint8))
    refused(2, "no images found, expected images of the board", *out)
    refused(2, "no --out found", str(blank))
    refused(9, "0 usable images of the board found", str(blank), *out)
    refused(9, "no folder", str(blank), "--out", str(tmp_path / "nowhere" / "lens.json"))
    refused(9, "cannot be read", str(tmp_path / "nothing.png"), *out)
    cv2.imwrite(str(blank / "2.png"), np.zeros((48, 65), np.uint8))
    refused(9, "2.png: 65 x 48 px found, expected 64 x 48", str(blank), *out)
    (blank / "2.png").write_bytes(b"no image")
    refused(9, "2.png: not an image that can be read", str(blank), *out)
    refused(9, "cannot be written", "--board", str(tmp_path / "nowhere" / "b.png"))
    assert not (tmp_path / "lens.json").exists()


def test_images_of_more_bits_are_read(tmp_path: Path) -> None:
    picture = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    grey = read_grey(tmp_path / "a.png")
    assert grey.dtype == np.uint8
    assert (grey.min(), grey.max()) == (0, 255)
    cv2.imwrite(str(tmp_path / "b.png"), picture * 0)
    assert not read_grey(tmp_path / "b.png").any()


def test_lens_files_that_are_none(tmp_path: Path) -> None:
    lens = calibrate(seen_from(views(8, 150, 190)), CHECKERBOARD, SIZE, False)
    path = tmp_path / "lens.json"
    path.write_text(lens.model_dump_json())
    assert Lens.load(path) == lens
    good = json.loads(path.read_text())
    for change in (
        {"version": 2},
        {"camera_matrix": [[1.0, 0.0], [0.0, 1.0]]},
        {"distortion": [0.0]},
        {"width": 0},
        {"unknown": 1},
        {"mm_per_px": -1.0},
    ):
        path.write_text(json.dumps(good | change))
        [key] = change
        with pytest.raises(
            ConfigError, match=rf"prepare\.lens: .*lens\.json is no lens file \({key}"
        ):
            Lens.load(path)
    path.write_text(json.dumps(good | {"camera_matrix": [[0.0] * 3] * 3}))
    with pytest.raises(ConfigError, match="has no focal length above 0"):
        Lens.load(path)
    for text in ("", "{", "[]", "null"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="is no lens file"):
            Lens.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Lens.load(tmp_path / "nothing.json")
