"""EfficientAD, student-teacher half (Batzner et al., WACV 2024): the plain reference.

The student learns to repeat the teacher on good images; where it cannot, something is unusual. A
detector has a student for each scale at which it looks at the frame, and one teacher for all. All
fused and compiled engines are checked against `Detector.forward`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.global_branch import GlobalBranch
from models.pdn import PDN, feature_channels
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, map_hw


class StudentTeacher(nn.Module):
    """Teacher, student and everything between pixels and the raw anomaly map at one scale.

    Buffers: `input_mean`, `input_std` [in_channels], of pixels scaled to 0..1; `feature_mean`,
    `feature_std` [C], of the teacher's outputs over the training tiles. The student predicts
    normalised teacher features. `rotation` [k, C] or None: see `models.rotation`.
    """

    input_mean: torch.Tensor
    input_std: torch.Tensor
    feature_mean: torch.Tensor
    feature_std: torch.Tensor
    rotation: torch.Tensor | None

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
        self.register_buffer("rotation", None)

    def normalise(self, padded: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H + 32, W + 32, in_channels] -> float32 [N, in_channels, H + 32, W + 32]."""
        x = padded.permute(0, 3, 1, 2).to(self.input_mean.dtype) / 255.0
        return (x - self.input_mean[:, None, None]) / self.input_std[:, None, None]

    def difference(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels -> teacher - student in each channel, [N, C, h, w]."""
        with torch.no_grad():
            target = self.teacher(x)
            target = (target - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]
        difference: torch.Tensor = target - self.student(x)
        return difference

    def squared_difference(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels -> what is trained on, [N, C, h, w] (equation 1)."""
        return self.difference(x) ** 2

    def raw_map(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels -> the mean over channels of the squared difference, [N, h, w]."""
        difference = self.difference(x)
        channels = difference.shape[1]
        if self.rotation is not None:
            kernel = self.rotation[:, :, None, None].to(difference.dtype)
            difference = nn.functional.conv2d(difference, kernel)
        return (difference**2).sum(dim=1) / channels

    @torch.no_grad()
    def copy_teacher(self) -> None:
        """Make the student give exactly the normalised teacher's features."""
        self.student.load_state_dict(self.teacher.state_dict())
        *_, (_, weight), (_, bias) = self.student.named_parameters()
        weight.div_(self.feature_std[:, None, None, None])
        bias.sub_(self.feature_mean).div_(self.feature_std)

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H + 32, W + 32, in_channels] -> raw map float32 [N, ceil(H/4), ceil(W/4)]."""
        return self.raw_map(self.normalise(padded))


class Detector(nn.Module):
    """A `StudentTeacher` for each scale; the raw map is the mean of theirs. With a global branch
    (`models.global_branch`) it is half of that and half of the branch's map.

    Scale 1 is the frame, scale 2 the averages of its 2x2 squares: there the network sees 66 px, and
    faint wide defects stand out of the grain. As the paper averages its local and global maps.
    """

    def __init__(
        self,
        variant: str,
        in_channels: int,
        scales: Sequence[int] = (1,),
        *,
        global_branch: bool = False,
    ) -> None:
        super().__init__()
        self.variant = variant
        self.in_channels = in_channels
        self.scales = tuple(scales)
        self.whole = GlobalBranch(variant, in_channels) if global_branch else None
        self.pairs = nn.ModuleList(StudentTeacher(variant, in_channels) for _ in scales)
        for pair in self.pairs[1:]:
            pair.teacher = self.pairs[0].teacher

    def pair(self, scale: int) -> StudentTeacher:
        """The student-teacher of one of the scales."""
        found = self.pairs[self.scales.index(scale)]
        assert isinstance(found, StudentTeacher)
        return found

    def forward(self, padded: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H + 64, W + 64, in_channels] -> raw map float32 [N, ceil(H/4), ceil(W/4)]."""
        local = self.local_map(padded)
        if self.whole is None:
            return local
        inside = slice(FRAME_MARGIN_PX, -FRAME_MARGIN_PX)
        whole: torch.Tensor = self.whole(padded[:, inside, inside], self.pair(self.scales[0]))
        return (local + whole) / 2

    def local_map(self, padded: torch.Tensor) -> torch.Tensor:
        """As `forward`, without the global branch: the mean of the scales' maps."""
        both = 2 * FRAME_MARGIN_PX
        rows, columns = map_hw(padded.shape[1] - both, padded.shape[2] - both)
        maps = []
        for scale in self.scales:
            pair = self.pair(scale)
            x = at_scale(pair.normalise(padded), scale)
            maps.append(enlarged(pair.raw_map(x), scale)[:, :rows, :columns])
        return torch.stack(maps).mean(dim=0)


def at_scale(x: torch.Tensor, scale: int) -> torch.Tensor:
    """A padded frame [N, C, H + 64, W + 64] as the network sees it at `scale`, its margin 16 px.

    Squares that end beyond an odd side are averaged over what is there.
    """
    spare = FRAME_MARGIN_PX - scale * MARGIN_PX
    if spare:
        x = x[:, :, spare:-spare, spare:-spare]
    if scale == 1:
        return x
    return nn.functional.avg_pool2d(x, scale, ceil_mode=True)


def enlarged(raw_map: torch.Tensor, scale: int) -> torch.Tensor:
    """[N, h, w] -> [N, scale h, scale w]: linear between cells, since cell (i, j) of this scale is
    centred where cell (scale i, scale j) of the frame's map is; the last one repeated.
    """
    if scale == 1:
        return raw_map
    repeated = raw_map.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)
    beyond = (0, scale - 1, 0, scale - 1)
    padded = nn.functional.pad(repeated[:, None], beyond, mode="replicate")
    return nn.functional.avg_pool2d(padded, scale, stride=1)[:, 0]


def hard_feature_loss(squared: torch.Tensor, quantile: float = 0.999) -> torch.Tensor:
    """Mean of the hardest (1 - quantile) share of all squared differences (equation 2).

    Computed by top-k, since `torch.quantile` refuses more than 2^24 elements; at least one element.
    """
    count = max(1, round(squared.numel() * (1.0 - quantile)))
    return squared.flatten().topk(count, sorted=False).values.mean()
