"""The training of the wide view (`models.wide` tells what it is).

1. Crops of good tiles with drawn defects (`models.wide_defects`), scattered over them; they come
   back to where good surface looks worst (`models.crops`). Below and at the right of a tile they
   are made up with its last pixels by any number, as frames are.
2. A logistic loss on each cell: the mean of the good ones and of the hardest of them, and the mean
   of each defect, however large.
3. Muon (`models.muon`), one cycle of the learning rate. Batch normalisation (Ioffe and Szegedy,
   2015), which is folded into the convolutions at the end.
4. The level from which z counts: the median of the highest z of held-out good images, without
   their sides.

On a CPU, one seed and one number of threads give one result.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from models.augment import Augmentation
from models.checkpoint import load_state, save_state
from models.compute import compute_type, seeded
from models.crops import GOOD, UNSURE, Batch, CropSource, scattered
from models.errors import DataError
from models.fit import SAVE_SECONDS, first_process
from models.images import read_image
from models.measure import some
from models.muon import Muon
from models.settings import TrainingSettings
from models.tiles import TileSet, cells_hw, pad_frame
from models.variants import FRAME_MARGIN_PX, MARGIN_PX, STRIDE
from models.wide import GRID_PX, WideView, logits, smoothed
from models.wide_defects import spoil_wide
from models.wide_net import WideNet, open_wide_torch

BATCH = 8
LEARNING_RATE = 8e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.05
MAX_GRADIENT = 1.0
GOOD_WEIGHT, HARD_WEIGHT, HARD_SHARE = 3.0, 0.3, 1 / 200
HIGHEST_LOGIT = 20.0
FADES = 0.5
"""Nearly all crops have drawn defects: see `CropSource`."""
LEAST_STATES = 8
"""So often the state is written, however fast the training is."""
SEAM_PX = 16
MOST_LOOKED_AT = 48
"""Held-out images for the level, chosen by the seed."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class WideFit:
    """How a view's training went."""

    view: WideView
    losses: list[float]
    """Of every step."""
    resumed_at: int = 0
    """The step after which a killed training went on; 0: it began anew."""


def train_wide(
    cut: Callable[[int], TileSet],
    channels: int,
    held_out: Sequence[Path],
    settings: TrainingSettings,
    *,
    inspected: NDArray[np.bool_] | None = None,
    device: str = "cpu",
    states: Sequence[Path] = (),
    key: str = "",
    resume: bool = False,
    report: Progress,
) -> list[WideFit]:
    """A view for each of the settings' scales, one training after the other.

    cut: the tiles of a scale. states: one for each view, see `fit_wide`.
    """
    fits = list[WideFit]()
    for number, scale in enumerate(settings.wide_scales):
        at = f", scale {scale}" if len(settings.wide_scales) > 1 else ""
        fit = fit_wide(
            cut(scale),
            channels,
            scale=scale,
            steps=settings.wide_steps,
            crop_px=settings.wide_crop_px,
            augmentation=settings.augment,
            seed=settings.seed,
            device=device,
            state=states[number] if states else None,
            key=key,
            resume=resume,
            progress=partial(report, f"train the wide view{at}"),
        )
        looked_at = partial(report, f"the wide view's level{at}")
        level = good_level(
            fit.view, held_out, inspected, seed=settings.seed, device=device, progress=looked_at
        )
        fits.append(replace(fit, view=replace(fit.view, level=level)))
    return fits


