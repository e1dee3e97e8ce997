"""Which images show one part: what is said of parts must not be counted in photographs.

Ten photographs of one part are one witness, not ten. A part's id is taken from the images' names by
a pattern, or images that hardly differ are taken for one part. A part's score is the highest of
its images'.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

Thumb = NDArray[np.float32]
"""(64 * 64,): a tiny image of mean 0 and deviation 1, so that light does not count."""
THUMB_PX = 64
NEAR = 0.05
"""Images differ by less than this share of their own contrast: the same part, photographed again.
Of two parts of a kind that lay still, 0.09 and more was measured."""


def part_ids(names: Sequence[str], pattern: str) -> list[str]:
    """Of each file name: the pattern's first group, or all that it matches.

    Raises `DataError` for a pattern that is none or that a name does not match.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(
            f"part pattern {pattern!r}: {error}: expected a regular expression"
        ) from error
    found = []
    for name in names:
        match = expression.search(name)
        if match is None:
            raise DataError(f"{name}: no part id found by {pattern!r}, expected one in every name")
        found.append(match[1] if match.re.groups else match[0])
    return found


def thumb(pixels: NDArray[np.uint8]) -> Thumb:
    """Of uint8 (H, W, C)."""
    grey = pixels.mean(axis=2, dtype=np.float32) if pixels.shape[2] > 1 else pixels[..., 0]
    small = cv2.resize(
        np.asarray(grey, np.float32), (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA
    )
    centred = small - small.mean()
    spread = max(float(centred.std()), 1e-3)
    return np.asarray(centred / np.float32(spread), np.float32).ravel()


def near_duplicates(thumbs: Sequence[Thumb | None]) -> list[int]:
    """A number for each image, the same for images that show one part. None: a part of its own."""
    group = list(range(len(thumbs)))
    known = [k for k, each in enumerate(thumbs) if each is not None]
    if not known:
        return group
    table = np.stack([each for each in thumbs if each is not None])
    squares = (table**2).mean(axis=1)

    def root(k: int) -> int:
        while group[k] != k:
            k = group[k] = group[group[k]]
        return k

    for at, k in enumerate(known):
        rest = at + 1
        apart = squares[at] + squares[rest:] - 2 * (table[rest:] @ table[at]) / table.shape[1]
        for other in np.flatnonzero(apart < NEAR**2):
            group[root(known[rest + int(other)])] = root(k)
    return [root(k) for k in group]


def part_scores(scores: Sequence[float], parts: Sequence[str | int]) -> Mapping[str | int, float]:
    """The highest score of each part, in the order in which parts first appear."""
    highest: dict[str | int, float] = {}
    for score, part in zip(scores, parts, strict=True):
        highest[part] = max(score, highest.get(part, score))
    return highest


def kept_apart(
    strata: Sequence[Hashable], parts: Sequence[str | int], share: float, seed: int
) -> list[bool]:
    """Which images are kept for a test: about `share` of the parts of each stratum, by the seed.

    All images of a part are on one side; its stratum is that of its first image. A stratum of two
    parts or more has at least one on either side.
    """
    first: dict[str | int, Hashable] = {}
    for stratum, part in zip(strata, parts, strict=True):
        first.setdefault(part, stratum)
    groups: dict[Hashable, list[str | int]] = {}
    for part, stratum in first.items():
        groups.setdefault(stratum, []).append(part)
    rng = np.random.default_rng(seed)
    chosen: set[str | int] = set()
    for members in groups.values():
        count = round(share * len(members))
        if share and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        chosen |= {members[k] for k in rng.permutation(len(members))[:count]}
    return [part in chosen for part in parts]
