"""What a training gave, and how it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.efficientad import Detector
from models.fit import Fit
from models.precedents import Precedents
from models.wide import WideView
from models.wide_fit import WideFit


@dataclass(frozen=True, slots=True)
class TrainedDetector:
    """A detector and all that its bundle tells of how it came about."""

    model: Detector
    q_a: float
    """Raw map value at the lower quantile of held-out good images."""
    q_b: float
    provenance: dict[str, Any]
    held_out: list[Path]
    """Images that trained nothing: good ones to take reference crops from."""
    fits: dict[int, Fit] = field(default_factory=dict)
    """By scale: losses and validations, for curves."""
    precedents: Precedents | None = None
    wide_fits: list[WideFit] = field(default_factory=list)
    global_losses: list[float] = field(default_factory=list)
    """Of every step of the global branch."""
    states: list[Path] = field(default_factory=list)
    """Files to go on from, of no more use once the detector is saved."""

    @property
    def losses(self) -> list[float]:
        """Of every step, scale after scale."""
        return [loss for fit in self.fits.values() for loss in fit.losses]

    @property
    def other_losses(self) -> dict[str, list[float]]:
        """Of every step of the networks beside the students, by their names."""
        return other_losses(self.wide_fits, self.global_losses)

    @property
    def wide(self) -> tuple[WideView, ...]:
        return tuple(fit.view for fit in self.wide_fits)

    @property
    def resumed(self) -> bool:
        """Whether a part of it went on from what a killed training had left."""
        steps = [fit.resumed_at for fit in self.fits.values()]
        return any([*steps, *(fit.resumed_at for fit in self.wide_fits)])


def curve_of(fit: Fit) -> dict[str, Any]:
    """For the report: mean losses of a hundred stretches, and the validations."""
    return {
        "steps": len(fit.losses),
        "loss": stretches(fit.losses),
        "auroc": [[point.step, round(point.auroc, 5)] for point in fit.curve],
        "kept_step": fit.kept_step,
        "learning_rates": fit.rates,
    }


def stretches(losses: Sequence[float], most: int = 100) -> list[float]:
    """Means of so many stretches of the steps."""
    parts = np.array_split(np.array(losses), min(most, max(1, len(losses))))
    return [round(float(part.mean()), 5) for part in parts]


def other_losses(
    wide_fits: Sequence[WideFit], global_losses: list[float]
) -> dict[str, list[float]]:
    losses = {f"wide view, scale {fit.view.scale}": fit.losses for fit in wide_fits}
    return losses | ({"global branch": global_losses} if global_losses else {})
