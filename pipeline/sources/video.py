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
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
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
from pipeline.sources.packets import is_reset, slices_intact
from pipeline.sources.pixels import channels_of, copy_pixels
from pipeline.sources.recording import RECORDING_TAG
from pipeline.types import Reason

if TYPE_CHECKING:
    Packet = av.Packet[av.VideoStream]

_MAX_PENDING: Final = 64
"""Packets that a decoder may hold back; codecs reorder within 16."""
_FOLLOWS: Final = "it builds on a damaged frame"


@dataclass(order=True, slots=True)
class _Pending:
    """A packet that went in and whose frame has not come out."""

    stamp: int
    order: int
    group: int = field(compare=False)
    """Counts key frames: a damaged packet spoils what follows in its group."""
    fault: str = field(default="", compare=False)


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
        self._shape: tuple[int, int, int] | None = None
        self._has_checksums = False
        self._index = self._start = self._lap_start = 0  # `_index`: of the next frame to come out
        self._open()
        try:
            while not self._ready and not self._ended:  # the first frame sets the shape
                self._advance()
            if not self._ready:
                raise SourceError(f"{self._path}: a video without frames; record it anew")
            if self._shape is None:
                self._shape = _shape_of(self._path, self._stream.codec_context)
            if start:
                self._go_to(start)
        except BaseException:
            self._container.close()
            raise

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        assert self._shape is not None
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
        self._is_ffv1 = context.name == "ffv1"
        tick = self._stream.time_base or Fraction(1, 1000)
        self._tick_ns = tick * 1_000_000_000
        self._frames_per_tick: Fraction | None = None
        if RECORDING_TAG in self._container.metadata and self._stream.average_rate:
            self._frames_per_tick = tick * self._stream.average_rate
            self._has_checksums = True
        self._packets = self._container.demux(self._stream)
        self._pending: list[_Pending] = []
        self._order = self._group = self._discarded = 0
        self._last_stamp = -1
        self._last_shown: int | None = None
        self._widest_gap = 0
        self._damaged = False
        self._broken_below: int | None = None
        self._skip_below: int | None = None
        self._ended = False

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _next_packet(self) -> Packet | None:
        try:
            packet = next(self._packets, None)
        except (av.FFmpegError, OSError) as error:
            raise SourceLost(
                f"{self._path}: cannot be read any more after {self._index} frames ({error}); "
                "check the disk, or copy the file anew"
            ) from error
        return packet if packet is not None and packet.size else None

    def _stamp_of(self, packet: Packet) -> int:
        candidates = (packet.pts, packet.dts, self._last_stamp + 1)
        self._last_stamp = next(stamp for stamp in candidates if stamp is not None)
        return self._last_stamp

    def _go_to(self, start: int) -> None:
        """Go on at frame `start`: from a key frame at or before it, known by its time stamp.

        Only a key frame whose followers are all shown after it will do: what comes before it in an
        open group would have to be decoded first.
        """
        self._ready.clear()
        self._reopen()
        codec = self._stream.codec_context.name
        found: list[tuple[int, bool]] = []
        while (packet := self._next_packet()) is not None:
            if not packet.is_discard:
                is_start = packet.is_keyframe and is_reset(codec, packet)
                found.append((self._stamp_of(packet), is_start))
            if not self._loop and len(found) > start + _MAX_PENDING:
                break
        stamps = sorted(stamp for stamp, _ in found)
        numbers = [self._number(stamp, rank) for rank, stamp in enumerate(stamps)]
        wanted = start % (numbers[-1] + 1) if self._loop else start
        first_later = found[-1][0]
        entry = (0, stamps[0])
        for stamp, is_key in reversed(found):
            first_later = min(first_later, stamp)
            number = numbers[bisect_left(stamps, stamp)]
            if is_key and stamp == first_later and number <= wanted:
                entry = (number, stamp)
                break
        self._reopen()
        self._start = start
        self._lap_start = start - wanted
        self._index = self._lap_start + entry[0]
        if entry[0]:
            self._skip_below = entry[1]
            self._container.seek(entry[1], stream=self._stream)

    def _number(self, stamp: int, rank: int) -> int:
        return rank if self._frames_per_tick is None else round(stamp * self._frames_per_tick)

    # One packet in, any number of frames out, in the order of their time stamps.

    def _advance(self) -> None:
        with av.logging.Capture(local=False) as complaints:
            packet = self._next_packet()
        if packet is None:
            self._drain()
            return
        stamp = self._stamp_of(packet)
        if packet.is_discard or (self._skip_below is not None and stamp < self._skip_below):
            self._discarded += packet.is_discard
            return
        if packet.is_keyframe:
            if self._damaged:
                self._broken_below = stamp  # frames that are shown before it and come after it
            self._damaged = False
            self._group += 1
        entry = _Pending(stamp, self._order, self._group)
        self._order += 1
        heapq.heappush(self._pending, entry)
        entry.fault = self._damage_of(packet) or self._said(complaints)
        frames: list[av.VideoFrame] = []
        if not (self._is_ffv1 and entry.fault):
            frames, said = self._decode(packet)
            entry.fault = entry.fault or said
        if entry.fault:
            self._damaged = True
        elif self._damaged or (self._broken_below is not None and stamp < self._broken_below):
            entry.fault = _FOLLOWS
        for frame in frames:
            self._take(frame)
        reorders = bool(self._stream.codec_context.has_b_frames)
        while self._pending and (
            len(self._pending) > _MAX_PENDING or (self._pending[0].fault and not reorders)
        ):
            self._emit(heapq.heappop(self._pending), None)

    def _damage_of(self, packet: Packet) -> str:
        if packet.is_corrupt:
            return "the file is damaged at its packet"
        if self._is_ffv1:
            intact = slices_intact(packet)
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
        return frames, self._said(complaints)

    def _said(self, complaints: list[tuple[int, str, str]]) -> str:
        name = self._stream.codec_context.name
        for level, source, message in complaints:
            if level <= av.logging.ERROR and source == name:
                return f"the decoder conceals damage ({message.strip()})"
        return ""

    def _take(self, frame: av.VideoFrame) -> None:
        if not any(frame.pts in (entry.stamp, None) for entry in self._pending):
            return  # a decoder's invention, made where it missed a frame
        while frame.pts is not None and self._pending[0].stamp < frame.pts:
            lost = heapq.heappop(self._pending)
            if not lost.fault:
                self._break_followers_of(lost)
            self._emit(lost, None)
        self._emit(heapq.heappop(self._pending), frame)

    def _break_followers_of(self, lost: _Pending) -> None:
        for entry in self._pending:
            if entry.group == lost.group and entry.order > lost.order and not entry.fault:
                entry.fault = _FOLLOWS
        self._damaged = self._damaged or lost.group == self._group

    def _drain(self) -> None:
        frames, _ = self._decode(None)
        for frame in frames:
            self._take(frame)
        while self._pending:
            self._emit(heapq.heappop(self._pending), None)
        self._ended = True

    def _emit(self, entry: _Pending, frame: av.VideoFrame | None) -> None:
        stamp, fault = entry.stamp, entry.fault
        if self._last_shown is not None:
            self._widest_gap = max(self._widest_gap, stamp - self._last_shown)
        self._last_shown = stamp
        if self._frames_per_tick is not None:
            while self._index < self._lap_start + self._number(stamp, 0):
                self._append(no_pixels, -1, Reason.BROKEN_FRAME, "its packet is not in the file")
        pts = int(stamp * self._tick_ns)
        if fault or frame is None:
            detail = fault or "the decoder gave nothing for its packet"
            self._append(no_pixels, pts, Reason.BROKEN_FRAME, detail)
        elif frame.is_corrupt:
            self._append(no_pixels, pts, Reason.BROKEN_FRAME, "the decoder calls it damaged")
        elif (found := _frame_shape(frame)) != (self._shape or found):
            detail = f"it has the shape {found}, the first frame has {self._shape}"
            self._append(no_pixels, pts, Reason.WRONG_SIZE, detail)
        else:
            self._shape = found
            self._append(self._writer(frame), pts, None, "")

    def _append(self, write: PixelWriter, pts: int, fault: Reason | None, detail: str) -> None:
        if self._index >= self._start:
            where = f"{self._path.name}, frame {self._index}: {detail}" if detail else ""
            # The first frame of a lap does not go on where the file's last one ended.
            follows = self._index != self._lap_start
            grab = Grab(self._index, write, pts=pts, fault=fault, detail=where, follows=follows)
            self._ready.append(grab)
        self._index += 1

    def _check_end(self) -> None:
        """Raise `SourceLost` if the file's head promises more than the file has."""
        read = self._index - self._lap_start
        stream = self._stream
        length = self._length()
        if stream.frames:
            promised, is_cut = str(stream.frames), read + self._discarded < stream.frames
        elif length is None:
            promised, is_cut = (
                "an unknown number of (no end mark)",
                self._container.format.name.startswith("matr"),
            )
        elif self._frames_per_tick is not None:
            count = round(length * self._frames_per_tick)
            promised, is_cut = str(count), read < count
        else:
            seconds = float(length * self._tick_ns / 1_000_000_000)
            rate = stream.average_rate or Fraction(25)
            gap = max(Fraction(self._widest_gap), 1_000_000_000 / (rate * self._tick_ns))
            promised, is_cut = f"{seconds:.3f} s of", length > (self._last_shown or 0) + 2 * gap
        if is_cut:
            raise SourceLost(
                f"{self._path}: ends after {read} of {promised} frames: it is cut off; the frames "
                "that are there were inspected, copy or record the file anew"
            )

    def _length(self) -> Fraction | None:
        """The length that the file's head promises, in ticks."""
        seconds = _seconds(self._stream.metadata.get("DURATION", ""))
        if seconds is None and self._container.duration and len(self._container.streams) == 1:
            seconds = Fraction(self._container.duration, av.time_base)
        return None if seconds is None else seconds * 1_000_000_000 / self._tick_ns

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
    av.logging.set_skip_repeated(False)  # the same damage twice is damage twice
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
    """Height, width and channels, by decoding the first frame."""
    source = VideoRecording(config)
    source.close()
    return source.shape_hwc


def _shape_of(path: Path, context: av.VideoCodecContext) -> tuple[int, int, int]:
    if not context.width or not context.height or context.format is None:
        raise SourceError(f"{path}: a video without frames that can be read; record it anew")
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
