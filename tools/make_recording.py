"""Makes a recording of large frames out of folders of small images.

    python -m tools.make_recording --good test/good --defect test/defect --boxes boxes \\
        --frames 60 --grid 2x2 --seed 1 --out boards.mkv

writes two files: boards.mkv (lossless) and boards.truth.json (every true box, and the recipe).
Each frame is a mosaic of R x C images. Half of the frames, drawn by chance, are good throughout;
the others have one or two defective cells. An image is used once, as long as there are enough.

The seams between images look like nothing on a real part, so the recipe in the side file leaves
them out: a zone reaches 18 px to either side of a seam, since an output cell of the network sees
16 px around its centre and stands for four (at half the size 32 and eight: replay such mosaics
with bundles of scale 1). A true box whose centre lies in such a zone is not
counted.

True boxes come from `--boxes` (NAME.txt beside NAME.png: a line `x1 y1 x2 y2 type` per defect,
half-open pixels) or from `--masks` (NAME.png or NAME_mask.png: every connected piece that is not
black is a defect of the type `defect`). `--stamp` puts a strip of 16 px above the mosaic that holds
the frame's number in black and white squares.

`linewatch replay boards.mkv --bundle B` finds the side file by itself.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Recipe, Zone
from pipeline.errors import ConfigError, DataError, LinewatchError
from pipeline.sources.folder import list_images, read_image
from pipeline.sources.recording import write_recording
from pipeline.sources.stamp import STAMP_HEIGHT_PX, STAMP_WIDTH_PX, write_stamp
from pipeline.sources.truth import (
    FrameTruth,
    TrueDefect,
    Truth,
    frame_truth,
    save_truth,
    truth_path,
)

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]

SEAM_GUARD_PX = 18


@dataclass(frozen=True, slots=True)
class Defective:
    """A defective image: where it lies and its half-open boxes with their types."""

    path: Path
    defects: tuple[TrueDefect, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the cells of a mosaic lie."""

    rows: int
    columns: int
    cell_hw: tuple[int, int]
    top: int = 0
    """Height of the strip above the mosaic."""

    @property
    def shape_hw(self) -> tuple[int, int]:
        return self.top + self.rows * self.cell_hw[0], self.columns * self.cell_hw[1]

    def origin(self, cell: int) -> tuple[int, int]:
        """x and y of a cell, counted row by row."""
        row, column = divmod(cell, self.columns)
        return column * self.cell_hw[1], self.top + row * self.cell_hw[0]

    def seams(self) -> tuple[Zone, ...]:
        """The seams, and the strip above the mosaic, as zones that are not inspected."""
        height, width = self.shape_hw
        bars: list[tuple[str, Box]] = []
        for column in range(1, self.columns):
            x = column * self.cell_hw[1]
            bars.append((f"seam x {x}", (x - SEAM_GUARD_PX, 0, x + SEAM_GUARD_PX, height)))
        for row in range(1, self.rows):
            y = self.top + row * self.cell_hw[0]
            bars.append((f"seam y {y}", (0, y - SEAM_GUARD_PX, width, y + SEAM_GUARD_PX)))
        if self.top:
            bars.append(("stamp", (0, 0, width, self.top + SEAM_GUARD_PX)))
        return tuple(
            Zone(name=name, polygon=((x0, y0), (x1, y0), (x1, y1), (x0, y1)))
            for name, (x0, y0, x1, y1) in bars
        )

    def is_inspected(self, box: Box) -> bool:
        """Whether the middle of a box of the frame lies outside all seams."""
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        for zone in self.seams():
            (x0, y0), _, (x1, y1), _ = zone.polygon
            if x0 <= x < x1 and y0 <= y < y1:
                return False
        return True


@dataclass(frozen=True, slots=True)
class Plan:
    """What stands in each cell of each frame: a good image's path, or a defective image."""

    frames: tuple[tuple[Path | Defective, ...], ...]
    reused: int
    """How many times an image had to be used again."""


