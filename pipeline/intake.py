"""How a grab gets into the ring: an id, a slot, the pixels, and wake-ups for those who wait."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.board import GO_ON
from pipeline.config import CameraConfig
from pipeline.errors import ConfigError, SourceError
from pipeline.prepare.preparation import Preparation
from pipeline.ring import FrameRing
from pipeline.sources.base import FrameFormat, Grab
from pipeline.stage import Stage, wake
from pipeline.triggers import Trigger
from pipeline.types import FrameRef, Reason
from pipeline.web import Web

_RETRY_S, _LAST_RETRY_S = 0.0005, 0.005
"""How long a recording that found no free slot waits before it looks again."""


class Intake:
    """Takes grabs into one camera's ring. `index` counts them, across restarts of capture."""

    def __init__(self, stage: Stage, ring: FrameRing, config: CameraConfig) -> None:
        """Raises `ConfigError` for a continuous camera whose blocks cannot be joined."""
        self._stage = stage
        self._ring = ring
        self._wait = config.on_full == "wait"
        self._web = Web(ring.camera, ring.shape_hwc) if config.continuous else None
        self._outboxes = [stage.call("worker"), stage.call("decision")]
        if stage.station.config.recording is not None:
            self._outboxes.append(stage.call("recorder"))
        self._config = config
        self._preparation: Preparation | None = None
        self._raw: NDArray[Any] = np.empty(0, np.uint8)

    def prepare(
        self, source: FrameFormat, settings: Mapping[str, str | int | float | bool]
    ) -> None:
        """What the grabs to come are; settings: of the camera, for the recorder.

        Raises `ConfigError` where the ring cannot take them.
        """
        channels = self._ring.shape_hwc[2]
        preparation = Preparation(self._config.prepare, source, channels == 3)
        if preparation.shape_hwc != self._ring.shape_hwc:
            raise ConfigError(
                f"camera {self._ring.camera}: prepared frames of shape {preparation.shape_hwc} "
                f"found, expected {self._ring.shape_hwc} as when the line started; restart the line"
            )
        self._preparation = None if preparation.plain else preparation
        self._raw = np.empty(source.shape_hwc, source.dtype) if self._preparation else self._raw
        note = {
            "preparation": preparation.sha256,
            "mm_per_px": preparation.mm_per_px,
            "settings": dict(settings),
        }
        path = self._stage.station.camera_note(self._ring.camera)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(note))
        partial.replace(path)

    def goes_on(self) -> bool:
        """A sign of life; false when the line drains."""
        self._stage.board.beat(self._stage.name)
        return self._stage.board.order == GO_ON

    def take(self, grab: Grab, t_capture_ns: int, trigger: Trigger | None = None) -> None:
        """One frame; without pixels when it is faulty, or when there is no slot for it.

        A recording waits for a slot; told to stop, it has not taken the frame that it holds.
        """
        if grab.fault is not None:
            self._stage.log.warning("frame %d: %s: %s", grab.index, grab.fault, grab.detail)
            self._admit(grab, t_capture_ns, None, grab.fault, trigger)
            return
        slot = self._ring.free_slot()
        begun = time.monotonic()
        while slot is None and self._wait and self.goes_on():
            # In step with what it waits for: the engine's threads have the cores.
            time.sleep(min(_LAST_RETRY_S, max(_RETRY_S, (time.monotonic() - begun) / 4)))
            slot = self._ring.free_slot()
            t_capture_ns = time.monotonic_ns()
        if slot is None:
            if not self._wait:
                self._admit(grab, t_capture_ns, None, Reason.DROPPED, trigger)
                if self._web is not None:
                    self._web.skip(grab)
            return
        ref = self._admit(grab, t_capture_ns, slot, None, trigger)
        try:
            if self._web is None:
                self._write(grab, self._ring.frame(slot))
            else:
                self._write(grab, self._web.room(self._ring.padded(slot)))
        except SourceError:
            self._ring.tear(ref)
            raise
        if self._web is None:
            self._ring.commit(ref, time.monotonic_ns())
        else:
            self._join(self._web, grab, ref)
        self._wake()

    def _write(self, grab: Grab, out: NDArray[np.uint8]) -> None:
        if self._preparation is None:
            grab.write(out)
        else:
            grab.write(self._raw)
            self._preparation.apply(self._raw, out)

    def _join(self, web: Web, grab: Grab, ref: FrameRef) -> None:
        breaks = web.breaks
        self._ring.commit(ref, time.monotonic_ns(), lambda padded: web.fill(padded, grab))
        if web.breaks > breaks:
            self._stage.log.info(
                "frame %d: the lines before it are not known, its own are reflected (%d so far)",
                grab.index,
                web.breaks,
            )

    def _admit(
        self,
        grab: Grab,
        t_ns: int,
        slot: int | None,
        fault: Reason | None,
        trigger: Trigger | None,
    ) -> FrameRef:
        ref = self._ring.begin(
            t_capture_ns=t_ns,
            source_index=grab.index,
            slot=slot,
            fault=fault,
            source_pts=grab.pts,
            trigger_id=trigger.trigger_id if trigger else grab.trigger_id,
            part_id=(trigger.part_id if trigger else "") or grab.part_id,
            trigger_index=trigger.index if trigger else 0,
        )
        if fault is not None:
            self._wake()
        return ref

    def _wake(self) -> None:
        for outbox in self._outboxes:
            wake(outbox)
