"""Stage: one camera's source -> its ring.

1. Mark what a killed predecessor left half-written, and go on in the source where it was.
2. For each frame: find a slot (or wait for one, or drop), take an id, write the pixels, wake the
   worker and decision.
3. At the end of the stream, or when the line drains, say so in the ring's header.

Of a camera with `continuous: true` frames are blocks of one web's lines: see `pipeline.web`.
"""

from __future__ import annotations

import time

from pipeline.board import DONE, GO_ON, READY
from pipeline.config import CameraConfig
from pipeline.errors import SourceError
from pipeline.ring import END_OF_STREAM, LOST, RUNNING, STOPPED, FrameRing
from pipeline.sources import open_source
from pipeline.sources.base import Grab, Source
from pipeline.stage import Stage, main, wake
from pipeline.types import FrameRef, Reason
from pipeline.web import Web

_RETRY_S = 0.0005
"""How long a recording that found no free slot waits before it looks again."""


def work(stage: Stage) -> None:
    camera = stage.name.partition(".")[2]
    ring = FrameRing(stage.station.ring(camera))
    if ring.ended == RUNNING:
        _run(stage, ring, stage.station.config.cameras[camera])
    ring.close()
    stage.board.set_state(stage.name, DONE)


def _run(stage: Stage, ring: FrameRing, config: CameraConfig) -> None:
    start = ring.resume()
    if start:
        stage.log.info("goes on at frame %d of the source", start)
    try:
        source = open_source(config.source, start)
        try:
            if source.shape_hwc != ring.shape_hwc:
                raise SourceError(
                    f"camera {ring.camera}: frames of shape {source.shape_hwc} found, expected "
                    f"{ring.shape_hwc} as when the line started; restart the line"
                )
            stage.board.set_state(stage.name, READY)
            ring.end(Capture(stage, ring, config).run(source))
        finally:
            source.close()
    except SourceError:
        ring.end(LOST)
        raise


class Capture:
    """The loop over one source."""

    def __init__(self, stage: Stage, ring: FrameRing, config: CameraConfig) -> None:
        """Raises `ConfigError` for a continuous camera whose blocks cannot be joined."""
        self._stage = stage
        self._ring = ring
        self._wait = config.on_full == "wait"
        self._period_ns = round(1e9 / config.fps) if config.fps else 0
        self._web = Web(ring.camera, ring.shape_hwc) if config.continuous else None
        self._outboxes = [stage.call("worker"), stage.call("decision")]

    def run(self, source: Source) -> int:
        """Until the source ends (END_OF_STREAM) or the line drains (STOPPED)."""
        due_ns = time.monotonic_ns()
        while self._goes_on():
            if self._period_ns:
                due_ns = self._pace(due_ns)
            grab = source.read()
            if grab is None:
                return END_OF_STREAM
            t_capture_ns = time.monotonic_ns()
            if grab.fault is None:
                self._take(grab, t_capture_ns)
            else:
                self._stage.log.warning("frame %d: %s: %s", grab.index, grab.fault, grab.detail)
                self._admit(grab, t_capture_ns, None, grab.fault)
        return STOPPED

    def _goes_on(self) -> bool:
        self._stage.board.beat(self._stage.name)
        return self._stage.board.order == GO_ON

    def _pace(self, due_ns: int) -> int:
        """Sleep until the frame is due; when it is due. A delay is not made up for by a burst."""
        now = time.monotonic_ns()
        if due_ns > now:
            time.sleep((due_ns - now) / 1e9)
            now = due_ns
        return max(due_ns, now - self._period_ns) + self._period_ns

    def _take(self, grab: Grab, t_capture_ns: int) -> None:
        slot = self._ring.free_slot()
        while slot is None and self._wait and self._goes_on():
            time.sleep(_RETRY_S)
            slot = self._ring.free_slot()
            t_capture_ns = time.monotonic_ns()
        if slot is None:
            if not self._wait:
                self._admit(grab, t_capture_ns, None, Reason.DROPPED)
                if self._web is not None:
                    self._web.skip(grab)
            # A recording that is told to stop has not taken the frame that it holds.
            return
        ref = self._admit(grab, t_capture_ns, slot, None)
        try:
            if self._web is None:
                grab.write(self._ring.frame(slot))
            else:
                grab.write(self._web.room(self._ring.padded(slot)))
        except SourceError:
            self._ring.tear(ref)
            raise
        if self._web is None:
            self._ring.commit(ref, time.monotonic_ns())
        else:
            self._join(self._web, grab, ref)
        self._wake()

    def _join(self, web: Web, grab: Grab, ref: FrameRef) -> None:
        breaks = web.breaks
        self._ring.commit(ref, time.monotonic_ns(), lambda padded: web.fill(padded, grab))
        if web.breaks > breaks:
            self._stage.log.info(
                "frame %d: the lines before it are not known, its own are reflected (%d so far)",
                grab.index,
                web.breaks,
            )

    def _admit(self, grab: Grab, t_ns: int, slot: int | None, fault: Reason | None) -> FrameRef:
        ref = self._ring.begin(
            t_capture_ns=t_ns,
            source_index=grab.index,
            slot=slot,
            fault=fault,
            source_pts=grab.pts,
            trigger_id=grab.trigger_id,
            part_id=grab.part_id,
        )
        if fault is not None:
            self._wake()
        return ref

    def _wake(self) -> None:
        for outbox in self._outboxes:
            wake(outbox)


if __name__ == "__main__":
    main("capture", work)
