"""Images on disk to uint8 arrays: the one place where training and calibration read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from models.variants import RECEPTIVE_FIELD_PX

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def natural_key(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """Sorts frame_2 before frame_10. Names that differ only in zeros go by their text."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    numbered: list[tuple[int, int | str]] = [
        (0, int(part)) if part[0] in "0123456789" else (1, part.casefold()) for part in parts
    ]
    return numbered, path.name


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order. Hidden files are not looked at.

    Raises `DataError` when there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: {found} found, expected a folder of images")
    paths = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    ]
    if not paths:
        raise DataError(
            f"{folder}: no image found, expected files ending in {', '.join(EXTENSIONS)}: "
            "name the folder that holds them directly"
        )
    return sorted(paths, key=natural_key)


def read_image(path: Path, channels: int | None = None) -> NDArray[np.uint8]:
    """uint8 (H, W, C), RGB order. `channels` 1 or 3 converts; None keeps what the file has.

    An alpha channel is left out. Raises `DataError` for what cannot be read, is not 8 bit, or is
    smaller than a network's view.
    """
    image = decode_image(path)
    if image.dtype != np.uint8:
        raise DataError(
            f"{path}: {image.dtype} pixels found, expected 8 bit: convert the images as the line "
            "will, with `linewatch prepare`"
        )
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] == 2:  # grey and alpha
        image = image[..., :1]
    if image.shape[2] >= 3:
        image = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB)
    height, width, found = image.shape
    if min(height, width) < RECEPTIVE_FIELD_PX:
        raise DataError(
            f"{path}: {width}x{height} found, expected at least "
            f"{RECEPTIVE_FIELD_PX}x{RECEPTIVE_FIELD_PX}: that is what one network output sees"
        )
    if channels == 1 and found == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    elif channels == 3 and found == 1:
        image = np.repeat(image, 3, axis=2)
    whole: NDArray[np.uint8] = np.ascontiguousarray(image)
    return whole


def decode_image(path: Path) -> NDArray[Any]:
    """What the file holds, as OpenCV gives it: (H, W) or BGR (H, W, C), any depth.

    Raises `DataError` for what cannot be read.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: unreadable ({error.strerror or error})") from error
    # IMREAD_UNCHANGED: without it OpenCV quietly takes 16 bit to 8 by dropping the low byte.
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:  # a header that promises more pixels than OpenCV takes
        image = None
    if image is None:
        raise DataError(
            f"{path}: {data.size} bytes that are no image found, expected a whole PNG, JPEG, BMP "
            "or TIFF: copy the file again or take it out of the folder"
        )
    return image


def guess_channels(paths: Sequence[Path]) -> int:
    """1 when no image has colour, be it in one channel or in three equal ones; else 3."""
    return 3 if any(has_colour(read_image(path)) for path in paths) else 1


def has_colour(image: NDArray[Any]) -> bool:
    """Whether the channels of (H, W, 3) differ anywhere; alpha does not count."""
    if image.ndim == 2 or image.shape[2] < 3:
        return False
    first, *others = (image[..., k] for k in range(3))
    return any(bool((first != other).any()) for other in others)
