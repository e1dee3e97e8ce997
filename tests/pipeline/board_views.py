"""Pictures of calibration boards through a camera that is known."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.prepare.boards import Board

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class KnownCamera:
    """OpenCV's model; the same for all pictures."""

    width: int = 640
    height: int = 480
    focal: tuple[float, float] = (800.0, 806.0)
    centre: tuple[float, float] = (331.0, 226.0)
    distortion: tuple[float, float, float, float, float] = (-0.22, 0.09, 0.001, -0.0008, 0.0)

    @property
    def matrix(self) -> NDArray[np.float64]:
        (fx, fy), (cx, cy) = self.focal, self.centre
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])

    def picture(self, board: Board, turn: Vector, shift_mm: Vector) -> NDArray[np.uint8]:
        """The board, turned (Rodrigues vector) about its middle, there in camera coordinates."""
        sheet, scale = board.draw()
        rotation = cv2.Rodrigues(np.array(turn))[0]
        square = round(board.square_mm * scale)  # the margin; and the first inner corner after one
        origin = np.array([board.columns - 1, board.rows - 1]) * board.square_mm / 2
        if board.kind == "charuco":
            origin = origin + board.square_mm
        y, x = np.mgrid[: self.height * 2, : self.width * 2]
        pixels = np.stack([(x - 0.5) / 2, (y - 0.5) / 2], axis=-1).reshape(-1, 1, 2)
        rays = cv2.undistortPoints(
            pixels.astype(np.float64), self.matrix, np.array(self.distortion)
        ).reshape(-1, 2)
        rays = np.pad(rays, ((0, 0), (0, 1)), constant_values=1.0)
        normal = rotation[:, 2]
        far = normal @ np.array(shift_mm) / (rays @ normal)
        on_plane = (rays * far[:, None] - np.array(shift_mm)) @ rotation[:, :2]
        # In board coordinates, and from those to the drawing's pixels (centres at integers).
        mm = on_plane + origin
        start = square if board.kind == "charuco" else 2 * square
        at = (mm * scale + start - 0.5).astype(np.float32).reshape(*x.shape, 2)
        soft = cv2.GaussianBlur(sheet, (0, 0), scale * 0.12)
        fine = cv2.remap(soft, at, None, cv2.INTER_LINEAR, borderValue=160)
        grey = cv2.resize(fine, (self.width, self.height), interpolation=cv2.INTER_AREA)
        noise = np.random.default_rng(int(abs(sum(turn)) * 1e6)).normal(0, 2, grey.shape)
        return np.clip(grey * 0.8 + 20 + noise, 0, 255).astype(np.uint8)


def views(count: int, near_mm: float, far_mm: float) -> list[tuple[Vector, Vector]]:
    """Turns and places: tilted to all sides, and here and there in the frame."""
    rng = np.random.default_rng(5)
    found: list[tuple[Vector, Vector]] = []
    for number in range(count):
        tilt = np.deg2rad(rng.uniform(15, 35))
        towards = 2 * np.pi * number / count
        x, y = 14 * np.cos(2 * towards), 12 * np.sin(2 * towards)
        turn = (tilt * np.cos(towards), tilt * np.sin(towards), rng.uniform(-0.2, 0.2))
        found.append((turn, (float(x), float(y), float(rng.uniform(near_mm, far_mm)))))
    return found
