"""`python -m tools.bench agree`: do all engines of a bundle say the same of the same images?

1. torch/f32 looks at every image first: its maps and verdicts are what the others are held to.
2. Every other engine that the bundle has thresholds for looks at the same images, each with its own
   thresholds, by the one decision rule, as `linewatch evaluate` does.
3. Image by image: the verdict, the score, and the raw map.

Exit status: 1 when more verdicts differ than `BOUNDS` allows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from calibrate.evaluation import Judge
from calibrate.scores import GoodMap, Maps, pixels_of, raw_map_of
from models.bundle import Bundle
from models.images import list_images
from models.runtimes import available_runtimes, open_runtime
from pipeline.commands.progress import progress_bar
from pipeline.config import Recipe, load_recipe
from pipeline.rules import Decision, DecisionRule
from pipeline.types import Label
from tools.bench_machine import Goal, as_json, exit_code, machine, today, wide_console

YARDSTICK = "torch/f32"
BOUNDS = {"f32": 0.0, "bf16": 0.01, "fp16": 0.01, "int8": 0.02}
"""By precision: the share of verdicts that may differ from those of `YARDSTICK`, each engine with
thresholds of its own. float32 may not differ at all: it computes the same numbers in another order.
bfloat16 and int8 round; an image whose score lies within that of the threshold may go either way.
"""
IOU = 0.33
"""`Judge` wants one; boxes are not compared."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine said of one image. score: the rule's, or the inspected peak's, kept under the
    threshold, where nothing survived the rule."""

    failed: bool
    score: float
    threshold: float


@dataclass(slots=True)
class Agreement:
    """One engine beside `YARDSTICK`."""

    engine: str
    images: int = 0
    equal: int = 0
    flips: list[dict[str, Any]] = field(default_factory=list)
    """Images whose verdicts differ, with scores and thresholds of both."""
    largest_score_difference: float = 0.0
    largest_map_difference: float = 0.0
    """Of raw maps, as a share of the raw value at the engine's image threshold."""

    @property
    def goal(self) -> Goal:
        differ = self.images - self.equal
        share = differ / self.images if self.images else float("nan")
        bound = BOUNDS[self.engine.partition("/")[2]]
        name = f"{self.engine}: share of verdicts unlike {YARDSTICK}'s"
        return Goal(name, share, bound, at_most=True)


def bench_agree(
    bundle: Bundle, images: Sequence[Path], *, recipe: Recipe, threads: int, quiet: bool = False
) -> tuple[list[Agreement], dict[str, str]]:
    """Every engine beside `YARDSTICK`, and why some of the bundle's were left out.

    Raises `RuntimeUnavailable` for a bundle without thresholds for `YARDSTICK`, and what
    `open_runtime` raises.
    """
    bundle.thresholds(YARDSTICK)
    here = available_runtimes()
    wanted = [name for name in bundle.calibration.engines if name != YARDSTICK]
    left_out = {name: why for name in wanted if (why := _why_not(name, here))}
    engines = [name for name in wanted if name not in left_out]
    maps, said = Maps(), []
    found = []
    with progress_bar("Looking", len(images) * (len(engines) + 1), quiet=quiet) as update:
        looked = _Eyes(bundle, YARDSTICK, recipe, threads)
        for path in images:
            raw_map, verdict = looked.look(path)
            height, width = looked.frame_hw
            maps.append(GoodMap(str(path), (height, width), raw_map))
            said.append(verdict)
            update(len(said), None, YARDSTICK)
        looked.close()
        for number, engine in enumerate(engines, start=1):
            looked = _Eyes(bundle, engine, recipe, threads)
            agreement = Agreement(engine)
            for path, other, verdict in zip(images, maps, said, strict=True):
                raw_map, mine = looked.look(path)
                compare(agreement, path.name, verdict, mine)
                raw_threshold = bundle.calibration.raw(mine.threshold)
                difference = float(np.abs(raw_map - other.raw_map).max()) / raw_threshold
                most = max(agreement.largest_map_difference, difference)
                agreement.largest_map_difference = most
                update(number * len(images) + agreement.images, None, engine)
            looked.close()
            found.append(agreement)
    return found, left_out


def compare(agreement: Agreement, name: str, yardstick: Said, mine: Said) -> None:
    """Count one image."""
    agreement.images += 1
    agreement.equal += yardstick.failed == mine.failed
    difference = abs(yardstick.score - mine.score)
    agreement.largest_score_difference = max(agreement.largest_score_difference, difference)
    if yardstick.failed != mine.failed:
        flip = {"image": name, YARDSTICK: asdict(yardstick), agreement.engine: asdict(mine)}
        agreement.flips.append(flip)


