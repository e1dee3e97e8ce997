"""From what a person has (16 bit files, damaged ones) to images that can be learnt from.

Every file is opened once before anything is learnt: those that cannot be read are named and left
out while they are few, and 16 bit ones are converted into a folder of 8 bit ones, between a black
and a white point, as the camera's frames will be.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.images import decode_image, has_colour
from models.variants import RECEPTIVE_FIELD_PX

MOST_UNREADABLE = 0.1
NAMED = 5
Progress = Callable[[int, int], None]
"""Called with (done, of how many)."""


@dataclass(frozen=True, slots=True)
class GoodImages:
    """What can be learnt from, and a sentence for each file that was left out."""

    paths: list[Path]
    left_out: list[str]
    coloured: int = 0
    """How many of `paths` have colour."""


def check_images(
    paths: Sequence[Path],
    *,
    levels: tuple[int, int] | None = None,
    convert_into: Path,
    least_px: int = RECEPTIVE_FIELD_PX,
    progress: Progress | None = None,
) -> GoodImages:
    """Open all files; 16 bit ones become PNGs in `convert_into`.

    levels: the black and the white point of 16 bit pixels. least_px: sides shorter than this are of
    no use, such as at half the size. Raises `DataError` when over a tenth of
    the files cannot be used, and when the disk is full.
    """
    if levels is not None and not 0 <= levels[0] < levels[1] <= 65535:
        raise DataError(f"levels {levels} found, expected black < white, both from 0 to 65535")
    usable, left_out, coloured = list[Path](), list[str](), 0
    for number, path in enumerate(paths, start=1):
        try:
            image = _readable(path, levels, least_px)
        except DataError as error:
            left_out.append(str(error))
        else:
            coloured += has_colour(image)
            eight = image.dtype == np.uint8
            usable.append(path if eight else _converted(path, image, levels, convert_into))
        if progress is not None:
            progress(number, len(paths))
    if len(left_out) > MOST_UNREADABLE * len(paths):
        some = "\n".join(left_out[:NAMED])
        raise DataError(
            f"{len(left_out)} of {len(paths)} images cannot be used, expected at most "
            f"{MOST_UNREADABLE:.0%}; the first ones:\n{some}"
        )
    return GoodImages(usable, left_out, coloured)


def _readable(path: Path, levels: tuple[int, int] | None, least_px: int) -> NDArray[Any]:
    """The pixels of a file that is good as it is, or of a 16 bit one that can be converted."""
    image = decode_image(path)
    if min(image.shape[:2]) < least_px:
        raise DataError(
            f"{path}: {image.shape[1]}x{image.shape[0]} found, expected at least "
            f"{least_px}x{least_px} for what is to be learnt from it"
        )
    if image.dtype == np.uint8:
        return image
    if image.dtype != np.uint16 or levels is None:
        raise DataError(
            f"{path}: {image.dtype} pixels found, expected 8 bit, or to train on 16 bit together "
            "with the camera's black and white points (--levels 0,4095 for 12 bit)"
        )
    return image


def _converted(
    path: Path,
    image: NDArray[Any],
    levels: tuple[int, int] | None,
    convert_into: Path,
) -> Path:
    assert levels is not None
    about = path.stat()
    key = f"{path.absolute()}{about.st_size}{about.st_mtime_ns}{levels}"
    target = convert_into / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.png"
    if not target.exists():
        partial = target.with_suffix(".partial.png")
        try:
            convert_into.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(partial), to_8_bit(image, levels)):
                raise OSError("not all of it was written")
            partial.replace(target)
        except (OSError, cv2.error) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise DataError(f"{target}: cannot be written ({error}): is the disk full?") from error
    return target


def to_8_bit(image: NDArray[np.uint16], levels: tuple[int, int]) -> NDArray[np.uint8]:
    """Black and below is 0, white and above 255, linear between."""
    black, white = levels
    spread = (image.astype(np.float32) - black) * np.float32(255 / (white - black))
    scaled: NDArray[np.uint8] = np.rint(np.clip(spread, 0, 255)).astype(np.uint8)
    return scaled
