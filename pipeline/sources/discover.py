"""Which cameras are connected: a row of `FAMILIES` names the function that looks for a kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Final

from pipeline.errors import RuntimeUnavailable, SourceError
from pipeline.sources.genicam import Features, Value
from pipeline.sources.pixel_formats import PIXEL_FORMATS

FAMILIES: Final[dict[str, str]] = {
    "basler": "pipeline.sources.basler:find_cameras",
    "aravis": "pipeline.sources.aravis_features:find_cameras",
}
"""Kind -> a function without arguments that returns a list of `Found`, as `module:name`.

It raises `RuntimeUnavailable` where its library is not installed.
"""


@dataclass(frozen=True, slots=True)
class Found:
    """A camera that is connected."""

    kind: str
    model: str
    serial: str
    address: str
    """IP address, or port."""
    formats: tuple[str, ...] = ()
    """Pixel formats of the camera that linewatch reads."""
    source: Mapping[str, Value] = field(default_factory=dict)
    """What a configuration needs for it under `source`, `kind` first."""
    note: str = ""
    """Why there is nothing more to say of it."""


def discover() -> tuple[list[Found], dict[str, str]]:
    """The cameras of all kinds, and of the kinds that cannot be looked for, why."""
    found: list[Found] = []
    notes: dict[str, str] = {}
    for kind, where in FAMILIES.items():
        module, name = where.split(":")
        try:
            found += getattr(import_module(module), name)()
        except (RuntimeUnavailable, SourceError) as error:
            notes[kind] = str(error)
    return found, notes


def with_features(camera: Found, features: Features) -> Found:
    """A GenICam camera with what its features say: its formats, and how it is set now."""
    formats = tuple(name for name in features.entries("PixelFormat") if name in PIXEL_FORMATS)
    if not formats:
        return replace(camera, note="it has no pixel format that linewatch reads")
    current = features.get("PixelFormat")
    pixels = PIXEL_FORMATS[str(current) if current in formats else formats[0]]
    source = {
        **camera.source,
        "width": features.get("Width"),
        "height": features.get("Height"),
        "pixel_format": pixels.name,
        "color": pixels.channels == 3 or bool(pixels.bayer),
    }
    return replace(camera, formats=formats, source=source)


def as_yaml(found: Iterable[Found]) -> str:
    """The cameras as entries of a station's configuration; in comments those that did not open."""
    lines = ["cameras:"]
    for number, camera in enumerate(found, 1):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{camera.kind}-{camera.serial or number}")[:48]
        lines.append(f"  # {camera.model}, {camera.address}")
        entry = [f"  {name}:", "    source:"]
        entry += [f"      {key}: {json.dumps(value)}" for key, value in camera.source.items()]
        if camera.formats:
            entry.append(f"      # pixel_format: one of {', '.join(camera.formats)}")
        if camera.note:
            lines.append(f"  # {' '.join(camera.note.split())}")
            entry = [f"  # {line[2:]}" for line in entry]
        lines += entry
    return "\n".join(lines)