class _Eyes:
    """One engine with its rule."""

    def __init__(self, bundle: Bundle, engine: str, recipe: Recipe, threads: int) -> None:
        name, _, precision = engine.partition("/")
        self._bundle, self._recipe = bundle, recipe
        self._runtime = open_runtime(bundle, name, precision, threads=threads)
        self._judge = Judge(bundle, self._runtime, {"": recipe}, least_iou=IOU)
        self.frame_hw = (0, 0)

    def look(self, path: Path) -> tuple[NDArray[np.float32], Said]:
        pixels = pixels_of(path, self._bundle.in_channels)
        self.frame_hw = (pixels.shape[0], pixels.shape[1])
        rule = self._judge.rule("", self.frame_hw)
        raw_map = raw_map_of(self._runtime, pixels, self._recipe)
        decision = rule.decide(raw_map)
        failed = decision.label is Label.FAIL
        return raw_map, Said(failed, _score(decision, rule, raw_map), decision.image_threshold)

    def close(self) -> None:
        self._runtime.close()


def _score(decision: Decision, rule: DecisionRule, raw_map: NDArray[np.float32]) -> float:
    """As `Said.score`: without a jump where a peak falls below the pixel threshold."""
    if decision.image_score > 0:
        return decision.image_score
    peak = float(rule.scores(raw_map).max(where=rule.factors > 0, initial=-np.inf))
    return min(peak, float(np.nextafter(decision.image_threshold, -np.inf)))


def _why_not(engine: str, here: dict[str, str]) -> str:
    if engine.partition("/")[2] not in BOUNDS:
        return f"no bound for its precision, expected one of {', '.join(BOUNDS)}"
    return here.get(engine, "no such engine in this version")


def some_of(images: Sequence[Path], count: int) -> list[Path]:
    """`count` of them, evenly spread over the list; all where there are no more."""
    if len(images) <= count:
        return list(images)
    return [images[k * len(images) // count] for k in range(count)]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, required=True, help="calibrated for several engines")
    parser.add_argument("--images", type=Path, required=True, help="folder of frames")
    parser.add_argument("--count", type=int, default=200, help="of images, spread evenly")
    parser.add_argument("--recipe", type=Path, help="a recipe's YAML file; the defaults")
    parser.add_argument("--threads", type=int, default=2, help="of an engine; 0: all")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    bundle = Bundle.load(chosen.bundle)
    images = some_of(list_images(chosen.images), chosen.count)
    found, left_out = bench_agree(
        bundle,
        images,
        recipe=load_recipe(chosen.recipe) if chosen.recipe else Recipe(),
        threads=chosen.threads,
        quiet=not sys.stderr.isatty(),
    )
    goals = [agreement.goal for agreement in found]
    if chosen.json:
        figures = {
            "bundle": bundle.path.name,
            "images": len(images),
            "engines": [asdict(agreement) for agreement in found],
            "left_out": left_out,
            "goals": [goal.plain() for goal in goals],
            "machine": machine(),
            "when": today(),
        }
        print(as_json(figures))
    else:
        _print(bundle, found, left_out, goals)
    if not goals:
        print(f"nothing to compare with {YARDSTICK}: {left_out}", file=sys.stderr)
        return 2
    return exit_code(goals)


def _print(
    bundle: Bundle,
    found: Sequence[Agreement],
    left_out: dict[str, str],
    goals: Sequence[Goal],
) -> None:
    table = Table(title=f"{bundle.path.name}: verdicts beside {YARDSTICK}'s")
    table.add_column("engine")
    for name in ("images", "equal", "bound", "largest score difference", "of a raw map"):
        table.add_column(name, justify="right")
    for agreement, goal in zip(found, goals, strict=True):
        table.add_row(
            agreement.engine,
            str(agreement.images),
            str(agreement.equal),
            f"{goal.wanted:.0%} differ",
            f"{agreement.largest_score_difference:.4g}",
            f"{agreement.largest_map_difference:.2%} of the threshold",
        )
    table.caption = f"{machine()}, {today()}"
    console = wide_console()
    console.print(table)
    for agreement in found:
        for flip in agreement.flips:
            sides = ", ".join(
                f"{name} {'fail' if flip[name]['failed'] else 'pass'} "
                f"{flip[name]['score']:.4f} of {flip[name]['threshold']:.4f}"
                for name in (YARDSTICK, agreement.engine)
            )
            console.print(f"{flip['image']}: {sides}", highlight=False, markup=False)
    for name, why in left_out.items():
        console.print(f"left out: {name}: {why}", highlight=False, markup=False)
    for goal in goals:
        console.print(str(goal), highlight=False)
