"""A teacher distilled from any backbone that a user has, on any folder of images.

As in EfficientAD (section 3.1 and algorithm 2): the backbone's features of several layers, brought
to one grid and averaged to the teacher's channels, normalised by their channels' mean and
deviation, are what the network learns to repeat (mean squared error).

The backbone is a file that needs no code of its own: TorchScript (`torch.jit.save`), or what
`torch.export.save` writes (.pt2). It takes float32 [N, 3, H, W] pixels normalised as those of
ImageNet, any N, 512 px a side, and returns a map [N, C, h, w] or several of them.

It sees an image enlarged twofold, as in the paper (512 px for the network's 256), so that both have
one grid of cells where the backbone's first map has a stride of 8.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.compute import channels_last, compute_type, seeded
from models.errors import DataError
from models.images import read_image
from models.pdn import PDN
from models.teacher import save_teacher
from models.teacher_import import IMAGENET_MEAN, IMAGENET_STD
from models.variants import MARGIN_PX, STRIDE, feature_channels

ENLARGED = 2
STATISTICS_BATCHES = 16
Backbone = Callable[[torch.Tensor], object]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """What decides the weights, beside backbone, images and variant; the paper's by default."""

    steps: int = 60_000
    batch: int = 16
    crop_px: int = 256
    """Of the image, before it is enlarged; a multiple of 4."""
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    seed: int = 0


def load_backbone(path: Path, device: str = "cpu") -> Backbone:
    """A TorchScript or exported network. Raises `DataError` for anything else."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive of torch's")
        if path.suffix == ".pt2":
            exported = torch.export.load(path).module()
            return exported.to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript, which many have
            load: Callable[..., Any] = torch.jit.load
            scripted: Backbone = load(str(path), map_location=device).eval()
    except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"{path}: no network found ({reason}), expected a file of torch.jit.save, or of "
            "torch.export.save that ends in .pt2"
        ) from error
    return scripted


def distil(
    backbone: Backbone,
    images: Sequence[Path],
    variant: str,
    settings: DistillSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> tuple[PDN, list[float]]:
    """The trained network of three input channels, and the loss of every step."""
    if settings.crop_px % STRIDE or settings.crop_px < 2 * MARGIN_PX or settings.steps < 1:
        raise DataError(f"{settings} found, expected a crop of 4 n px, 32 or more, and some steps")
    with seeded(settings.seed):
        net = PDN(variant, 3)
    channels_last(net)
    net.to(device)
    crops = _Crops(images, settings, device)
    channels = feature_channels(variant)
    centre, spread = _statistics(backbone, crops, channels)
    optimiser = torch.optim.Adam(
        net.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    drop = max(1, round(0.95 * settings.steps))
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, drop, gamma=0.1)
    half = compute_type(torch.device(device))
    losses = []
    for step in range(1, settings.steps + 1):
        padded, inside = crops.draw()
        target = (features(backbone, inside, channels) - centre) / spread
        with torch.autocast(torch.device(device).type, half, enabled=half != torch.float32):
            found = net(padded)
        if target.shape[2:] != found.shape[2:]:
            size = (found.shape[2], found.shape[3])
            target = functional.interpolate(target, size, mode="bilinear", align_corners=False)
        loss = functional.mse_loss(found.float(), target)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DataError(f"loss {losses[-1]} found at step {step}: lower the learning rate")
        if progress is not None:
            progress(step, settings.steps)
    return net.cpu().requires_grad_(False).eval(), losses


def distil_file(
    backbone_path: Path,
    images: Sequence[Path],
    variant: str,
    out: Path,
    settings: DistillSettings,
    *,
    licence: str,
    origin: str,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Path:
    """Distil and write a teacher's file, with a note of how beside it."""
    backbone = load_backbone(backbone_path, device)
    if not os.access(out.parent if out.parent.exists() else Path(), os.W_OK) or out.is_dir():
        raise DataError(f"{out}: cannot be written: name another file with --out")
    net, losses = distil(backbone, images, variant, settings, device=device, progress=progress)
    with backbone_path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {
        "name": f"distilled-{variant}",
        "variant": variant,
        "licence": licence,
        "origin": origin,
        "distilled_from": backbone_path.name,
        "distilled_sha256": digest,
    }
    note = {
        "settings": asdict(settings),
        "images": len(images),
        "last_loss": round(float(np.mean(losses[-100:])), 6),
    }
    return save_teacher(out, net, about, note, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@torch.no_grad()
def features(backbone: Backbone, pixels: torch.Tensor, channels: int) -> torch.Tensor:
    """The backbone's maps on the grid of its first one, [N, channels, h, w].

    Each map is averaged over 3x3 neighbours; all their channels in a row are averaged down to
    `channels` of them. Raises `DataError` for an answer that is no map.
    """
    try:
        answer = backbone(pixels)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"the backbone refuses pixels {tuple(pixels.shape)} ({reason}), expected a network "
            "that takes any number of colour images: export it with a dynamic batch, or at this one"
        ) from error
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    maps = [answer] if isinstance(answer, torch.Tensor) else answer
    if (
        not isinstance(maps, Sequence)
        or not maps
        or not all(isinstance(each, torch.Tensor) and each.dim() == 4 for each in maps)
    ):
        raise DataError("the backbone's answer is no map, expected [N, C, h, w], or several")
    size = (maps[0].shape[2], maps[0].shape[3])
    levels = []
    for each in maps:
        smooth = functional.avg_pool2d(each.float(), 3, stride=1, padding=1)
        if smooth.shape[2:] != maps[0].shape[2:]:
            smooth = functional.interpolate(smooth, size, mode="bilinear", align_corners=False)
        levels.append(smooth)
    rows = torch.cat(levels, dim=1).permute(0, 2, 3, 1)
    return (
        functional.adaptive_avg_pool1d(rows.flatten(0, 2), channels)
        .reshape(len(pixels), *size, channels)
        .permute(0, 3, 1, 2)
    )


