"""Pictures of what a fixture finds: poses, and the recipe's zones where they lie then."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Zone
from pipeline.fixture.find import Fixture, Pose
from pipeline.fixture.placing import placed
from pipeline.overlay import FAIL_COLOR, INVALID_COLOR, PASS_COLOR, TRUE_COLOR

Image = NDArray[np.uint8]
_ARROW_PX = 60


def drawn(
    frame: Image, poses: Sequence[Pose], fixture: Fixture, zones: Iterable[Zone] = ()
) -> Image:
    """RGB: each part's box, reference point and direction, zones, and the zone that counts.

    frame: uint8 (H, W, 1 or 3).
    """
    picture: Image = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame.copy()
    thick = max(1, max(frame.shape[:2]) // 640)
    if fixture.config.count_zone is not None:
        x0, y0, x1, y1 = fixture.config.count_zone
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), INVALID_COLOR, thick)
    for pose in poses:
        matrix = fixture.to_frame(pose)
        for zone in placed(zones, matrix):
            color = PASS_COLOR if zone.mode == "include" else FAIL_COLOR
            cv2.polylines(picture, [np.array(zone.polygon, np.int32)], True, color, thick)
        x0, y0, x1, y1 = pose.box_xyxy
        color = INVALID_COLOR if pose.cut_off else TRUE_COLOR
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), color, thick)
        at = round(pose.x), round(pose.y)
        ahead = matrix[:, :2] @ (_ARROW_PX * thick, 0)
        end = round(pose.x + ahead[0]), round(pose.y + ahead[1])
        cv2.arrowedLine(picture, at, end, TRUE_COLOR, 2 * thick, cv2.LINE_AA, tipLength=0.2)
        cv2.drawMarker(picture, at, FAIL_COLOR, cv2.MARKER_CROSS, 24 * thick, 2 * thick)
    return picture
