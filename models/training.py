"""Training: good images in, a detector with its map quantiles out (EfficientAD, section 3).

1. A fifth of the images is held out; it trains nothing and chooses no weights.
2. The teacher's channel statistics over the training tiles are exact, in float64.
3. The student learns to repeat the normalised teacher on crops of the tiles, and to differ from it
   at drawn defects (`models.student`).
4. The map quantiles q_a and q_b are those of the held-out tiles.

One seed, one machine and one number of threads give one result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.compute import channels_last, compute_type, seeded
from models.efficientad import StudentTeacher
from models.errors import DataError
from models.images import guess_channels
from models.student import TrainingSettings, begin_student, check_settings, fit_student
from models.teacher import Teacher, load_builtin_teacher
from models.tiles import TileSet, build_tiles

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""
MAX_STATISTICS_TILES = 128
MAX_QUANTILE_TILES = 64
MAX_QUANTILE_VALUES = 1 << 22


@dataclass(frozen=True, slots=True)
class TrainedDetector:
    """A detector and all that its bundle tells of how it came about."""

    model: StudentTeacher
    q_a: float
    """Raw map value at the lower quantile of held-out good tiles."""
    q_b: float
    provenance: dict[str, Any]
    held_out: list[Path]
    """Images that trained nothing: good ones to take reference crops from."""
    losses: list[float] = field(default_factory=list)


def train(
    images: Sequence[Path],
    variant: str = "pdn_tiny",
    *,
    channels: int | None = None,
    settings: TrainingSettings | None = None,
    teacher: Teacher | None = None,
    inspected: NDArray[np.bool_] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> TrainedDetector:
    """Train a student for a teacher on good images.

    channels: 1, 3, or None for what the images show. teacher: None takes the built-in one of the
    variant. inspected: bool (H, W), when all images have this size and only a part counts.
    Raises `DataError` for images that cannot be used, and when the training diverges.
    """
    settings = settings or TrainingSettings()
    check_settings(settings)
    report = progress or _silent
    if channels is None:
        channels = guess_channels(images)
    teacher = teacher or load_builtin_teacher(variant, channels)
    learn, held_out = split(images, settings)

    def tiles_of(paths: Sequence[Path], what: str) -> TileSet:
        return build_tiles(
            paths,
            channels,
            tile=settings.tile,
            inspected=inspected,
            cache_dir=cache_dir,
            progress=lambda done, total: report(what, done, total),
        )

    tiles = tiles_of(learn, "cut tiles")
    with seeded(settings.seed):
        model = StudentTeacher(teacher.net.variant, channels)
    model.teacher.load_state_dict(teacher.net.state_dict())
    model.input_mean.copy_(teacher.input_mean)
    model.input_std.copy_(teacher.input_std)
    channels_last(model)
    measure_teacher(model, tiles, settings.seed, report)
    begin_student(model, settings.seed)
    losses = fit_student(model, tiles, settings, report)
    q_a, q_b = map_quantiles(model, tiles_of(held_out, "cut held-out tiles"), settings, report)
    if not (math.isfinite(q_a) and q_b > q_a):
        raise DataError(
            f"map quantiles {q_a:g} and {q_b:g} of the held-out images found, expected finite and "
            "rising ones: are all good images the same flat picture?"
        )
    provenance = {
        "trained_by": "models.training",
        "images": len(learn),
        "held_out": len(held_out),
        "tiles": len(tiles),
        "sha256": {path.name: _sha256(path) for path in [*learn, *held_out]},
        "held_out_names": [path.name for path in held_out],
        "settings": asdict(settings),
        "channels": channels,
        "teacher": teacher.identity,
        "teacher_licence": teacher.licence,
        "compute": str(compute_type()).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "last_loss": round(float(np.mean(losses[-100:])), 6),
    }
    return TrainedDetector(model.eval(), q_a, q_b, provenance, held_out, losses)


def split(images: Sequence[Path], settings: TrainingSettings) -> tuple[list[Path], list[Path]]:
    """Images to learn from and held-out ones, by the seed; both in the given order."""
    if len(images) < 2:
        raise DataError(
            f"{len(images)} good image(s) found, expected at least 2: one to learn from and one "
            "held out; twenty or more make a detector that can be trusted"
        )
    count = min(max(1, round(settings.held_out * len(images))), len(images) - 1)
    chosen = set(np.random.default_rng(settings.seed).permutation(len(images))[:count].tolist())
    learn = [path for k, path in enumerate(images) if k not in chosen]
    return learn, [images[k] for k in sorted(chosen)]


@torch.inference_mode()
def measure_teacher(model: StudentTeacher, tiles: TileSet, seed: int, report: Progress) -> None:
    """Set `feature_mean` and `feature_std` to those of the teacher over the training tiles.

    Each tile's mean and squared deviations from it, in float64, merged exactly (Chan, Golub and
    LeVeque 1979). At most 128 tiles, drawn by the seed: half a million cells of 256 px tiles.
    """
    count = 0
    mean = torch.zeros(model.feature_mean.shape, dtype=torch.float64)
    squares = torch.zeros_like(mean)
    chosen = _some(len(tiles), MAX_STATISTICS_TILES, seed)
    for done, index in enumerate(chosen, start=1):
        counted = torch.from_numpy(tiles.inspected_cells(int(index)))
        if not bool(counted.any()):
            continue
        features = model.teacher(model.normalise(_as_batch(tiles[index])))[0, :, counted].double()
        cells, tile_mean = features.shape[1], features.mean(dim=1)
        gap = tile_mean - mean
        squares += ((features - tile_mean[:, None]) ** 2).sum(dim=1)
        squares += gap**2 * (count * cells / (count + cells))
        mean += gap * (cells / (count + cells))
        count += cells
        report("measure teacher", done, len(chosen))
    deviation = (squares / count).sqrt()
    if not bool(torch.isfinite(deviation).all()) or float(deviation.max()) == 0.0:
        raise DataError(
            "a teacher whose outputs do not vary over the good images found, expected textured "
            "images: are they all of one flat tone?"
        )
    model.feature_mean.copy_(mean)
    # A channel that hardly varies on good images must not turn rounding into anomalies.
    model.feature_std.copy_(deviation.clamp_min(0.05 * float(deviation.median())))


@torch.inference_mode()
def map_quantiles(
    model: StudentTeacher, tiles: TileSet, settings: TrainingSettings, report: Progress
) -> tuple[float, float]:
    """The raw map's values at `q_a` and `q_b` over held-out tiles.

    At most 64 tiles and 2^22 values, drawn by the seed (`torch.quantile` refuses over 2^24).
    """
    chosen = _some(len(tiles), MAX_QUANTILE_TILES, settings.seed)
    maps = []
    for done, index in enumerate(chosen, start=1):
        raw_map = model(_as_batch(tiles[index]))[0].numpy()
        maps.append(raw_map[tiles.inspected_cells(int(index))])
        report("measure quantiles", done, len(chosen))
    values = np.concatenate(maps)
    if values.size > MAX_QUANTILE_VALUES:
        values = values[_some(values.size, MAX_QUANTILE_VALUES, settings.seed)]
    low, high = np.quantile(values, [settings.q_a, settings.q_b])
    return float(low), float(high)


def _as_batch(tile: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.array(tile)[None])  # a copy: torch wants to own writable memory


def _some(total: int, at_most: int, seed: int) -> NDArray[np.int64]:
    """All indices, or `at_most` of them by the seed, in rising order."""
    if total <= at_most:
        return np.arange(total)
    rng = np.random.default_rng([seed, 2])
    return np.sort(rng.choice(total, at_most, replace=False))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _silent(what: str, done: int, total: int) -> None:
    pass