class _Crops:
    """Random crops: for the network with their surroundings, for the backbone enlarged."""

    def __init__(
        self,
        images: Sequence[Path],
        settings: DistillSettings,
        device: str,
    ) -> None:
        if not images:
            raise DataError("no images found, expected a folder of pictures of anything")
        self._images, self._settings = list(images), settings
        self._rng = np.random.default_rng([settings.seed, 6])
        self._mean = torch.tensor(IMAGENET_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(IMAGENET_STD, device=device)[:, None, None]

    @property
    def device(self) -> torch.device:
        return self._mean.device

    def draw(self) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, 3, crop + 32, crop + 32] and [N, 3, 2 crop, 2 crop], normalised."""
        crops = np.stack([self._crop() for _ in range(self._settings.batch)])
        pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2).float() / 255
        padded = (pixels - self._mean) / self._std
        inside = padded[:, :, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
        enlarged = functional.interpolate(
            inside, scale_factor=ENLARGED, mode="bilinear", align_corners=False
        )
        return padded.contiguous(memory_format=torch.channels_last), enlarged

    def _crop(self) -> NDArray[np.uint8]:
        side = self._settings.crop_px + 2 * MARGIN_PX
        image = read_image(self._images[int(self._rng.integers(len(self._images)))], 3)
        least = min(image.shape[:2])
        if least < side:
            size = [-(-length * side // least) for length in (image.shape[1], image.shape[0])]
            image = np.asarray(cv2.resize(image, size), np.uint8)
        top, left = (int(self._rng.integers(0, whole - side + 1)) for whole in image.shape[:2])
        return image[top : top + side, left : left + side]


def _statistics(
    backbone: Backbone, crops: _Crops, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each channel, [1, C, 1, 1]."""
    count, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for _ in range(STATISTICS_BATCHES):
        found = features(backbone, crops.draw()[1], channels).double()
        count += found.numel() // channels
        sums = sums + found.sum(dim=(0, 2, 3)).cpu()
        squares = squares + (found**2).sum(dim=(0, 2, 3)).cpu()
    mean = sums / count
    spread = (squares / count - mean**2).clamp_min(0).sqrt()
    if not bool(torch.isfinite(spread).all()) or float(spread.max()) == 0:
        raise DataError("a backbone whose answer does not vary found, expected a trained network")
    spread = spread.clamp_min(1e-3 * float(spread.max()))
    shape = (1, -1, 1, 1)
    device = crops.device
    return mean.reshape(shape).float().to(device), spread.reshape(shape).float().to(device)
