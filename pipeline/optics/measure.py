"""What a frame tells of lens, lamp and the camera's place, and what good images say is usual.

1. `measure` takes a frame's figures: exposure, clipped pixels, contrast, sharpness (two ways) and
   a thumbnail. A frame of 1280x1024 takes a third of a millisecond.
2. Calibration gives the figures of its good images to `learn`. Limits of each figure, and of the
   brightness of each place of the picture, lie `WIDE` standard deviations around the good images'
   mean: what varies much between good parts has wide limits by itself. They are limits for an
   average of frames. Of independent good frames the average of 20 is beyond one for 0.4 % of the
   time at most (Chebyshev; of anything near a normal distribution: never). A slow change that
   calibration has seen may stay beyond one only where fewer than one in seven of its images were.
3. The limits travel as JSON in the bundle's calibration and the station's engine file, and
   `pipeline.optics.guard` holds the line's frames against them.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError, DataError

Grey = NDArray[np.uint8]
"""(H, W)"""
Floats = NDArray[np.float32]

FIGURES = ("exposure", "clipped", "contrast", "sharpness", "detail", "shift x", "shift y", "match")
"""What `Limits` holds one number of; the brightness of each place follows, row by row."""
FLOORS = (1.0, 0.002, 0.005, 0.005, 0.005, 0.3, 0.3, 0.02)
"""The least standard deviation that is believed of each: grey levels, shares, and frame pixels."""
PLACE_FLOOR = 0.004
WIDE = 2.5
"""Standard deviations from the good images' mean to a limit."""
MIN_IMAGES = 10
THUMB_PX = 200
"""The longest side of a thumbnail, at most."""
PLACES_WH = (20, 16)
"""Places of the picture whose brightness is watched, at most."""
SAMPLED_ROWS = 128
LEAST_MATCH = 0.3
"""Good images that match their mean by less do not tell where the camera is."""
WHITE = 255


@dataclass(frozen=True, slots=True)
class OpticsFigures:
    """Of one frame. Grey levels are those of its pixels."""

    exposure: float
    """Mean grey level."""
    clipped: float
    """Share of white pixels (255)."""
    spread: float
    """Grey levels from the 5th to the 95th percentile."""
    sharpness: float
    """Differences of neighbours over those of pixels four apart: content and lamp cancel out."""
    detail: float
    """What one in a hundred neighbours differ by, over `spread`: noise counts for less in it."""
    thumb: Grey
    """Means of squares of 1, 2, 4, ... pixels."""
    px: int
    """Frame pixels in a side of such a square."""

    @property
    def contrast(self) -> float:
        return self.spread / max(self.exposure, 1.0)

    def places(self) -> Floats:
        """Brightness of each place, as a share of the whole picture's; (rows * columns,)."""
        height, width = self.thumb.shape
        size = min(PLACES_WH[0], width), min(PLACES_WH[1], height)
        means = cv2.resize(
            self.thumb.astype(np.float32), size, interpolation=cv2.INTER_AREA
        ).ravel()
        return np.asarray(means / max(float(means.mean()), 1.0), np.float32)


