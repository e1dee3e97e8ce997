"""Basler cameras, GigE, USB3 and emulated ones, through pypylon (extra `basler`).

`PYLON_CAMEMU=4` in the environment gives four emulated ones, with serial numbers from 0815-0000 on.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config.sources import BaslerSource, TriggerConfig
from pipeline.errors import ConfigError, RuntimeUnavailable, SourceLost
from pipeline.sources.base import Camera, FrameFormat, Grab, no_pixels
from pipeline.sources.block_ids import FrameCounter
from pipeline.sources.discover import Found, with_features
from pipeline.sources.genicam import Value, configure, read_back
from pipeline.sources.pixel_formats import pixel_format, unpack
from pipeline.types import Reason

_GLANCE_MS: Final = 100
"""A wait for a frame is cut into such pieces: signals, and the loss of the camera, come between."""
_READY_MS: Final = 200
"""How long a trigger may wait until the camera has done with the one before it."""
_NO_ID: Final = 2**64 - 1
_TICKS: Final = "GevTimestampTickFrequency"
"""Of the time stamps of older GigE cameras, per second; all others count nanoseconds."""


@dataclass(frozen=True, slots=True)
class Pylon:
    """The library's two modules. Their types are not known to a type checker."""

    pylon: Any
    genicam: Any

    @staticmethod
    def load() -> Pylon:
        """Raises `RuntimeUnavailable` where it is not installed."""
        try:
            with warnings.catch_warnings():
                # Python warns of types of it that name no module; a warning that is an error would
                # crash the process.
                warnings.simplefilter("ignore", DeprecationWarning)
                from pypylon import genicam, pylon
        except ImportError as error:
            raise RuntimeUnavailable(
                f"no pypylon on this machine ({error}), and Basler cameras need it: "
                "pip install 'linewatch[basler]'"
            ) from error
        return Pylon(pylon, genicam)

    def devices(self) -> list[Any]:
        """What is connected. Raises `SourceLost` when pylon cannot look."""
        try:
            return list(self.pylon.TlFactory.GetInstance().EnumerateDevices())
        except self.genicam.GenericException as error:
            raise SourceLost(f"pylon cannot look for Basler cameras: {_said(error)}") from error

    def open(self, device: Any) -> Any:
        """The opened camera of pylon's. Raises `SourceLost`."""
        camera = self.pylon.InstantCamera()
        try:
            camera.Attach(self.pylon.TlFactory.GetInstance().CreateDevice(device))
            camera.Open()
        except self.genicam.GenericException as error:
            self.close(camera)
            raise SourceLost(
                f"Basler camera {_name(device)} is connected and does not open, perhaps because "
                f"another program has it; close that: {_said(error)}"
            ) from error
        return camera

    def close(self, camera: Any) -> None:
        """Whatever state it is in. The device has to be destroyed too, or its threads stay."""
        for end in (camera.StopGrabbing, camera.Close, camera.DestroyDevice):
            with suppress(self.genicam.GenericException):
                end()


