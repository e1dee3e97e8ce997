"""Verdicts that need no map, and the part verdicts that follow from frame verdicts."""

from __future__ import annotations

import time

from pipeline.rules import part_label
from pipeline.types import FrameRef, Label, PartVerdict, Reason, Verdict

MOST_DETAIL = 300
"""Letters of a sentence in a verdict."""


def invalid(station: str, ref: FrameRef, reason: Reason, now_ns: int, detail: str = "") -> Verdict:
    """The verdict on a frame that could not be inspected. detail: what was found, for people."""
    return Verdict(
        station=station,
        camera=ref.camera,
        epoch=ref.epoch,
        frame_id=ref.frame_id,
        label=Label.INVALID,
        reason=reason,
        detail=detail[:MOST_DETAIL],
        trigger_id=ref.trigger_id,
        part_id=ref.part_id,
        source_pts=ref.source_pts,
        t_capture_utc_ns=utc_ns(ref.t_capture_ns, now_ns),
        latency_ms={"total": (now_ns - ref.t_capture_ns) / 1e6},
    )


def part_of(verdict: Verdict) -> PartVerdict:
    """The part's verdict where each frame is a part of its own."""
    label, reason = part_label([(verdict.label, verdict.reason)])
    view = (verdict.camera, verdict.epoch, verdict.frame_id)
    return PartVerdict(
        station=verdict.station,
        part_id=verdict.part_id or "/".join(map(str, view)),
        trigger_id=verdict.trigger_id,
        label=label,
        reason=reason,
        views=(view,),
        image_score=verdict.image_score,
        image_threshold=verdict.image_threshold,
        defects=verdict.defects,
        mm_per_px=verdict.mm_per_px,
        detail=verdict.detail,
        t_capture_utc_ns=verdict.t_capture_utc_ns,
    )


def utc_ns(monotonic_ns: int, now_ns: int) -> int:
    """The UTC time of a monotonic one; `now_ns` is the monotonic time now."""
    return time.time_ns() - (now_ns - monotonic_ns)