def measure(frame: NDArray[np.uint8]) -> OpticsFigures:
    """The figures of a frame, uint8 (H, W, C), rows possibly strided; RGB counts as its grey."""
    halvings = _halvings((frame.shape[0], frame.shape[1]))
    step = max(1, frame.shape[0] // SAMPLED_ROWS)
    if frame.shape[2] == 1:
        grey = frame[..., 0]
        rows = [grey[k::step] for k in (0, 1, 4)]
    else:
        rows = [_grey(frame[k::step]) for k in (0, 1, 4)]
    levels = np.bincount(rows[0][:, :: max(1, step // 2)].ravel(), minlength=WHITE + 1)
    total = int(levels.sum())
    low, high = np.searchsorted(levels.cumsum(), (0.05 * total, 0.95 * total)).tolist()
    spread = float(high - low)
    near, far, tail = _differences(rows)
    thumb = _halved(frame, halvings)
    return OpticsFigures(
        exposure=float(levels @ np.arange(WHITE + 1)) / total,
        clipped=float(levels[WHITE]) / total,
        spread=spread,
        sharpness=(near / max(far, 0.01)) ** 0.5,
        detail=tail / max(spread, 1.0),
        thumb=thumb,
        px=2**halvings,
    )


def _halvings(frame_hw: tuple[int, int]) -> int:
    return max(0, (max(frame_hw) // (THUMB_PX + 1)).bit_length())


def _differences(rows: Sequence[Grey]) -> tuple[float, float, float]:
    """Mean squares of differences, one and four pixels apart; 99th percentile of the former.

    rows: some rows of a frame, those below them, and those four below.
    """
    here, below, deep = rows
    below, deep = below[: len(here)], deep[: len(here)]
    pairs = [(here[:, 1:], here[:, :-1]), (here[: len(below)], below)]
    wide = [(here[:, 4:], here[:, :-4]), (here[: len(deep)], deep)]
    near, far = (
        sum(cv2.norm(one, other, cv2.NORM_L2SQR) for one, other in some)
        / sum(one.size for one, _ in some)
        for some in (pairs, wide)
    )
    counts = np.zeros(256)
    for one, other in pairs:
        counts += cv2.calcHist([cv2.absdiff(one, other)], [0], None, [256], [0, 256]).ravel()
    tail = int(np.searchsorted(counts.cumsum(), 0.99 * counts.sum()))
    return float(near), float(far), float(tail)


def _halved(frame: NDArray[np.uint8], times: int) -> Grey:
    """Grey, with sides halved so often; a rest that does not divide is left out."""
    whole = 2**times
    plane = frame[: frame.shape[0] // whole * whole, : frame.shape[1] // whole * whole]
    for number in range(times):
        height, width = plane.shape[:2]
        plane = np.asarray(
            cv2.resize(plane, (width // 2, height // 2), interpolation=cv2.INTER_AREA), np.uint8
        )
        if number == 0 and plane.ndim == 3:
            plane = _grey(plane)
    if plane.ndim == 3:
        # A copy: the frame's own pixels will be overwritten.
        plane = plane[..., 0].copy() if plane.shape[2] == 1 else _grey(plane)
    return plane


def _grey(rgb: NDArray[np.uint8]) -> Grey:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


class Reference:
    """Where the picture lies that the good images have in common."""

    def __init__(self, thumb: Floats, px: int) -> None:
        """thumb: the mean of the good images' thumbnails; px: as in `OpticsFigures`."""
        self.thumb, self.px = thumb, px
        height, width = thumb.shape
        self._window = np.asarray(cv2.createHanningWindow((width, height), cv2.CV_32F), np.float32)
        self._faded = self._fade(thumb)

    def _fade(self, thumb: Floats) -> Floats:
        """To nothing at the edges, which would match wherever they are."""
        return np.asarray((thumb - thumb.mean()) * self._window, np.float32)

    def locate(self, thumb: Grey) -> tuple[float, float, float]:
        """How far a picture lies to the right and down of the reference, in frame pixels; and how
        well it matches there, 0 to 1.
        """
        # Faded here: with a window of its own, OpenCV 4 fades its arguments in place.
        (x, y), match = cv2.phaseCorrelate(self._faded, self._fade(thumb.astype(np.float32)))
        return x * self.px, y * self.px, float(match)


@dataclass(frozen=True, slots=True)
class OpticsLimits:
    """What is usual with good images of one camera: one number for each figure and place.

    low, high: beyond them a warning is due; -inf and inf where something is not watched.
    """

    images: int
    """Good images that it rests on."""
    middle: Floats
    low: Floats
    high: Floats
    least: tuple[float, float, float, float]
    """Exposure, spread, detail and sharpness of the good image that has the least of each."""
    reference: Reference
    scores: Mapping[str, tuple[float, float, float]]
    """By `runtime/precision`: 10th, 50th and 90th percentile of the good images' `score_of`."""

    @property
    def size(self) -> str:
        """Of frames, about."""
        return _size(self.reference.thumb, self.reference.px)

    def fits(self, frame_hw: tuple[int, int]) -> bool:
        """Whether they are limits for frames of this size."""
        halvings = _halvings(frame_hw)
        size = tuple(side >> halvings for side in frame_hw)
        return (*size, 2**halvings) == (*self.reference.thumb.shape, self.reference.px)

    def values(self, figures: OpticsFigures) -> Floats:
        """What is held against the limits. Raises `DataError` for a frame of another size."""
        if figures.thumb.shape != self.reference.thumb.shape or figures.px != self.reference.px:
            raise DataError(
                f"optics: a frame of about {_size(figures.thumb, figures.px)} found, expected "
                f"{self.size} as calibrated: calibrate with "
                "this camera's own images"
            )
        return _values(figures, self.reference)

    def deviations(self, values: Floats) -> Floats:
        """How far each value lies from its middle: -1 at the lower limit, 1 at the upper one."""
        off = values - self.middle
        side = np.where(off > 0, self.high - self.middle, self.middle - self.low)
        return np.asarray(off / side, np.float32)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "images": self.images,
            "limits": _packed(np.stack([self.middle, self.low, self.high])),
            "least": list(self.least),
            "thumb": _packed(self.reference.thumb),
            "px": self.reference.px,
            "scores": {engine: list(three) for engine, three in self.scores.items()},
        }

    @classmethod
    def of_plain(cls, found: Mapping[str, Any]) -> OpticsLimits:
        """What `plain` made. Raises `ConfigError` for anything else."""
        try:
            middle, low, high = _unpacked(found["limits"])
            thumb = _unpacked(found["thumb"])
            exposure, spread, detail, sharpness = (float(value) for value in found["least"])
            scores = {
                str(engine): (float(low), float(middle), float(high))
                for engine, (low, middle, high) in found["scores"].items()
            }
            reference = Reference(thumb, int(found["px"]))
            least = exposure, spread, detail, sharpness
            limits = cls(int(found["images"]), middle, low, high, least, reference, scores)
            good = np.isfinite(middle).all() and (low < middle).all() and (middle < high).all()
        except (KeyError, TypeError, ValueError, AttributeError, zlib.error, cv2.error) as error:
            raise ConfigError(
                f"the bundle's optics limits are damaged ({error!r}): calibrate again"
            ) from error
        if not good:
            raise ConfigError(
                "the bundle's optics limits are no limits, expected low < middle < high: calibrate "
                "again"
            )
        return limits


def learn(
    figures: Sequence[OpticsFigures],
    scores: Mapping[str, Sequence[float]] | None = None,
) -> OpticsLimits:
    """Limits from the figures of good images, all of one size.

    scores: by `runtime/precision`, each good image's `score_of`.

    Raises `DataError` for fewer than `MIN_IMAGES`, or images of different sizes.
    """
    if len(figures) < MIN_IMAGES:
        raise DataError(
            f"optics: {len(figures)} good images found, expected at least {MIN_IMAGES}: without "
            "them nobody knows what is usual"
        )
    sizes = {(each.thumb.shape, each.px) for each in figures}
    if len(sizes) > 1:
        raise DataError("optics: images of different sizes found, expected those of one camera")
    mean = np.rint(np.mean([each.thumb for each in figures], axis=0, dtype=np.float32))
    reference = Reference(mean, figures[0].px)
    table = np.stack([_values(each, reference) for each in figures])
    floors = np.full(table.shape[1], PLACE_FLOOR, np.float32)
    floors[: len(FLOORS)] = FLOORS
    middle = table.mean(axis=0)
    side = WIDE * np.maximum(table.std(axis=0, ddof=1), floors)
    low, high = middle - side, middle + side
    high[FIGURES.index("match")] = np.inf  # better than the good images is not worse
    if middle[FIGURES.index("match")] < LEAST_MATCH:
        for name in ("shift x", "shift y", "match"):
            low[FIGURES.index(name)], high[FIGURES.index(name)] = -np.inf, np.inf
    quantiles = {
        engine: tuple(float(value) for value in np.quantile(some, (0.1, 0.5, 0.9)))
        for engine, some in (scores or {}).items()
    }
    return OpticsLimits(
        images=len(figures),
        middle=middle.astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        least=(
            min(each.exposure for each in figures),
            min(each.spread for each in figures),
            min(each.detail for each in figures),
            min(each.sharpness for each in figures),
        ),
        reference=reference,
        scores={engine: (a, b, c) for engine, (a, b, c) in quantiles.items()},
    )


def score_of(raw_peak: float, q_a: float, q_b: float) -> float:
    """A frame's highest score, by the bundle's quantiles (`pipeline.rules`)."""
    return 0.1 * (raw_peak - q_a) / (q_b - q_a)


def _values(figures: OpticsFigures, reference: Reference) -> Floats:
    x, y, match = reference.locate(figures.thumb)
    return np.concatenate(
        [
            np.array(
                [
                    figures.exposure,
                    figures.clipped,
                    figures.contrast,
                    figures.sharpness,
                    figures.detail,
                    *(x, y, match),
                ],
                np.float32,
            ),
            figures.places(),
        ]
    )


def _size(thumb: NDArray[Any], px: int) -> str:
    return f"{thumb.shape[1] * px}x{thumb.shape[0] * px}"


def _packed(array: Floats) -> dict[str, Any]:
    data = zlib.compress(np.ascontiguousarray(array, "<f4").tobytes())
    return {"shape": list(array.shape), "zlib": base64.b64encode(data).decode()}


def _unpacked(found: Mapping[str, Any]) -> Floats:
    data = zlib.decompress(base64.b64decode(found["zlib"]))
    return np.frombuffer(data, "<f4").reshape(found["shape"]).astype(np.float32)
