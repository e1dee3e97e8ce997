"""What is known of a recording's frames: the side file `NAME.frames.jsonl` beside `NAME.mkv`.

A line for each frame, written after it, in step with it:

    {"index": 0, "camera": "left", "epoch": 3, "frame_id": 17, "t_capture_utc_ns": 1760000000000,
     "trigger_id": 0, "part_id": "", "label": "fail", "reason": "defect", "image_score": 1.7,
     "image_threshold": 1.2}

`index` is the frame's number in the file, from 0; `label` is empty where no verdict was known. Of
frames that should be in the recording and are not, the line has no index, and `lost` says why. A
line that is torn or damaged is passed over: its frame is there, and what is known of it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import SourceError

SUFFIX = ".frames.jsonl"


@dataclass(frozen=True, slots=True)
class RecordedFrame:
    """What the line knew of a frame when it recorded it. Scores are of the verdict of that time."""

    camera: str
    epoch: int
    frame_id: int
    t_capture_utc_ns: int = -1
    """The ring's monotonic clock, by one offset for as long as the recorder ran."""
    trigger_id: int = 0
    part_id: str = ""
    label: str = ""
    reason: str = ""
    image_score: float = 0.0
    image_threshold: float = 0.0


@dataclass(frozen=True, slots=True)
class SideFile:
    """frames: by number in the recording. lost: frames that could not be recorded, and why."""

    frames: Mapping[int, RecordedFrame]
    lost: tuple[tuple[RecordedFrame, str], ...] = ()
    exists: bool = True

    @property
    def promised(self) -> int:
        """How many frames the recording has, as far as this file knows."""
        return max(self.frames, default=-1) + 1


def side_path(recording: Path) -> Path:
    return recording.with_name(recording.stem + SUFFIX)


def frame_line(index: int, frame: RecordedFrame) -> bytes:
    return _line({"index": index} | asdict(frame))


def lost_line(frame: RecordedFrame, why: str) -> bytes:
    return _line({"lost": why} | asdict(frame))


def _line(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def read_side(recording: Path) -> SideFile:
    """The side file of a recording; empty where there is none.

    Raises `SourceError` for one that is there and cannot be read.
    """
    path = side_path(recording)
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return SideFile({}, exists=False)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}); expected what is known of the frames in "
            f"{recording.name}: check its rights and the disk, or move it away"
        ) from error
    frames: dict[int, RecordedFrame] = {}
    lost: list[tuple[RecordedFrame, str]] = []
    for line in lines[:-1]:  # after the last line's end there is nothing, or what was torn
        found = _read(line)
        if found is None:
            continue
        where, frame = found
        if isinstance(where, str):
            lost.append((frame, where))
        elif where < 2 * len(lines):  # a damaged number must not promise a million frames
            frames.setdefault(where, frame)
    return SideFile(frames, tuple(lost))


def _read(line: bytes) -> tuple[int | str, RecordedFrame] | None:
    """Index or reason of the loss, and the frame; None for what is no line of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match found:
        case {
            "camera": str() as camera,
            "epoch": int() as epoch,
            "frame_id": int() as frame_id,
            "t_capture_utc_ns": int() as t_ns,
            "trigger_id": int() as trigger_id,
            "part_id": str() as part_id,
            "label": str() as label,
            "reason": str() as reason,
            "image_score": float() as score,
            "image_threshold": float() as threshold,
        }:
            where = found.get("lost", found.get("index"))
            if not isinstance(where, str) and (type(where) is not int or where < 0):
                return None
            known = RecordedFrame(
                camera, epoch, frame_id, t_ns, trigger_id, part_id, label, reason, score, threshold
            )
            return where, known
    return None
