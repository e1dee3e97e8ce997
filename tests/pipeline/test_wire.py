"""The wire: what is sent comes back, and nothing else raises anything but `WireError`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import Recipe
from pipeline.errors import WireError
from pipeline.types import Defect, Label, PartVerdict, Reason, Verdict
from pipeline.wire import MAX_BYTES, VERSION, Heartbeat, Message, decode, encode

VERDICT = Verdict(
    station="line-1",
    camera="left",
    epoch=3,
    frame_id=17,
    label=Label.FAIL,
    reason=Reason.DEFECT,
    image_score=0.75,
    image_threshold=0.5,
    raw_peak=0.25,
    defects=(Defect((0, 4, 12, 16), 144, 0.75),),
    trigger_id=5,
    part_id="tray/1 ü",
    source_pts=-1,
    t_capture_utc_ns=1_700_000_000_000_000_000,
    latency_ms={"total": 4.5},
    bundle_sha256="ab",
    recipe_revision="cd",
    engine_id="openvino/cpu/f32",
    seq=9,
    prev_seq=7,
    stream_id="f" * 32,
)
PART = PartVerdict(
    station="line-1",
    part_id="p",
    trigger_id=5,
    label=Label.PASS,
    reason=Reason.OK,
    views=(("left", 3, 17), ("right", 3, 16)),
    image_score=0.25,
    image_threshold=0.5,
    t_capture_utc_ns=1_700_000_000_000_000_000,
    seq=10,
    prev_seq=8,
    stream_id="f" * 32,
)
BEAT = Heartbeat(
    "f" * 32, {"frame/left/": 9, "part/": 10}, 1_700_000_000_000_000_000, False, {"left": "lost"}
)
MESSAGES: list[Message] = [VERDICT, PART, BEAT]

# Round trip

integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
LABEL_OF = {Reason.OK: Label.PASS, Reason.DEFECT: Label.FAIL}
reasons = st.sampled_from(Reason)


def coherent(message: Any) -> Any:
    return replace(message, label=LABEL_OF.get(message.reason, Label.INVALID))


defects = st.builds(
    Defect, box_xyxy=st.tuples(*[integers] * 4), area_px=integers, peak_score=numbers
)
verdicts = st.builds(
    Verdict,
    station=texts,
    camera=texts,
    epoch=integers,
    frame_id=integers,
    label=st.just(Label.PASS),
    reason=reasons,
    image_score=numbers,
    image_threshold=numbers,
    raw_peak=numbers,
    defects=st.lists(defects, max_size=5).map(tuple),
    trigger_id=integers,
    part_id=texts,
    source_pts=integers,
    t_capture_utc_ns=integers,
    latency_ms=st.dictionaries(texts, numbers, max_size=5),
    bundle_sha256=texts,
    recipe_revision=texts,
    engine_id=texts,
    seq=integers,
    prev_seq=integers,
    stream_id=texts,
).map(coherent)
parts = st.builds(
    PartVerdict,
    station=texts,
    part_id=texts,
    trigger_id=integers,
    label=st.just(Label.PASS),
    reason=reasons,
    views=st.lists(st.tuples(texts, integers, integers), max_size=5).map(tuple),
    seq=integers,
    prev_seq=integers,
    stream_id=texts,
).map(coherent)
beats = st.builds(
    Heartbeat,
    stream_id=texts,
    last=st.dictionaries(texts, integers, max_size=5),
    t_utc_ns=integers,
    ready=st.booleans(),
)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(message=st.one_of(verdicts, parts, beats))
@example(message=VERDICT)
@example(message=PART)
@example(message=BEAT)
def test_what_is_encoded_comes_back(message: Message) -> None:
    found = decode(encode(message))
    assert found == message
    assert type(found) is type(message)
    assert encode(found) == encode(message)


def test_topics_end_in_a_slash() -> None:
    assert [message.topic for message in MESSAGES] == ["frame/left/", "part/", "heartbeat/"]


@pytest.mark.parametrize("count", [500, 4096])
def test_as_many_defects_as_a_recipe_may_ask_for(count: int) -> None:
    large = replace(VERDICT, defects=VERDICT.defects * count)
    recipe = Recipe(max_boxes=count)
    assert len(large.defects) == recipe.max_boxes
    body = encode(large)
    assert decode(body) == large
    assert len(body) < MAX_BYTES / 2
    with pytest.raises(ValueError, match="less than or equal to 4096"):
        Recipe(max_boxes=4097)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_cannot_be_compared_are_neither_sent_nor_read(number: float) -> None:
    bad: list[Message] = [
        replace(VERDICT, image_score=number),
        replace(VERDICT, image_threshold=number),
        replace(VERDICT, raw_peak=number),
        replace(VERDICT, latency_ms={"total": number}),
        replace(VERDICT, defects=(replace(VERDICT.defects[0], peak_score=number),)),
    ]
    for message in bad:
        with pytest.raises(WireError, match="finite"):
            encode(message)
    for name, value in (
        ("image_score", number),
        ("latency_ms", {"total": number}),
        ("defects", [{"box_xyxy": [0, 0, 1, 1], "area_px": 1, "peak_score": number}]),
    ):
        with pytest.raises(WireError, match=name):
            decode(changed(VERDICT, **{name: value}))


def test_a_label_goes_with_its_reason() -> None:
    """No fault reads as `pass`, whoever made the message."""
    for message in (VERDICT, PART):
        for reason in Reason:
            for label in Label:
                body = changed(message, label=label.value, reason=reason.value)
                made = replace(message, label=label, reason=reason)
                if label is LABEL_OF.get(reason, Label.INVALID):
                    assert decode(body) == made == decode(encode(made))
                else:
                    with pytest.raises(WireError, match=f"label {label} with reason {reason}"):
                        decode(body)
                    with pytest.raises(WireError, match=f"label {label} with reason {reason}"):
                        encode(made)


# What is refused


def changed(message: Message, **values: Any) -> bytes:
    """The bytes of a message with other fields; None takes a field out."""
    found = msgpack.unpackb(encode(message))
    found.update(values)
    packed: bytes = msgpack.packb({k: v for k, v in found.items() if v is not None})
    return packed


def test_unknown_fields_are_passed_over() -> None:
    for message in MESSAGES:
        assert decode(changed(message, colour="red", more=[1, {"a": [2]}])) == message
    extra = {"box_xyxy": [0, 4, 12, 16], "area_px": 144, "peak_score": 0.75, "kind": "scratch"}
    assert decode(changed(VERDICT, defects=[extra])) == VERDICT


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_missing_field(message: Message) -> None:
    for name in {field.name for field in fields(message)} - {"why"}:
        with pytest.raises(WireError, match=name):
            decode(changed(message, **{name: None}))
    assert decode(changed(BEAT, why=None)) == BEAT  # it came later


STRANGE: list[Any] = [
    *(True, False, 0, -1, 1.5, "", "x", b"x", [], [1], ["a"], {}, {"a": 1}, {"a": 1.0}),
    *([[]], [{}], {"a": {}}, [["left", 3]], [["left", 3, 17, 1]], [["left", True, 17]]),
    *([[3, "left", 17]], [{"box_xyxy": [0, 0, 1], "area_px": 1, "peak_score": 1.0}]),
    [{"box_xyxy": [0, 0, 1, True], "area_px": 1, "peak_score": 1.0}],
    [{"box_xyxy": [0, 0, 1, 1], "area_px": True, "peak_score": 1.0}],
    [{"box_xyxy": [0, 0, 1, 1], "area_px": 1, "peak_score": 1}],
    [{"box_xyxy": [0, 0, 1, 1.0], "area_px": 1, "peak_score": 1.0}],
    [{"box_xyxy": "0011", "area_px": 1, "peak_score": 1.0}],
    [{"area_px": 1, "peak_score": 1.0}],
]
SHAPES: dict[str, Any] = {
    "str": lambda v: isinstance(v, str),
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) is float,
    "bool": lambda v: type(v) is bool,
    "label": lambda v: False,
    "reason": lambda v: False,
    "numbers": lambda v: isinstance(v, dict) and all(type(x) is float for x in v.values()),
    "seqs": lambda v: isinstance(v, dict) and all(type(x) is int for x in v.values()),
    "states": lambda v: isinstance(v, dict) and all(isinstance(x, str) for x in v.values()),
    "tuple": lambda v: v == [],
}
KINDS: dict[str, str] = {
    **dict.fromkeys(("station", "camera", "part_id", "engine_id", "stream_id"), "str"),
    **dict.fromkeys(("bundle_sha256", "recipe_revision", "detail"), "str"),
    **dict.fromkeys(("epoch", "frame_id", "trigger_id", "source_pts", "seq", "prev_seq"), "int"),
    **dict.fromkeys(("t_capture_utc_ns", "t_utc_ns"), "int"),
    **dict.fromkeys(("image_score", "image_threshold", "raw_peak", "mm_per_px"), "float"),
    **dict.fromkeys(("defects", "views"), "tuple"),
    **{"label": "label", "reason": "reason", "latency_ms": "numbers"},
    **{"last": "seqs", "ready": "bool", "cameras": "states", "why": "str"},
}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_another_type_in_every_field(message: Message) -> None:
    for field in fields(message):
        for value in STRANGE:
            body = changed(message, **{field.name: value})
            if SHAPES[KINDS[field.name]](value):
                decode(body)
            else:
                with pytest.raises(WireError, match=field.name):
                    decode(body)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", "good"),
        ("label", "PASS"),
        ("label", "pass "),
        ("reason", "fine"),
        ("reason", "OK"),
        ("kind", "pass"),
        ("kind", "Verdict"),
        ("kind", None),
        ("kind", ["frame"]),
        ("v", VERSION + 1),
        ("v", 0),
        ("v", "1"),
        ("v", True),
        ("v", 1.0),
        ("v", None),
        ("v", [1]),
    ],
)
def test_labels_kinds_and_versions_that_we_do_not_know(name: str, value: Any) -> None:
    for message in (VERDICT, PART):
        with pytest.raises(WireError):
            decode(changed(message, **{name: value}))


def test_one_kind_in_the_name_of_another() -> None:
    for kind, message in (("part", VERDICT), ("frame", PART), ("frame", BEAT), ("part", BEAT)):
        with pytest.raises(WireError):
            decode(changed(message, kind=kind))


def test_a_newer_version_says_so() -> None:
    with pytest.raises(WireError, match=r"version 2 found, .* update whichever side is older"):
        decode(changed(VERDICT, v=2))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_truncation(message: Message) -> None:
    body = encode(message)
    for size in range(len(body)):
        with pytest.raises(WireError):
            decode(body[:size])
    with pytest.raises(WireError):
        decode(body + b"\0")
    with pytest.raises(WireError):
        decode(body + body)


def nested(depth: int, kind: str) -> bytes:
    if kind == "array":
        return b"\x91" * depth + b"\xc0"
    return b"\x81\xa1v" * depth + b"\xc0"


BOMBS = {
    "array of 2^32": b"\xdd\xff\xff\xff\xff",
    "map of 2^32": b"\xdf\xff\xff\xff\xff",
    "string of 2^32": b"\xdb\xff\xff\xff\xff",
    "bytes of 2^32": b"\xc6\xff\xff\xff\xff",
    "ext of 2^32": b"\xc9\xff\xff\xff\xff\x01",
    "empty ext": b"\xc7\x00\x05",
    "empty time": b"\xc7\x00\xff",
    "time": b"\xd6\xff\x00\x00\x00\x01",
    "never used": b"\xc1",
    "not text": b"\x81\xa1\xff\x01",
    "number for a key": b"\x81\x01\x01",
    "bytes for a key": b"\x81\xc4\x01v\x01",
    "array for a key": b"\x81\x90\x01",
    "nil": b"\xc0",
    "empty map": b"\x80",
    "empty array": b"\x90",
    "nothing": b"",
    "too much": b"\0" * (MAX_BYTES + 1),
    "largest number": b"\xcf" + b"\xff" * 8,
    **{f"{kind}s {n} deep": nested(n, kind) for kind in ("array", "map") for n in (400, 9000)},
    "4097 fields": msgpack.packb({str(n): n for n in range(4097)}),
    "long text": msgpack.packb({"v": 1, "kind": "x" * 4097}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    with pytest.raises(WireError):
        decode(BOMBS[name])
    for message in MESSAGES:  # as the value of a field that nobody reads, too
        packer = msgpack.Packer()
        found = msgpack.unpackb(encode(message))
        head = packer.pack_map_header(len(found) + 1) + packer.pack("z") + BOMBS[name]
        body = head + b"".join(packer.pack(item) for pair in found.items() for item in pair)
        with contextlib.suppress(WireError):
            assert decode(body) == message


@pytest.mark.parametrize(
    "make", ["x".__mul__, b"x".__mul__, [1].__mul__], ids=["text", "bytes", "list"]
)
def test_limits_hold_in_fields_that_nobody_reads(make: Callable[[int], Any]) -> None:
    assert decode(changed(VERDICT, note=make(4096))) == VERDICT
    with pytest.raises(WireError, match="exceeds"):
        decode(changed(VERDICT, note=make(4097)))


# Anything at all


def only_wire_errors(body: bytes) -> None:
    try:
        found = decode(body)
    except WireError:
        return
    assert type(found) in (Verdict, PartVerdict, Heartbeat)
    assert decode(encode(found)) == found


@settings(deadline=None, max_examples=400, derandomize=True)
@given(body=st.binary(max_size=300))
def test_random_bytes(body: bytes) -> None:
    only_wire_errors(body)


@settings(deadline=None, max_examples=600, derandomize=True)
@given(
    message=st.sampled_from(MESSAGES),
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.binary(max_size=6), st.integers(0, 6)), max_size=4
    ),
)
def test_mutated_messages(message: Message, edits: list[tuple[int, bytes, int]]) -> None:
    body = encode(message)
    for where, new, removed in edits:
        at = where % (len(body) + 1)
        body = body[:at] + new + body[at + removed :]
    only_wire_errors(body)


json_like = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.binary(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("abxy_", max_size=8), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=250, derandomize=True)
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_any_value_in_any_field(message: Message, data: st.DataObject) -> None:
    names = [field.name for field in fields(message)]
    chosen = data.draw(st.dictionaries(st.sampled_from([*names, "v", "kind"]), json_like))
    only_wire_errors(changed(message, **chosen))