class PylonFeatures:
    """The features of an open camera, see `pipeline.sources.genicam.Features`."""

    def __init__(self, library: Pylon, camera: Any) -> None:
        self._library = library
        self._camera = camera
        self.camera = _name(camera.GetDeviceInfo())

    def has(self, name: str) -> bool:
        with self.answers():
            node = self._node(name)
            genicam = self._library.genicam
            return bool(genicam.IsReadable(node) or genicam.IsWritable(node))

    def get(self, name: str) -> Value:
        with self.answers():
            node = self._node(name)
            if isinstance(node, self._library.pylon.CommandParameter):
                return True
            value = node.GetValue()
            return value if isinstance(value, bool | int | float) else str(value)

    def set(self, name: str, value: Value) -> None:
        node = self._node(name)
        is_command = isinstance(node, self._library.pylon.CommandParameter)
        expected, allowed = self._kind(node)
        if isinstance(value, float) and expected == "a whole number" and value.is_integer():
            value = int(value)
        if type(value) not in allowed or (is_command and value is False):
            raise ConfigError(f"camera {self.camera}: {name} {value!r} found, expected {expected}")
        try:
            if is_command:
                node.Execute()
            else:
                node.SetValue(value)
        except self._library.genicam.GenericException as error:
            if self._camera.IsCameraDeviceRemoved():
                raise self.lost(error) from error
            raise ConfigError(
                f"camera {self.camera}: {name} {value!r} found, expected a value that the camera "
                f"takes as it is set now: {_said(error)}"
            ) from error

    def bounds(self, name: str) -> tuple[float, float] | None:
        with self.answers():
            node = self._node(name)
            return (node.GetMin(), node.GetMax()) if self._is_number(node) else None

    def step(self, name: str) -> float:
        """Of a number; 0 where the camera says none."""
        with self.answers():
            node = self._node(name)
            if not self._is_number(node):
                return 0.0
            if isinstance(node, self._library.pylon.FloatParameter) and not node.HasInc():
                return 0.0
            return float(node.GetInc())

    def entries(self, name: str) -> list[str]:
        with self.answers():
            node = self._node(name)
            if not isinstance(node, self._library.pylon.EnumParameter):
                return []
            return [str(entry) for entry in node.GetSettableValues()]

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Turns what pylon raises into `SourceLost`."""
        try:
            yield
        except self._library.genicam.GenericException as error:
            raise self.lost(error) from error

    def lost(self, error: Exception) -> SourceLost:
        return SourceLost(f"Basler camera {self.camera}: {_said(error)}")

    def _node(self, name: str) -> Any:
        return self._camera.GetNodeMap().GetNode(name)

    def _is_number(self, node: Any) -> bool:
        pylon = self._library.pylon
        return isinstance(node, pylon.IntegerParameter | pylon.FloatParameter)

    def _kind(self, node: Any) -> tuple[str, tuple[type, ...]]:
        """What values a feature takes, in words and as types."""
        pylon = self._library.pylon
        if isinstance(node, pylon.CommandParameter):
            return "true, which carries out the command", (bool,)
        if isinstance(node, pylon.BooleanParameter):
            return "true or false", (bool,)
        if isinstance(node, pylon.IntegerParameter):
            return "a whole number", (int,)
        if isinstance(node, pylon.FloatParameter):
            return "a number", (int, float)
        return "text", (str,)


class BaslerCamera(Camera):
    """See `Camera`. Each setting is set, read back and compared (`pipeline.sources.genicam`)."""

    def __init__(self, config: BaslerSource, trigger: TriggerConfig) -> None:
        """Raises `SourceLost`, `ConfigError` and `RuntimeUnavailable`."""
        self._pixels = pixel_format(config.pixel_format)
        self._format = self._pixels.of(config.height, config.width)
        self._triggered = trigger.mode in ("software", "encoder")
        self._frames = FrameCounter()
        self._library = Pylon.load()
        self._camera = self._library.open(_choose(self._library.devices(), config))
        try:
            self.features = PylonFeatures(self._library, self._camera)
            configure(self.features, config, trigger)
            self._settings = {
                "DeviceSerialNumber": self._camera.GetDeviceInfo().GetSerialNumber(),
                **read_back(self.features, config),
            }
            self._ticks_per_s = 10**9
            if self.features.has(_TICKS):
                self._ticks_per_s = int(self.features.get(_TICKS)) or 10**9
            with self.features.answers():
                self._waits = self._camera.CanWaitForFrameTriggerReady()
                self._camera.StartGrabbing(self._library.pylon.GrabStrategy_OneByOne)
        except BaseException:
            self.close()
            raise

    @property
    def format(self) -> FrameFormat:
        return self._format

    def read(self, wait_ms: float) -> Grab | None:
        until = time.monotonic() + wait_ms / 1000
        while True:
            left_ms = max(0, math.ceil((until - time.monotonic()) * 1000))
            with self.features.answers():
                self._check()  # what is left in the buffers of a camera that is gone would go on
                result = self._camera.RetrieveResult(
                    min(left_ms, _GLANCE_MS), self._library.pylon.TimeoutHandling_Return
                )
                if result.IsValid():
                    return self._grab(result)
            if time.monotonic() >= until:
                return None

    def trigger(self) -> None:
        if not self._triggered:
            super().trigger()
        pylon = self._library.pylon
        with self.features.answers():
            if self._waits:
                self._camera.WaitForFrameTriggerReady(_READY_MS, pylon.TimeoutHandling_Return)
            self._camera.ExecuteSoftwareTrigger()
            self._check()

    def settings(self) -> Mapping[str, Value]:
        return self._settings

    def close(self) -> None:
        self._library.close(self._camera)

    def _check(self) -> None:
        if self._camera.IsCameraDeviceRemoved() or not self._camera.IsGrabbing():
            raise SourceLost(
                f"Basler camera {self.features.camera} is not there any more; check its power and "
                "cable"
            )

    def _grab(self, result: Any) -> Grab:
        """The frame in pylon's buffer, which it gets back when the pixels are out, or dropped."""
        number = result.GetBlockID()
        index = self._frames.next() if number == _NO_ID else self._frames.index(number)
        ticks = result.GetTimeStamp()
        pts = ticks * 10**9 // self._ticks_per_s if ticks else -1
        fault, detail = self._fault(result)
        if fault is not None:
            result.Release()
            return Grab(index, no_pixels, pts, fault=fault, detail=detail)

        def write(out: NDArray[Any]) -> None:
            buffer = np.frombuffer(result.GetMemoryView(), np.uint8)
            unpack(self._pixels, buffer, out, result.GetPaddingX())
            del buffer
            result.Release()

        return Grab(index, write, pts)

    def _fault(self, result: Any) -> tuple[Reason | None, str]:
        if not result.GrabSucceeded():
            said = result.GetErrorDescription() or "pylon does not say why"
            return Reason.BROKEN_FRAME, f"{said} (error 0x{result.GetErrorCode():08x})"
        height, width = self._format.height, self._format.width
        if (result.GetHeight(), result.GetWidth()) != (height, width):
            return Reason.WRONG_SIZE, (
                f"a frame of {result.GetWidth()} x {result.GetHeight()} px found, expected "
                f"{width} x {height} px"
            )
        needed = self._pixels.frame_bytes(height, width, result.GetPaddingX())
        if result.GetPayloadSize() < needed:
            return Reason.BROKEN_FRAME, (
                f"{result.GetPayloadSize()} bytes found, expected the {needed} of a frame in "
                f"{self._pixels.name}; is the camera's compression on?"
            )
        return None, ""


