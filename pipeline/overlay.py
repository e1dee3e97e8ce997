"""Pictures of verdicts for people: frames with found and true boxes, contact sheets, videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.types import Label, Verdict

Box = tuple[int, int, int, int]
Image = NDArray[np.uint8]

# RGB. Chosen to be told apart by people who do not see red and green alike.
PASS_COLOR = (40, 170, 120)
FAIL_COLOR = (235, 80, 50)
INVALID_COLOR = (240, 190, 40)
TRUE_COLOR = (70, 160, 255)
_COLORS = {Label.PASS: PASS_COLOR, Label.FAIL: FAIL_COLOR, Label.INVALID: INVALID_COLOR}
_GROW_PX = 4
_BAR_PX = 34


def annotate(frame: Image, verdict: Verdict, truth: Sequence[Box] = ()) -> Image:
    """uint8 (H, W, 1 or 3) frame -> RGB (H + 34, W, 3): a bar with the verdict, and the boxes.

    Found boxes are drawn in the label's colour, true ones thin and blue around them.
    """
    color = _COLORS[verdict.label]
    picture: Image = np.repeat(frame, 3, axis=2) if frame.shape[2] == 1 else frame.copy()
    for box in truth:
        _draw(picture, box, TRUE_COLOR, _GROW_PX + 3, 1)
    for defect in verdict.defects:
        _draw(picture, defect.box_xyxy, color, _GROW_PX, 2)
    bar = np.full((_BAR_PX, picture.shape[1], 3), 24, np.uint8)
    bar[:, :8] = color
    if verdict.label is Label.INVALID:
        text = f"INVALID  {verdict.reason}"
    else:
        text = (
            f"{verdict.label.upper()}  score {verdict.image_score:.3f}"
            f"  threshold {verdict.image_threshold:.3f}"
        )
    _write(bar, f"{verdict.camera} #{verdict.frame_id}  {text}", (16, 23), color)
    return np.vstack([bar, picture])


def side_by_side(frame: Image, before: Verdict, now: Verdict) -> Image:
    """The same frame twice, `annotate`d: an earlier verdict left, the one of now right."""
    gap = np.full((frame.shape[0] + _BAR_PX, 8, 3), 255, np.uint8)
    return np.hstack([annotate(frame, before), gap, annotate(frame, now)])


def contact_sheet(pictures: Sequence[Image], columns: int, title: str, width: int = 1920) -> Image:
    """Equal pictures in a grid under a title, scaled so that the sheet is `width` pixels wide."""
    gap = 8
    cell_width = (width - gap * (columns + 1)) // columns
    cells = []
    for picture in pictures:
        height = round(picture.shape[0] * cell_width / picture.shape[1])
        cells.append(cv2.resize(picture, (cell_width, height), interpolation=cv2.INTER_AREA))
    cell_height = max((cell.shape[0] for cell in cells), default=0)
    rows = -(-len(cells) // columns)
    top = 48
    sheet = np.full((top + rows * (cell_height + gap), width, 3), 24, np.uint8)
    _write(sheet, title, (gap * 2, 31), (230, 230, 230), 0.7)
    for number, cell in enumerate(cells):
        y = top + number // columns * (cell_height + gap)
        x = gap + number % columns * (cell_width + gap)
        sheet[y : y + cell.shape[0], x : x + cell_width] = cell
    return sheet


def write_png(path: Path, picture: Image) -> None:
    """Write a grey (H, W, 1) or an RGB (H, W, 3) picture."""
    if picture.shape[2] == 3:
        picture = picture[:, :, ::-1]
    _, data = cv2.imencode(".png", picture)
    path.write_bytes(data.tobytes())


def write_video(path: Path, pictures: Iterable[Image], fps: float) -> None:
    """Write RGB pictures of one size as H.264, which any browser shows; sides become even."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "23", "preset": "veryfast"}
        for number, picture in enumerate(pictures):
            even = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]
            if number == 0:  # a codec that is open keeps its size
                stream.height, stream.width = even.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _draw(picture: Image, box: Box, color: tuple[int, int, int], grow: int, width: int) -> None:
    x0, y0, x1, y1 = box
    top_left, bottom_right = (x0 - grow, y0 - grow), (x1 + grow - 1, y1 + grow - 1)
    cv2.rectangle(picture, top_left, bottom_right, color, width, cv2.LINE_AA)


def _write(
    picture: Image,
    text: str,
    at: tuple[int, int],
    color: tuple[int, int, int],
    scale: float = 0.55,
) -> None:
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, color, 1, cv2.LINE_AA)
