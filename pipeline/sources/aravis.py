"""Any GigE Vision or USB3 Vision camera, through Aravis.

Aravis is Debian's: `apt-get install gir1.2-aravis-0.8 python3-gi`. How this Python reaches it is in
`pipeline.sources.introspection`.

1. The camera is found by its address, or by its serial number among all that answer a broadcast; it
   is set up (`pipeline.sources.genicam`), and sends into eight buffers of ours.
2. Missing packets are asked for again. A frame that stays incomplete all the same is a grab with a
   fault: it has its place in the count.
3. Whoever controls a camera has to remind it every second, which a thread of Aravis does. A camera
   that does not answer for some seconds, or that another program took, is lost.

Frames come through ordinary sockets, as a daemon without privileges has them. Big frames want a
socket buffer that the kernel grants only if told: `sysctl -w net.core.rmem_max=33554432`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.sources import AravisSource, TriggerConfig
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.aravis_features import AravisFeatures, aravis, asking, check_control, find
from pipeline.sources.base import Camera, FrameFormat, Grab, no_pixels
from pipeline.sources.block_ids import FrameCounter
from pipeline.sources.genicam import Value, configure, read_back
from pipeline.sources.pixel_formats import pixel_format, unpack
from pipeline.types import Reason

_BUFFERS: Final = 8
_SOCKET_FRAMES: Final = 2
"""The socket's buffer holds so many: what comes while nobody reads it."""
_NO_ID: Final = 2**64 - 1
_CLOSE_S: Final = 1.0
"""So long closing waits for the camera: one that is away takes Aravis several seconds."""


