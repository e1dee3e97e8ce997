"""The maps of images, by the very engine that will serve, and their scores by the one rule."""

from __future__ import annotations

import errno
import math
import os
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from calibrate.labelled import LabelledImage
from calibrate.on_part import Placer, on_parts
from calibrate.parts import Thumb, thumb
from models.images import read_image
from models.runtimes import Runtime
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX, map_hw
from pipeline.config import Recipe
from pipeline.errors import DataError
from pipeline.fixture.placing import Matrix
from pipeline.optics.measure import OpticsFigures, measure
from pipeline.rules import DecisionRule, Thresholds
from pipeline.tolerance import Tolerance
from pipeline.window import inspected_window

Frame = Path | NDArray[np.uint8] | LabelledImage
"""An image file, or uint8 (H, W, C) of the bundle's channels."""
Recipes = Recipe | Mapping[str, Recipe]
"""One for all images, or by camera; "" is for cameras that have none of their own."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""
IN_MEMORY_BYTES = 1 << 28
"""Maps beyond this wait on disk."""
MOST_MEASURED = 1000
"""Images whose optics are measured, evenly among all: each keeps 20 kB of memory."""


@dataclass(frozen=True, slots=True)
class GoodMap:
    """frame_hw in pixels; raw_map: float32 (ceil(H / 4), ceil(W / 4)); tolerance as in the rule.

    (The name is from when only good images were calibrated with: defective ones have maps as well.)
    """

    name: str
    frame_hw: tuple[int, int]
    raw_map: NDArray[np.float32]
    tolerance: Tolerance | None = None
    thumb: Thumb | None = None
    """By which images of one part are found; None: a part of its own."""
    camera: str = ""
    optics: OpticsFigures | None = None
    """Of the picture itself; of some of many images."""
    matrices: tuple[Matrix, ...] = ()
    """From the taught frame to this one, where the recipe has a fixture."""


def recipe_for(recipes: Recipes, camera: str) -> Recipe:
    """The camera's own, else the one for all, else the defaults."""
    if isinstance(recipes, Recipe):
        return recipes
    return recipes.get(camera) or recipes.get("") or Recipe()


