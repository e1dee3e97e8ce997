"""How a lens file is made: from images of a board at many angles and places.

1. Find the board's corners in each image.
2. Fit camera matrix and distortion (Zhang 2000, OpenCV's `calibrateCamera`). While the worst view
   lies far off the others, leave it out and fit again.
3. Of the image of the board that lies where the parts will be: a homography from the undistorted
   frame to the board gives millimetres per pixel, and how much they differ over the frame.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.overlay import FAIL_COLOR, PASS_COLOR, contact_sheet
from pipeline.prepare.boards import Board, Grey, Points
from pipeline.prepare.lens import Lens, View

FEWEST_VIEWS: Final = 4
_LARGE_ERROR_PX: Final = 0.5
_FAR_OFF: Final = 3.0
"""Times the median of all views' errors."""
_MOST_RMS_PX: Final = 2.0
_MOST_FOCAL_STD: Final = 0.05
_LEAST_TILT_DEG: Final = 10.0
"""Between some two views: without it any focal length fits, and its deviation hides that."""
_PANEL_PX: Final = 940


@dataclass(slots=True)
class Seen:
    """The board in one image: corners on it (N, 2) in mm, and in the image (N, 2) in pixels."""

    path: Path
    on_board_mm: Points
    in_image_px: Points
    used: bool = True
    error_px: float = 0.0
    residual_px: NDArray[np.floating[Any]] = field(default_factory=lambda: np.zeros((0, 2)))
    """Found less computed corners."""


def read_grey(path: Path) -> Grey:
    """Grey levels of an image of any depth, uint8 (H, W). Raises `DataError`."""
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the file") from error
    if image is None:
        raise DataError(f"{path}: not an image that can be read; copy the file anew")
    if image.dtype != np.uint8:
        image = image * (255 / max(float(image.max()), 1.0))
    return np.asarray(image, np.uint8)


def calibrate(seen: Sequence[Seen], board: Board, size_wh: tuple[int, int], wide: bool) -> Lens:
    """The lens, and in each of `seen` its error and whether it was used. wide: fit k3, too.

    Raises `DataError` with numbers for too few views, and for a fit that cannot be believed.
    """
    flags = 0 if wide else cv2.CALIB_FIX_K3
    while True:
        used = [each for each in seen if each.used]
        if len(used) < FEWEST_VIEWS:
            raise DataError(
                f"{len(used)} usable images of the board found, expected at least {FEWEST_VIEWS}, "
                f"better 15, at different angles and places; expected {board}"
            )
        on_board = [np.pad(each.on_board_mm, ((0, 0), (0, 1))) for each in used]
        corners = [each.in_image_px for each in used]
        rms, matrix, distortion, rotations, shifts, deviations, _, errors = (
            cv2.calibrateCameraExtended(
                on_board, corners, size_wh, np.eye(3), np.zeros(5), flags=flags
            )
        )
        poses = zip(on_board, rotations, shifts, strict=True)
        computed = [cv2.projectPoints(*pose, matrix, distortion)[0] for pose in poses]
        for each, points, error in zip(used, computed, np.ravel(errors), strict=True):
            each.residual_px = each.in_image_px - points.reshape(-1, 2)
            each.error_px = float(error)
        worst = max(used, key=lambda each: each.error_px)
        median = float(np.median(errors))
        if worst.error_px <= max(_LARGE_ERROR_PX, _FAR_OFF * median):
            break
        worst.used = False
    focal_std = float(max(deviations.ravel()[:2] / (matrix[0, 0], matrix[1, 1])))
    _check(float(rms), focal_std, _tilt_deg(rotations))
    k = [float(value) for value in np.ravel(distortion)[:5]]
    (fx, skew, cx), (_, fy, cy) = ((float(v) for v in row) for row in matrix[:2])
    return Lens(
        width=size_wh[0],
        height=size_wh[1],
        camera_matrix=((fx, skew, cx), (0.0, fy, cy), (0.0, 0.0, 1.0)),
        distortion=(k[0], k[1], k[2], k[3], k[4]),
        made=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        board=str(board),
        rms_px=float(rms),
        focal_std=focal_std,
        coverage=_coverage([each.in_image_px for each in used], size_wh),
        views=tuple(
            View(
                file=each.path.name,
                corners=len(each.in_image_px),
                error_px=each.error_px,
                used=each.used,
            )
            for each in seen
        ),
    )


