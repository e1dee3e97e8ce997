"""Video files, frame by frame, and every frame counted, readable or not.

1. The decoder may reorder, delay or swallow frames. So each packet's time stamp waits in a heap
   until the frame of that stamp comes out; what is overtaken was lost, and counts as broken.
2. Decoders hide damage. FFV1's slice checksums are verified here, before decoding; with other
   codecs an error in the decoder's log counts as damage. From a damaged packet on, frames are
   broken until the next key frame.
3. In a recording of our own (`recording.py`) frames lie at a constant rate: a gap in the time
   stamps is a packet that the container lost, and counts as broken frames too.
4. A file that ends early gives what it has, then raises `SourceLost`.
"""

from __future__ import annotations

import heapq
import zlib
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import av.logging
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.config import VideoSource
from pipeline.errors import SourceError, SourceLost
from pipeline.sources.base import Grab, PixelWriter, no_pixels
from pipeline.sources.pixels import channels_of, copy_pixels
from pipeline.sources.recording import RECORDING_TAG
from pipeline.types import Reason

if TYPE_CHECKING:
    Packet = av.Packet[av.VideoStream]

_MAX_PENDING: Final = 64
"""Packets that a decoder may hold back; codecs reorder within 16."""
_REVERSED_BITS: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FOOTER_BYTES: Final = 8  # of an FFV1 slice: size (3), error status (1), CRC (4)


def slices_intact(packet: bytes) -> bool | None:
    """Whether all slice checksums of an FFV1 version 3 packet hold; None if it has none.

    RFC 9043, section 4.9: CRC-32 with the bits the other way round than zlib's, which reversing
    the bits of each byte makes up for; over the slice with its checksum it is 0.
    """
    end = len(packet)
    intact = True
    while end > 0:
        start = end - _FOOTER_BYTES - int.from_bytes(packet[end - 8 : end - 5], "big")
        if end < _FOOTER_BYTES or start < 0:
            return None
        residue = zlib.crc32(packet[start:end].translate(_REVERSED_BITS), 0xFFFFFFFF)
        intact = intact and residue == 0xFFFFFFFF
        end = start
    return intact


