"""The global branch in torch: the plain reference and its training (`models.whole` tells what).

Training (EfficientAD, section 3.3): the autoencoder learns the teacher's normalised features of
good frames at 256x256, with some brightness and contrast added so that it learns structure; its
student learns to predict the autoencoder. Both only ever see good frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.compute import channels_last, compute_type, one_cycle, seeded
from models.errors import DataError
from models.images import read_image
from models.pdn import PDN
from models.variants import MARGIN_PX
from models.whole import (
    CELLS,
    SIDE_PX,
    area_weights,
    autoencoder_steps,
    cell_weights,
    shrink,
)

if TYPE_CHECKING:
    from models.efficientad import StudentTeacher

BATCH = 2
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-5
DROPOUT = 0.2
JITTER = 0.2
"""Brightness and contrast change by up to this share, as in the paper."""
FIXED_POINT = 256
"""Shrunk pixels wait in 256ths of a grey level, 16 bit: 128 KiB an image."""
Progress = Callable[[int, int], None]
Window = tuple[int, int, int, int]
"""top, left, bottom, right in frame pixels: what the engine will be given."""


class Autoencoder(nn.Module):
    """[N, in_channels, 256, 256] -> [N, C, 64, 64]."""

    def __init__(self, variant: str, in_channels: int) -> None:
        super().__init__()
        self.steps = autoencoder_steps(variant)
        channels, number = in_channels, 0
        for step in self.steps:
            if step.resize:
                continue
            number += 1
            conv = nn.Conv2d(channels, step.out_channels, step.kernel, step.stride, step.padding)
            self.add_module(f"conv{number}", conv)
            channels = step.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = 0
        for step in self.steps:
            if step.resize:
                x = nn.functional.interpolate(x, size=(step.resize, step.resize), mode="bilinear")
                continue
            number += 1
            x = self.get_submodule(f"conv{number}")(x)
            if step.relu:
                x = torch.relu(x)
                if step.stride == 1:  # on the way up
                    x = nn.functional.dropout(x, DROPOUT, self.training)
        return x


class GlobalBranch(nn.Module):
    """`affine` [2]: alpha and beta, which give its map the local map's quantiles."""

    affine: torch.Tensor

    def __init__(self, variant: str, in_channels: int) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(variant, in_channels)
        self.student = PDN(variant, in_channels)
        self.register_buffer("affine", torch.tensor([1.0, 0.0]))

    def map(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [N, C, 256, 256] -> [N, 64, 64]."""
        difference = self.autoencoder(x) - self.student(with_margin(x))
        squared: torch.Tensor = difference.square().mean(dim=1)
        return squared

    def forward(self, frames: torch.Tensor, pair: StudentTeacher) -> torch.Tensor:
        """uint8 [N, H, W, C] without margin -> [N, ceil(H / 4), ceil(W / 4)], like the local map.

        pair: for the normalisation of pixels.
        """
        height, width = frames.shape[1:3]
        rows, columns = (_as(area_weights(side), frames) for side in (height, width))
        small = torch.einsum("yh,nhwc,xw->nyxc", rows, frames.float(), columns)
        whole = self.map(normalised(small, pair))
        down, across = (_as(cell_weights(side), frames) for side in (height, width))
        alpha, beta = self.affine
        spread = torch.einsum("iy,nyx,jx->nij", down, whole, across)
        raw: torch.Tensor = alpha * spread + beta
        return raw


def shrunk_images(
    paths: Sequence[Path], channels: int, window: Window | None, progress: Progress
) -> NDArray[np.uint16]:
    """uint16 (n, 256, 256, C), in 256ths of a grey level: all that is kept of the images."""
    small = np.empty((len(paths), SIDE_PX, SIDE_PX, channels), np.uint16)
    for number, path in enumerate(paths):
        frame = read_image(path, channels)
        if window is not None:
            top, left, bottom, right = window
            frame = frame[top:bottom, left:right]
        small[number] = np.rint(shrink(frame) * FIXED_POINT)
        progress(number + 1, len(paths))
    return small


def with_margin(x: torch.Tensor) -> torch.Tensor:
    """[N, C, h, w] with 16 reflected pixels around."""
    return nn.functional.pad(x, [MARGIN_PX] * 4, mode="reflect")


def normalised(small: torch.Tensor, pair: StudentTeacher) -> torch.Tensor:
    """float [N, h, w, C], 0..255 -> [N, C, h, w] as the networks take it."""
    x = small.permute(0, 3, 1, 2) / 255.0
    return (x - pair.input_mean[:, None, None]) / pair.input_std[:, None, None]


def fit_global(
    branch: GlobalBranch,
    pair: StudentTeacher,
    images: NDArray[np.uint16],
    *,
    steps: int,
    seed: int,
    progress: Progress,
) -> list[float]:
    """Train the branch on shrunk good frames, uint16 (n, 256, 256, C) in 256ths of a grey level.

    pair: the teacher, and its normalisation of pixels. Returns the losses.
    Raises `DataError` when the training diverges.
    """
    device = pair.input_mean.device
    with seeded(seed):
        for parameter in branch.parameters():
            if parameter.dim() > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)
        branch.train()
        channels_last(branch)
        branch.to(device)
        mean, std = _statistics(pair, images)
        optimiser = torch.optim.Adam(branch.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = one_cycle(optimiser, LEARNING_RATE, steps, rising=0.05)
        rng = np.random.default_rng([seed, 3])
        kind = compute_type(device)
        losses = []
        for step in range(1, steps + 1):
            chosen = rng.choice(len(images), min(BATCH, len(images)), replace=False)
            x = normalised(_relit(images[chosen], rng, device), pair)
            with torch.autocast(device.type, kind, enabled=kind != torch.float32):
                with torch.no_grad():
                    target = (pair.teacher(with_margin(x)).float() - mean) / std
                rebuilt = branch.autoencoder(x)
                guess = branch.student(with_margin(x))
            loss = (rebuilt.float() - target).square().mean()
            loss = loss + (guess.float() - rebuilt.detach().float()).square().mean()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if not np.isfinite(losses[-1]):
                raise DataError(
                    f"loss {losses[-1]} of the global branch found at step {step}, expected a "
                    "finite one: are all good images of one kind?"
                )
            progress(step, steps)
    branch.eval()
    return losses


@torch.inference_mode()
def set_affine(
    branch: GlobalBranch,
    pair: StudentTeacher,
    images: NDArray[np.uint16],
    *,
    shares: tuple[float, float],
    local: tuple[float, float],
) -> None:
    """Give the global map of held-out good frames the local map's quantiles `local` at `shares`."""
    maps = []
    for image in images:
        x = normalised(_plain(image, pair), pair)
        maps.append(branch.map(x).float().cpu().numpy())
    low, high = np.quantile(np.stack(maps), shares)
    if not (np.isfinite(low) and high > low):
        raise DataError(
            f"quantiles {low:g} and {high:g} of the global map found, expected finite and rising "
            "ones: are all good images the same flat picture?"
        )
    alpha = (local[1] - local[0]) / (high - low)
    branch.affine.copy_(torch.tensor([alpha, local[0] - alpha * low]))


@torch.no_grad()
def _statistics(
    pair: StudentTeacher, images: NDArray[np.uint16]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of the teacher's features over all shrunk frames, in float64."""
    total = squares = torch.zeros((), dtype=torch.float64)
    for image in images:
        x = normalised(_plain(image, pair), pair)
        features = pair.teacher(with_margin(x)).double().cpu()
        total = total + features.sum(dim=(0, 2, 3))
        squares = squares + features.square().sum(dim=(0, 2, 3))
    count = len(images) * CELLS * CELLS
    mean = total / count
    std = (squares / count - mean**2).clamp_min(0).sqrt()
    std = std.clamp_min(max(0.05 * float(std.median()), 1e-6))
    device = pair.input_mean.device
    return mean.float()[None, :, None, None].to(device), std.float()[None, :, None, None].to(device)


def _relit(
    images: NDArray[np.uint16], rng: np.random.Generator, device: torch.device
) -> torch.Tensor:
    """uint16 (n, 256, 256, C) -> float, 0..255, brighter or darker, with more or less contrast."""
    pixels = images.astype(np.float32) / FIXED_POINT
    for image in pixels:
        gain, contrast = rng.uniform(1 - JITTER, 1 + JITTER, 2)
        middle = image.mean()
        image[...] = np.clip(gain * (middle + contrast * (image - middle)), 0, 255)
    return torch.from_numpy(pixels).to(device)


def _as(weights: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(weights).to(like.device)


def _plain(image: NDArray[np.uint16], pair: StudentTeacher) -> torch.Tensor:
    pixels = image[None] / np.float32(FIXED_POINT)
    return torch.from_numpy(pixels).to(pair.input_mean.device)
