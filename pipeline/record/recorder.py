"""Stage: what the line's frames looked like, on disk; never in the way of inspection.

1. Each new id of a ring: its pixels are copied out of the slot as soon as they are there, and the
   slot's header is checked after that. It holds no lease: a frame that is gone is not recorded.
2. Copies wait in buffers of limited number until their verdict is in the journal, in the order of
   their ids; then they are kept or forgotten (`pipeline.record.keeping`).
3. What is kept goes to a thread that compresses and writes (`pipeline.record.evidence`).
4. What could not be recorded is counted, and named in the recording where it should have been.
5. A recorder that was killed goes on after the last id that it had dealt with; frames that it held
   in memory are lost.

Slots are released right after the verdict and filled again from the lowest one, so that a frame
can be copied until about the time when the next one comes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.board import DONE, QUIT, READY
from pipeline.record.evidence import LOOK_S, MB, Evidence
from pipeline.record.follower import Follower, VerdictReader
from pipeline.ring import FrameRing
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.sidecar import read_side
from pipeline.stage import Stage, drain, main
from pipeline.station import Station

GLANCE_MS: Final = 4
"""Between two looks at the rings, when no wake-up comes."""
_RESOLVE_S: Final = 0.02
_LAST_S: Final = 4.0
"""For what waits to be written once the line is told to quit: the supervisor waits five."""


class Recorder:
    """The followers of all cameras, and the counters."""

    def __init__(self, stage: Stage) -> None:
        config = stage.station.config
        assert config.recording is not None
        self._stage = stage
        self._verdicts = VerdictReader(stage.station.journal)
        rings = stage.rings()
        self._counts = _Counters.read(stage.station, rings)
        self._version = version("linewatch")
        self.evidence = Evidence(
            stage.station.recordings,
            config.recording,
            {camera: ring.shape_hwc for camera, ring in rings.items()},
            head=self._head,
            done=lambda copy: self._followers[copy.frame.camera].give_back(copy),
        )
        frame_bytes = sum(int(np.prod(ring.shape_hwc)) for ring in rings.values())
        # One offset for as long as the recorder runs: a clock that jumps moves no frame.
        offset_ns = time.time_ns() - time.monotonic_ns()
        self._followers = {
            camera: Follower(
                ring,
                config.recording,
                self.evidence,
                max(2, config.recording.buffer_mb * MB // frame_bytes),
                offset_ns=offset_ns,
                continuous=config.cameras[camera].continuous,
                labelled=config.worker.runtime != "null",
                start=self._counts.resolved.get(camera, 0),
                known=_recorded_ids(stage.station.recordings / camera, camera, ring.epoch),
            )
            for camera, ring in rings.items()
        }
        self._resolved_s = self._told_s = 0.0

    @property
    def finished(self) -> bool:
        return all(follower.finished for follower in self._followers.values())

    def step(self) -> None:
        """Raises `RuntimeError` when the thread that writes broke: a new recorder helps."""
        if self.evidence.ended:
            raise RuntimeError("the thread that writes has ended")
        for follower in self._followers.values():
            follower.follow()
        now = time.monotonic()
        if now - self._resolved_s > _RESOLVE_S:
            self._resolved_s = now
            for follower in self._followers.values():
                self._resolve(follower)
        if now - self._told_s > LOOK_S:
            self._told_s = now
            self._tell()

    def end(self) -> None:
        """Write what waits, as far as there is time."""
        for follower in self._followers.values():
            follower.end()
        self.evidence.end()
        asked_s = None
        while not self.evidence.ended:
            self._stage.board.beat(self._stage.name)
            if asked_s is None and self._stage.board.order == QUIT:
                asked_s = time.monotonic()
            if asked_s is not None and time.monotonic() - asked_s > _LAST_S:
                self._stage.log.warning(
                    "the line ended: %d frames could not be written", self.evidence.waiting
                )
                break
            time.sleep(GLANCE_MS / 1000)
        self._tell()
        for follower in self._followers.values():
            follower.ring.close()
        self._verdicts.close()

    def _resolve(self, follower: Follower) -> None:
        ring = follower.ring
        if (decided := ring.decided_id) > follower.resolved:
            follower.resolve(
                self._verdicts.between(ring.camera, ring.epoch, follower.resolved, decided)
            )

    def _head(self, camera: str) -> RecordingHead:
        """What is known of a camera when a new file of it begins."""
        note = _read_json(self._stage.station.camera_note(camera))
        return RecordingHead(
            self._stage.station.config.station,
            camera,
            self._version,
            str(note.get("preparation", "")),
            json.dumps(note.get("settings", {})),
        )

    def _tell(self) -> None:
        """The counters, for people and for the next start."""
        evidence, before = self.evidence, self._counts
        lost = sum((evidence.lost + before.lost).values())
        cameras = {
            camera: {
                "resolved": follower.resolved,
                "recorded": evidence.recorded[camera] + before.recorded[camera],
                "lost": evidence.lost[camera] + before.lost[camera],
            }
            for camera, follower in self._followers.items()
        }
        told = {
            "epoch": next(iter(self._followers.values())).ring.epoch,
            "cameras": cameras,
            "bytes": evidence.size_bytes + before.size_bytes,
            "paused": evidence.paused,
        }
        path = self._stage.station.recorder
        with contextlib.suppress(OSError):  # counters are not worth a frame
            path.with_suffix(".tmp").write_text(json.dumps(told))
            os.replace(path.with_suffix(".tmp"), path)
        note = evidence.paused or (f"{lost} frames could not be recorded" if lost else "")
        self._stage.board.set_note(self._stage.name, note)


@dataclass(frozen=True, slots=True)
class _Counters:
    """What a recorder of this epoch that is gone left."""

    resolved: Counter[str]
    recorded: Counter[str]
    lost: Counter[str]
    size_bytes: int

    @classmethod
    def read(cls, station: Station, rings: dict[str, FrameRing]) -> _Counters:
        found = _read_json(station.recorder)
        epoch = next(iter(rings.values())).epoch
        cameras = found.get("cameras", {}) if found.get("epoch") == epoch else {}

        def count(name: str) -> Counter[str]:
            return Counter({camera: int(row[name]) for camera, row in cameras.items()})

        size_bytes = int(found["bytes"]) if cameras else 0
        return cls(count("resolved"), count("recorded"), count("lost"), size_bytes)


def _recorded_ids(folder: Path, camera: str, epoch: int) -> frozenset[int]:
    """Ids that an earlier recorder of this epoch wrote last, and perhaps has not counted."""
    files = sorted(folder.glob(f"{epoch:06d}-*.mkv"))[-3:]
    frames = [frame for path in files for frame in read_side(path).frames.values()]
    return frozenset(f.frame_id for f in frames if (f.camera, f.epoch) == (camera, epoch))


def _read_json(path: Path) -> dict[str, Any]:
    """An object in a file of the line's own; empty where there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def work(stage: Stage) -> None:
    inbox = stage.listen()
    recorder = Recorder(stage)
    stage.board.set_state(stage.name, READY)
    while not recorder.finished and stage.board.order != QUIT:
        stage.board.beat(stage.name)
        recorder.step()
        inbox.poll(GLANCE_MS)
        drain(inbox)
    recorder.step()
    recorder.end()
    stage.board.set_state(stage.name, DONE)


if __name__ == "__main__":
    main("recorder", work)
