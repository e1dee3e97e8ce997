"""The two public data sets of the accuracy benchmark, as they lie on disk; not part of linewatch.

`deeppcb/` (boards, boxes per defect) and `magnetic_tile/` (grey tiles, masks per image), each with
`train/good`, `val` and `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.labelled import Labels, load_labels
from models.images import list_images
from pipeline.errors import DataError

PCB_TYPES = {
    "1": "open",
    "2": "short",
    "3": "mousebite",
    "4": "spur",
    "5": "copper",
    "6": "pin-hole",
}
TILE_TYPES = ("blowhole", "break", "crack", "fray", "uneven")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """What is learnt from, what chooses and calibrates, and what is only looked at in the end."""

    name: str
    train: Sequence[Path]
    val: Labels
    test: Labels


def load_set(root: Path, name: str) -> ImageSet:
    """`deeppcb` or `magnetic_tile` under `root`. Raises `DataError` for what is not there."""
    folder = root / name
    if not folder.is_dir():
        raise DataError(f"{folder}: not there, expected the data set: name its parent with --data")
    train = list_images(folder / "train" / "good")

    def part(which: str) -> Labels:
        good = [str(folder / which / "good")]
        if name == "deeppcb":
            bad = [str(folder / which / "defect")]
            return load_labels(good, bad, boxes=folder / "boxes", types=PCB_TYPES)
        return load_labels(good, [str(folder / which)], masks=folder / "ground_truth")

    return ImageSet(name, train, part("val"), part("test"))


def halves(labels: Labels) -> tuple[Labels, Labels]:
    """Every other good and every other defective image: what chooses a state sets no threshold."""
    first = labels.good[0::2] + labels.bad[0::2]
    second = labels.good[1::2] + labels.bad[1::2]
    return Labels(tuple(first), ()), Labels(tuple(second), ())
