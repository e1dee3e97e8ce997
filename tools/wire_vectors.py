"""Writes docs/wire.vectors.json: messages as bytes and as JSON, for clients in other languages.

python -m tools.wire_vectors            write it
python -m tools.wire_vectors --check    exit status 1 when the file is not what this would write
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgpack

from pipeline.types import Defect, Label, PartVerdict, Reason, Verdict
from pipeline.wire import (
    Anything,
    Ask,
    AskPicture,
    Heartbeat,
    Message,
    Picture,
    Refused,
    Rows,
    encode,
)

PATH = Path(__file__).parents[1] / "docs" / "wire.vectors.json"
_STREAM = "0123456789abcdef" * 2
_T_NS = 1_700_000_000_000_000_000

FAILED = Verdict(
    station="line-1",
    camera="left",
    epoch=3,
    frame_id=17,
    label=Label.FAIL,
    reason=Reason.DEFECT,
    image_score=0.75,
    image_threshold=0.5,
    raw_peak=0.25,
    defects=(Defect((0, 4, 12, 16), 144, 0.75), Defect((600, 30, 1280, 1024), 70_000, 0.625)),
    trigger_id=5,
    part_id="tray/1 ü",
    source_pts=40,
    mm_per_px=0.0625,
    t_capture_utc_ns=_T_NS,
    latency_ms={"capture": 1.5, "infer": 12.25, "total": 15.5},
    bundle_sha256="ab" * 32,
    recipe_revision="0c1d2e3f",
    engine_id="openvino/cpu/f32",
    seq=9,
    prev_seq=7,
    stream_id=_STREAM,
)
MESSAGES: dict[str, Anything] = {
    "a frame that failed": FAILED,
    "a frame that passed": Verdict(
        "line-1", "left", 3, 18, Label.PASS, Reason.OK, seq=2**40, prev_seq=9, stream_id=_STREAM
    ),
    "a frame that was late": Verdict(
        "line-1", "left", 3, 19, Label.INVALID, Reason.LATE, seq=2**40 + 1, prev_seq=2**40
    ),
    "a frame through a dirty lens": Verdict(
        "line-1", "left", 3, 20, Label.INVALID, Reason.OPTICS, detail="sharpness: half of usual"
    ),
    "a part": PartVerdict(
        "line-1",
        "tray/1 ü",
        5,
        Label.FAIL,
        Reason.DEFECT,
        (("left", 3, 17), ("right", 3, 16)),
        image_score=0.75,
        image_threshold=0.5,
        defects=FAILED.defects,
        t_capture_utc_ns=_T_NS,
        seq=10,
        prev_seq=8,
        stream_id=_STREAM,
    ),
    "a heartbeat": Heartbeat(
        _STREAM, {"frame/left/": 9, "part/": 10}, _T_NS, True, {"left": "ready", "right": "lost"}
    ),
    "a heartbeat of a line that is not ready": Heartbeat(
        _STREAM, {}, _T_NS, False, {"left": "connecting"}, "loading the engine"
    ),
    "rows are asked for": Ask(_STREAM, "part/", 8, 500),
    "rows of whichever stream runs are asked for": Ask("", "frame/left/", 0, 1),
    "the head of an answer": Rows(_STREAM, "part/", 8, True, _STREAM, 1, 1, 10, False),
    "an answer on a stream that is not known": Rows(
        "f" * 32, "part/", 8, False, _STREAM, 0, 0, 0, False
    ),
    "a picture is asked for": AskPicture("left", 3, 17, "jpeg", 1024),
    "the head of a picture": Picture("left", 3, 17, True, "jpeg", 1024, 819, 1280, 1024),
    "a picture that was not kept": Picture("left", 3, 18, False),
    "what was no ask": Refused("0 bytes that are not msgpack found"),
}


def vectors() -> list[dict[str, Any]]:
    """Name, topic (of what is published), bytes in hexadecimal, and the content."""
    made = []
    for name, message in MESSAGES.items():
        body = encode(message)
        topic = message.topic if isinstance(message, Message) else ""
        made.append(
            {"name": name, "topic": topic, "hex": body.hex(), "json": msgpack.unpackb(body)}
        )
    return made


def main() -> int:
    text = json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        return int(not PATH.exists() or PATH.read_text() != text)
    PATH.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
