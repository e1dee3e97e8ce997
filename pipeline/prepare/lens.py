"""A lens calibration: what makes straight edges straight, and how many millimetres a pixel is.

The model is OpenCV's: a camera matrix and the distortion coefficients k1 k2 p1 p2 k3, of the frame
as the source gives it (before a region is cut out). The undistorted frame has the same size and
principal point, and square pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, ValidationError

from pipeline.config import CameraConfig
from pipeline.config.types import Side, Strict
from pipeline.errors import ConfigError

Row = tuple[float, float, float]
Box = tuple[int, int, int, int]


class View(Strict):
    """One picture of the board."""

    file: str
    corners: int
    error_px: float
    """Root mean square of what lies between found and computed corners."""
    used: bool


class Lens(Strict):
    """The content of a lens file (JSON), as `linewatch calibrate-lens` writes it."""

    version: Literal[1] = 1
    width: Side
    height: Side
    camera_matrix: tuple[Row, Row, Row]
    distortion: tuple[float, float, float, float, float]
    """k1, k2, p1, p2, k3."""
    mm_per_px: PositiveFloat | None = None
    """Of the undistorted frame, in the plane that was photographed for it."""
    mm_per_px_spread: float = Field(default=0.0, ge=0)
    """Largest less smallest scale in the frame, as a share: above 0 the camera looks askew."""
    made: str
    board: str
    rms_px: float = Field(ge=0)
    focal_std: float = Field(ge=0)
    """Standard deviation of the focal length, as a share of it."""
    coverage: float = Field(ge=0, le=1)
    """Share of the frame inside the hull of all corners: the model is a guess outside."""
    views: tuple[View, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises `ConfigError` for what is no lens file."""
        remedy = "make it anew with `linewatch calibrate-lens`"
        try:
            lens = cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"prepare.lens: {path} cannot be read ({error.strerror}); {remedy}"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"prepare.lens: {path} is no lens file ({where}: {first['msg']}); {remedy}"
            ) from error
        if min(lens.matrix[0, 0], lens.matrix[1, 1]) <= 0:
            raise ConfigError(f"prepare.lens: {path} has no focal length above 0; {remedy}")
        return lens

    @property
    def matrix(self) -> NDArray[np.float64]:
        return np.array(self.camera_matrix)

    @property
    def undistorted_matrix(self) -> NDArray[np.float64]:
        """The camera matrix of the undistorted frame: pixels are square."""
        matrix = self.matrix
        matrix[0, 0] = matrix[1, 1] = (matrix[0, 0] + matrix[1, 1]) / 2
        return matrix

    def check(self, width: int, height: int) -> None:
        """Raises `ConfigError` unless the source's frames have the size that was calibrated."""
        if (width, height) != (self.width, self.height):
            raise ConfigError(
                f"prepare.lens: made of frames of {self.width} x {self.height} px, and the source "
                f"gives {width} x {height}; calibrate this camera, or set the source as it was"
            )

    def maps(self, roi_xyxy: Box) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For `cv2.remap` of a frame cut to `roi_xyxy`: where each pixel's x and y comes from.

        The principal point moves by the region's corner. Float32: measured on one core with
        1280 x 1024 px, OpenCV 5 takes 2.9 ms with these and 4.1 to 7 ms with fixed-point maps (RGB:
        9 and 6.6 ms), which are 1/32 px coarse besides.
        """
        x0, y0, x1, y1 = roi_xyxy
        shift = np.array([[0.0, 0.0, x0], [0.0, 0.0, y0], [0.0, 0.0, 0.0]])
        map_x, map_y = cv2.initUndistortRectifyMap(
            self.matrix - shift,
            np.array(self.distortion),
            None,
            self.undistorted_matrix - shift,
            (x1 - x0, y1 - y0),
            cv2.CV_32FC1,
        )
        return np.asarray(map_x, np.float32), np.asarray(map_y, np.float32)

    def undistort_points(self, points_xy: NDArray[Any]) -> NDArray[np.float64]:
        """(N, 2) pixels of the source's frame -> pixels of the undistorted frame."""
        straight = cv2.undistortPoints(
            np.asarray(points_xy, np.float64).reshape(-1, 1, 2),
            self.matrix,
            np.array(self.distortion),
            P=self.undistorted_matrix,
        )
        return np.asarray(straight, np.float64).reshape(-1, 2)


def mm_per_px(camera: CameraConfig) -> float:
    """Of a camera's prepared frames; 0 where nobody measured it. Raises `ConfigError`."""
    if camera.prepare.lens is None:
        return 0.0
    return Lens.load(Path(camera.prepare.lens)).mm_per_px or 0.0


def box_mm(box_xyxy: Box, mm_per_px: float) -> tuple[float, float, float, float]:
    """A half-open box of the prepared frame in millimetres from that frame's top left corner."""
    x0, y0, x1, y1 = box_xyxy
    return x0 * mm_per_px, y0 * mm_per_px, x1 * mm_per_px, y1 * mm_per_px
