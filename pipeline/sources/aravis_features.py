"""Aravis cameras: finding them, what they refuse, and their features by name."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.config.sources import AravisSource
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.discover import Found, with_features
from pipeline.sources.genicam import Value
from pipeline.sources.introspection import library

PACKAGES: Final = "gir1.2-aravis-0.8 python3-gi"
_REFUSALS: Final = (
    *("WRONG_FEATURE", "FEATURE_NOT_FOUND", "INVALID_PARAMETER", "GENICAM_NOT_FOUND"),
    *("NO_STREAM_CHANNEL", "PROTOCOL_ERROR_NOT_IMPLEMENTED", "PROTOCOL_ERROR_INVALID_PARAMETER"),
    *("PROTOCOL_ERROR_INVALID_ADDRESS", "PROTOCOL_ERROR_WRITE_PROTECT"),
)
"""Errors of a camera that is there, and that no further try mends."""


def aravis() -> Any:
    """The library; it comes without types. Raises `RuntimeUnavailable`."""
    return library("Aravis", "0.8", PACKAGES)


@contextlib.contextmanager
def asking(camera: str) -> Iterator[None]:
    """What the library raises within is a `ConfigError` (refused) or `SourceLost` (all else)."""
    try:
        yield
    except library("GLib", "2.0", PACKAGES).Error as error:
        errors = aravis().DeviceError
        refused = error.domain != "arv-device-error-quark" or any(
            error.code == getattr(errors, name) for name in _REFUSALS
        )
        if refused:
            raise ConfigError(
                f"camera {camera}: refused ({error.message}), expected settings that it has; "
                "correct its source's features"
            ) from error
        raise SourceLost(
            f"camera {camera}: no answer ({error.message}), expected one; check power, cable and "
            "address, and that no other program holds it"
        ) from error


@dataclass(frozen=True, slots=True)
class Device:
    """A camera that answers a broadcast."""

    id: str
    serial: str
    model: str
    address: str


def list_devices() -> list[Device]:
    """The cameras that answer; it takes a second. Raises `RuntimeUnavailable`."""
    library_ = aravis()
    library_.update_device_list()
    return [
        Device(
            id=library_.get_device_id(index),
            serial=library_.get_device_serial_nbr(index),
            model=f"{library_.get_device_vendor(index)} {library_.get_device_model(index)}",
            address=library_.get_device_address(index) or "",
        )
        for index in range(library_.get_n_devices())
    ]


def find(config: AravisSource) -> tuple[Any, str]:
    """The camera, and its name for errors. Raises `SourceLost`, `ConfigError` for the wrong one."""
    if config.address is not None:
        with asking(config.address):
            camera = aravis().Camera.new(config.address)
            serial = camera.get_device_serial_number()
        if config.serial not in (None, serial):
            raise ConfigError(
                f"camera {config.address}: serial {serial!r} found, expected {config.serial!r}; "
                "correct serial or address"
            )
        return camera, config.address
    devices = list_devices()
    serials = ", ".join(sorted(device.serial for device in devices)) or "none"
    chosen = [device for device in devices if config.serial in (None, device.serial)]
    if not chosen:
        raise SourceLost(
            f"camera {config.serial or 'of any serial'}: not among those that answer ({serials}); "
            "check power and cable; one in another subnet is reached by its `address`"
        )
    if len(chosen) > 1:
        raise ConfigError(
            f"serial {config.serial!r} found in the configuration, expected that of one of the "
            f"cameras that answer: {serials}"
        )
    with asking(chosen[0].serial):
        return aravis().Camera.new(chosen[0].id), chosen[0].serial


def find_cameras() -> list[Found]:
    """The cameras that answer, for `linewatch cameras`. Raises `RuntimeUnavailable`."""
    return [_look_at(device) for device in list_devices()]


def _look_at(device: Device) -> Found:
    found = Found(
        "aravis",
        model=device.model,
        serial=device.serial,
        address=device.address,
        source={"kind": "aravis", "serial": device.serial},
    )
    try:
        with asking(device.serial):
            camera = aravis().Camera.new(device.id)
        check_control(camera, device.serial)
        return with_features(found, AravisFeatures(camera, device.serial))
    except (SourceLost, ConfigError) as error:
        return replace(found, note=str(error))


def check_control(camera: Any, name: str) -> None:
    """Raises `SourceLost` for a camera that another program controls."""
    if camera.is_gv_device() and not camera.get_device().is_controller():
        raise SourceLost(
            f"camera {name}: in use by another program, expected it free; close what holds it"
        )


class AravisFeatures:
    """See `pipeline.sources.genicam.Features`."""

    def __init__(self, camera: Any, name: str) -> None:
        self._aravis = aravis()
        self._camera = camera
        self._name = name

    @property
    def camera(self) -> str:
        return self._name

    def has(self, name: str) -> bool:
        with asking(self._name):
            return bool(self._camera.is_feature_available(name))

    def get(self, name: str) -> Value:
        if self._kind(name) == "command":
            return True
        with asking(self._name):
            value: Value = getattr(self._camera, f"get_{self._kind(name)}")(name)
            return value

    def set(self, name: str, value: Value) -> None:
        kind = self._kind(name)
        given: Value = value
        if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
            given = float(value)
        elif kind == "integer" and isinstance(value, float) and value.is_integer():
            given = int(value)
        types = {"boolean": bool, "string": str, "float": float, "integer": int, "command": bool}
        if type(given) is not types[kind] or (kind == "command" and not given):
            raise ConfigError(
                f"camera {self._name}: {name} {value!r} found in the configuration, expected a "
                f"value of kind {kind}"
            )
        with asking(self._name):
            if kind == "command":
                self._camera.execute_command(name)
            else:
                getattr(self._camera, f"set_{kind}")(name, given)

    def bounds(self, name: str) -> tuple[float, float] | None:
        kind = self._kind(name)
        if kind not in ("float", "integer"):
            return None
        with asking(self._name):
            least, most = getattr(self._camera, f"get_{kind}_bounds")(name)
            return least, most

    def step(self, name: str) -> float:
        kind = self._kind(name)
        if kind not in ("float", "integer"):
            return 0.0
        with asking(self._name):
            step = float(getattr(self._camera, f"get_{kind}_increment")(name))
        return step if step > sys.float_info.min else 0.0  # what the library says for none

    def entries(self, name: str) -> list[str]:
        node = self._camera.get_device().get_feature(name)
        if not isinstance(node, self._aravis.GcEnumeration):
            return []
        with asking(self._name):
            return list(self._camera.dup_available_enumerations_as_strings(name))

    def _kind(self, name: str) -> str:
        """boolean, float, integer or string, as the library's functions are called, or command."""
        library_ = self._aravis
        node = self._camera.get_device().get_feature(name)
        for kind, nodes in (
            ("boolean", (library_.GcBoolean,)),
            ("string", (library_.GcEnumeration, library_.GcString)),
            ("float", (library_.GcFloat,)),
            ("integer", (library_.GcInteger,)),
            ("command", (library_.GcCommand,)),
        ):
            if isinstance(node, nodes):
                return kind
        raise ConfigError(f"camera {self._name}: {name} found, expected a feature that has a value")
