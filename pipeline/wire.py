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

Rows that were not received are asked for on another socket (ROUTER): one `Ask` is answered by
`Rows`, whose bodies follow as further parts of the same message, or by `Refused`.

Pictures of frames that were recorded are asked for on a third (ROUTER): one `AskPicture` is
answered by `Picture`, with the image file as the second part, or by `Refused`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import msgpack

from pipeline.errors import WireError
from pipeline.types import Defect, Label, PartVerdict, Reason, Verdict

VERSION = 1
HEARTBEAT_TOPIC = "heartbeat/"
MAX_BYTES = 2**20
MAX_ASK_BYTES = 4096
MAX_ROWS = 500
MAX_PICTURE_BYTES = 2**26
MAX_SIDE_PX = 2**20
PICTURE_FORMATS = ("png", "jpeg")
_LIMITS = {
    "max_str_len": 4096,
    "max_bin_len": 4096,
    "max_ext_len": 0,
    "max_array_len": 4096,
    "max_map_len": 4096,
}


def replay_endpoint(endpoint: str) -> str:
    """Where the rows of a stream are fetched when nobody says: the next port, or `PATH.replay`."""
    head, _, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp://") and port.isdecimal():
        return f"{head}:{int(port) + (1 if int(port) < 65535 else -1)}"
    return f"{endpoint}.replay"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The publisher lives; `last` is the last seq of each topic, `stream_id` whose seqs these are.

    `ready`: whether an engine is loaded. A line that is not ready gives `invalid` alone.
    """

    stream_id: str
    last: Mapping[str, int]
    t_utc_ns: int = 0
    ready: bool = True
    cameras: Mapping[str, str] = field(default_factory=dict)
    """Camera -> connecting, ready, lost or frozen."""
    why: str = ""
    """What the line waits for while it is not ready, for people."""

    @property
    def topic(self) -> str:
        return HEARTBEAT_TOPIC


@dataclass(frozen=True, slots=True)
class Ask:
    """Wanted: rows of one topic with a seq over `after`, oldest first, at most `limit`.

    stream_id: whose seqs these are; "": those of the stream that runs.
    """

    stream_id: str
    topic: str
    after: int
    limit: int = MAX_ROWS


@dataclass(frozen=True, slots=True)
class Rows:
    """The answer to an `Ask`; rows may be fewer than asked for, and are none only at the end.

    Of a stream that is not known there are no rows, and `current` says which one runs. `gone`: rows
    after `after` were deleted, as the journal is over its limits; `prev_seq` of the first row tells
    whether any of this topic was among them.
    """

    stream_id: str
    topic: str
    after: int
    known: bool
    current: str
    began: int
    """The stream's first seq."""
    oldest: int
    """From here on no row of the stream is missing."""
    newest: int
    """The topic's last seq in this stream, 0 for none."""
    gone: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to what is no `Ask`, or cannot be answered now."""

    why: str


@dataclass(frozen=True, slots=True)
class AskPicture:
    """Wanted: the picture of a frame that was recorded, by the three numbers of its verdict.

    format: "png" (lossless) or "jpeg". longest_px: of the picture's longest side at most; 0: as it
    was inspected.
    """

    camera: str
    epoch: int
    frame_id: int
    format: str = "png"
    longest_px: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """The answer to an `AskPicture`; the image file follows where the frame is `known`.

    Not known: it was not kept, or is not written yet, or was deleted since.
    """

    camera: str
    epoch: int
    frame_id: int
    known: bool
    format: str = ""
    width: int = 0
    height: int = 0
    """Of the picture, in pixels."""
    frame_width: int = 0
    frame_height: int = 0
    """Of the frame: a verdict's boxes are in its pixels."""


Message = Verdict | PartVerdict | Heartbeat
Answer = Rows | Refused
Anything = Message | Ask | Answer | AskPicture | Picture
_KINDS: dict[str, type[Message]] = {"frame": Verdict, "part": PartVerdict, "heartbeat": Heartbeat}
_ASKS: dict[str, type[Ask]] = {"ask": Ask}
_ANSWERS: dict[str, type[Answer]] = {"rows": Rows, "refused": Refused}
_PICTURE_ASKS: dict[str, type[AskPicture]] = {"ask_picture": AskPicture}
_PICTURES: dict[str, type[Picture | Refused]] = {"picture": Picture, "refused": Refused}
_NAMES: dict[type, str] = {
    kind: name
    for kinds in (_KINDS, _ASKS, _ANSWERS, _PICTURE_ASKS, _PICTURES)
    for name, kind in kinds.items()
}


def encode(message: Anything) -> bytes:
    """The msgpack map of a message. Raises `WireError` for one that cannot be decoded."""
    _check(message)
    body: dict[str, Any] = {"v": VERSION, "kind": _NAMES[type(message)]}
    for each in fields(message):
        body[each.name] = getattr(message, each.name)
    if isinstance(message, Verdict | PartVerdict):
        body["defects"] = [
            {"box_xyxy": d.box_xyxy, "area_px": d.area_px, "peak_score": d.peak_score}
            for d in message.defects
        ]
    packed: bytes = msgpack.packb(body)
    return packed


