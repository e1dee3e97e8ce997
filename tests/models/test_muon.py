"""Muon: its steps are what the paper says, and it learns."""

from __future__ import annotations

import pytest
import torch

from models.muon import ADAM_RATIO, Muon, orthogonal


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 5), (5, 1)])
def test_all_directions_get_nearly_the_same_length(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape, generator=generator) * torch.logspace(0, -1, shape[1])
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert float(found.min()) > 0.5
    assert float(found.max()) < 1.3
    # The directions stay: what is left beside them is nothing.
    mixed = u.T @ orthogonal(matrix) @ v.T
    assert float((mixed - torch.diag(torch.diagonal(mixed))).abs().max()) < 1e-3


def test_no_gradient_no_step() -> None:
    assert not orthogonal(torch.zeros(3, 4)).any()
    kernel = torch.nn.Parameter(torch.ones(2, 3, 4, 4))
    Muon([kernel], 0.1).step()
    assert bool((kernel == 1).all())


def test_a_step_has_the_length_of_one_of_adam() -> None:
    kernel = torch.nn.Parameter(torch.zeros(32, 8, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    bias = torch.nn.Parameter(torch.zeros(32))
    bias.grad = torch.full((32,), -3.0)
    Muon([kernel, bias], 0.01).step()
    assert float(kernel.detach().square().mean().sqrt()) == pytest.approx(
        0.01 * ADAM_RATIO, rel=0.3
    )
    torch.testing.assert_close(bias.detach(), torch.full((32,), 0.01))


def test_weights_decay() -> None:
    kernel = torch.nn.Parameter(torch.ones(2, 2))
    kernel.grad = torch.zeros(2, 2)
    Muon([kernel], 0.5, weight_decay=0.1).step()
    torch.testing.assert_close(kernel.detach(), torch.full((2, 2), 0.95))


def test_faint_directions_are_learnt_as_fast_as_strong_ones() -> None:
    """Directions a thousand times weaker: plain gradient descent would not have begun with them."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(256, 8, generator=generator) * torch.logspace(0, -1.5, 8)
    wanted = torch.randn(4, 8, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(4, 8))
    optimiser = Muon([weight], 0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=300)
    for _ in range(300):
        optimiser.zero_grad()
        torch.autograd.backward(((inputs @ (weight - wanted).T) ** 2).mean())
        optimiser.step()
        schedule.step()
    assert float((weight.detach() - wanted).abs().max()) < 0.3
