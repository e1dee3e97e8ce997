"""The two public data sets of the accuracy benchmark, as they lie on disk; not part of linewatch.

`deeppcb/` (boards, boxes per defect) and `magnetic_tile/` (grey tiles, masks per image), each with
`train/good`, `val` and `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.images import list_images
from pipeline.errors import DataError

Box = tuple[int, int, int, int]
PCB_TYPES = {1: "open", 2: "short", 3: "mousebite", 4: "spur", 5: "copper", 6: "pin-hole"}
TILE_TYPES = ("blowhole", "break", "crack", "fray", "uneven")


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect's kind and half-open box in pixels."""

    kind: str
    box_xyxy: Box


@dataclass(frozen=True, slots=True)
class BadImage:
    """A defective image. mask: bool (H, W), or None where only boxes are known."""

    path: Path
    kinds: frozenset[str]
    """Of its defects; a mask may be empty, and the image is defective all the same."""
    defects: tuple[Defect, ...]
    mask: NDArray[np.bool_] | None

    def truth(self, height: int, width: int) -> NDArray[np.bool_]:
        """The mask, or the boxes filled."""
        if self.mask is not None:
            return self.mask
        filled = np.zeros((height, width), np.bool_)
        for defect in self.defects:
            x0, y0, x1, y1 = defect.box_xyxy
            filled[y0:y1, x0:x1] = True
        return filled


@dataclass(frozen=True, slots=True)
class ImageSet:
    """What is learnt from, what chooses and calibrates, and what is only looked at in the end."""

    name: str
    train: Sequence[Path]
    val_good: Sequence[Path]
    val_bad: Sequence[BadImage]
    test_good: Sequence[Path]
    test_bad: Sequence[BadImage]


def load_set(root: Path, name: str) -> ImageSet:
    """`deeppcb` or `magnetic_tile` under `root`. Raises `DataError` for what is not there."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder}: not there, expected the data set: name its parent with --data")
    read = _pcb_bad if name == "deeppcb" else _tile_bad
    return ImageSet(
        name,
        list_images(folder / "train" / "good"),
        list_images(folder / "val" / "good"),
        read(folder, "val"),
        list_images(folder / "test" / "good"),
        read(folder, "test"),
    )


def _pcb_bad(folder: Path, part: str) -> list[BadImage]:
    images = []
    for path in list_images(folder / part / "defect"):
        defects = []
        for line in (folder / "boxes" / f"{path.stem}.txt").read_text().splitlines():
            if line.strip():
                x0, y0, x1, y1, kind = (int(value) for value in line.split())
                defects.append(Defect(PCB_TYPES[kind], (x0, y0, x1, y1)))
        kinds = frozenset(defect.kind for defect in defects)
        images.append(BadImage(path, kinds, tuple(defects), None))
    return images


def _tile_bad(folder: Path, part: str) -> list[BadImage]:
    images = []
    for kind in TILE_TYPES:
        for path in list_images(folder / part / kind):
            where = folder / "ground_truth" / kind / f"{path.stem}.png"
            found = cv2.imread(str(where), cv2.IMREAD_GRAYSCALE)
            if found is None:
                raise DataError(f"{where}: no image found, expected the mask of {path}")
            mask = np.asarray(found) > 127
            _, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            defects = tuple(
                Defect(kind, (int(x), int(y), int(x + width), int(y + height)))
                for x, y, width, height, _ in boxes[1:]
            )
            images.append(BadImage(path, frozenset([kind]), defects, mask))
    return images