def decode(body: bytes) -> Message:
    """What was published. Raises `WireError` for anything that `encode` does not make."""
    return _decode(body, _KINDS, MAX_BYTES)


def decode_ask(body: bytes) -> Ask:
    """What a subscriber asks for. Raises `WireError`."""
    return _decode(body, _ASKS, MAX_ASK_BYTES)


def decode_answer(body: bytes) -> Answer:
    """The first part of an answer. Raises `WireError`."""
    return _decode(body, _ANSWERS, MAX_BYTES)


def decode_picture_ask(body: bytes) -> AskPicture:
    """Which picture is asked for. Raises `WireError`."""
    return _decode(body, _PICTURE_ASKS, MAX_ASK_BYTES)


def decode_picture(body: bytes) -> Picture | Refused:
    """The first part of an answer to it. Raises `WireError`."""
    return _decode(body, _PICTURES, MAX_ASK_BYTES)


Kind = TypeVar("Kind", bound=Anything)


def _decode(body: bytes, kinds: Mapping[str, type[Kind]], limit: int) -> Kind:
    if len(body) > limit:
        raise WireError(f"a message of {len(body)} bytes found, expected at most {limit}")
    try:
        found = msgpack.unpackb(body, strict_map_key=True, **_LIMITS)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise WireError(f"{len(body)} bytes that are not msgpack found: {error}") from error
    if (
        not isinstance(found, dict)
        or type(found.get("v")) is not int
        or found["v"] != VERSION
        or found.get("kind") not in list(kinds)
    ):
        version = found.get("v") if isinstance(found, dict) else type(found).__name__
        raise WireError(
            f"a message of version {version!r} found, expected a map with v={VERSION} and a kind "
            f"of {sorted(kinds)}; update whichever side is older"
        )
    kind = kinds[found["kind"]]
    values = {
        each.name: _read(each.name, _get(found, each.name), _EXPECTED[each.name])
        for each in fields(kind)
    }
    message = kind(**values)
    _check(message)
    return message


def _check(message: Anything) -> None:
    """What the types of the fields do not say."""
    if isinstance(message, Ask):
        if not message.topic.endswith("/") or not 0 <= message.after < 2**63:
            raise WireError(
                f"topic {message.topic[:80]!r}, after {message.after} found, expected a whole "
                "topic with its slash, and a seq from 0 to 2^63 - 1"
            )
        if not 1 <= message.limit <= MAX_ROWS:
            raise WireError(f"limit: {message.limit} found, expected 1 to {MAX_ROWS}")
    if isinstance(message, AskPicture):
        if message.format not in PICTURE_FORMATS or not 0 <= message.longest_px <= MAX_SIDE_PX:
            raise WireError(
                f"format {message.format[:80]!r}, longest_px {message.longest_px} found, expected "
                f"one of {', '.join(PICTURE_FORMATS)}, and 0 to {MAX_SIDE_PX}"
            )
        if not (0 <= message.epoch < 2**63 and 0 <= message.frame_id < 2**63):
            raise WireError(
                f"epoch {message.epoch}, frame_id {message.frame_id} found, expected a verdict's"
            )
    if not isinstance(message, Verdict | PartVerdict):
        return
    expected = _LABEL_OF.get(message.reason, Label.INVALID)
    if message.label is not expected:
        raise WireError(
            f"label {message.label} with reason {message.reason} found, expected {expected}"
        )
    numbers = {
        "image_score": message.image_score,
        "image_threshold": message.image_threshold,
        "mm_per_px": message.mm_per_px,
        **{f"defects {n}": defect.peak_score for n, defect in enumerate(message.defects)},
    }
    if isinstance(message, Verdict):
        numbers["raw_peak"] = message.raw_peak
        numbers |= {f"latency_ms {stage}": ms for stage, ms in message.latency_ms.items()}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise WireError(f"{name}: {number} found, expected a finite number")


def _get(found: Mapping[str, Any], name: str) -> object:
    if (found["kind"], name) in SINCE and name not in found:
        return SINCE[found["kind"], name]
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
        case "states", dict():
            return {_read(name, k, "str"): _read(name, v, "str") for k, v in value.items()}
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
SINCE = {("heartbeat", "why"): ""}
"""Fields that came later in this version: what they are where an older side leaves them out."""
_EXPECTED = {
    "station": "str",
    "camera": "str",
    "epoch": "int",
    "frame_id": "int",
    "label": "label",
    "reason": "reason",
    "image_score": "float",
    "image_threshold": "float",
    "mm_per_px": "float",
    "detail": "str",
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
    "cameras": "states",
    "topic": "str",
    "after": "int",
    "limit": "int",
    "known": "bool",
    "current": "str",
    "began": "int",
    "oldest": "int",
    "newest": "int",
    "gone": "bool",
    "why": "str",
    "format": "str",
    "longest_px": "int",
    "width": "int",
    "height": "int",
    "frame_width": "int",
    "frame_height": "int",
}
"""What each field of a message is, by its name: no name has two meanings."""
