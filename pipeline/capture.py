"""Stage: one camera's source -> its ring.

1. Mark what a killed predecessor left half-written, and go on in a recording where it was.
2. For each frame: find a slot (or wait for one, or drop), take an id, write the pixels, wake the
   worker and decision (`pipeline.intake`). Cameras are a loop of their own: `pipeline.live`.
3. At the end of the stream, or when the line drains, say so in the ring's header.

Of a camera with `continuous: true` frames are blocks of one web's lines: see `pipeline.web`.
"""

from __future__ import annotations

import time

import cv2

from pipeline.board import CAMERA_READY, DONE, READY
from pipeline.config import CameraConfig
from pipeline.config.sources import LiveSource
from pipeline.errors import SourceError
from pipeline.intake import Intake
from pipeline.live import Live
from pipeline.ring import END_OF_STREAM, LOST, RUNNING, STOPPED, FrameRing
from pipeline.sources import FrameFormat, Source, open_source
from pipeline.stage import Stage, main

LONGEST_SLEEP_S = 0.1


def work(stage: Stage) -> None:
    cv2.setNumThreads(1)  # the engine's threads have the cores
    camera = stage.name.partition(".")[2]
    ring = FrameRing(stage.station.ring(camera))
    config = stage.station.config.cameras[camera]
    if ring.ended == RUNNING:
        if isinstance(config.source, LiveSource):
            ring.end(Live(stage, ring, config).run())
        else:
            _play(stage, ring, config)
    ring.close()
    stage.board.set_state(stage.name, DONE)


def _play(stage: Stage, ring: FrameRing, config: CameraConfig) -> None:
    """A recording, from where it was left."""
    start = ring.resume()
    if start:
        stage.log.info("goes on at frame %d of the source", start)
    try:
        source = open_source(config.source, start)
        try:
            intake = Intake(stage, ring, config)
            intake.prepare(FrameFormat(*source.shape_hwc), {})
            stage.board.set_camera(stage.name, CAMERA_READY)
            stage.board.set_state(stage.name, READY)
            ring.end(Playback(intake, config).run(source))
        finally:
            source.close()
    except SourceError:
        ring.end(LOST)
        raise


class Playback:
    """The loop over one recording, at its configured pace."""

    def __init__(self, intake: Intake, config: CameraConfig) -> None:
        self._intake = intake
        self._every = config.trigger.every if config.trigger.mode == "every" else 1
        self._period_ns = round(1e9 / config.fps) if config.fps else 0

    def run(self, source: Source) -> int:
        """Until the source ends (END_OF_STREAM) or the line drains (STOPPED)."""
        due_ns = time.monotonic_ns()
        while self._intake.goes_on():
            if self._period_ns:
                due_ns = self._pace(due_ns)
                if not self._intake.goes_on():
                    return STOPPED
            grab = source.read()
            if grab is None:
                return END_OF_STREAM
            if grab.index % self._every == 0:
                self._intake.take(grab, time.monotonic_ns())
        return STOPPED

    def _pace(self, due_ns: int) -> int:
        """Sleep until the frame is due; when the next one is. No burst makes up for a delay.

        In short sleeps: a capture that is silent for long would be killed.
        """
        while (left := due_ns - (now := time.monotonic_ns())) > 0 and self._intake.goes_on():
            time.sleep(min(left / 1e9, LONGEST_SLEEP_S))
        return max(due_ns, now - self._period_ns) + self._period_ns


if __name__ == "__main__":
    main("capture", work)
