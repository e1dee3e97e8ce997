"""Reference crops and their maps, and a trained detector's first bundle. Uses torch.

The crops show what engines get wrong: reflected corners and borders, plain good surface, and marks
far from anything good (a dark spot, a bright scratch, an inverted patch), so that large values of
the map are held to the reference too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Calibration, Reference, write_bundle
from models.efficientad import Detector
from models.errors import DataError
from models.fused import Weights
from models.precedents import Precedents
from models.tiles import pad_frame
from models.variants import FRAME_MARGIN_PX, GRID_PX, RECEPTIVE_FIELD_PX
from models.whole import PREFIX
from models.wide import WideView

CROP_PX = 96
"""Side of a reference crop without margin; smaller frames give smaller crops."""


def make_references(
    model: Detector, frames: Sequence[NDArray[np.uint8]], per_frame: int = 4
) -> list[Reference]:
    """Corner, lower border, interior and marked crops of each frame, with the fp32 torch maps.

    frames: good uint8 (H, W, C), at least 33 px a side. Raises `DataError` for none or other.
    """
    if not frames:
        raise DataError("no frames found, expected at least one good frame for reference maps")
    references = []
    model.eval()
    for number, frame in enumerate(frames):
        if frame.ndim != 3 or frame.dtype != np.uint8 or min(frame.shape[:2]) < RECEPTIVE_FIELD_PX:
            raise DataError(
                f"a frame {frame.dtype} {frame.shape} found, expected uint8 (H, W, C) of at least "
                f"{RECEPTIVE_FIELD_PX} px a side"
            )
        for crop in _crops(frame, number)[:per_frame]:
            references.append(Reference(crop, reference_map(model, crop)))
    return references


@torch.inference_mode()
def reference_map(model: Detector, padded: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The plain float32 map of one padded frame: uint8 (H + 64, W + 64, C) -> (h, w)."""
    device = next(model.parameters()).device
    pixels = torch.from_numpy(np.array(padded)[None]).to(device)
    raw_map: NDArray[np.float32] = model.float()(pixels)[0].cpu().numpy()
    return raw_map


def weights_of(model: Detector) -> dict[str, NDArray[np.float32]]:
    """Parameters and buffers by the names of `models.fused.Weights`, as float32 arrays."""
    tensors: dict[str, torch.Tensor] = {}
    for scale in model.scales:
        for name, tensor in model.pair(scale).state_dict().items():
            shared = name.startswith(("teacher.", "input_"))
            tensors[name if shared else f"scale{scale}.{name}"] = tensor
    if model.whole is not None:
        tensors |= {f"{PREFIX}{name}": tensor for name, tensor in model.whole.state_dict().items()}
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}


def save_detector(
    out_dir: Path,
    model: Detector,
    *,
    q_a: float,
    q_b: float,
    provenance: Mapping[str, Any],
    frames: Sequence[NDArray[np.uint8]],
    precedents: Precedents | None = None,
    wide: Sequence[WideView] = (),
) -> Path:
    """Write the first bundle of a trained detector, without thresholds; see `write_bundle`.

    q_a, q_b: raw map values at the two quantiles of good tiles. frames: a few good full frames.
    """
    weights: Weights = weights_of(model)
    return write_bundle(
        out_dir,
        variant=model.variant,
        in_channels=model.in_channels,
        scales=model.scales,
        weights=weights,
        provenance=provenance,
        calibration=Calibration(q_a, q_b, {}),
        references=make_references(model, frames),
        precedents=precedents,
        wide=wide,
        global_branch=model.whole is not None,
    )


def _crops(frame: NDArray[np.uint8], seed: int) -> list[NDArray[np.uint8]]:
    """Padded crops, real surroundings where the frame has them, reflection at its borders."""
    height, width = frame.shape[:2]
    padded = pad_frame(frame, FRAME_MARGIN_PX)
    rows, columns = min(CROP_PX, height), min(CROP_PX, width)
    bottom, right = height - rows, width - columns
    rng = np.random.default_rng(seed)
    inside = [GRID_PX * int(rng.integers(0, side // GRID_PX + 1)) for side in (bottom, right)]

    def cut(top: int, left: int) -> NDArray[np.uint8]:
        both = 2 * FRAME_MARGIN_PX
        return padded[top : top + rows + both, left : left + columns + both].copy()

    marked = cut(*inside)
    middle_y, middle_x = (side // 2 for side in marked.shape[:2])
    marked[middle_y - 6 : middle_y + 6, middle_x - 14 : middle_x - 2] //= 4
    marked[middle_y + 2 : middle_y + 4, middle_x : middle_x + 24] = 255
    patch = marked[middle_y - 16 : middle_y - 4, middle_x + 4 : middle_x + 16]
    patch[...] = 255 - patch
    return [marked, cut(0, 0), cut(bottom, right), cut(*inside)]
