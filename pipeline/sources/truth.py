"""What is really in a recording: the side file `NAME.truth.json` beside `NAME.mkv`.

    {"schema": 1,
     "note": "how it was made",
     "shape_hwc": [1280, 1280, 1],
     "recipe": {"zones": [...]},
     "frames": [{"index": 0, "label": "good", "note": "...",
                 "defects": [{"box_xyxy": [12, 40, 30, 52], "type": "scratch"}]}]}

Boxes are half-open pixels of the frame. `recipe` is what the scene needs (zones that are not to be
inspected), and may be null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from pipeline.config import Recipe, Strict
from pipeline.errors import DataError


def _check_box(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 and 0 <= y0 < y1):
        raise ValueError("x0 y0 x1 y1 with 0 <= x0 < x1 and 0 <= y0 < y1")
    return box


class TrueDefect(Strict):
    """One defect: its half-open box in frame pixels and what it is."""

    box_xyxy: Annotated[tuple[int, int, int, int], AfterValidator(_check_box)]
    type: str = Field(min_length=1)
    contrast_sigma: float | None = None
    """Of rendered defects: mean change over the core, in deviations of the clean pixels there."""


class FrameTruth(Strict):
    index: int = Field(ge=0)
    """Position in the recording, from 0."""
    defects: tuple[TrueDefect, ...] = ()
    label: Literal["good", "defect"] = "good"
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.label == "defect") != bool(self.defects):
            raise ValueError('the label "defect" where there are defects, and "good" elsewhere')
        return self


class Truth(Strict):
    version: Literal[1] = Field(default=1, alias="schema")
    note: str = ""
    shape_hwc: tuple[int, int, int]
    recipe: Recipe | None = None
    frames: tuple[FrameTruth, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        height, width, _ = self.shape_hwc
        for place, frame in enumerate(self.frames):
            if frame.index != place:
                raise ValueError(f"frames in order from index 0; number {place} says {frame.index}")
            for defect in frame.defects:
                if defect.box_xyxy[2] > width or defect.box_xyxy[3] > height:
                    raise ValueError(
                        f"boxes inside {width} x {height} px; frame {place} has {defect.box_xyxy}"
                    )
        return self


def frame_truth(index: int, defects: tuple[TrueDefect, ...], note: str = "") -> FrameTruth:
    """The entry of one frame, with the label that follows from its defects."""
    label: Literal["good", "defect"] = "defect" if defects else "good"
    return FrameTruth(index=index, defects=defects, label=label, note=note)


def truth_path(recording: Path) -> Path:
    """Where the side file of a recording, or of a folder of images, lies."""
    name = recording.name if recording.is_dir() else recording.stem
    return recording.with_name(f"{name}.truth.json")


def save_truth(path: Path, truth: Truth) -> None:
    """Write the side file. Raises `DataError` where it cannot be written."""
    text = truth.model_dump_json(by_alias=True, exclude_defaults=True, indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error}); check folder and disk") from error


def load_truth(path: Path) -> Truth:
    """Read a side file. Raises `DataError` that says where it is wrong and what is expected."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected the side file of a recording"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error}); expected JSON in UTF-8") from error
    try:
        return Truth.model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'the file'}: {fault['msg']}"
            for fault in error.errors()[:3]
        )
        raise DataError(
            f"{path}: {error.error_count()} faults, such as {faults}; "
            "correct it, or make the recording anew"
        ) from error
