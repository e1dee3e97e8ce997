"""Images that a person has labelled: good ones, and defective ones with masks or boxes.

    --good DIR, --good CAMERA=DIR     images of good parts
    --bad DIR                         defective ones, in DIR or in DIR/TYPE (types of defects); a
                                      folder that is named as good is not looked at
    --masks DIR                       DIR/TYPE/NAME.png or DIR/NAME.png, NAME_mask.png too
    --boxes DIR                       DIR/NAME.txt, a line `x1 y1 x2 y2 [type]` per defect, pixels

Files are known by their content: an image that is among the good and the defective ones is refused,
one that is there twice counts once, and what a bundle was trained, validated or calibrated on is
left out where it would flatter (`unseen`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.images import EXTENSIONS, list_images, natural_key
from pipeline.errors import DataError

Box = tuple[int, int, int, int]
UNNAMED = "defect"
"""The type of defects that nobody gave one."""
MASK_ENDINGS = ("_mask", "_gt")
MASK_VALUES = 16
"""A mask with more values is a grey picture, and white begins at the middle."""
NAMED = 5
"""So many files are named in a message."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect's type and half-open box in pixels."""

    kind: str
    box_xyxy: Box


@dataclass(frozen=True)
class LabelledImage:
    """An image of a good or of a defective part, and what is known of its defects."""

    path: Path
    defective: bool
    camera: str = ""
    kind: str = ""
    """Of the folder it lies in; "" for good ones."""
    mask: Path | None = None
    boxes: tuple[Defect, ...] | None = None
    """None: nobody drew any."""

    @cached_property
    def sha256(self) -> str:
        """Of the file. Raises `DataError` when it cannot be read."""
        try:
            return hashlib.sha256(self.path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{self.path}: unreadable ({error.strerror or error})") from error

    @property
    def located(self) -> bool:
        """Whether it is known where its defects are."""
        return self.mask is not None or self.boxes is not None

    @property
    def kinds(self) -> frozenset[str]:
        """Types of its defects, empty for a good image."""
        if not self.defective:
            return frozenset()
        found = frozenset(defect.kind for defect in self.boxes or ())
        return found or frozenset([self.kind or UNNAMED])

    def truth(self, frame_hw: tuple[int, int]) -> Truth:
        """Where its defects are. Raises `DataError` for a mask of another size than the frame, and
        for boxes that are not in it.
        """
        height, width = frame_hw
        if self.mask is not None:
            mask = _read_mask(self.mask)
            if mask.shape != frame_hw:
                raise DataError(
                    f"{self.mask}: {mask.shape[1]}x{mask.shape[0]} found, expected {width}x{height}"
                    f" as {self.path.name}: a mask shows its whole image, pixel by pixel"
                )
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
            kind = self.kind or UNNAMED
            rows = [tuple(int(value) for value in row) for row in stats[1:]]
            defects = tuple(Defect(kind, (x, y, x + w, y + h)) for x, y, w, h, _ in rows)
            return Truth(mask, defects)
        filled = np.zeros(frame_hw, np.bool_)
        for defect in self.boxes or ():
            x0, y0, x1, y1 = defect.box_xyxy
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise DataError(
                    f"{self.path.name}: a box {defect.box_xyxy} found, expected one within "
                    f"{width}x{height} pixels, x1 y1 x2 y2: correct its line in the boxes' file"
                )
            filled[y0:y1, x0:x1] = True
        return Truth(filled, self.boxes or ())


@dataclass(frozen=True, slots=True)
class Truth:
    """mask: bool (H, W), the boxes filled where there are only boxes; and the single defects."""

    mask: NDArray[np.bool_]
    defects: tuple[Defect, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled images, and sentences that a person should read."""

    images: tuple[LabelledImage, ...]
    notes: tuple[str, ...]

    @property
    def good(self) -> list[LabelledImage]:
        return [image for image in self.images if not image.defective]

    @property
    def bad(self) -> list[LabelledImage]:
        return [image for image in self.images if image.defective]


def load_labels(
    good: Sequence[str],
    bad: Sequence[str] = (),
    *,
    masks: Path | None = None,
    boxes: Path | None = None,
    types: Mapping[str, str] | None = None,
) -> Labels:
    """good, bad: folders, each perhaps as `CAMERA=DIR`. types: other names for types of defects.

    Raises `DataError` for folders without images, for missing masks and boxes, and for an image
    that is called good and defective.
    """
    if masks is not None and boxes is not None:
        raise DataError("masks and boxes found, expected one of both: masks say more")
    notes: list[str] = []
    images = [
        LabelledImage(path, False, camera)
        for camera, folder in map(_camera_of, good)
        for path in list_images(folder)
    ]
    found = []
    others = {_camera_of(text)[1].resolve() for text in good}
    others |= {folder.resolve() for folder in (masks, boxes) if folder is not None}
    for camera, folder in map(_camera_of, bad):
        images_there = [
            (kind, path)
            for kind, path in _with_types(folder)
            if not others & {path.parent.resolve(), *path.parent.resolve().parents}
        ]
        if not images_there:
            raise DataError(
                f"{folder}: no defective image found, expected some beside the folders of good "
                "images, masks and boxes"
            )
        for kind, path in images_there:
            found.append(LabelledImage(path, True, camera, (types or {}).get(kind, kind)))
    if masks is not None:
        found = _with_masks(found, masks, notes)
    elif boxes is not None:
        found = _with_boxes(found, boxes, types or {})
    return Labels(tuple(_once([*images, *found], notes)), tuple(notes))


def unseen(labels: Labels, bundle: Bundle, *, calibrated: bool = True) -> Labels:
    """Without the images that the bundle has seen: in training, when its best state was chosen,
    and, with `calibrated`, when its thresholds were.
    """
    about = bundle.provenance
    seen = {
        "trained the bundle": set(about.get("sha256", {}).values()),
        "chose its best state": set(about.get("validated_sha256", [])),
        "hold up its thresholds": set(bundle.calibration.images) if calibrated else set(),
    }
    kept = list(labels.images)
    notes = list(labels.notes)
    for why, digests in seen.items():
        if not digests:
            continue
        rest = [image for image in kept if image.sha256 not in digests]
        if len(rest) < len(kept):
            notes.append(f"left out: {len(kept) - len(rest)} image(s) that {why}")
        kept = rest
    return Labels(tuple(kept), tuple(notes))


def _camera_of(text: str) -> tuple[str, Path]:
    camera, equals, folder = text.partition("=")
    return (camera, Path(folder)) if equals and "/" not in camera else ("", Path(text))


def _with_types(folder: Path) -> list[tuple[str, Path]]:
    """(type, image) of a folder and of its folders."""
    if not folder.is_dir():
        list_images(folder)  # says what is wrong
    inner = sorted(
        (
            path
            for path in folder.iterdir()
            if path.is_dir()
            and not path.name.startswith(".")
            and any(file.suffix.lower() in EXTENSIONS for file in path.iterdir())
        ),
        key=natural_key,
    )
    typed = [(path.name, image) for path in inner for image in list_images(path)]
    if typed and not any(path.suffix.lower() in EXTENSIONS for path in folder.iterdir()):
        return typed
    return [("", image) for image in list_images(folder)] + typed


def _with_masks(
    images: Sequence[LabelledImage], folder: Path, notes: list[str]
) -> list[LabelledImage]:
    if not folder.is_dir():
        raise DataError(f"{folder}: not there, expected a folder of masks")
    known: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."):
            stem = path.stem
            for ending in MASK_ENDINGS:
                stem = stem.removesuffix(ending)
            known["" if path.parent == folder else path.parent.name, stem] = path
    missing, masked = [], []
    for image in images:
        place = image.path.parent.name, image.path.stem
        mask = known.get(place, known.get(("", image.path.stem)))
        if mask is None:
            missing.append(str(image.path))
        masked.append(replace(image, mask=mask))
    used = {image.mask for image in masked}
    _check_own({image.path: image.mask for image in masked if image.mask is not None})
    if missing:
        raise DataError(
            f"{folder}: no mask for {len(missing)} of {len(images)} defective images found, such "
            f"as {', '.join(missing[:NAMED])}: a mask is named as its image, NAME.png or "
            "TYPE/NAME.png; one that is all black says that nobody knows where the defect is"
        )
    beyond = len(set(known.values()) - used)
    if beyond:
        notes.append(f"{folder}: {beyond} masks have no image among the given ones")
    return masked


def _with_boxes(
    images: Sequence[LabelledImage], folder: Path, types: Mapping[str, str]
) -> list[LabelledImage]:
    if not folder.is_dir():
        raise DataError(f"{folder}: not there, expected a folder of boxes")
    found: dict[Path, Path] = {}
    for image in images:
        name = f"{image.path.stem}.txt"
        own = folder / image.path.parent.name / name
        found[image.path] = own if own.is_file() else folder / name
    missing = [image for image in images if not found[image.path].is_file()]
    if missing:
        raise DataError(
            f"{folder}: no boxes for {len(missing)} of {len(images)} defective images found, such "
            f"as {', '.join(f'{image.path.stem}.txt' for image in missing[:NAMED])}: a file is "
            "named as its image, NAME.txt or TYPE/NAME.txt; an empty one says that nobody knows "
            "where the defect is"
        )
    _check_own(found)
    return [
        replace(image, boxes=_read_boxes(found[image.path], image.kind, types)) for image in images
    ]


def _check_own(files: Mapping[Path, Path]) -> None:
    """files: what tells of each image where its defects are. Raises `DataError` for one that would
    tell of two images."""
    images: dict[Path, Path] = {}
    for image, file in files.items():
        other = images.setdefault(file, image)
        if other != image:
            raise DataError(
                f"{file}: found for {other} and for {image}, expected one for each: put it into a "
                f"folder of the image's own folder's name, such as {image.parent.name}/{file.name}"
            )


def _read_boxes(path: Path, kind: str, types: Mapping[str, str]) -> tuple[Defect, ...]:
    defects = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            x0, y0, x1, y1 = (int(word) for word in words[:4])
        except ValueError:
            x0, y0, x1, y1 = 0, 0, 0, 0
        if not (x0 < x1 and y0 < y1) or len(words) > 5:
            raise DataError(
                f"{path}:{number}: {line.strip()[:80]!r} found, expected `x1 y1 x2 y2 [type]` in "
                "whole pixels, x1 < x2 and y1 < y2"
            )
        name = words[4] if len(words) == 5 else kind or UNNAMED
        defects.append(Defect(types.get(name, name), (x0, y0, x1, y1)))
    return tuple(defects)


def _read_mask(path: Path) -> NDArray[np.bool_]:
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if found is None:
        raise DataError(f"{path}: no image found, expected a mask: white where the defect is")
    values = np.asarray(found)
    values = values if values.ndim == 2 else values[..., :3].max(axis=2)
    # Masks of 0 and 1, or of the numbers of types, are as common as those of 0 and 255.
    few = len(np.unique(values)) <= MASK_VALUES
    mask: NDArray[np.bool_] = values > (0 if few else np.iinfo(values.dtype).max // 2)
    return mask


def _once(images: Sequence[LabelledImage], notes: list[str]) -> list[LabelledImage]:
    first: dict[str, LabelledImage] = {}
    for image in images:
        known = first.setdefault(image.sha256, image)
        if known.defective != image.defective:
            raise DataError(
                f"{image.path} is the same file as {known.path}, one is called good and the other "
                "defective: take it out of one of the folders"
            )
    if len(first) < len(images):
        notes.append(f"{len(images) - len(first)} image(s) are there twice, and count once")
    return list(first.values())
