"""EfficientAD, student-teacher half (Batzner et al., WACV 2024): the plain reference.

The student learns to repeat the teacher on good images; where it cannot, something is unusual. All
fused and compiled engines are checked against `StudentTeacher.forward`.
"""

from __future__ import annotations

import torch
from torch import nn

from models.pdn import PDN, feature_channels


class StudentTeacher(nn.Module):
    """Teacher, student and everything between a uint8 frame and its raw anomaly map.

    Buffers: `input_mean`, `input_std` [in_channels], of pixels scaled to 0..1; `feature_mean`,
    `feature_std` [C], of the teacher's outputs over the training tiles. The student predicts
    normalised teacher features.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, variant: str, in_channels: int) -> None:
        super().__init__()
        channels = feature_channels(variant)
        self.variant = variant
        self.in_channels = in_channels
        self.teacher = PDN(variant, in_channels).requires_grad_(False)
        self.student = PDN(variant, in_channels)
        self.register_buffer("input_mean", torch.zeros(in_channels))
        self.register_buffer("input_std", torch.ones(in_channels))
        self.register_buffer("feature_mean", torch.zeros(channels))
        self.register_buffer("feature_std", torch.ones(channels))

    def normalise(self, padded: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H + 32, W + 32, in_channels] -> float32 [N, in_channels, H + 32, W + 32]."""
        x = padded.permute(0, 3, 1, 2).to(self.input_mean.dtype) / 255.0
        return (x - self.input_mean[:, None, None]) / self.input_std[:, None, None]

    def squared_difference(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels -> (teacher - student)^2 per channel, [N, C, h, w] (equation 1)."""
        with torch.no_grad():
            target = self.teacher(x)
            target = (target - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]
        difference: torch.Tensor = (target - self.student(x)) ** 2
        return difference

    @torch.no_grad()
    def copy_teacher(self) -> None:
        """Make the student give exactly the normalised teacher's features."""
        self.student.load_state_dict(self.teacher.state_dict())
        *_, (_, weight), (_, bias) = self.student.named_parameters()
        weight.div_(self.feature_std[:, None, None, None])
        bias.sub_(self.feature_mean).div_(self.feature_std)

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H + 32, W + 32, in_channels] -> raw map float32 [N, ceil(H/4), ceil(W/4)]."""
        return self.squared_difference(self.normalise(padded)).mean(dim=1)


def hard_feature_loss(squared: torch.Tensor, quantile: float = 0.999) -> torch.Tensor:
    """Mean of the hardest (1 - quantile) share of all squared differences (equation 2).

    Computed by top-k, since `torch.quantile` refuses more than 2^24 elements; at least one element.
    """
    count = max(1, round(squared.numel() * (1.0 - quantile)))
    return squared.flatten().topk(count, sorted=False).values.mean()
