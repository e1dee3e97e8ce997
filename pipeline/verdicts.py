"""Verdicts that need no map, and the part verdicts that follow from frame verdicts."""

from __future__ import annotations

import time

from pipeline.rules import part_label
from pipeline.types import FrameRef, Label, PartVerdict, Reason, Verdict


def invalid(station: str, ref: FrameRef, reason: Reason, now_ns: int) -> Verdict:
    """The verdict on a frame that could not be inspected."""
    return Verdict(
        station=station,
        camera=ref.camera,
        epoch=ref.epoch,
        frame_id=ref.frame_id,
        label=Label.INVALID,
        reason=reason,
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
    )


def utc_ns(monotonic_ns: int, now_ns: int) -> int:
    """The UTC time of a monotonic one; `now_ns` is the monotonic time now."""
    return time.time_ns() - (now_ns - monotonic_ns)