def make_plan(
    good: Sequence[Path], defective: Sequence[Defective], frames: int, cells: int, seed: int
) -> Plan:
    """Half of the frames good throughout, the others with one or two defective cells."""
    chance = random.Random(seed)
    bad_frames = set(chance.sample(range(frames), frames // 2)) if defective else set()
    goods, bads = _Deck(good, chance), _Deck(defective, chance)
    planned = []
    for index in range(frames):
        count = min(chance.choice((1, 2)), cells) if index in bad_frames else 0
        spots = chance.sample(range(cells), count)
        planned.append(
            tuple(bads.draw() if cell in spots else goods.draw() for cell in range(cells))
        )
    return Plan(tuple(planned), goods.reused + bads.reused)


Card = TypeVar("Card")


class _Deck(Generic[Card]):
    """Cards in chance order; laid down once each before any comes again."""

    def __init__(self, cards: Sequence[Card], chance: random.Random) -> None:
        self._cards, self._chance = list(cards), chance
        self._left: list[Card] = []
        self.drawn = 0

    def draw(self) -> Card:
        if not self._left:
            self._left = self._chance.sample(self._cards, len(self._cards))
        self.drawn += 1
        return self._left.pop()

    @property
    def reused(self) -> int:
        return max(0, self.drawn - len(self._cards))


def read_boxes(path: Path, types: Sequence[str] = ()) -> tuple[TrueDefect, ...]:
    """`x1 y1 x2 y2 type` per line. A type that is a number n is named by `types[n - 1]`, if any.

    Raises `DataError` with file and line.
    """
    defects = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected the boxes of an image"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S+)\s*", line)
        if match is None or int(match[1]) >= int(match[3]) or int(match[2]) >= int(match[4]):
            raise DataError(
                f"{path}, line {number}: {line!r}; expected `x1 y1 x2 y2 type`, x1 < x2, y1 < y2"
            )
        kind = match[5]
        if kind.isdigit() and 0 < int(kind) <= len(types):
            kind = types[int(kind) - 1]
        box = (int(match[1]), int(match[2]), int(match[3]), int(match[4]))
        defects.append(TrueDefect(box_xyxy=box, type=kind))
    return tuple(defects)


def boxes_of_mask(path: Path) -> tuple[TrueDefect, ...]:
    """The box of every connected piece of a mask image that is not black."""
    mask = (read_image(path, color=False)[:, :, 0] > 0).astype(np.uint8)
    _, _, pieces, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    return tuple(
        TrueDefect(box_xyxy=(int(x), int(y), int(x + w), int(y + h)), type="defect")
        for x, y, w, h, _ in pieces[1:]
    )


def find_defective(
    images: Sequence[Path], boxes: Path | None, masks: Path | None, types: Sequence[str] = ()
) -> list[Defective]:
    """Each defective image with its boxes. Raises `DataError` for one that has none."""
    found = []
    for path in images:
        if boxes is not None:
            defects = read_boxes(boxes / f"{path.stem}.txt", types)
        elif masks is not None:
            candidates = [masks / f"{path.stem}.png", masks / f"{path.stem}_mask.png"]
            mask = next((candidate for candidate in candidates if candidate.exists()), None)
            if mask is None:
                raise DataError(f"{path}: no mask; expected {candidates[0]} or {candidates[1]}")
            defects = boxes_of_mask(mask)
        else:
            raise ConfigError("--defect without --boxes or --masks; give one of the two")
        if not defects:
            raise DataError(f"{path}: no true box; a defective image has at least one")
        found.append(Defective(path, defects))
    return found


def compose(
    layout: Layout, cells: Sequence[Path | Defective], index: int, color: bool
) -> tuple[Image, FrameTruth]:
    """Frame `index` and what is true of it. Raises `DataError` for an image of another size."""
    height, width = layout.shape_hw
    frame = np.zeros((height, width, 3 if color else 1), np.uint8)
    defects: list[TrueDefect] = []
    names = []
    for number, cell in enumerate(cells):
        path = cell.path if isinstance(cell, Defective) else cell
        image = read_image(path, color)
        if image.shape[:2] != layout.cell_hw:
            raise DataError(
                f"{path}: {image.shape[1]} x {image.shape[0]} px; the first image has "
                f"{layout.cell_hw[1]} x {layout.cell_hw[0]} px, and all must be of one size"
            )
        x, y = layout.origin(number)
        frame[y : y + image.shape[0], x : x + image.shape[1]] = image
        names.append(path.name)
        for defect in cell.defects if isinstance(cell, Defective) else ():
            x0, y0, x1, y1 = defect.box_xyxy
            if x1 > image.shape[1] or y1 > image.shape[0]:
                raise DataError(f"{path}: box {defect.box_xyxy} reaches out of the image")
            box = (x0 + x, y0 + y, x1 + x, y1 + y)
            if layout.is_inspected(box):
                defects.append(TrueDefect(box_xyxy=box, type=defect.type))
    if layout.top:
        write_stamp(frame, index)
    return frame, frame_truth(index, tuple(defects), " ".join(names))


def make_recording(
    out: Path,
    layout: Layout,
    plan: Plan,
    *,
    color: bool = False,
    fps: float = 30.0,
    note: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Truth:
    """Write the recording and its side file; return what is true of it."""
    truths: list[FrameTruth] = []

    def frames() -> Iterator[Image]:
        for index, cells in enumerate(plan.frames):
            frame, truth = compose(layout, cells, index, color)
            truths.append(truth)
            if progress is not None:
                progress(index + 1, len(plan.frames))
            yield frame

    write_recording(out, frames(), fps)
    truth = Truth(
        note=note,
        shape_hwc=(*layout.shape_hw, 3 if color else 1),
        recipe=Recipe(zones=layout.seams()),
        frames=tuple(truths),
    )
    save_truth(truth_path(out), truth)
    return truth


def _is_always_inspected(defective: Defective, cell_hw: tuple[int, int]) -> bool:
    """Whether one of the boxes counts wherever in a mosaic the image lies."""
    height, width = cell_hw
    return any(
        SEAM_GUARD_PX <= (d.box_xyxy[0] + d.box_xyxy[2]) / 2 < width - SEAM_GUARD_PX
        and SEAM_GUARD_PX <= (d.box_xyxy[1] + d.box_xyxy[3]) / 2 < height - SEAM_GUARD_PX
        for d in defective.defects
    )


def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}; expected ROWSxCOLUMNS, such as 2x2")
    return int(match[1]), int(match[2])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_recording",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--good", type=Path, required=True, metavar="DIR", help="images without defects")
    add("--defect", type=Path, metavar="DIR", help="images with defects; needs boxes or masks")
    truth = parser.add_mutually_exclusive_group()
    truth.add_argument("--boxes", type=Path, metavar="DIR", help="NAME.txt of each defective image")
    truth.add_argument("--masks", type=Path, metavar="DIR", help="mask of each defective image")
    add("--types", default="", metavar="A,B,..", help="names of the defect types 1, 2, ..")
    add("--frames", type=int, default=60, help="how many frames (default: 60)")
    add("--grid", type=_grid, default=(2, 2), metavar="RxC", help="images per frame (2x2)")
    add("--seed", type=int, default=1, help="the same seed makes the same recording (1)")
    add("--fps", type=float, default=30.0, help="frames per second in the file (30)")
    add("--color", action="store_true", help="RGB frames; without it, grey")
    add("--stamp", action="store_true", help="put a strip with the frame's number on top")
    add("--out", type=Path, required=True, metavar="FILE.mkv", help="the recording")
    return parser


