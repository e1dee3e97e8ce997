"""The recorder's thread that compresses and writes: files, their rotation, quota and free disk.

1. Frames come through a queue; the queue is short, because the buffers that frames lie in are few.
2. A file ends by size or age. Then, and every few seconds, the oldest recordings make room.
3. Nothing stops the line: where the disk refuses, or has too little left, writing pauses with a
   sentence in the log, and is tried again. Frames of that time are lost, and counted as such.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pipeline.config.record import RecordingConfig
from pipeline.errors import SourceError
from pipeline.record.keeping import Copy
from pipeline.record.recordings import RecordingWriter, free_bytes, make_room, recording_path
from pipeline.sources.recorded import RecordingHead
from pipeline.sources.recording import FrameEncoder
from pipeline.sources.sidecar import RecordedFrame

GB: Final = 10**9
MB: Final = 10**6
LOOK_S: Final = 1.0
"""Between two looks at the disk; as often, what was written is brought to it."""
_ROOM_S: Final = 10.0
RETRY_S: Final = 10.0
_MOST_UNSAID: Final = 1000
"""Losses of a camera that wait for a file in which they can be named."""
_NICE: Final = 10

Shape = tuple[int, int, int]


class Evidence:
    """Writes what it is given, in a thread of its own."""

    def __init__(
        self,
        folder: Path,
        config: RecordingConfig,
        shapes: Mapping[str, Shape],
        *,
        head: Callable[[str], RecordingHead],
        done: Callable[[Copy], None],
        retry_s: float = RETRY_S,
    ) -> None:
        """folder: the station's. head: of a new file of a camera. done: the copy's pixels are free.

        shapes: of each camera's frames. retry_s: after a write that the disk refused.
        """
        self.recorded: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        """Frames of each camera that were written, and that should have been and could not."""
        self.size_bytes = 0
        self.paused = ""
        """Why nothing is written at the moment."""
        self._folder = folder
        self._config = config
        self._head = head
        self._done = done
        self._log = logging.getLogger("recorder")
        self._shapes = shapes
        self._encoders: dict[str, FrameEncoder] = {}
        self._files: dict[str, tuple[RecordingWriter, float]] = {}
        self._unsaid: dict[str, deque[tuple[RecordedFrame, str]]] = {
            camera: deque(maxlen=_MOST_UNSAID) for camera in shapes
        }
        # One camera alone must leave room for the file that is written, and some more.
        self._file_bytes = min(config.file_mb * MB, config.quota_gb * GB / (4 * len(shapes)))
        self._retry_s = retry_s
        self._looked_s = self._roomed_s = self._again_s = 0.0
        self._said = ""
        self._queue: queue.SimpleQueue[Copy | tuple[RecordedFrame, str] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._work, name="evidence", daemon=True)
        self._thread.start()

    def write(self, copy: Copy) -> None:
        self._queue.put(copy)

    def lose(self, frame: RecordedFrame, why: str) -> None:
        """Note a frame that should be here and was not copied."""
        self._queue.put((frame, why))

    def end(self) -> None:
        """No frame will follow: write what waits, and end the files; see `ended`."""
        self._queue.put(None)

    @property
    def waiting(self) -> int:
        """Frames that are not written yet."""
        return self._queue.qsize()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    # The thread

    def _work(self) -> None:
        # Of this thread, and of those that the encoders start from it: inspection comes first. The
        # thread that copies frames out of their slots has a few milliseconds, and must be in time.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            try:
                item = self._queue.get(timeout=LOOK_S)
            except queue.Empty:
                self._look()
                continue
            if item is None:
                break
            self._look()
            if isinstance(item, Copy):
                self._take(item)
                self._done(item)
            else:
                self._lose(*item)
        for camera in list(self._files):
            self._end(camera)

    def _take(self, copy: Copy) -> None:
        if self.paused:
            self._lose(copy.frame, self.paused)
            return
        camera = copy.frame.camera
        try:
            writer = self._writer(copy.frame)
            before = writer.size_bytes
            self._say(writer, camera)
            writer.write(copy.pixels, copy.frame)
        except (OSError, SourceError) as error:
            self._refused(error)
            self._end(camera)
            self._lose(copy.frame, self.paused)
            return
        if self._said:
            self._log.info("recording goes on")
            self._said = ""
        self.recorded[camera] += 1
        self.size_bytes += writer.size_bytes - before

    def _lose(self, frame: RecordedFrame, why: str) -> None:
        self.lost[frame.camera] += 1
        self._unsaid[frame.camera].append((frame, why))
        opened = self._files.get(frame.camera)
        if opened is not None:
            try:
                self._say(opened[0], frame.camera)
            except OSError as error:
                self._refused(error)

    def _say(self, writer: RecordingWriter, camera: str) -> None:
        """Name the frames that were lost since the last one that was written."""
        unsaid = self._unsaid[camera]
        while unsaid:
            writer.lose(*unsaid[0])
            unsaid.popleft()

    def _writer(self, frame: RecordedFrame) -> RecordingWriter:
        """The camera's open file, or a new one that begins with this frame."""
        camera = frame.camera
        opened = self._files.get(camera)
        if opened is not None:
            writer, since_s = opened
            age_s = time.monotonic() - since_s
            if writer.size_bytes < self._file_bytes and age_s < self._config.file_s:
                return writer
            self._end(camera)
        self._make_room()
        folder = self._folder / camera
        folder.mkdir(parents=True, exist_ok=True)
        if camera not in self._encoders:
            self._encoders[camera] = FrameEncoder(
                self._shapes[camera], self._config.compress_threads
            )
        path = recording_path(folder, frame.epoch, frame.frame_id)
        writer = RecordingWriter(
            path, self._shapes[camera], self._head(camera), encoder=self._encoders[camera]
        )
        self._files[camera] = (writer, time.monotonic())
        return writer

    def _end(self, camera: str) -> None:
        opened = self._files.pop(camera, None)
        if opened is not None:
            try:
                opened[0].close()
            except OSError as error:
                self._refused(error)

    def _look(self) -> None:
        """Every second: is there room, and is what was written on the disk?"""
        now = time.monotonic()
        if now - self._looked_s < LOOK_S:
            return
        self._looked_s = now
        try:
            for writer, _ in self._files.values():
                writer.sync()
            if now - self._roomed_s > _ROOM_S:
                self._make_room()
            self._folder.mkdir(parents=True, exist_ok=True)
            free = free_bytes(self._folder)
        except OSError as error:
            self._refused(error)
            return
        if free < self._config.keep_free_gb * GB:
            self._pause(
                f"{free / GB:.1f} GB free found, expected recording.keep_free_gb, "
                f"{self._config.keep_free_gb:g}"
            )
        elif now >= self._again_s:
            self.paused = ""

    def _make_room(self) -> None:
        self._roomed_s = time.monotonic()
        keep = frozenset(writer.path for writer, _ in self._files.values())
        deleted = make_room(self._folder, round(self._config.quota_gb * GB), keep)
        if deleted:
            self._log.info("%d oldest recordings deleted, for recording.quota_gb", len(deleted))

    def _refused(self, error: OSError | SourceError) -> None:
        self._again_s = time.monotonic() + self._retry_s
        self._pause(f"{getattr(error, 'strerror', None) or error}; free the disk, check its rights")

    def _pause(self, why: str) -> None:
        self.paused = f"paused: {why}"
        if not self._said:  # once, until a frame is written again
            self._said = why
            self._log.warning("recording pauses, inspection goes on: %s: %s", self._folder, why)
