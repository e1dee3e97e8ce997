"""Muon: gradient descent whose steps turn all of a layer's directions by the same amount.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). A kernel's
momentum, as a matrix with a row for each output, is replaced by the nearest orthogonal one (five
Newton-Schulz steps), so that what is faint and rare is learnt as fast as what is strong and
frequent. The length of a step is that of an Adam step of the same rate (Liu et al., "Muon is
scalable for LLM training", 2025, equation 4). Vectors take plain Adam steps. `torch.optim.Muon`
knows matrices only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
STEPS = 5
ADAM_RATIO = 0.2
BETAS = (0.9, 0.99)
TINY = 1e-8


class Muon(torch.optim.Optimizer):
    """For convolution kernels (any tensor of two or more axes, the first its outputs) and biases.

    weight_decay: decoupled, times the rate.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                parameter.mul_(1 - rate * group["decay"])
                if gradient.dim() < 2:
                    parameter.sub_(rate * _adam(state, gradient))
                    continue
                mean = state.setdefault("mean", torch.zeros_like(gradient))
                mean.mul_(momentum).add_(gradient)
                matrix = (gradient + momentum * mean).reshape(len(gradient), -1)  # Nesterov
                length = ADAM_RATIO * max(matrix.shape) ** 0.5
                parameter.sub_(rate * length * orthogonal(matrix).reshape(gradient.shape))


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """[m, n] -> nearly the nearest matrix whose singular values are one (0.7 to 1.2)."""
    a, b, c = NEWTON_SCHULZ
    upright = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if upright else matrix
    x = x / (x.norm() + TINY)
    # x <- p x with p = a + b x x' + c (x x')^2: all factors are polynomials of the first x x', so
    # they commute, and the wide matrix is multiplied twice in all instead of twice a step.
    square = x @ x.T
    identity = torch.eye(len(square), dtype=x.dtype, device=x.device)
    product = identity
    for _ in range(STEPS):
        factor = a * identity + b * square + c * square @ square
        product = factor @ product
        square = factor @ square @ factor
    x = product @ x
    result: torch.Tensor = x.T if upright else x
    return result


def _adam(state: dict[str, Any], gradient: torch.Tensor) -> torch.Tensor:
    state["count"] = state.get("count", 0) + 1
    mean = state.setdefault("mean", torch.zeros_like(gradient))
    square = state.setdefault("square", torch.zeros_like(gradient))
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient**2, 1 - BETAS[1])
    spread = (square / (1 - BETAS[1] ** state["count"])).sqrt()
    step: torch.Tensor = mean / (1 - BETAS[0] ** state["count"]) / (spread + TINY)
    return step
