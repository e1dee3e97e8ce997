"""The training loop of one student: steps, validations, and states to go on from.

On a CPU, one seed and one number of threads give one result, whether the loop was killed and went
on from a state or not. Under `torchrun`, each process draws crops of its own, and gradients are
averaged: n processes are a batch n times as large.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from models.checkpoint import load_state, save_state
from models.compute import compute_type, one_cycle
from models.crops import GOOD, Batch, CropSource, gathered
from models.efficientad import StudentTeacher
from models.errors import DataError
from models.muon import Muon
from models.penalty import PenaltySource
from models.settings import TrainingSettings
from models.student import student_loss
from models.tiles import TileSet

SAVE_SECONDS = 30.0
SAVE_STEPS = 200
"""With several processes."""
RATES = {"lr", "initial_lr", "max_lr", "min_lr"}
"""Of a group of parameters, in torch's optimisers and schedules."""


@dataclass(frozen=True, slots=True)
class Point:
    """A validation on the way."""

    step: int
    auroc: float


@dataclass(slots=True)
class Fit:
    """What a fit gave."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    curve: list[Point] = field(default_factory=list)
    kept_step: int = 0
    """After which the student was as it is now: the best of the validations, else the last."""
    rates: list[tuple[int, float]] = field(default_factory=list)
    """(step, highest learning rate from there on): more than one where a diverged one went on."""
    resumed_at: int = 0
    """The step after which this run took over from one before it."""


@dataclass(frozen=True, slots=True)
class Companions:
    """What goes with a fit and does not change what it gives, except that the best is kept."""

    report: Callable[[int, float, float], None] | None = None
    """Called after each step with (step, loss, AUROC of the last validation or NaN)."""
    validate: Callable[[StudentTeacher], float] | None = None
    """AUROC of a student as it is now."""
    state: Path | None = None
    """Written every half minute and after each validation, once a loss has borne it out."""
    key: str = ""
    resume: bool = False


def fit_student(
    model: StudentTeacher,
    tiles: TileSet,
    settings: TrainingSettings,
    companions: Companions = Companions(),
    penalties: PenaltySource | None = None,
) -> Fit:
    """Train `model.student` in place.

    Raises `DataError` for a loss or gradients that are not finite: a state from before it stays on
    disk, from which the training may go on, also with another learning rate.
    """
    loop = _Loop(model, tiles, settings, penalties)
    try:
        _run(loop, model, settings, companions)
    finally:
        loop.close()
    return loop.finish()


def _run(
    loop: _Loop, model: StudentTeacher, settings: TrainingSettings, companions: Companions
) -> None:
    if companions.resume and companions.state is not None:
        loop.take_up(load_state(companions.state, companions.key))
    saved, held = time.monotonic(), None
    while loop.step < settings.steps:
        loss, gradient = loop.ask()
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            raise DataError(_diverged(loop, loss, gradient, settings, companions))
        if held is not None:  # the weights in it gave a finite loss
            loop.saved_at = _save(held, companions)
            held = None
        loop.follow(loss)
        due = _validation_due(loop.step, settings)
        if companions.validate is not None and due:
            loop.validated(companions.validate(model))
        if companions.state is not None and (due or _saving_due(loop.step, saved)):
            held = loop.state()  # all processes have a share in it, and come here together
            saved = time.monotonic()
        if companions.report is not None:
            auroc = loop.fit.curve[-1].auroc if loop.fit.curve else math.nan
            companions.report(loop.step, loss, auroc)
    if held is not None:
        _save(held, companions)


def _save(state: dict[str, Any], companions: Companions) -> int:
    assert companions.state is not None
    if first_process():
        save_state(companions.state, companions.key, state)
    return int(state["step"])


def _diverged(
    loop: _Loop, loss: float, gradient: float, settings: TrainingSettings, companions: Companions
) -> str:
    losses = loop.fit.losses
    before = f"; the loss before was {losses[-1]:g}" if losses else ""
    text = (
        f"loss {loss:g} with a gradient of {gradient:g} found at step {loop.step + 1} of "
        f"{settings.steps}, expected finite ones: lower the learning rate, with --set "
        f"learning_rate=... (it was {settings.learning_rate:g}{before})"
    )
    if not loop.saved_at:
        return text
    return f"{text}, and go on with --resume: {companions.state} is the state of {loop.saved_at}"


def first_process() -> bool:
    """Whether this one writes what all of them have."""
    return _rank() == 0


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _saving_due(step: int, saved: float) -> bool:
    if distributed.is_initialized():  # by steps: clocks differ between processes
        return step % SAVE_STEPS == 0
    return time.monotonic() - saved > SAVE_SECONDS


def _validation_due(step: int, settings: TrainingSettings) -> bool:
    if not settings.validations:
        return False
    done, before = (k * settings.validations // settings.steps for k in (step, step - 1))
    return done > before


class _Loop:
    """One student's training between two steps."""

    def __init__(
        self,
        model: StudentTeacher,
        tiles: TileSet,
        settings: TrainingSettings,
        penalties: PenaltySource | None,
    ) -> None:
        self._model, self._settings = model, settings
        self._device = next(model.parameters()).device
        self._half = compute_type(self._device)
        self._student = model.student.train()
        rank = _rank()
        self._rng = np.random.default_rng([settings.seed, 1, rank] if rank else [settings.seed, 1])
        self._optimiser = _optimiser(self._student, settings)
        self._schedule = _schedule(self._optimiser, settings)
        self._penalties = penalties or PenaltySource(settings.crop_px, model.in_channels)
        self._source = CropSource(
            tiles,
            self._rng,
            batch=settings.batch,
            crop_px=settings.crop_px,
            counts=gathered(settings.spoiled),
            revisited=settings.revisited,
            augmentation=settings.augment,
        )
        # Two threads do not make one batch twice as fast, but two batches (1.1 and 1.8 times,
        # measured with crops of 128 px).
        threads = min(torch.get_num_threads(), settings.accumulate)
        self._pool = None
        self._map: Callable[..., Iterable[_Part]] = map
        if threads > 1 and self._device.type == "cpu":
            each = torch.get_num_threads() // threads
            self._pool = ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(each,)
            )
            self._map = self._pool.map
        self.step = 0
        self.saved_at = 0
        """The step of the state on disk; 0: there is none."""
        self.fit = Fit(rates=[(0, settings.learning_rate)])
        self._best: dict[str, torch.Tensor] | None = None

    def ask(self) -> tuple[float, float]:
        """Loss of the next step's crops, and the length of its gradient, which is set."""
        settings = self._settings
        # All random numbers are drawn here, in one order, however the work is shared out.
        batches = [self._source.draw() for _ in range(settings.accumulate)]
        strangers = [self._stranger() for _ in batches]
        parts = list(self._map(self._part, batches, strangers))
        parameters = list(self._student.parameters())
        for parameter, *gradients in zip(
            parameters, *(part.gradients for part in parts), strict=True
        ):
            parameter.grad = torch.stack(gradients).sum(dim=0) / len(parts)
        total = sum(part.loss for part in parts) / len(parts)
        for batch, part in zip(batches, parts, strict=True):
            self._source.report(batch, part.highest)
        if distributed.is_initialized():
            total = _averaged(self._student, total)
        gradients = [each.grad for each in parameters if each.grad is not None]
        return total, float(torch.nn.utils.get_total_norm(gradients))

    def follow(self, loss: float) -> None:
        """The step that the gradient asks for."""
        settings = self._settings
        if settings.optimiser == "adam" and settings.max_gradient:
            # At high learning rates one hard batch would otherwise end in dead ReLUs.
            torch.nn.utils.clip_grad_norm_(self._student.parameters(), settings.max_gradient)
        self._optimiser.step()
        self._schedule.step()
        self.step += 1
        self.fit.losses.append(loss)

    def validated(self, auroc: float) -> None:
        """Keep the student if it is the best so far; of equals the later one, trained more."""
        best = max((point.auroc for point in self.fit.curve), default=-math.inf)
        self.fit.curve.append(Point(self.step, auroc))
        if auroc >= best:
            self._best = copy.deepcopy(self._student.state_dict())
            self.fit.kept_step = self.step

    def finish(self) -> Fit:
        if self._best is not None:
            self._student.load_state_dict(self._best)
        else:
            self.fit.kept_step = self.step
        self._student.eval()
        return self.fit

    def state(self) -> dict[str, Any]:
        """A copy of all that decides how it goes on."""
        state = {
            "step": self.step,
            "student": self._student.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "processes": self._processes(),
            "fit": asdict(self.fit),
            "best": self._best,
        }
        return copy.deepcopy(state)

    def _processes(self) -> list[dict[str, Any]]:
        """What each process has of its own; at the first one, that of all."""
        own = {
            "rng": json.dumps(self._rng.bit_generator.state),
            "hardest": self._source.remembered(),
        }
        if not distributed.is_initialized():
            return [own]
        every: list[dict[str, Any]] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(every, own)
        return every

    def take_up(self, state: dict[str, Any] | None) -> None:
        """Go on from a state; None: from the beginning."""
        if state is None:
            return
        self.step = state["step"]
        self._student.load_state_dict(state["student"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        own = state["processes"][_rank()]
        self._rng.bit_generator.state = json.loads(own["rng"])
        self._source.remember(own["hardest"])
        found = state["fit"]
        curve = [Point(**point) for point in found["curve"]]
        rates = [(step, rate) for step, rate in found["rates"]]
        if (before := rates[-1][1]) != (rate := self._settings.learning_rate):
            rates.append((self.step, rate))
            for group in self._optimiser.param_groups:  # both schedules go on from these
                for key in RATES & group.keys():
                    group[key] *= rate / before
        self.fit = Fit(found["losses"], curve, found["kept_step"], rates, resumed_at=self.step)
        self._best = state["best"]
        self.saved_at = self.step

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _part(self, batch: Batch, stranger: NDArray[np.uint8] | None) -> _Part:
        """Loss and gradients of one batch."""
        model, settings = self._model, self._settings
        half, kind = self._half, self._device.type
        # The cache of converted weights is one for all threads.
        with torch.autocast(kind, half, enabled=half != torch.float32, cache_enabled=False):
            # Crops of images smaller than the crop have sizes of their own.
            squared = [
                model.squared_difference(model.normalise(crops.pixels.to(self._device)))
                for crops in batch.groups
            ]
            strange = 0.0 if stranger is None else self._strange(stranger)
        # [C, cells]
        flat = torch.cat([part.float().transpose(0, 1).flatten(1) for part in squared], dim=1)
        cells = torch.cat([crops.cells.flatten() for crops in batch.groups]).to(self._device)
        loss = student_loss(flat, cells, settings) + settings.penalty * strange
        gradients = torch.autograd.grad(loss, list(self._student.parameters()))
        return _Part(float(loss.detach()), gradients, _highest(batch, squared, settings.batch))

    def _stranger(self) -> NDArray[np.uint8] | None:
        return self._penalties.draw(self._rng) if self._settings.penalty else None

    def _strange(self, picture: NDArray[np.uint8]) -> torch.Tensor:
        """The student's mean squared output on a picture far from any good image (equation 4)."""
        pixels = torch.from_numpy(picture)[None].to(self._device)
        features: torch.Tensor = self._model.student(self._model.normalise(pixels)).float()
        return (features**2).mean()


@dataclass(frozen=True, slots=True)
class _Part:
    """What one batch of a step gave."""

    loss: float
    gradients: tuple[torch.Tensor, ...]
    highest: list[float]


@torch.no_grad()
def _highest(batch: Batch, squared: list[torch.Tensor], count: int) -> list[float]:
    """The highest map value on good cells of each crop, in the batch's order."""
    highest = [0.0] * count
    for crops, part in zip(batch.groups, squared, strict=True):
        raw_maps = part.float().mean(dim=1).cpu()
        values = raw_maps.where(crops.cells == GOOD, 0.0).amax(dim=(1, 2))
        for number, value in zip(crops.numbers, values.tolist(), strict=True):
            highest[number] = value
    return highest


def _averaged(student: torch.nn.Module, loss: float) -> float:
    """Average gradients over all processes, in place, and return the average loss."""
    count = distributed.get_world_size()
    for parameter in student.parameters():
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)
            parameter.grad /= count
    total = torch.tensor([loss], device=next(student.parameters()).device)
    distributed.all_reduce(total)
    return float(total) / count


def _optimiser(student: torch.nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimiser == "adam":
        return torch.optim.Adam(student.parameters(), rate, weight_decay=decay)
    return Muon(student.parameters(), rate, weight_decay=decay)


def _schedule(
    optimiser: torch.optim.Optimizer, settings: TrainingSettings
) -> torch.optim.lr_scheduler.LRScheduler:
    """One cycle (Smith and Topin 2018) for short runs, or the paper's single drop to a tenth."""
    if settings.one_cycle:
        return one_cycle(optimiser, settings.learning_rate, settings.steps, rising=0.1)
    drop = max(1, round(settings.decay_at * settings.steps))
    return torch.optim.lr_scheduler.MultiStepLR(optimiser, [drop], gamma=0.1)
