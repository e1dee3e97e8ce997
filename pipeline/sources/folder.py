"""A folder of images as a recording: PNG, JPEG, BMP and TIFF in natural order.

`2.png` comes before `10.png`. The first image that can be read sets the shape. A file that cannot
be read is a broken frame, and so is a cut-off PNG or JPEG, which OpenCV would fill up with grey; an
image of another size is one of the wrong size. Images are decoded when they are read, and copied
once, into the slot. More than 8 bit a channel are refused, as in training: which of them matter is
not for a reader of files to say.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FolderSource
from pipeline.errors import SourceError
from pipeline.sources.base import Grab, no_pixels
from pipeline.types import Reason

SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
_CONVERSIONS: Final = {
    (1, False): None,
    (1, True): cv2.COLOR_GRAY2RGB,
    (2, False): None,  # grey and alpha
    (2, True): cv2.COLOR_GRAY2RGB,
    (3, False): cv2.COLOR_BGR2GRAY,
    (3, True): cv2.COLOR_BGR2RGB,
    (4, False): cv2.COLOR_BGRA2GRAY,
    (4, True): cv2.COLOR_BGRA2RGB,
}
_PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n"


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers in names by value, and letters without regard to case."""
    pieces = [piece for piece in re.split(r"([0-9]+)", name) if piece]
    parts = [
        (0, int(p), "") if p.isascii() and p.isdigit() else (1, 0, p.casefold()) for p in pieces
    ]
    return parts, name


def list_images(folder: Path) -> list[Path]:
    """The images in a folder, in natural order. Raises `SourceError` where there are none."""
    try:
        files = [
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        ]
    except OSError as error:
        raise SourceError(
            f"{folder}: not a folder that can be read ({error}); check `path` of the source"
        ) from error
    if not files:
        raise SourceError(
            f"{folder}: no images in it; expected files that end in {', '.join(sorted(SUFFIXES))}"
        )
    return sorted(files, key=lambda path: natural_key(path.name))


def read_image(path: Path, color: bool) -> NDArray[np.uint8]:
    """uint8 (H, W, 1), or RGB (H, W, 3) with `color`. Raises `SourceError` for a damaged file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); check the file") from error
    if fault := _damage(data):
        raise SourceError(f"{path}: {fault}; copy the file anew")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a head that promises impossible sizes
        image = None
    if image is None:
        raise SourceError(f"{path}: not an image that can be read; copy the file anew")
    if image.dtype != np.uint8:
        raise SourceError(
            f"{path}: {image.dtype} pixels; expected 8 bit, convert the images with the black and "
            "white points of the line"
        )
    pixels = np.asarray(image, np.uint8).reshape(*image.shape[:2], -1)
    code = _CONVERSIONS[pixels.shape[2], color]
    if code is not None:
        colours = pixels[:, :, :1] if pixels.shape[2] == 2 else pixels
        pixels = np.asarray(cv2.cvtColor(colours, code), np.uint8)
    wanted = 3 if color else 1
    return pixels.reshape(*pixels.shape[:2], -1)[:, :, :wanted]


def _damage(data: bytes) -> str:
    """What is wrong with a PNG or JPEG that OpenCV would open all the same; else nothing."""
    if not data:
        return "an empty file"
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-1024:]:
        return "a JPEG that is cut off before its end mark"
    if data.startswith(_PNG_HEAD):
        place = len(_PNG_HEAD)
        while place + 12 <= len(data):
            size = int.from_bytes(data[place : place + 4], "big")
            chunk = data[place + 4 : place + 8 + size]
            end = place + 12 + size
            if zlib.crc32(chunk) != int.from_bytes(data[end - 4 : end], "big"):
                return f"a PNG whose checksum fails at byte {place}"
            if chunk.startswith(b"IEND"):
                return ""
            place = end
        return "a PNG that is cut off before its end mark"
    return ""


class ImageFolder:
    """A `Source` over the images of a folder; `start` is the index of the first one it gives."""

    def __init__(self, config: FolderSource, start: int = 0) -> None:
        self._color = config.color
        self._paths = list_images(Path(config.path))
        self._index = start
        self._shape = self._first_shape(Path(config.path))

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self._shape

    def read(self) -> Grab | None:
        index = self._index
        if index >= len(self._paths):
            return None
        self._index += 1
        path = self._paths[index]
        try:
            image = read_image(path, self._color)
        except SourceError as error:
            return Grab(index, no_pixels, fault=Reason.BROKEN_FRAME, detail=str(error))
        if image.shape != self._shape:
            found, expected = _size(image.shape), _size(self._shape)
            detail = f"{path}: {found} px; the first image has {expected} px"
            return Grab(index, no_pixels, fault=Reason.WRONG_SIZE, detail=detail)

        def write(out: NDArray[np.uint8]) -> None:
            out[...] = image

        return Grab(index, write)

    def close(self) -> None:
        self._paths = []

    def _first_shape(self, folder: Path) -> tuple[int, int, int]:
        fault: SourceError | None = None
        for path in self._paths:
            try:
                height, width, channels = read_image(path, self._color).shape
            except SourceError as error:
                fault = fault or error
                continue
            return height, width, channels
        raise SourceError(f"{folder}: none of {len(self._paths)} images can be read: {fault}")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"


def probe_folder(config: FolderSource) -> tuple[int, int, int]:
    """Height, width and channels of the first image that can be read."""
    return ImageFolder(config).shape_hwc