def find_cameras() -> list[Found]:
    """The cameras that are connected. Raises `RuntimeUnavailable` and `SourceLost`."""
    library = Pylon.load()
    return [_look_at(library, device) for device in library.devices()]


def _look_at(library: Pylon, device: Any) -> Found:
    serial = device.GetSerialNumber()
    found = Found(
        "basler",
        model=device.GetModelName(),
        serial=serial,
        address=device.GetIpAddress() if device.IsIpAddressAvailable() else device.GetDeviceClass(),
        source={"kind": "basler", "serial": serial},
    )
    try:
        camera = library.open(device)
    except SourceLost as error:
        return replace(found, note=str(error))
    try:
        return with_features(found, PylonFeatures(library, camera))
    finally:
        library.close(camera)


def _choose(devices: list[Any], config: BaslerSource) -> Any:
    wanted = [
        f"{key} {value}"
        for key, value in (("serial", config.serial), ("address", config.address))
        if value is not None
    ]
    fits = [
        device
        for device in devices
        if config.serial in (None, device.GetSerialNumber())
        and config.address in (None, device.GetIpAddress())
    ]
    connected = ", ".join(_name(device) for device in devices) or "none"
    if not fits:
        raise SourceLost(
            f"no Basler camera {' and '.join(wanted)} found, expected it to be connected, powered "
            f"and, by network, in this computer's subnet; connected: {connected}"
        )
    if len(fits) > 1:
        raise ConfigError(
            f"{len(fits)} Basler cameras found, expected one, or a `serial` that says which: "
            f"{connected}"
        )
    return fits[0]


def _name(device: Any) -> str:
    return f"{device.GetModelName()} {device.GetSerialNumber()}"


def _said(error: Exception) -> str:
    """What pylon says, without the place in its own source."""
    return str(error).partition(" : ")[0].strip()
