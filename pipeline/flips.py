"""Two sets of verdicts on the same frames: which flipped, and by what scores.

Frames are matched by camera, epoch and frame id. Of a replay's results the frame id is the position
in its recording, from 1, and the epoch 0: two replays of one recording match. Of a journal they are
those of the line that ran; then the recording must say which frames it holds (`known_frames`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import DataError
from pipeline.journal import read_verdicts
from pipeline.sources.sidecar import RecordedFrame
from pipeline.types import Defect, Label, Reason, Verdict

Key = tuple[str, int, int]
"""Camera, epoch and frame id."""

ROUNDING: Final = 1e-5
"""Relative: scores that differ by less are the same."""
_SQLITE: Final = b"SQLite format 3\0"


@dataclass(frozen=True, slots=True)
class Flip:
    """A frame that was judged otherwise. `now.camera` and `now.frame_id` are the replay's."""

    before: Verdict
    now: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two sets of verdicts have in common, and what not."""

    compared: int
    flips: Sequence[Flip]
    only_before: Sequence[Key]
    only_now: Sequence[Key]
    changed_scores: int
    """Of the frames compared, flipped or not: differ by more than rounding."""
    largest_change: float
    """Of a score, absolute."""

    @property
    def differing(self) -> int:
        """Frames that a replay as before would not have: flipped, or in one of the two alone."""
        return len(self.flips) + len(self.only_before) + len(self.only_now)


def compare(before: Mapping[Key, Verdict], now: Mapping[Key, Verdict]) -> Comparison:
    """Both by the same keys. Flips are in the order of the keys."""
    common = sorted(before.keys() & now.keys())
    flips = [Flip(before[k], now[k]) for k in common if before[k].label is not now[k].label]
    changes = [abs(before[k].image_score - now[k].image_score) for k in common]
    changed = [
        not math.isclose(before[k].image_score, now[k].image_score, rel_tol=ROUNDING, abs_tol=1e-9)
        for k in common
    ]
    return Comparison(
        len(common),
        flips,
        sorted(before.keys() - now.keys()),
        sorted(now.keys() - before.keys()),
        sum(changed),
        max(changes, default=0.0),
    )


def by_position(verdicts: Iterable[Verdict]) -> dict[Key, Verdict]:
    """A replay's verdicts, by their place in the recording."""
    return {(v.camera, 0, v.frame_id): v for v in verdicts}


def by_origin(
    verdicts: Iterable[Verdict], origins: Mapping[str, Sequence[RecordedFrame | None]]
) -> dict[Key, Verdict]:
    """A replay's verdicts, by the frames that the line had taken.

    origins: of each camera of the replay, what is known of its recording's frames, in order. Frames
    of which nothing is known keep the replay's own names. Raises `DataError` where none is known.
    """
    found: dict[Key, Verdict] = {}
    known = False
    for verdict in verdicts:
        frames = origins[verdict.camera]
        place = verdict.frame_id - 1
        origin = frames[place] if place < len(frames) else None
        known = known or origin is not None
        key = (origin.camera, origin.epoch, origin.frame_id) if origin else _own_key(verdict)
        found[key] = verdict
    if found and not known:
        raise DataError(
            "--against a journal with recordings that do not say which frames they hold: expected "
            "ones with a side file NAME.frames.jsonl; compare with the results of an earlier "
            "replay instead"
        )
    return found


def _own_key(verdict: Verdict) -> Key:
    return verdict.camera, 0, verdict.frame_id


def is_journal(path: Path) -> bool:
    """Raises `DataError` for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise DataError(
            f"{path}: {error.strerror}; expected results of a replay (.jsonl) or a line's journal"
        ) from error


def read_journal(path: Path, wanted: Mapping[Key, Verdict]) -> dict[Key, Verdict]:
    """The verdicts that a line gave to the wanted frames; a recording is a choice of its frames."""
    epochs = {epoch for _, epoch, _ in wanted}
    verdicts = (v for epoch in sorted(epochs) for v in read_verdicts(path, epoch=epoch))
    keyed = (((v.camera, v.epoch, v.frame_id), v) for v in verdicts)
    return {key: verdict for key, verdict in keyed if key in wanted}


def read_results(path: Path) -> dict[Key, Verdict]:
    """The results of an earlier replay, as `replay.write_results` wrote them.

    Raises `DataError` that names the line which is not one of them.
    """
    verdicts = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                verdict = _read_line(line)
                if verdict is None:
                    raise DataError(
                        f"{path}: line {number} is no verdict of a replay; expected a file that "
                        "`linewatch replay --out` wrote, whole"
                    )
                verdicts.append(verdict)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected results of a replay (.jsonl)"
        ) from error
    found = by_position(verdicts)
    if len(found) != len(verdicts):
        raise DataError(
            f"{path}: {len(verdicts) - len(found)} frames have two verdicts, expected one each; "
            "was the file written twice?"
        )
    return found


def _read_line(line: str) -> Verdict | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match found:
        case {
            "camera": str() as camera,
            "frame_id": int() as frame_id,
            "label": str() as label,
            "reason": str() as reason,
            "image_score": int() | float() as score,
            "image_threshold": int() | float() as threshold,
            "defects": list() as defects,
        } if label in {one.value for one in Label} and reason in {one.value for one in Reason}:
            boxes = [_read_defect(defect) for defect in defects]
            verdict = Verdict(
                "",
                camera,
                0,
                frame_id,
                Label(label),
                Reason(reason),
                float(score),
                float(threshold),
                defects=tuple(box for box in boxes if box is not None),
                bundle_sha256=str(found.get("bundle_sha256", "")),
                engine_id=str(found.get("engine_id", "")),
                recipe_revision=str(found.get("recipe_revision", "")),
            )
            return verdict if None not in boxes and math.isfinite(score + threshold) else None
    return None


def _read_defect(found: object) -> Defect | None:
    match found:
        case {
            "box_xyxy": [int() as x0, int() as y0, int() as x1, int() as y1],
            "area_px": int() as area_px,
            "peak_score": int() | float() as peak,
        }:
            return Defect((x0, y0, x1, y1), area_px, float(peak))
    return None