class VideoRecording:
    """A `Source` over a video file; `start` is the index of the first frame that it gives.

    Grey pixel formats give one channel, all others RGB. Raises `SourceError` for a file that is
    not there, is no video or has no frames.
    """

    def __init__(self, config: VideoSource, start: int = 0) -> None:
        self._path = Path(config.path)
        self._loop = config.loop
        self._reformatter = VideoReformatter()
        self._ready: deque[Grab] = deque()
        self._ended = False
        self._index = 0
        """Of the next frame that comes out."""
        self._start = start
        self._lap_start = 0
        self._has_checksums = False
        self._open()
        try:
            if start:
                self._go_to(start)
            while not self._ready and not self._ended:
                self._advance()
            if self._index == self._lap_start and self._ended:
                raise SourceError(f"{self._path}: a video without frames; record it anew")
        except BaseException:
            self._container.close()
            raise

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self._shape

    def read(self) -> Grab | None:
        """The next frame; see `Source.read`. Raises `SourceLost` at the end of a cut-off file."""
        while not self._ready:
            if self._ended:
                self._check_end()
                if not self._loop or self._index == self._lap_start:
                    return None
                self._reopen()
                self._lap_start = self._index
            self._advance()
        return self._ready.popleft()

    def close(self) -> None:
        self._ready.clear()
        self._container.close()

    # Opening and finding the place.

    def _open(self) -> None:
        self._container, self._stream = open_video(self._path)
        context = self._stream.codec_context
        context.thread_type = "SLICE"  # frame threads report a packet's damage with another packet
        context.thread_count = 2
        context.options = {"err_detect": "crccheck+explode"}
        self._shape = shape_of(self._path, context)
        self._is_ffv1 = context.name == "ffv1"
        tick = self._stream.time_base or Fraction(1, 1000)
        self._tick_ns = tick * 1_000_000_000
        self._frames_per_tick: Fraction | None = None
        if RECORDING_TAG in self._container.metadata and self._stream.average_rate:
            self._frames_per_tick = tick * self._stream.average_rate
            self._has_checksums = True
        self._packets = self._demux()
        self._pending: list[tuple[int, int, str]] = []  # time stamp, order, fault
        self._order = 0
        self._last_stamp = -1
        self._damaged = False
        self._broken_below: int | None = None
        self._skip_below: int | None = None
        self._ended = False

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _demux(self) -> Iterator[Packet]:
        try:
            yield from self._container.demux(self._stream)
        except (av.FFmpegError, OSError) as error:
            raise SourceLost(
                f"{self._path}: cannot be read any more after {self._index} frames ({error}); "
                "check the disk, or copy the file anew"
            ) from error

    def _stamp_of(self, packet: Packet) -> int:
        candidates = (packet.pts, packet.dts, self._last_stamp + 1)
        self._last_stamp = next(stamp for stamp in candidates if stamp is not None)
        return self._last_stamp

    def _go_to(self, start: int) -> None:
        """Go on at frame `start`: from the key frame at or before it, known by its time stamp."""
        found: list[tuple[int, bool]] = []
        for packet in self._packets:
            if packet.size == 0 or packet.is_discard:
                continue
            found.append((self._stamp_of(packet), packet.is_keyframe))
            if not self._loop and len(found) > start + _MAX_PENDING:
                break
        self._reopen()
        if not found:
            return
        found.sort()
        numbers = [self._number(stamp, rank) for rank, (stamp, _) in enumerate(found)]
        wanted = start % (numbers[-1] + 1) if self._loop else start
        self._lap_start = self._index = start - wanted
        keys = [i for i, (_, is_key) in enumerate(found) if is_key and numbers[i] <= wanted]
        if keys and keys[-1] > 0:
            self._index += numbers[keys[-1]]
            self._skip_below = found[keys[-1]][0]
            self._container.seek(self._skip_below, stream=self._stream)

    def _number(self, stamp: int, rank: int) -> int:
        return rank if self._frames_per_tick is None else round(stamp * self._frames_per_tick)

    # One packet in, any number of frames out, in the order of their time stamps.

    def _advance(self) -> None:
        packet = next(self._packets, None)
        if packet is None or packet.size == 0:
            self._drain()
            return
        stamp = self._stamp_of(packet)
        if packet.is_discard or (self._skip_below is not None and stamp < self._skip_below):
            return
        if packet.is_keyframe:
            if self._damaged:
                self._broken_below = stamp  # frames that are shown before it and come after it
            self._damaged = False
        fault = self._damage_of(packet)
        if fault:
            self._damaged = True
        elif self._damaged or (self._broken_below is not None and stamp < self._broken_below):
            fault = "it builds on a damaged frame"
        entry = (stamp, self._order, fault)
        self._order += 1
        heapq.heappush(self._pending, entry)
        frames, error = ([], "") if self._is_ffv1 and fault else self._decode(packet)
        if error and not fault:
            self._damaged = True
            self._pending[self._pending.index(entry)] = (*entry[:2], error)
        for frame in frames:
            self._take(frame)
        reorders = bool(self._stream.codec_context.has_b_frames)
        while self._pending and (
            len(self._pending) > _MAX_PENDING or (self._pending[0][2] and not reorders)
        ):
            self._emit(heapq.heappop(self._pending), None)

    def _damage_of(self, packet: Packet) -> str:
        if packet.is_corrupt:
            return "the file is damaged at its packet"
        if self._is_ffv1:
            intact = slices_intact(bytes(packet))
            if intact is False or (intact is None and self._has_checksums):
                return "its packet fails the checksum"
            self._has_checksums = self._has_checksums or intact is True
        return ""

    def _decode(self, packet: Packet | None) -> tuple[list[av.VideoFrame], str]:
        """The frames that come out when `packet` goes in, and what the decoder complained of."""
        with av.logging.Capture(local=False) as complaints:
            try:
                frames = self._stream.codec_context.decode(packet)
            except av.EOFError:
                return [], ""
            except av.FFmpegError as error:
                return [], f"the decoder refuses its packet ({error})"
        name = self._stream.codec_context.name
        text = [
            message.strip()
            for level, source, message in complaints
            if level <= av.logging.ERROR and source == name
        ]
        return frames, f"the decoder conceals damage ({text[0]})" if text else ""

    def _take(self, frame: av.VideoFrame) -> None:
        stamps = [stamp for stamp, _, _ in self._pending]
        if frame.pts in stamps:
            while self._pending[0][0] < frame.pts:
                self._emit(heapq.heappop(self._pending), None)
        entry = heapq.heappop(self._pending) if self._pending else (self._last_stamp, 0, "")
        self._emit(entry, frame)

    def _drain(self) -> None:
        frames, _ = self._decode(None)
        for frame in frames:
            self._take(frame)
        while self._pending:
            self._emit(heapq.heappop(self._pending), None)
        self._ended = True

    def _emit(self, entry: tuple[int, int, str], frame: av.VideoFrame | None) -> None:
        stamp, _, fault = entry
        if self._frames_per_tick is not None:
            while self._index < self._lap_start + self._number(stamp, 0):
                self._append(no_pixels, -1, Reason.BROKEN_FRAME, "its packet is not in the file")
        pts = int(stamp * self._tick_ns)
        if fault or frame is None:
            detail = fault or "the decoder gave nothing for its packet"
            self._append(no_pixels, pts, Reason.BROKEN_FRAME, detail)
        elif frame.is_corrupt:
            self._append(no_pixels, pts, Reason.BROKEN_FRAME, "the decoder calls it damaged")
        elif (found := _frame_shape(frame)) != self._shape:
            detail = f"it has the shape {found}, the line was set up for {self._shape}"
            self._append(no_pixels, pts, Reason.WRONG_SIZE, detail)
        else:
            self._append(self._writer(frame), pts, None, "")

    def _append(self, write: PixelWriter, pts: int, fault: Reason | None, detail: str) -> None:
        if self._index >= self._start:
            where = f"{self._path.name}, frame {self._index}: {detail}" if detail else ""
            self._ready.append(Grab(self._index, write, pts=pts, fault=fault, detail=where))
        self._index += 1

    def _check_end(self) -> None:
        read = self._index - self._lap_start
        expected = self._expected_frames()
        if expected is None and self._container.format.name.startswith("matroska"):
            raise SourceLost(
                f"{self._path}: no end mark after {read} frames: whatever wrote it was cut off; "
                "those frames were inspected, record the rest anew"
            )
        if expected is not None and read < expected:
            raise SourceLost(
                f"{self._path}: ends after {read} of {expected} frames: it is cut off; the frames "
                "that are there were inspected, copy or record the file anew"
            )

    def _expected_frames(self) -> int | None:
        """How many frames the file's own head promises; at least, where the rate may vary."""
        stream = self._stream
        if stream.frames:
            return int(stream.frames)
        rate = stream.average_rate
        seconds = _seconds(stream.metadata.get("DURATION", ""))
        if seconds is None and self._container.duration and len(self._container.streams) == 1:
            seconds = Fraction(self._container.duration, av.time_base)
        if seconds is None or rate is None:
            return None
        exact = self._frames_per_tick is not None
        return round(seconds * rate) if exact else int(seconds * rate) - 1

    # Pixels.

    def _writer(self, frame: av.VideoFrame) -> PixelWriter:
        def write(out: NDArray[np.uint8]) -> None:
            copy_pixels(frame, out, self._reformatter)

        return write


