"""How high the map may be at each place of a part that lies still: 255 where most.

Calibration learns it (`calibrate.places`), the bundle keeps it, and the decision rule divides
scores by its share of 255. From worker to decision it travels as text in the station's engine file.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.types import map_hw

Tolerance = NDArray[np.uint8]
"""(ceil(H / 4), ceil(W / 4)), 1..255."""
MOST_TOLERANT = 255


def check_tolerance(tolerance: Tolerance, frame_hw: tuple[int, int]) -> None:
    """Raise `ConfigError` unless it is one for frames of this size."""
    if tolerance.shape != map_hw(*frame_hw) or not tolerance.all():
        rows, columns = tolerance.shape
        raise ConfigError(
            f"the bundle's tolerance for each place is one of {columns}x{rows} cells, expected "
            f"{map_hw(*frame_hw)[1]}x{map_hw(*frame_hw)[0]} for frames of "
            f"{frame_hw[1]}x{frame_hw[0]}: calibrate with this camera's own frames, or without "
            "--still-px"
        )


def to_text(tolerance: Tolerance | None) -> dict[str, Any] | None:
    """As plain JSON."""
    if tolerance is None:
        return None
    packed = zlib.compress(tolerance.tobytes())
    return {"shape": list(tolerance.shape), "zlib": base64.b64encode(packed).decode()}


def from_text(found: dict[str, Any] | None) -> Tolerance | None:
    """What `to_text` made."""
    if found is None:
        return None
    data = zlib.decompress(base64.b64decode(found["zlib"]))
    return np.frombuffer(data, np.uint8).reshape(found["shape"])
