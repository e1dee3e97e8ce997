"""What commands about one camera of a station have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import CameraConfig, load
from pipeline.errors import ConfigError
from pipeline.sources.folder import list_images


def camera_of(station: Path, camera: str) -> CameraConfig:
    """That camera of a station's file. Raises `ConfigError`."""
    cameras = load(station).cameras
    if camera not in cameras:
        raise ConfigError(
            f"{station}: camera {camera!r} found on the command line, expected one of "
            f"{', '.join(cameras)}"
        )
    return cameras[camera]


def images_in(places: Sequence[Path]) -> list[Path]:
    """Files as they are, and the images of folders in natural order. Raises `SourceError`."""
    return [
        path for place in places for path in (list_images(place) if place.is_dir() else [place])
    ]
