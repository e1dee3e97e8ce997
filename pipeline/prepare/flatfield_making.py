"""How a flat field is made: from frames without light, and frames of an even bright surface.

1. Of each pixel's values in all frames the middle half is averaged: dust that moves with the
   surface, and a lamp's single flash, fall out.
2. Gain is mean light over a pixel's light, so that a frame keeps its level; for each colour, and
   each pixel of a Bayer pattern, on its own, so that it keeps its white balance.
3. What it is good for is measured on frames that did not make it: one half's gain on the other one.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.overlay import contact_sheet
from pipeline.prepare.flatfield import LEAST_GAIN, MOST_GAIN, FlatField
from pipeline.sources.base import FrameFormat

FEWEST_FRAMES: Final = 4
_SATURATED: Final = 0.98
"""Of the largest value: above it a pixel no longer answers to light."""
_MOST_SATURATED: Final = 0.001
_LEAST_LIGHT: Final = 0.2
_MOST_DARK: Final = 0.2
_MOST_CLAMPED: Final = 0.01
_STRIP_BYTES: Final = 64 * 2**20

Light = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FlatFieldReport:
    """Shares are of the largest value that the source's bits hold, unless they say of what."""

    dark_level: float
    bright_level: float
    saturated: float
    """Share of the bright frame's pixels."""
    clamped: float
    """Share of pixels whose gain would be outside of `LEAST_GAIN` to `MOST_GAIN`."""
    flicker: float
    """Standard deviation of the bright frames' means, as a share of their mean."""
    before: float
    after: float
    """Non-uniformity, standard deviation over mean, without and with the correction."""
    gain_range: tuple[float, float]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def typical_frame(frames: Sequence[NDArray[Any]]) -> Light:
    """The mean of the middle half of each pixel's values. frames: equal shapes, at least one."""
    shape = frames[0].shape
    typical = np.empty(shape, np.float32)
    count = len(frames)
    cut = count // 4
    rows = max(1, _STRIP_BYTES // max(1, count * frames[0][0].nbytes))
    for top in range(0, shape[0], rows):
        strip = np.stack([frame[top : top + rows] for frame in frames])
        strip.sort(axis=0)
        typical[top : top + rows] = strip[cut : count - cut].mean(axis=0, dtype=np.float32)
    return typical


def make_flatfield(
    dark: Sequence[NDArray[Any]], bright: Sequence[NDArray[Any]], source: FrameFormat
) -> tuple[FlatField, FlatFieldReport, NDArray[np.uint8]]:
    """Correction, figures and a picture (RGB) from (H, W, C) frames in the source's units.

    Raises `DataError` with numbers for too few frames, frames of another format, dark ones with
    light, bright ones that are too dark, too uneven, or saturated.
    """
    for kind, frames in (("dark", dark), ("bright", bright)):
        _check_frames(kind, frames, source)
    top = 2**source.bits - 1
    dark_frame = typical_frame(dark)
    bright_frame = typical_frame(bright)
    saturated = float((bright_frame >= _SATURATED * top).mean())
    light = bright_frame - np.rint(dark_frame)
    even = relative(light, source)
    clamped = float(((even < 1 / MOST_GAIN) | (even > 1 / LEAST_GAIN)).mean())
    _check_light(float(dark_frame.mean()) / top, float(light.mean()) / top, saturated, clamped)

    means = [float(frame.mean()) for frame in bright]
    field = FlatField(
        source,
        np.rint(dark_frame).astype(source.dtype),
        gain_of(light, source),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        len(dark),
        len(bright),
    )
    learnt = gain_of(typical_frame(bright[::2]) - field.dark, source)
    others = typical_frame(bright[1::2]) - field.dark
    before, after = relative(others, source), relative(others * learnt, source)
    report = FlatFieldReport(
        dark_level=float(dark_frame.mean()) / top,
        bright_level=float(bright_frame.mean()) / top,
        saturated=saturated,
        clamped=clamped,
        flicker=float(np.std(means) / np.mean(means)),
        before=float(before.std()),
        after=float(after.std()),
        gain_range=(float(field.gain.min()), float(field.gain.max())),
    )
    return field, report, _picture(before, field.gain, after, report)


def gain_of(light: Light, source: FrameFormat) -> Light:
    """float32 (H, W, C): mean over light, of each colour and pixel of the pattern on its own."""
    gain = np.empty_like(light)
    for part, phase in zip(_phases(gain, source), _phases(light, source), strict=True):
        mean = float(phase.mean())
        part[...] = mean / np.maximum(phase, mean / (2 * MOST_GAIN))
    return np.clip(gain, LEAST_GAIN, MOST_GAIN, out=gain)


def relative(light: Light, source: FrameFormat) -> Light:
    """Light over the mean of its colour and pixel of the pattern."""
    even = np.empty_like(light)
    for part, phase in zip(_phases(even, source), _phases(light, source), strict=True):
        part[...] = phase / max(float(phase.mean()), 1e-3)
    return even


def _phases(pixels: Light, source: FrameFormat) -> Iterator[Light]:
    """Views of the pixels of one colour each."""
    if source.bayer:
        yield from (pixels[row::2, column::2] for row in (0, 1) for column in (0, 1))
    else:
        yield from (pixels[:, :, channel] for channel in range(source.channels))


def _check_frames(kind: str, frames: Sequence[NDArray[Any]], source: FrameFormat) -> None:
    if len(frames) < FEWEST_FRAMES:
        raise DataError(
            f"{len(frames)} {kind} frames found, expected at least {FEWEST_FRAMES}, better 30: "
            "take more of them"
        )
    top = 2**source.bits - 1
    for number, frame in enumerate(frames):
        if frame.shape != source.shape_hwc or frame.dtype != source.dtype:
            raise DataError(
                f"{kind} frame {number}: {frame.dtype} {frame.shape} found, expected "
                f"{source.dtype} {source.shape_hwc} as the camera gives them"
            )
        if int(frame.max()) > top:
            raise DataError(
                f"{kind} frame {number}: the value {frame.max()} found, expected at most {top}, as "
                f"{source.bits} bits in the low bits of a pixel; save the frames unscaled"
            )


def _check_light(dark: float, light: float, saturated: float, clamped: float) -> None:
    if dark > _MOST_DARK:
        raise DataError(
            f"dark frames at {dark:.1%} of the largest value found, expected at most "
            f"{_MOST_DARK:.0%}: cover the lens, or turn the light off"
        )
    if saturated > _MOST_SATURATED:
        raise DataError(
            f"{saturated:.2%} of the bright frames' pixels saturated (over {_SATURATED:.0%} of the "
            f"largest value), expected at most {_MOST_SATURATED:.1%}: expose shorter"
        )
    if light < _LEAST_LIGHT:
        raise DataError(
            f"bright frames {light:.1%} of the largest value above the dark ones found, expected "
            f"at least {_LEAST_LIGHT:.0%}, better 60 %: expose longer"
        )
    if clamped > _MOST_CLAMPED:
        raise DataError(
            f"{clamped:.1%} of the pixels with under {1 / MOST_GAIN:.0%} or over "
            f"{1 / LEAST_GAIN:.0%} of the mean light found, expected at most {_MOST_CLAMPED:.0%}: "
            "light the surface more evenly, and let it fill the frame"
        )


def _picture(
    before: Light, gain: Light, after: Light, report: FlatFieldReport
) -> NDArray[np.uint8]:
    """Light before, gain, light after: with one scale for the first and the last one."""
    spread = max(float(np.percentile(np.abs(before - 1), 99.5)), 0.01)
    low, high = report.gain_range
    panels = [
        _panel((before - 1) / spread, f"before: {report.before:.2%} (std/mean)", None),
        _panel(
            (gain - low) / max(high - low, 1e-6) * 2 - 1,
            f"gain: {low:.3f} to {high:.3f}",
            cv2.COLORMAP_VIRIDIS,
        ),
        _panel((after - 1) / spread, f"after: {report.after:.2%}, other frames", None),
    ]
    return contact_sheet(
        panels, 3, f"Flat field. Grey: the mean; black and white: -/+ {spread:.1%}"
    )


def _panel(values: Light, text: str, colors: int | None) -> NDArray[np.uint8]:
    """values: (H, W, C), -1 to 1. RGB, 600 px wide, under its title."""
    grey = values.mean(axis=2)
    height = max(1, round(grey.shape[0] * 600 / grey.shape[1]))
    small = cv2.resize(np.ascontiguousarray(grey), (600, height), interpolation=cv2.INTER_AREA)
    levels = np.clip(np.rint(127.5 + 127.5 * small), 0, 255).astype(np.uint8)
    if colors is None:
        picture = cv2.cvtColor(levels, cv2.COLOR_GRAY2RGB)
    else:
        picture = cv2.cvtColor(cv2.applyColorMap(levels, colors), cv2.COLOR_BGR2RGB)
    bar = np.full((32, 600, 3), 24, np.uint8)
    at, white = (8, 22), (230, 230, 230)
    cv2.putText(bar, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.6, white, 1, cv2.LINE_AA)
    return np.asarray(np.vstack([bar, picture]), np.uint8)