def fit_wide(
    tiles: TileSet,
    channels: int,
    *,
    scale: int = 1,
    steps: int,
    crop_px: int,
    augmentation: Augmentation,
    seed: int,
    device: str = "cpu",
    state: Path | None = None,
    key: str = "",
    resume: bool = False,
    progress: Callable[[int, int], None],
) -> WideFit:
    """Train on crops of good tiles of this scale, `crop_px` made up to whole `GRID_PX`; the view's
    level is still 0 (`good_level`).

    state: written now and then, of this `key`; `resume` goes on from it.
    Several processes (`torchrun`) all do the same, and the first one writes.
    Raises `DataError` when the training diverges: the state before it stays on disk.
    """
    crop_px = -(-crop_px // GRID_PX) * GRID_PX
    with seeded(seed):
        net = WideNet(channels, normed=True).to(device).train()
    rng = np.random.default_rng([seed, 7])
    source = CropSource(
        tiles,
        rng,
        batch=BATCH,
        crop_px=crop_px,
        counts=scattered,
        revisited=0.5,
        fades=FADES,
        short_px=GRID_PX - 1,
        augmentation=augmentation,
        draw_defects=spoil_wide,
    )
    optimiser = Muon(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    half, kind = compute_type(torch.device(device)), torch.device(device).type
    losses: list[float] = []
    before = load_state(state, key) if resume and state is not None else None
    if before is not None:
        net.load_state_dict(before["net"])
        optimiser.load_state_dict(before["optimiser"])
        rng.bit_generator.state = json.loads(before["rng"])
        source.remember(before["hardest"])
        losses = before["losses"]
    resumed_at = len(losses)
    saved = time.monotonic()
    for step in range(len(losses), steps):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _cycle(step / steps)
        batch = source.draw()
        pixels, cells = _together(batch, crop_px)
        with torch.autocast(kind, half, enabled=half != torch.float32):
            z = net(pixels.to(device))
        margin = MARGIN_PX // STRIDE
        z = z[:, margin : margin + cells.shape[1], margin : margin + cells.shape[2]]
        loss = _loss(z, cells.to(device))
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        gradient = float(torch.nn.utils.clip_grad_norm_(net.parameters(), MAX_GRADIENT))
        if not (math.isfinite(losses[-1]) and math.isfinite(gradient)):
            raise DataError(
                f"loss {losses[-1]} with a gradient of {gradient} found at step {step + 1} of the "
                "wide view, expected finite ones: train without wide_view, or look at the images"
            )
        optimiser.step()
        good = z.detach().cpu().where(cells == GOOD, -HIGHEST_LOGIT).amax(dim=(1, 2))
        highest = good.clamp(max=HIGHEST_LOGIT).exp()
        order = [number for crops in batch.groups for number in crops.numbers]
        by_number = dict(zip(order, highest.tolist(), strict=True))
        source.report(batch, [by_number[number] for number in range(BATCH)])
        due = (step + 1) % max(1, steps // LEAST_STATES) == 0
        due = due or time.monotonic() - saved > SAVE_SECONDS
        if state is not None and due and first_process():
            now = {
                "net": net.state_dict(),
                "optimiser": optimiser.state_dict(),
                "rng": json.dumps(rng.bit_generator.state),
                "hardest": source.remembered(),
                "losses": losses,
            }
            save_state(state, key, now)
            saved = time.monotonic()
        progress(step + 1, steps)
    return WideFit(replace(net.eval().cpu().view(), scale=scale), losses, resumed_at)


def good_level(
    view: WideView,
    paths: Sequence[Path],
    inspected: NDArray[np.bool_] | None = None,
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None],
) -> float:
    """The median, over good images, of the highest z of an image; see `WideView.level`.

    A seam of `SEAM_PX` does not count: what is beyond a frame's side is made up, and the highest
    z there would keep silent what is found inside. inspected: bool (H, W); nor do cells outside
    of it.
    """
    infer = open_wide_torch(view, device)
    counted = None if inspected is None else inspected[::STRIDE, ::STRIDE]
    highest = []
    for number, index in enumerate(looked_at := some(len(paths), MOST_LOOKED_AT, seed)):
        padded = pad_frame(read_image(paths[index], view.in_channels), FRAME_MARGIN_PX)
        z = smoothed(logits(infer, padded, view.scale))
        if counted is not None:
            z = np.where(counted, z, -np.inf)
        inner = z[SEAM_PX // STRIDE : -SEAM_PX // STRIDE, SEAM_PX // STRIDE : -SEAM_PX // STRIDE]
        highest.append(float(inner.max(initial=-np.inf)))
        if not math.isfinite(highest[-1]):  # nothing of it counts
            highest[-1] = float(z.max())
        progress(number + 1, len(looked_at))
    return float(np.median(highest))


def _cycle(done: float) -> float:
    """Up in the first twentieth, then down as a cosine."""
    if done < WARM_UP:
        return max(1e-3, done / WARM_UP)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _together(batch: Batch, crop_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All crops in one size, the smaller ones made up with their last pixels, where nothing is
    asked; one normalisation for all."""
    rows, columns = cells_hw(crop_px, crop_px)
    pixels, cells = [], []
    for crops in batch.groups:
        height, width = crops.pixels.shape[1:3]
        spare = (0, crop_px - width, 0, crop_px - height)
        planes = crops.pixels.permute(0, 3, 1, 2).float()
        pixels.append(functional.pad(planes, spare, mode="replicate").permute(0, 2, 3, 1))
        found = torch.full((len(crops.cells), rows, columns), UNSURE, dtype=torch.int64)
        found[:, : crops.cells.shape[1], : crops.cells.shape[2]] = crops.cells
        cells.append(found)
    return torch.cat(pixels), torch.cat(cells)


def _loss(z: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Logits and states [N, rows, columns] -> the loss."""
    loss = 0 * z.sum()
    good, bad = cells == GOOD, cells > GOOD
    if bool(good.any()):
        each = functional.softplus(z[good])
        hardest = each.topk(max(1, round(each.numel() * HARD_SHARE)), sorted=False).values
        loss = loss + GOOD_WEIGHT * each.mean() + HARD_WEIGHT * hardest.mean()
    if bool(bad.any()):
        _, defect = torch.unique(cells[bad], return_inverse=True)
        each = functional.softplus(-z[bad])
        sums = each.new_zeros(int(defect.max()) + 1).index_add(0, defect, each)
        loss = loss + (sums / torch.bincount(defect)).mean()
    return loss