class AravisCamera(Camera):
    """A camera under our control, sending. See `Camera`."""

    def __init__(self, config: AravisSource, trigger: TriggerConfig) -> None:
        """Raises `SourceLost`, `ConfigError` and `RuntimeUnavailable`."""
        self._aravis = aravis()
        self._config = config
        self._pixels = pixel_format(config.pixel_format)
        self._lost = threading.Event()
        self._arrays: dict[Any, NDArray[np.uint8]] = {}
        self._held: Any = None
        self._frames = FrameCounter()
        self._stream: Any = None
        self._watch: int | None = None
        self._camera, self._name = find(config)
        try:
            with asking(self._name):
                self._open(trigger)
        except BaseException:
            self.close()
            raise

    def _open(self, trigger: TriggerConfig) -> None:
        camera, name = self._camera, self._name
        features = AravisFeatures(camera, name)
        is_gige = camera.is_gv_device()
        check_control(camera, name)
        lost = self._lost  # a reference to the camera itself would keep it alive
        self._watch = camera.get_device().connect("control-lost", lambda device: lost.set())
        # One whose owner was killed may still be sending, and then its size cannot be set.
        with contextlib.suppress(ConfigError), asking(name):
            camera.stop_acquisition()
        if is_gige:
            camera.gv_set_stream_options(self._aravis.GvStreamOption.PACKET_SOCKET_DISABLED)
            if self._config.packet_size is not None:
                keep = self._aravis.GvPacketSizeAdjustment.NEVER
                camera.gv_set_packet_size_adjustment(keep)
        configure(features, self._config, trigger)
        self._code = camera.get_pixel_format()
        size = camera.get_payload()
        needed = self._pixels.frame_bytes(self._config.height, self._config.width)
        if size < needed:
            raise ConfigError(
                f"camera {name}: payload of {size} bytes found, expected at least {needed} for "
                f"{self._config.width} x {self._config.height} px in {self._pixels.name}"
            )
        self._stream = camera.create_stream(None)
        if is_gige:
            self._stream.set_property("packet-resend", self._aravis.GvStreamPacketResend.ALWAYS)
            self._stream.set_property("socket-buffer", self._aravis.GvStreamSocketBuffer.FIXED)
            self._stream.set_property("socket-buffer-size", _SOCKET_FRAMES * size)
        for _ in range(_BUFFERS):
            array = np.zeros(size, np.uint8)
            # The library writes into the array: it is kept for as long as the stream is.
            buffer = self._aravis.Buffer.new(size, array.ctypes.data)
            self._arrays[buffer] = array
            self._push(buffer)
        self._settings = read_back(features, self._config)
        camera.start_acquisition()

    @property
    def format(self) -> FrameFormat:
        return self._pixels.of(self._config.height, self._config.width)

    def read(self, wait_ms: float) -> Grab | None:
        """See `Camera.read`. The grab before this one cannot be written any more."""
        self._give_back()
        buffer = self._stream.timeout_pop_buffer(max(0, round(1000 * wait_ms)))
        if buffer is None:
            if self._lost.is_set():
                raise SourceLost(
                    f"camera {self._name}: it does not answer any more, or another "
                    "program took it; check power and cable"
                )
            return None
        self._held = buffer
        number = buffer.get_frame_id()
        index = self._frames.next() if number == _NO_ID else self._frames.index(number)
        if (fault := self._fault_of(buffer)) is not None:
            reason, detail = fault
            which = "without its id" if number == _NO_ID else f"id {number}"
            where = f"camera {self._name}, frame {which}: {detail}"
            return Grab(index, no_pixels, fault=reason, detail=where)
        padding = buffer.get_image_padding()[0]
        array = self._arrays[buffer]

        def write(out: NDArray[Any]) -> None:
            unpack(self._pixels, array, out, padding)

        return Grab(index, write, pts=buffer.get_timestamp())

    def _fault_of(self, buffer: Any) -> tuple[Reason, str] | None:
        status = buffer.get_status()
        if status != self._aravis.BufferStatus.SUCCESS:
            return Reason.BROKEN_FRAME, f"it did not arrive whole ({status.value_nick})"
        kinds = self._aravis.BufferPayloadType
        if buffer.get_payload_type() not in (kinds.IMAGE, kinds.EXTENDED_CHUNK_DATA):
            kind = buffer.get_payload_type().value_nick
            return Reason.BROKEN_FRAME, f"payload of type {kind} found, expected an image"
        found = buffer.get_image_width(), buffer.get_image_height()
        if found != (self._config.width, self._config.height):
            wanted = f"{self._config.width} x {self._config.height}"
            return Reason.WRONG_SIZE, f"{found[0]} x {found[1]} px found, expected {wanted}"
        if buffer.get_image_pixel_format() != self._code:
            code = buffer.get_image_pixel_format()
            return Reason.BROKEN_FRAME, f"pixel format {code:#x} found, expected {self._code:#x}"
        return None

    def trigger(self) -> None:
        with asking(self._name):
            self._camera.software_trigger()

    def settings(self) -> Mapping[str, Value]:
        return self._settings

    def close(self) -> None:
        """Release the camera; in the background, where it does not answer."""
        if self._camera is None:
            return
        self._held = None
        if self._watch is not None:  # a device on its way out must not call
            self._camera.get_device().disconnect(self._watch)
            self._watch = None
        held = [self._stream, self._camera, self._arrays]
        self._stream = self._camera = None
        self._arrays = {}
        release = threading.Thread(
            target=_release, args=(held, self._lost.is_set()), name="aravis-release", daemon=True
        )
        release.start()
        release.join(_CLOSE_S)

    def _give_back(self) -> None:
        if self._held is not None:
            self._push(self._held)
            self._held = None

    def _push(self, buffer: Any) -> None:
        # A frame that loses its first packet, which has the id, would keep that of an older one.
        buffer.set_frame_id(_NO_ID)
        self._stream.push_buffer(buffer)


def _release(held: list[Any], is_lost: bool) -> None:
    """Let go of [stream, camera, arrays] in this order: the library writes into the arrays."""
    if held[0] is not None and not is_lost:
        with contextlib.suppress(ConfigError, SourceLost), asking(""):
            held[1].stop_acquisition()
    while held:
        held.pop(0)