def with_scale(lens: Lens, plane: Seen) -> Lens:
    """The lens with millimetres per pixel in the plane that `plane`'s board lies in."""
    straight = lens.undistort_points(plane.in_image_px)
    to_mm, _ = cv2.findHomography(straight, plane.on_board_mm.astype(np.float64))
    if to_mm is None:
        raise DataError(f"{plane.path}: no plane found in its corners, expected the board whole")
    centre, *corners = (
        _scale(to_mm, x, y)
        for x, y in (
            (lens.width / 2, lens.height / 2),
            (0, 0),
            (lens.width, 0),
            (0, lens.height),
            (lens.width, lens.height),
        )
    )
    spread = (max(centre, *corners) - min(centre, *corners)) / centre
    return lens.model_copy(update={"mm_per_px": centre, "mm_per_px_spread": spread})


def _scale(to_mm: NDArray[Any], x: float, y: float) -> float:
    """mm per pixel at this place of the undistorted frame: the root of the scale of areas."""
    corner = np.array([[[x, y], [x + 1, y], [x, y + 1]]], np.float64)
    here, right, down = cv2.perspectiveTransform(corner, to_mm)[0]
    (ax, ay), (bx, by) = right - here, down - here
    return float(np.sqrt(abs(ax * by - ay * bx)))


def _tilt_deg(rotations: Sequence[NDArray[Any]]) -> float:
    """The largest angle between any two boards' planes."""
    normals = np.array([cv2.Rodrigues(rotation)[0][:, 2] for rotation in rotations])
    return float(np.rad2deg(np.arccos(np.clip(normals @ normals.T, -1, 1).min())))


def _check(rms_px: float, focal_std: float, tilt_deg: float) -> None:
    if not rms_px <= _MOST_RMS_PX:
        raise DataError(
            f"computed corners {rms_px:.2f} px off the found ones (rms), expected under "
            f"{_MOST_RMS_PX:g} px: is the board flat, and are columns, rows and sharpness right? "
            "--wide fits wide-angle lenses"
        )
    if not (focal_std <= _MOST_FOCAL_STD and tilt_deg >= _LEAST_TILT_DEG):
        raise DataError(
            f"boards tilted against each other by at most {tilt_deg:.0f} degrees, and a focal "
            f"length known to {focal_std:.1%} found, expected {_LEAST_TILT_DEG:.0f} degrees and "
            f"{_MOST_FOCAL_STD:.0%}: add images with the board tilted by 20 to 40 degrees, to all "
            "sides"
        )


def _coverage(corners: Sequence[Points], size_wh: tuple[int, int]) -> float:
    hull = cv2.convexHull(np.concatenate(corners))
    return min(1.0, float(cv2.contourArea(hull)) / (size_wh[0] * size_wh[1]))


def picture(
    lens: Lens, seen: Sequence[Seen], sample: Grey, plane: Seen | None
) -> NDArray[np.uint8]:
    """RGB. Left: all corners with their residuals, much enlarged. Right: `sample` undistorted."""
    scale = _PANEL_PX / lens.width
    left = _panel(sample // 3, scale)
    enlarged = round(12 / max(lens.rms_px * scale, 1e-3))
    for each in seen:
        color = PASS_COLOR if each.used else FAIL_COLOR
        ends = each.in_image_px + each.residual_px * (enlarged if each.used else 1)
        for start, end in zip(each.in_image_px * scale, ends * scale, strict=True):
            cv2.line(left, _at(start), _at(end), color, 1, cv2.LINE_AA)
            cv2.circle(left, _at(start), 2, color, -1, cv2.LINE_AA)
    map_x, map_y = lens.maps((0, 0, lens.width, lens.height))
    right = _panel(np.asarray(cv2.remap(sample, map_x, map_y, cv2.INTER_LINEAR), np.uint8), scale)
    title = (
        f"{sum(each.used for each in seen)} of {len(seen)} views, rms {lens.rms_px:.3f} px, "
        f"corners cover {lens.coverage:.0%}. Left: residuals x {enlarged} (red: left out). "
        "Right: undistorted"
    )
    if plane is not None and lens.mm_per_px is not None:
        for point in lens.undistort_points(plane.in_image_px) * scale:
            cv2.circle(right, _at(point), 3, PASS_COLOR, 1, cv2.LINE_AA)
        title += f", {lens.mm_per_px:.4f} mm/px; the bar is 10 mm"
        bar = round(10 / lens.mm_per_px * scale)
        right[-24:-16, 16 : 16 + bar] = FAIL_COLOR
    return contact_sheet([left, right], 2, title)


def _panel(grey: Grey, scale: float) -> NDArray[np.uint8]:
    small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB), np.uint8)


def _at(point: NDArray[np.floating[Any]]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
