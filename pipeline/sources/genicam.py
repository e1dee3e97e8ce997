"""Setting up a GenICam camera by the names of its features, whichever library reaches them.

Every setting is set, read back and compared: cameras round, limit, and now and then ignore what
they are told, without a word. Names are those of the SFNC; older cameras' are tried after them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Final, Protocol

from pipeline.config.sources import GenicamSource, TriggerConfig
from pipeline.errors import ConfigError

Value = bool | int | float | str

_EXPOSURE: Final = ("ExposureTime", "ExposureTimeAbs")
_GAIN: Final = ("Gain", "GainAbs", "GainRaw")
_RATE: Final = ("AcquisitionFrameRate", "AcquisitionFrameRateAbs")
_CLOSE: Final = 0.01
"""Exposure, gain and rate come in the camera's steps: a value read back may be off by so much, as a
share of it or, near 0, in its unit."""
_READ_BACK: Final = (
    *("DeviceVendorName", "DeviceModelName", "DeviceFirmwareVersion"),
    *("DeviceSerialNumber", "DeviceID"),
    *("PixelFormat", "Width", "Height", "OffsetX", "OffsetY"),
    *("BinningHorizontal", "BinningVertical", "ReverseX", "ReverseY"),
    *(*_EXPOSURE, "ExposureAuto", *_GAIN, "GainAuto", *_RATE, "ResultingFrameRate"),
    *("TriggerSelector", "TriggerMode", "TriggerSource", "TriggerActivation"),
    "GevSCPSPacketSize",
)
"""What a recording says of its camera, beside the further features of the configuration."""


class Features(Protocol):
    """A camera's features. All raise `SourceLost` when the camera does not answer."""

    @property
    def camera(self) -> str:
        """The camera's name, for errors."""

    def has(self, name: str) -> bool:
        """Whether the camera has the feature now: some come and go with others."""

    def get(self, name: str) -> Value:
        """The value; of a command, True. Raises `ConfigError` where there is none."""

    def set(self, name: str, value: Value) -> None:
        """Give it the value; `True` carries out a command.

        Raises `ConfigError` for what the library or the camera refuses at once.
        """

    def bounds(self, name: str) -> tuple[float, float] | None:
        """Of a number, where the camera says them."""

    def step(self, name: str) -> float:
        """Of a number; 0 where the camera says none."""

    def entries(self, name: str) -> list[str]:
        """Of an enumeration, those that can be chosen now; empty for all others."""


def configure(features: Features, source: GenicamSource, trigger: TriggerConfig) -> None:
    """Make the camera what the configuration says. Raises `ConfigError` and `SourceLost`."""
    _trigger_off(features)
    for name, value in source.features.items():
        put(features, name, value)
    _put_if_there(features, "AcquisitionMode", "Continuous")
    put(features, "PixelFormat", source.pixel_format)
    for name in ("OffsetX", "OffsetY"):  # an old offset would limit the size
        _put_if_there(features, name, 0)
    put(features, "Width", source.width)
    put(features, "Height", source.height)
    for name, offset in (("OffsetX", source.offset_x), ("OffsetY", source.offset_y)):
        if offset:
            put(features, name, offset)
    if source.exposure_us is not None:
        _put_if_there(features, "ExposureAuto", "Off")
        put(features, _first(features, "exposure_us", _EXPOSURE), source.exposure_us)
    if source.gain is not None:
        _put_if_there(features, "GainAuto", "Off")
        put(features, _first(features, "gain", _GAIN), source.gain)
    _set_trigger(features, source, trigger)
    if source.packet_size is not None:
        put(features, _first(features, "packet_size", ("GevSCPSPacketSize",)), source.packet_size)


def _trigger_off(features: Features) -> None:
    """All triggers off, whatever was set before; the start of a frame stays selected."""
    selectors = features.entries("TriggerSelector") or ["FrameStart"]
    for selected in sorted(selectors, key="FrameStart".__eq__):
        _put_if_there(features, "TriggerSelector", selected)
        _put_if_there(features, "TriggerMode", "Off")


def _set_trigger(features: Features, source: GenicamSource, trigger: TriggerConfig) -> None:
    """The trigger of a frame's start; those that the further features set stay as they are."""
    if "FrameStart" in features.entries("TriggerSelector"):
        put(features, "TriggerSelector", "FrameStart")
    if trigger.mode in ("free", "every"):
        _put_if_there(features, "TriggerMode", "Off")
        if source.frame_rate is not None:
            _put_if_there(features, "AcquisitionFrameRateEnable", True)
            put(features, _first(features, "frame_rate", _RATE), source.frame_rate)
        return
    if trigger.mode == "hardware":
        put(features, "TriggerSource", source.trigger_line)
        edge = {"rising": "RisingEdge", "falling": "FallingEdge"}[source.trigger_edge]
        put(features, "TriggerActivation", edge)
    else:
        put(features, "TriggerSource", "Software")
    put(features, "TriggerMode", "On")


def put(features: Features, name: str, wanted: Value) -> None:
    """Set one feature and see that it has the value. Raises `ConfigError` and `SourceLost`."""
    if not features.has(name):
        raise ConfigError(
            f"camera {features.camera}: no feature {name} found, which is to be {wanted!r}; "
            "expected one that the camera has (and that its other settings do not lock)"
        )
    bounds = features.bounds(name)
    entries = features.entries(name)
    out_of_bounds = (
        bounds is not None
        and isinstance(wanted, int | float)
        and not bounds[0] <= wanted <= bounds[1]
    )
    if out_of_bounds or (entries and wanted not in entries):
        raise ConfigError(
            f"camera {features.camera}: {name} {wanted!r} found in the configuration, expected "
            f"{_offered(features, name)}"
        )
    features.set(name, wanted)
    found = features.get(name)
    if not agrees(wanted, found):
        raise ConfigError(
            f"camera {features.camera}: {name} {found!r} found after it was set to {wanted!r}; "
            f"expected {_offered(features, name)}: write {found!r}, or what the camera keeps"
        )


def agrees(wanted: Value, found: Value) -> bool:
    """Whether a camera has done as it was told, its steps granted."""
    if isinstance(wanted, bool | str) or isinstance(found, bool | str):
        return type(wanted) is type(found) and wanted == found
    if isinstance(wanted, int) and isinstance(found, int):
        return wanted == found
    return math.isclose(wanted, found, rel_tol=_CLOSE, abs_tol=_CLOSE)


def read_back(features: Features, source: GenicamSource) -> Mapping[str, Value]:
    """The settings that the camera has now, by their names. Raises `SourceLost`."""
    found: dict[str, Value] = {}
    for name in (*_READ_BACK, *source.features):
        with contextlib.suppress(ConfigError):  # there, and not to be read now
            if features.has(name):
                found[name] = features.get(name)
    return found


def _put_if_there(features: Features, name: str, wanted: Value) -> None:
    if features.has(name):
        put(features, name, wanted)


def _first(features: Features, key: str, names: tuple[str, ...]) -> str:
    for name in names:
        if features.has(name):
            return name
    raise ConfigError(
        f"camera {features.camera}: none of the features {', '.join(names)} found, expected one "
        f"for {key}; leave {key} out"
    )


def _offered(features: Features, name: str) -> str:
    if entries := features.entries(name):
        return f"one of {', '.join(entries)}"
    bounds = features.bounds(name)
    if bounds is None:
        return "a value that the camera takes"
    step = features.step(name)
    return f"{bounds[0]:.9g} to {bounds[1]:.9g}" + (f" in steps of {step:g}" if step else "")
