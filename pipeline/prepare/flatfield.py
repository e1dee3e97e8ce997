"""Flat field and dark frame: what makes all pixels of a camera answer alike to the same light.

A corrected pixel is `(raw - dark) * gain`, rounded, in the source's own units: 0 is no light. Dark
and gain belong to a source's frames as they arrive: its size, its bits, its Bayer pattern. They are
stored as an npz file without pickles (`linewatch flatfield`), with a checksum. A saturated pixel is
scaled as any other and no longer looks saturated: expose so that parts do not saturate.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError
from pipeline.sources.base import FrameFormat

VERSION: Final = 1
LEAST_GAIN: Final = 0.25
MOST_GAIN: Final = 4.0
_REMEDY: Final = "make it anew with `linewatch flatfield`"


@dataclass(frozen=True, slots=True)
class FlatField:
    """`dark`: (H, W, C) in the source's units and dtype. `gain`: float32 (H, W, C), above 0."""

    format: FrameFormat
    dark: NDArray[Any]
    gain: NDArray[np.float32]
    made: str
    """When, ISO 8601."""
    dark_frames: int
    bright_frames: int

    @property
    def sha256(self) -> str:
        """Of all that changes pixels: format, dark and gain."""
        digest = hashlib.sha256(json.dumps(asdict(self.format)).encode())
        digest.update(self.dark.astype("<u2").tobytes())
        digest.update(self.gain.astype("<f4").tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write it whole or not at all. Raises `DataError` where that fails."""
        about = {
            "version": VERSION,
            "format": asdict(self.format),
            "made": self.made,
            "dark_frames": self.dark_frames,
            "bright_frames": self.bright_frames,
            "sha256": self.sha256,
        }
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file, about=np.array(json.dumps(about)), dark=self.dark, gain=self.gain
                )
            os.replace(partial, path)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error}); check folder and disk"
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises `ConfigError` for what is no flat field, or a damaged one."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"prepare.flatfield: {path} cannot be read ({error.strerror}); {_REMEDY}"
            ) from error
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                if about["version"] != VERSION:
                    raise ConfigError(
                        f"prepare.flatfield: {path} has version {about['version']}, expected "
                        f"{VERSION}; {_REMEDY}"
                    )
                found = cls(
                    FrameFormat(**about["format"]),
                    stored["dark"],
                    stored["gain"],
                    str(about["made"]),
                    int(about["dark_frames"]),
                    int(about["bright_frames"]),
                )
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError) as error:
            raise ConfigError(
                f"prepare.flatfield: {path} is no flat field ({error}); {_REMEDY}"
            ) from error
        fits = (
            found.dark.shape == found.gain.shape == found.format.shape_hwc
            and found.dark.dtype == found.format.dtype
            and found.gain.dtype == np.float32
        )
        if not fits or found.sha256 != about["sha256"]:
            raise ConfigError(
                f"prepare.flatfield: {path} does not have the content that its checksum tells; "
                f"copy it again, or {_REMEDY}"
            )
        return found

    def check(self, source: FrameFormat) -> None:
        """Raises `ConfigError` unless it was made of frames of this format."""
        if self.format != source:
            raise ConfigError(
                f"prepare.flatfield: made of frames of {described(self.format)}, and the source "
                f"gives {described(source)}; {_REMEDY}, or set the source as it was"
            )


def described(source: FrameFormat) -> str:
    """A format in words."""
    kind = f"Bayer {source.bayer}" if source.bayer else ("RGB" if source.channels == 3 else "grey")
    return f"{source.width} x {source.height} px, {kind}, {source.bits} bits"
