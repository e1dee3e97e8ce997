"""The wide view in torch: the reference (`models.wide` tells what it is)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.compute import channels_last
from models.wide import PROBE_PX, Floats, Image, Infer, WideView, convolutions, forward

FIRST_LOGIT = -3.0
"""Before anything is learnt all looks good: most of it is."""


class WideNet(nn.Module):
    """uint8 [N, h, w, C], sides multiples of `GRID_PX` -> logits [N, h / 4, w / 4].

    normed: with batch normalisation, to be trained; else as it serves.
    """

    def __init__(self, in_channels: int, *, normed: bool) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.steps = convolutions(in_channels)
        for name, one in self.steps.items():
            own = normed and one.relu
            convolution = nn.Conv2d(
                one.inputs, one.outputs, one.kernel, one.stride, one.kernel // 2, bias=not own
            )
            self.add_module(name, convolution)
            if normed and name == "logit" and convolution.bias is not None:
                nn.init.constant_(convolution.bias, FIRST_LOGIT)
            if own:
                self.add_module(f"{name}_norm", nn.BatchNorm2d(one.outputs))
        channels_last(self)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        return forward(x, self._convolve, torch.add, _twice)[:, 0].float()

    def _convolve(self, name: str, x: torch.Tensor) -> torch.Tensor:
        x = self.get_submodule(name)(x)
        if not self.steps[name].relu:
            return x
        norm = getattr(self, f"{name}_norm", None)
        return functional.relu(x if norm is None else norm(x))

    @torch.no_grad()
    def view(self) -> WideView:
        """As plain arrays, the normalisation folded into the convolutions."""
        weights: dict[str, Floats] = {}
        for name in self.steps:
            convolution: Any = self.get_submodule(name)
            weight = convolution.weight.double()
            norm: Any = getattr(self, f"{name}_norm", None)
            if norm is None:
                bias = convolution.bias.double()
            else:
                factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
                weight = weight * factor[:, None, None, None]
                bias = norm.bias.double() - norm.running_mean.double() * factor
            for kind, values in (("weight", weight), ("bias", bias)):
                plain = values.float().cpu().contiguous().numpy()
                weights[f"{name}.{kind}"] = np.ascontiguousarray(plain)
        coarse = np.random.default_rng(0).integers(0, 256, (40, 40, self.in_channels), np.uint8)
        probe = coarse.repeat(PROBE_PX // 40, axis=0).repeat(PROBE_PX // 40, axis=1)
        view = WideView(self.in_channels, weights)
        return replace(view, probe=probe, answer=open_wide_torch(view, "cpu")(probe))


def _twice(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def open_wide_torch(view: WideView, device: str) -> Infer:
    """See `models.wide.Infer`; in float32."""
    net = WideNet(view.in_channels, normed=False).eval()
    net.load_state_dict({name: torch.from_numpy(value) for name, value in view.weights.items()})
    net.to(device)
    # torch's default rounds float32 convolutions on a GPU to 10 bits (TF32).
    torch.backends.cudnn.allow_tf32 = False

    def infer(block: Image) -> Floats:
        with torch.inference_mode():
            found: Floats = net(torch.from_numpy(block)[None].to(device))[0].cpu().numpy()
        return found

    return infer
