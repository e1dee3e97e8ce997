"""What is published, byte for byte: the only encoder and decoder. Needs msgpack alone.

A message has two parts: the topic (`frame/<camera>/`, `part/` or `heartbeat/`, always ending in a
slash, so that no topic is a prefix of another's name) and a msgpack map:

    v     1
    kind  "frame", "part" or "heartbeat"
    ...   the fields of `Verdict`, `PartVerdict` or `Heartbeat`, by name

Boxes are [x0, y0, x1, y1], half-open, in frame pixels. Unknown fields of a newer minor version are
passed over; a missing field, another type or a newer `v` is a `WireError`. So is, on both sides, a
number that is NaN or infinite, and a label that does not go with its reason: `pass` is "ok", `fail`
is "defect", all other reasons are `invalid`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from pipeline.errors import WireError
from pipeline.types import Defect, Label, PartVerdict, Reason, Verdict

VERSION = 1
HEARTBEAT_TOPIC = "heartbeat/"
MAX_BYTES = 2**20
_LIMITS = {
    "max_str_len": 4096,
    "max_bin_len": 4096,
    "max_ext_len": 0,
    "max_array_len": 4096,
    "max_map_len": 4096,
}


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The publisher lives; `last` is the last seq of each topic, `stream_id` whose seqs these are.

    `ready`: whether an engine is loaded. A line that is not ready gives `invalid` alone.
    """

    stream_id: str
    last: Mapping[str, int]
    t_utc_ns: int = 0
    ready: bool = True

    @property
    def topic(self) -> str:
        return HEARTBEAT_TOPIC


Message = Verdict | PartVerdict | Heartbeat
_KINDS: dict[str, type[Message]] = {"frame": Verdict, "part": PartVerdict, "heartbeat": Heartbeat}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(message: Message) -> bytes:
    """The msgpack map of a message. Raises `WireError` for one that `decode` would not take."""
    _check(message)
    body: dict[str, Any] = {"v": VERSION, "kind": _NAMES[type(message)]}
    for field in fields(message):
        body[field.name] = getattr(message, field.name)
    if isinstance(message, Verdict):
        body["defects"] = [
            {"box_xyxy": d.box_xyxy, "area_px": d.area_px, "peak_score": d.peak_score}
            for d in message.defects
        ]
    packed: bytes = msgpack.packb(body)
    return packed


def decode(body: bytes) -> Message:
    """The message in a msgpack map. Raises `WireError` for anything that `encode` does not make."""
    if len(body) > MAX_BYTES:
        raise WireError(f"a message of {len(body)} bytes found, expected at most {MAX_BYTES}")
    try:
        found = msgpack.unpackb(body, strict_map_key=True, **_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise WireError(f"{len(body)} bytes that are not msgpack found: {error}") from error
    if (
        not isinstance(found, dict)
        or type(found.get("v")) is not int
        or found["v"] != VERSION
        or found.get("kind") not in _NAMES.values()
    ):
        version = found.get("v") if isinstance(found, dict) else type(found).__name__
        raise WireError(
            f"a message of version {version!r} found, expected a map with v={VERSION} and a kind "
            f"of {sorted(_KINDS)}; update whichever side is older"
        )
    kind = _KINDS[found["kind"]]
    values = {
        field.name: _read(field.name, _get(found, field.name), _EXPECTED[field.name])
        for field in fields(kind)
    }
    message = kind(**values)
    _check(message)
    return message


def _check(message: Message) -> None:
    """What the types of the fields do not say."""
    if isinstance(message, Heartbeat):
        return
    expected = _LABEL_OF.get(message.reason, Label.INVALID)
    if message.label is not expected:
        raise WireError(
            f"label {message.label} with reason {message.reason} found, expected {expected}"
        )
    if isinstance(message, Verdict):
        numbers = {
            "image_score": message.image_score,
            "image_threshold": message.image_threshold,
            "raw_peak": message.raw_peak,
            **{f"latency_ms {stage}": ms for stage, ms in message.latency_ms.items()},
            **{f"defects {n}": defect.peak_score for n, defect in enumerate(message.defects)},
        }
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise WireError(f"{name}: {number} found, expected a finite number")


def _get(found: Mapping[str, Any], name: str) -> object:
    if name not in found:
        raise WireError(f"a {found.get('kind')} message without {name!r} found")
    return found[name]


def _read(name: str, value: object, expected: str) -> Any:
    match expected, value:
        case "str", str():
            return value
        case "int", int() if not isinstance(value, bool):
            return value
        case "bool", bool():
            return value
        case "float", float():
            return value
        case "label", str() if value in _LABELS:
            return Label(value)
        case "reason", str() if value in _REASONS:
            return Reason(value)
        case "numbers", dict():
            return {_read(name, k, "str"): _read(name, v, "float") for k, v in value.items()}
        case "seqs", dict():
            return {_read(name, k, "str"): _read(name, v, "int") for k, v in value.items()}
        case "views", list():
            return tuple(_view(name, view) for view in value)
        case "defects", list():
            return tuple(_defect(name, defect) for defect in value)
    raise WireError(f"{name}: {str(value)[:80]!r} found, expected {expected}")


def _view(name: str, value: object) -> tuple[str, int, int]:
    match value:
        case [str() as camera, int() as epoch, int() as frame_id] if _no_bool(epoch, frame_id):
            return camera, epoch, frame_id
    raise WireError(f"{name}: {str(value)[:80]!r} found, expected [camera, epoch, frame_id]")


def _defect(name: str, value: object) -> Defect:
    match value:
        case {
            "box_xyxy": [int() as x0, int() as y0, int() as x1, int() as y1],
            "area_px": int() as area,
            "peak_score": float() as peak,
        } if _no_bool(x0, y0, x1, y1, area):
            return Defect((x0, y0, x1, y1), area, peak)
    raise WireError(f"{name}: {str(value)[:80]!r} found, expected box_xyxy, area_px, peak_score")


def _no_bool(*values: int) -> bool:
    """Python counts True and False among the whole numbers; msgpack does not."""
    return not any(isinstance(value, bool) for value in values)


_LABEL_OF = {Reason.OK: Label.PASS, Reason.DEFECT: Label.FAIL}
_LABELS = {label.value for label in Label}
_REASONS = {reason.value for reason in Reason}
_EXPECTED = {
    "station": "str",
    "camera": "str",
    "epoch": "int",
    "frame_id": "int",
    "label": "label",
    "reason": "reason",
    "image_score": "float",
    "image_threshold": "float",
    "raw_peak": "float",
    "defects": "defects",
    "trigger_id": "int",
    "part_id": "str",
    "source_pts": "int",
    "t_capture_utc_ns": "int",
    "latency_ms": "numbers",
    "bundle_sha256": "str",
    "recipe_revision": "str",
    "engine_id": "str",
    "seq": "int",
    "prev_seq": "int",
    "stream_id": "str",
    "views": "views",
    "last": "seqs",
    "t_utc_ns": "int",
    "ready": "bool",
}
"""What each field of a message is, by its name: no name has two meanings."""
