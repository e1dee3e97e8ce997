"""What flows through the line: small frozen records; pixels and maps stay in shared memory.

Boxes are half-open `(x0, y0, x1, y1)` in pixels of the full frame. Times ending in `_ns` are
monotonic unless `utc` is in the name. Scores are normalised map values (see `pipeline.rules`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

MARGIN_PX = 32
"""Pixels of surroundings that a padded frame has on each side: half of a PDN's 33 px view, at half
the frame's size."""
MAP_STRIDE = 4
"""Frame pixels per cell of the anomaly map, in both directions."""
MIN_SIDE_PX = 33
"""The smallest frame side that a PDN can look at."""


def map_hw(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the anomaly map of a frame: cell (i, j) is centred on pixel (4i, 4j)."""
    return -(-height // MAP_STRIDE), -(-width // MAP_STRIDE)


class Label(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INVALID = "invalid"


class Reason(StrEnum):
    """Why a verdict reads as it does. Everything below `DEFECT` goes with `invalid` alone."""

    OK = "ok"
    DEFECT = "defect"
    DROPPED = "dropped"  # no free slot
    TORN = "torn"  # capture died while it wrote the pixels
    LATE = "late"  # no map at the deadline
    BROKEN_FRAME = "broken_frame"  # the source delivered a damaged frame
    WRONG_SIZE = "wrong_size"  # the frame has not the shape that the line was set up for
    INFER_FAILED = "infer_failed"  # the engine raised, or its map is not finite
    WORKER_DIED = "worker_died"  # the worker died on this frame, twice
    RULE_FAILED = "rule_failed"  # the decision rule raised
    LINE_DIED = "line_died"  # found by the next daemon in the ring of one that was killed
    CAMERA_LOST = "camera_lost"  # triggered while the camera was not there
    NO_FRAME = "no_frame"  # triggered, and no frame came in time
    NO_PART = "no_part"  # the frame shows no part
    OPTICS = "optics"  # lens, lamp or camera are not as they were calibrated
    UNKNOWN = "unknown"  # taken by capture, and nothing more is known of it


@dataclass(frozen=True, slots=True)
class FrameRef:
    """Where a captured frame lies, and where it comes from."""

    camera: str
    epoch: int
    frame_id: int
    slot: int
    generation: int
    t_capture_ns: int
    trigger_id: int = 0
    part_id: str = ""
    source_pts: int = -1
    trigger_index: int = 0
    """Of the line's own count of triggers (`pipeline.triggers`), 0 for a frame without one."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The worker's answer; the map lies in the frame's slot. `raw_peak`: NaN when it failed."""

    frame: FrameRef
    raw_peak: float
    t_infer_start_ns: int
    t_infer_end_ns: int
    engine_id: str


@dataclass(frozen=True, slots=True)
class Defect:
    """One defect: half-open box and area in frame pixels, peak as a normalised score."""

    box_xyxy: tuple[int, int, int, int]
    area_px: int
    peak_score: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The one answer to a captured frame. `seq` and `prev_seq` are given by the journal."""

    station: str
    camera: str
    epoch: int
    frame_id: int
    label: Label
    reason: Reason
    image_score: float = 0.0
    image_threshold: float = 0.0
    raw_peak: float = 0.0
    defects: tuple[Defect, ...] = ()
    trigger_id: int = 0
    part_id: str = ""
    source_pts: int = -1
    t_capture_utc_ns: int = 0
    detail: str = ""
    """What was found, for people: of an `invalid` frame, where more is known than its reason."""
    mm_per_px: float = 0.0
    """What the boxes' pixels are in millimetres; 0: nobody measured it (`calibrate-lens`)."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    bundle_sha256: str = ""
    recipe_revision: str = ""
    engine_id: str = ""
    seq: int = 0
    prev_seq: int = 0
    stream_id: str = ""

    @property
    def topic(self) -> str:
        return f"frame/{self.camera}/"


@dataclass(frozen=True, slots=True)
class PartVerdict:
    """The answer to a part: what a PLC acts on. `views` are (camera, epoch, frame_id).

    Score, threshold and defects are those of its worst view, by score over threshold.
    """

    station: str
    part_id: str
    trigger_id: int
    label: Label
    reason: Reason
    views: tuple[tuple[str, int, int], ...]
    image_score: float = 0.0
    image_threshold: float = 0.0
    defects: tuple[Defect, ...] = ()
    mm_per_px: float = 0.0
    detail: str = ""
    """Of a view that is the reason, where it has one."""
    t_capture_utc_ns: int = 0
    """Of the first view; of the trigger where there is no view."""
    seq: int = 0
    prev_seq: int = 0
    stream_id: str = ""

    @property
    def topic(self) -> str:
        return "part/"


@dataclass(frozen=True, slots=True)
class PartKey:
    """What is unique of a part of several views in the journal.

    kind: `trigger`, with the target's name and the trigger's index; or `part`, with the first
    view's camera and frame id.
    """

    kind: str
    camera: str
    epoch: int
    number: int
