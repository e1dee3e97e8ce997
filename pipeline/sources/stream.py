"""A network camera's RTSP or HTTP stream through PyAV, in whatever codec it comes.

1. A `Reader`'s thread opens, receives, decodes. Frames count from the first key frame on: a camera
   whose key frames are further apart than `frozen_ms` would be opened anew for ever.
2. One packet is one frame: what the decoder swallows is a broken frame, and so is what lost packets
   (RTP says so in the log), a damaged packet or a complaint of the decoder spoil, up to the next
   key frame. Damaged packets are not decoded.
3. A live stream has no end. When it ends without a word, or nothing comes for `read_timeout_ms`,
   the camera is lost.
4. A file over HTTP is read as fast as its frames are taken, and is lost at its end as well.

What a URL says before an @ and behind a ? is in no error, log or setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

import av
import av.logging
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.config.sources import StreamSource, TriggerConfig
from pipeline.errors import SourceLost, hide_secrets
from pipeline.sources.base import Camera, FrameFormat, Grab, PixelWriter, no_pixels
from pipeline.sources.pixels import copy_pixels
from pipeline.sources.reader import OPEN_LIMIT_S, Grabs, Reader
from pipeline.types import Reason

if TYPE_CHECKING:
    Packet = av.Packet[av.VideoStream]

_OPTIONS: Final = {
    "allowed_media_types": "video",
    "analyzeduration": "1000000",  # microseconds: the codec shows at once, a slow rate never would
    "fpsprobesize": "0",
    # A server's answer may name other addresses; files of this machine are not among them.
    "protocol_whitelist": "http,https,httpproxy,tcp,tls,udp,rtp,srtp,crypto",
}
_SUSPECT_PACKETS: Final = 2
"""The packet in which lost ones were noticed, and the next: the parser is one picture behind."""
_FOLLOWS: Final = "it builds on a damaged frame"


class StreamCamera(Camera):
    """See the module. Raises `SourceLost` when the stream cannot be opened."""

    def __init__(self, config: StreamSource, trigger: TriggerConfig) -> None:
        self._config = config
        self._where = hide_secrets(config.url)
        self._reformatter = VideoReformatter()
        self._settings: dict[str, str | int | float | bool] = {}
        self._is_file = False
        self._index = 0  # of the next grab
        self._fed = 0  # packets that should have become frames
        self._suspect = 0
        self._started = self._damaged = False
        self._reader = Reader(self._where, self._grabs, waits=lambda: self._is_file)

    @property
    def format(self) -> FrameFormat:
        return FrameFormat(self._config.height, self._config.width, 3 if self._config.color else 1)

    def read(self, wait_ms: float) -> Grab | None:
        return self._reader.take(wait_ms)

    def settings(self) -> Mapping[str, str | int | float | bool]:
        return self._settings

    def close(self) -> None:
        self._reader.close()

    # The reader's thread

    def _grabs(self) -> Grabs:
        av.logging.set_level(av.logging.INFO)  # at which H.264 speaks of concealing
        av.logging.set_skip_repeated(False)  # the same damage twice is damage twice
        with av.logging.Capture() as complaints, self._opened() as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            context.thread_count = 1  # complaints of other threads would not be captured
            context.flags |= Flags.low_delay
            context.options = {"err_detect": "crccheck+explode"}
            self._is_file = bool(container.duration) and self._config.url.startswith("http")
            self._settings = {"codec": context.name, "transport": self._config.transport}
            yield None
            packets = container.demux(stream)
            while (packet := self._next(packets)) is not None:
                yield from self._frames(packet, stream, complaints)
                complaints.clear()

    def _opened(self) -> av.container.InputContainer:
        config = self._config
        timeout_us = str(round(config.read_timeout_ms * 1000))
        options = _OPTIONS | {"rtsp_transport": config.transport, "timeout": timeout_us}
        try:
            container = av.open(
                config.url,
                options=options,
                timeout=(OPEN_LIMIT_S, config.read_timeout_ms / 1000),
            )
        except (av.FFmpegError, OSError) as error:
            raise self._lost("cannot be opened", error) from None
        if not container.streams.video:
            container.close()
            raise SourceLost(f"{self._where}: no pictures found in the stream; check the `url`")
        return container

    def _next(self, packets: Iterator[Packet]) -> Packet | None:
        """None when the stream has ended."""
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            raise self._lost(f"lost after {self._index} frames", error) from None
        return packet if packet is not None and packet.size else None

    def _lost(self, what: str, error: Exception) -> SourceLost:
        # The error's own text has the whole URL in it.
        why = getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, av.error.ExitError):  # the interruption of our own time limit
            why = "nothing came in time"
        return SourceLost(
            f"{self._where}: {what} ({why}); check the `url`, user and password in it, and that "
            "the camera is on and reachable"
        )

    # One packet in, its frame out.

    def _frames(
        self, packet: Packet, stream: av.VideoStream, complaints: list[tuple[int, str, str]]
    ) -> Iterator[Grab]:
        if any("missed" in message for _, _, message in complaints):
            self._suspect = _SUSPECT_PACKETS
        fault = self._damage_of(packet, stream)
        self._suspect = max(0, self._suspect - 1)
        if not self._started and not packet.is_keyframe:
            return
        self._started = True
        self._fed += 1
        frames: list[av.VideoFrame] = []
        if packet.is_keyframe and not fault and self._damaged:
            stream.codec_context.flush_buffers()
            self._damaged = False
        if self._damaged:
            fault = fault or _FOLLOWS
        elif not fault:
            complaints.clear()
            frames, fault = _decode(packet, stream.codec_context, complaints)
        if fault:
            self._damaged = True
            yield from self._break_pending(0, fault)
            return
        for frame in frames:
            self._fed = max(self._fed, self._index + 1)
            yield self._grab(frame, stream)
        delay = int(stream.codec_context.has_b_frames)
        yield from self._break_pending(delay, "the decoder gave nothing for its packet")

    def _damage_of(self, packet: Packet, stream: av.VideoStream) -> str:
        if self._suspect:
            return "packets were lost on the way"
        if packet.is_corrupt:
            return "its packet is damaged"
        if stream.codec_context.name == "mjpeg" and b"\xff\xd9" not in bytes(packet)[-1024:]:
            return "a JPEG that is cut off before its end mark"
        return ""

    def _break_pending(self, but: int, detail: str) -> Iterator[Grab]:
        """Broken frames for all packets without one, save for the last `but`."""
        while self._fed - self._index > but:
            yield self._next_grab(fault=Reason.BROKEN_FRAME, detail=detail)

    def _grab(self, frame: av.VideoFrame, stream: av.VideoStream) -> Grab:
        pts = -1
        if frame.pts is not None and stream.time_base is not None:
            pts = max(-1, int(frame.pts * stream.time_base * 1_000_000_000))
        config = self._config
        if (frame.width, frame.height) != (config.width, config.height):
            detail = (
                f"{frame.width} x {frame.height} px found, expected {config.width} x "
                f"{config.height} as `width` and `height` of the source say"
            )
            return self._next_grab(pts=pts, fault=Reason.WRONG_SIZE, detail=detail)

        def write(out: NDArray[np.uint8]) -> None:
            copy_pixels(frame, out, self._reformatter)

        return self._next_grab(write, pts)

    def _next_grab(
        self,
        write: PixelWriter = no_pixels,
        pts: int = -1,
        fault: Reason | None = None,
        detail: str = "",
    ) -> Grab:
        index = self._index
        self._index += 1
        where = f"{self._where}, frame {index}: {detail}" if detail else ""
        return Grab(index, write, pts=pts, fault=fault, detail=where)


def _decode(
    packet: Packet, context: av.VideoCodecContext, complaints: list[tuple[int, str, str]]
) -> tuple[list[av.VideoFrame], str]:
    """The frames that come out, and what is wrong with them: decoders conceal damage."""
    try:
        frames = context.decode(packet)
    except av.FFmpegError as error:
        return [], f"the decoder refuses its packet ({error.strerror})"
    for level, source, message in complaints:
        if source == context.name and (level <= av.logging.ERROR or "concealing" in message):
            return frames, f"the decoder conceals damage ({message.strip()})"
    if any(frame.is_corrupt for frame in frames):
        return frames, "the decoder calls it damaged"
    return frames, ""