class Lazy(Sequence[GoodMap]):
    """Maps that are made when they are asked for, so that they need no memory together."""

    def __init__(self, count: int, make: Callable[[int], GoodMap]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> GoodMap: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy: ...
    def __getitem__(self, index: int | slice) -> GoodMap | Lazy:
        if isinstance(index, slice):
            chosen = range(*index.indices(self._count))
            return Lazy(len(chosen), lambda k: self[chosen[k]])
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._make(index % self._count)


class Maps(Sequence[GoodMap]):
    """Maps of many images: those that memory has room for there, the others in a nameless file."""

    def __init__(self, in_memory_bytes: int = IN_MEMORY_BYTES, folder: Path | None = None) -> None:
        self._room = in_memory_bytes
        self._folder = folder
        self._maps: list[GoodMap] = []
        self._places: list[int] = []
        """Of each map: -1 in memory, else where it begins in the file."""
        self._end = 0
        self._file = -1
        """A descriptor, once it is needed."""

    def append(self, found: GoodMap) -> None:
        size = found.raw_map.nbytes
        if size <= self._room:
            self._room -= size
            self._maps.append(found)
            self._places.append(-1)
            return
        try:
            if self._file < 0:
                self._file, name = tempfile.mkstemp(prefix="linewatch-maps-", dir=self._folder)
                Path(name).unlink()
                weakref.finalize(self, os.close, self._file)
            data = np.ascontiguousarray(found.raw_map).data
            if os.pwrite(self._file, data, self._end) < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise DataError(
                f"maps of {len(self._maps)} images cannot be kept ({error.strerror or error}): "
                "make room on the disk, or set TMPDIR to a folder with more"
            ) from error
        self._places.append(self._end)
        self._end += size
        # A map of the right shape without memory of its own stands in.
        nothing = np.broadcast_to(np.float32(0), found.raw_map.shape)
        self._maps.append(replace(found, raw_map=nothing))

    @property
    def names(self) -> list[str]:
        """Of all maps."""
        return [found.name for found in self._maps]

    @property
    def thumbs(self) -> list[Thumb | None]:
        """Of all maps."""
        return [found.thumb for found in self._maps]

    def __len__(self) -> int:
        return len(self._maps)

    @overload
    def __getitem__(self, index: int) -> GoodMap: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy: ...
    def __getitem__(self, index: int | slice) -> GoodMap | Lazy:
        if isinstance(index, slice):
            chosen = range(*index.indices(len(self)))
            return Lazy(len(chosen), lambda k: self[chosen[k]])
        found, place = self._maps[index], self._places[index]
        if place < 0:
            return found
        data = os.pread(self._file, 4 * found.raw_map.size, place)
        raw_map = np.frombuffer(data, np.float32).reshape(found.raw_map.shape)
        return replace(found, raw_map=raw_map)


def pixels_of(frame: Frame, in_channels: int) -> NDArray[np.uint8]:
    """uint8 (H, W, C). Raises `models.errors.DataError` for a file that is no such frame."""
    path = frame.path if isinstance(frame, LabelledImage) else frame
    return read_image(path, in_channels) if isinstance(path, Path) else path


def raw_map_of(runtime: Runtime, pixels: NDArray[np.uint8], recipe: Recipe) -> NDArray[np.float32]:
    """The raw map of a full-size frame, float32 (ceil(H / 4), ceil(W / 4)).

    As on the line, the engine looks at what the recipe inspects; elsewhere the map is 0.
    """
    height, width = pixels.shape[:2]
    raw_map = np.zeros(map_hw(height, width), np.float32)
    window = inspected_window(recipe, (height, width))
    padded = pad_frame(pixels, FRAME_MARGIN_PX)
    runtime.infer([window.padded(padded)], [window.cells(raw_map)])
    return raw_map


def raw_maps(
    runtime: Runtime,
    frames: Sequence[Frame],
    in_channels: int,
    recipes: Recipes,
    progress: Progress | None = None,
) -> Maps:
    """Full-size frames through the engine, one by one; see `raw_map_of`."""
    maps = Maps()
    placer = Placer()
    step = -(-len(frames) // MOST_MEASURED) if frames else 1
    for number, frame in enumerate(frames):
        pixels = pixels_of(frame, in_channels)
        camera = frame.camera if isinstance(frame, LabelledImage) else ""
        path = frame.path if isinstance(frame, LabelledImage) else frame
        name = str(path) if isinstance(path, Path) else f"frame {number}"
        recipe = recipe_for(recipes, camera)
        matrices = placer.matrices(recipe, pixels, name)
        raw_map = raw_map_of(runtime, pixels, recipe)
        height, width = pixels.shape[:2]
        if not np.isfinite(raw_map).all():
            raise DataError(f"{name}: a map with NaN or infinity found: the engine failed on it")
        maps.append(
            GoodMap(
                name,
                (height, width),
                raw_map,
                thumb=thumb(pixels),
                camera=camera,
                optics=measure(pixels) if number % step == 0 else None,
                matrices=matrices,
            )
        )
        if progress is not None:
            progress(number + 1, len(frames))
    return maps


class Scorer:
    """Scores maps of any size with their recipes; zones are rendered once per frame size."""

    def __init__(self, thresholds: Thresholds, recipes: Recipes) -> None:
        self._thresholds = thresholds
        self._recipes = recipes
        self._rules: dict[tuple[str, tuple[int, int]], DecisionRule] = {}

    def rule(self, good: GoodMap) -> DecisionRule:
        """For maps of its size and tolerance, with zones where its part lies."""
        recipe = recipe_for(self._recipes, good.camera)
        if good.tolerance is not None:
            return DecisionRule(self._thresholds, recipe, good.frame_hw, good.tolerance)
        key = good.camera, good.frame_hw
        if key not in self._rules:
            self._rules[key] = DecisionRule(self._thresholds, recipe, good.frame_hw)
        return on_parts(self._rules[key], good.matrices, good.name)

    def inspected(self, good: GoodMap) -> NDArray[np.float32]:
        """Normalised scores of the inspected cells, float32 (n,)."""
        rule = self.rule(good)
        return rule.scores(good.raw_map)[rule.factors > 0]

    def image_score(self, good: GoodMap) -> float:
        """As the line will give it: 0 where nothing survives the rule."""
        return self.rule(good).decide(good.raw_map).image_score


def high_quantiles(
    maps: Sequence[GoodMap], scorer: Scorer, shares: Sequence[float]
) -> tuple[list[float], float]:
    """Quantiles (rounded up) of the inspected cells of all maps, and the lowest of all.

    Exact in one pass, with memory for the highest cells only.
    """
    cells = sum(int((scorer.rule(good).factors > 0).sum()) for good in maps)
    places = [cells - math.ceil(share * (cells - 1)) for share in shares]
    most = max(places)
    floor, lowest = -np.inf, np.inf
    kept: list[NDArray[np.float32]] = []
    held = 0
    for good in maps:
        inside = scorer.inspected(good)
        lowest = min(lowest, float(inside.min()))
        kept.append(inside[inside >= floor])
        held += kept[-1].size
        if held > 2 * most + inside.size:
            highest = np.partition(np.concatenate(kept), held - most)[-most:]
            kept, held, floor = [highest], most, float(highest.min())
    ranked = np.sort(np.concatenate(kept))
    return [float(ranked[-place]) for place in places], lowest
