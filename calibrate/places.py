"""A tolerance for each place of a part that lies still: how high the map rises there on good parts.

Some places of a good part always look a little unusual (a print's corner, a cast edge). One
threshold for all would have to let everything else rise as high. Where parts lie within a few
pixels of one place, the decision rule can ask for less where good parts give less:

1. The highest score of each cell over all good images.
2. The highest of it within reach, then the mean within reach: a part may lie anywhere within.
3. Its share of the highest, at least `LEAST`, in 255ths and rounded up.

An image has had its share in its own tolerance, so its score by it is too low. For the thresholds
each image is scored by the tolerance of all other parts (the jackknife of Barber, Candès, Ramdas
and Tibshirani, Annals of Statistics 49, 2021). A new image meets a tolerance that knows one part
more, and is therefore no stricter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from calibrate.scores import GoodMap, Lazy, Scorer
from models.variants import STRIDE
from pipeline.errors import DataError
from pipeline.tolerance import MOST_TOLERANT, Tolerance

LEAST = 0.3
"""Of the highest tolerance: below, one speck of dust more would reject a part."""
MIN_IMAGES = 20
"""Fewer have not shown what good parts look like at every place."""
Scores = NDArray[np.float32]


class Places:
    """What good maps show at each place; all of one frame size."""

    def __init__(
        self,
        maps: Sequence[GoodMap],
        scorer: Scorer,
        still_px: int,
        parts: Sequence[str | int] | None = None,
    ) -> None:
        """scorer: by the recipe that will serve. still_px: how far parts lie from one another.
        parts: which part each map shows; None: each its own.

        Raises `DataError` for too few parts, and for maps of different sizes.
        """
        parts = range(len(maps)) if parts is None else parts
        numbers = {part: number for number, part in enumerate(dict.fromkeys(parts))}
        self._parts = [numbers[part] for part in parts]
        if len(numbers) < MIN_IMAGES:
            raise DataError(
                f"{len(numbers)} good parts found, expected at least {MIN_IMAGES} to learn a "
                "tolerance for each place: add images of other good parts, or leave --still-px away"
            )
        sizes = sorted({good.frame_hw for good in maps})
        cameras = sorted({good.camera for good in maps})
        if len(cameras) > 1:
            raise DataError(
                f"images of cameras {', '.join(cameras)} found, expected one: a tolerance for each "
                "place is one camera's own; leave --still-px away"
            )
        if len(sizes) > 1:
            raise DataError(
                f"good images of {sizes[0][1]}x{sizes[0][0]} and {sizes[-1][1]}x{sizes[-1][0]} "
                "found, expected one size: parts that lie still are taken by one camera"
            )
        self._maps = maps
        self._side = 2 * -(-still_px // STRIDE) + 1
        rule = scorer.rule(maps[0])
        shape = maps[0].raw_map.shape
        self._first: Scores = np.zeros(shape, np.float32)
        self._second: Scores = np.zeros(shape, np.float32)
        self._whose: NDArray[np.int64] = np.full(shape, -1)
        for part, good in zip(self._parts, maps, strict=True):
            score = rule.scores(good.raw_map)
            over, own = score > self._first, self._whose == part
            # The highest of another part than the one that is highest.
            self._second = np.where(
                over,
                np.where(own, self._second, self._first),
                np.where(own, self._second, np.maximum(self._second, score)),
            )
            self._first[over], self._whose[over] = score[over], part
        self._unit = max(float(self._smooth(self._first).max()), float(np.finfo(np.float32).tiny))

    def tolerance(self) -> Tolerance:
        """uint8 (h, w), 1..255: of all images."""
        return self._shares(self._first)

    def left_out(self) -> Sequence[GoodMap]:
        """Each map with the tolerance of all other parts."""
        return Lazy(len(self._maps), self._without)

    def _without(self, number: int) -> GoodMap:
        others = np.where(self._whose == self._parts[number], self._second, self._first)
        return replace(self._maps[number], tolerance=self._shares(others))

    def _smooth(self, highest: Scores) -> Scores:
        reached = cv2.dilate(highest, np.ones((self._side, self._side), np.uint8))
        return np.asarray(
            cv2.blur(reached, (self._side, self._side), borderType=cv2.BORDER_REPLICATE), np.float32
        )

    def _shares(self, highest: Scores) -> Tolerance:
        share = np.clip(self._smooth(highest) / np.float32(self._unit), LEAST, 1.0)
        return np.asarray(np.ceil(share * MOST_TOLERANT), np.uint8)
