"""A detector that has learned nothing, for tests and for measuring speed: the right shapes, and
numbers of a sensible size (a student that is its teacher plus noise). It finds no defects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.compute import seeded
from models.efficientad import Detector, at_scale
from models.references import reference_map, save_detector
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX


def untrained_model(
    variant: str = "pdn_tiny",
    in_channels: int = 1,
    scales: Sequence[int] = (1,),
    *,
    seed: int = 0,
    noise: float = 0.05,
    global_branch: bool = False,
    map_channels: int = 0,
) -> Detector:
    """A random teacher with unit feature statistics on textured frames; student noise relative.

    map_channels: directions in the map, random ones; 0: all channels.
    """
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed):
        model = Detector(variant, in_channels, scales, global_branch=global_branch)
    frames = [textured_frame(96, 96, in_channels, seed=k) for k in range(2)]
    pixels = torch.from_numpy(np.stack([pad_frame(frame, FRAME_MARGIN_PX) for frame in frames]))
    with torch.no_grad():
        for parameter in model.pair(scales[0]).teacher.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.normal_(std=(2 / fan_in) ** 0.5, generator=generator)
        for scale in scales:
            pair = model.pair(scale)
            pair.input_mean.copy_(torch.tensor([0.42, 0.47, 0.51])[:in_channels])
            pair.input_std.copy_(torch.tensor([0.19, 0.22, 0.25])[:in_channels])
            features = pair.teacher(at_scale(pair.normalise(pixels), scale))
            pair.feature_mean.copy_(features.mean(dim=(0, 2, 3)))
            pair.feature_std.copy_(features.std(dim=(0, 2, 3)).clamp_min(0.05))
            pair.copy_teacher()
            for parameter in pair.student.parameters():
                parameter.mul_(1 + noise * torch.randn(parameter.shape, generator=generator))
            if map_channels:
                channels = len(pair.feature_mean)
                square = torch.randn(channels, channels, generator=generator)
                directions = torch.linalg.qr(square).Q[:map_channels]
                pair.rotation = directions * (channels / map_channels) ** 0.5
    return model.eval()


def untrained_bundle(
    out_dir: Path,
    variant: str = "pdn_tiny",
    in_channels: int = 1,
    scales: Sequence[int] = (1,),
    *,
    seed: int = 0,
    global_branch: bool = False,
    map_channels: int = 0,
) -> Path:
    """A bundle of `untrained_model`, with map quantiles and references but no thresholds."""
    model = untrained_model(
        variant,
        in_channels,
        scales,
        seed=seed,
        global_branch=global_branch,
        map_channels=map_channels,
    )
    frames = [textured_frame(128, 160, in_channels, seed=k) for k in range(2)]
    padded = [pad_frame(frame, FRAME_MARGIN_PX) for frame in frames]
    values = np.concatenate([reference_map(model, frame).ravel() for frame in padded])
    q_a, q_b = (float(q) for q in np.quantile(values, [0.9, 0.995]))
    return save_detector(
        out_dir, model, q_a=q_a, q_b=q_b, provenance={"note": "untrained"}, frames=frames
    )


def textured_frame(height: int, width: int, channels: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """uint8 (H, W, C): smooth noise around mid-grey, different in each channel."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height + 8, width + 8, channels))
    for axis in (0, 1):
        noise = np.sum([np.roll(noise, k, axis) for k in range(5)], axis=0)
    frame = np.clip(118 + 7 * noise[4:-4, 4:-4], 0, 255).astype(np.uint8)
    return np.ascontiguousarray(frame)