def open_video(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """The container and its first video stream. Raises `SourceError` with the remedy."""
    if not path.is_file():
        raise SourceError(f"{path}: no such file; expected a video, check `path` of the source")
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(local=False):
            container = av.open(str(path))
    except av.EOFError as error:
        raise SourceError(f"{path}: a video without frames; record it anew") from error
    except (av.FFmpegError, OSError) as error:
        raise SourceError(
            f"{path}: not a video that can be read ({error}); expected a whole file such as .mkv, "
            ".mp4 or .avi: a cut-off .mp4 lacks its index and must be copied or recorded anew"
        ) from error
    if not container.streams.video:
        container.close()
        raise SourceError(f"{path}: has no video stream; expected a video file")
    return container, container.streams.video[0]


def probe_video(config: VideoSource) -> tuple[int, int, int]:
    """Height, width and channels, from the head of the file alone."""
    container, stream = open_video(Path(config.path))
    with container:
        return shape_of(Path(config.path), stream.codec_context)


def shape_of(path: Path, context: av.VideoCodecContext) -> tuple[int, int, int]:
    if not context.width or not context.height or context.format is None:
        raise SourceError(
            f"{path}: a video without a readable frame; expected at least one, record it anew"
        )
    return context.height, context.width, channels_of(context.format.name)


def _frame_shape(frame: av.VideoFrame) -> tuple[int, int, int]:
    return frame.height, frame.width, channels_of(frame.format.name)


def _seconds(clock: str) -> Fraction | None:
    """Matroska's DURATION tag, `00:00:01.234000000`, in seconds."""
    parts = clock.split(":")
    if len(parts) != 3 or not all(part.replace(".", "", 1).isdigit() for part in parts):
        return None
    hours, minutes, seconds = (Fraction(part) for part in parts)
    return hours * 3600 + minutes * 60 + seconds