def run(chosen: argparse.Namespace, progress: Callable[[int, int], None] | None = None) -> str:
    """Do what the command line says; return what to tell the user."""
    if chosen.frames < 1 or chosen.fps <= 0:
        raise ConfigError(f"--frames {chosen.frames} --fps {chosen.fps}; expected more than 0")
    if chosen.out.suffix != ".mkv":
        raise ConfigError(f"--out {chosen.out}; expected a name that ends in .mkv")
    good = list_images(chosen.good)
    rows, columns = chosen.grid
    height, width, _ = read_image(good[0], chosen.color).shape
    top = STAMP_HEIGHT_PX if chosen.stamp else 0
    layout = Layout(rows, columns, (height, width), top)
    if chosen.stamp and layout.shape_hw[1] < STAMP_WIDTH_PX:
        raise ConfigError(f"--stamp needs frames {STAMP_WIDTH_PX} px wide; leave it out")
    defective: list[Defective] = []
    if chosen.defect is not None:
        types = [name for name in chosen.types.split(",") if name]
        images = list_images(chosen.defect)
        defective = find_defective(images, chosen.boxes, chosen.masks, types)
    usable = [found for found in defective if _is_always_inspected(found, layout.cell_hw)]
    if defective and not usable:
        raise DataError(f"{chosen.defect}: all true boxes lie in the seams; use larger images")
    plan = make_plan(good, usable, chosen.frames, rows * columns, chosen.seed)
    note = (
        f"{rows}x{columns} mosaics of images from {chosen.good.name} and "
        f"{chosen.defect.name if chosen.defect else 'nowhere'}, seed {chosen.seed}"
    )
    truth = make_recording(
        chosen.out, layout, plan, color=chosen.color, fps=chosen.fps, note=note, progress=progress
    )
    bad = sum(frame.label == "defect" for frame in truth.frames)
    boxes = sum(len(frame.defects) for frame in truth.frames)
    report = (
        f"{chosen.out}: {len(truth.frames)} frames of {layout.shape_hw[1]} x {layout.shape_hw[0]} "
        f"px, {bad} of them with {boxes} defects; {truth_path(chosen.out).name} has the boxes and "
        f"{len(layout.seams())} zones"
    )
    if plan.reused:
        report += f"; {plan.reused} images had to be used again"
    if len(usable) < len(defective):
        report += f"; {len(defective) - len(usable)} images with defects at seams only left out"
    return report


def main(arguments: list[str] | None = None) -> int:
    from pipeline.commands.progress import progress_bar

    chosen = _parser().parse_args(arguments)
    try:
        with progress_bar("Composing", chosen.frames) as update:
            report = run(chosen, update)
    except LinewatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
