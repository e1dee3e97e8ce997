"""The student's beginning and its loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.crops import GOOD, UNSURE
from models.settings import TrainingSettings
from models.student import begin_student, student_loss
from models.untrained import untrained_model

SETTINGS = TrainingSettings()


def test_the_student_begins_near_the_normalised_teacher_and_not_at_it() -> None:
    model = untrained_model().pair(1)
    model.feature_mean.copy_(torch.linspace(-1, 1, len(model.feature_mean)))
    model.feature_std.copy_(torch.linspace(0.5, 2, len(model.feature_std)))
    pixels = torch.randint(0, 256, (2, 97, 97, 1), dtype=torch.uint8)
    states = []
    for seed in (1, 1, 2):
        begin_student(model, seed)
        states.append({name: tensor.clone() for name, tensor in model.student.state_dict().items()})
    with torch.inference_mode():
        x = model.normalise(pixels)
        target = (model.teacher(x) - model.feature_mean[:, None, None]) / model.feature_std[
            :, None, None
        ]
        difference = float(model(pixels).mean())
    assert 0 < difference < 0.5 * float((target**2).mean())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


def loss_of(values: list[float], cells: list[int], settings: TrainingSettings = SETTINGS) -> float:
    """Of cells with these map values on all of three channels."""
    squared = torch.tensor(values).repeat(3, 1)
    return float(student_loss(squared, torch.tensor(cells), settings))


def test_good_cells_shall_be_low_and_defects_high() -> None:
    cells = [GOOD, GOOD, 7]
    right = loss_of([0.01, 0.02, 5.0], cells)
    assert right < loss_of([0.01, 2.0, 5.0], cells)
    assert right < loss_of([0.01, 0.02, 0.1], cells)


def test_uncertain_cells_ask_nothing() -> None:
    assert loss_of([0.1, 9.0, 3.0], [GOOD, UNSURE, 4]) == loss_of(
        [0.1, 0.0, 3.0], [GOOD, UNSURE, 4]
    )
    assert loss_of([9.0, 9.0], [UNSURE, UNSURE]) == 0


def test_each_defect_counts_alike() -> None:
    """A missed defect of one cell beside a found one of many weighs as much as the reverse."""
    small_missed = loss_of([0.1, *[5.0] * 9], [1, *[2] * 9])
    large_missed = loss_of([5.0, *[0.1] * 9], [1, *[2] * 9])
    assert small_missed == pytest.approx(large_missed, rel=1e-5)


def test_without_drawn_defects_the_loss_is_the_papers() -> None:
    squared = torch.rand(8, 500)
    cells = torch.full((500,), GOOD)
    settings = replace(SETTINGS, spoiled=0.0, hard_weight=1.0, mean_weight=0.0, hard_quantile=0.9)
    hardest = squared.flatten().topk(400).values.mean()
    assert float(student_loss(squared, cells, settings)) == pytest.approx(float(hardest))


def test_gradients_are_finite_where_student_and_teacher_agree() -> None:
    squared = torch.zeros(4, 6, requires_grad=True)
    cells = torch.tensor([GOOD, GOOD, UNSURE, 1, 1, 1002])
    torch.autograd.backward(student_loss(squared, cells, SETTINGS))
    assert squared.grad is not None
    assert bool(torch.isfinite(squared.grad).all())
