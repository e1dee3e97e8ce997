"""The wide view on an NVIDIA GPU, beside the CUDA runtime: what the CPU says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.errors import ParityError
from models.references import save_detector
from models.runtimes import open_runtime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.variants import FRAME_MARGIN_PX, map_hw
from models.wide import TOLERANCE, WideView
from models.wide_net import WideNet, open_wide_torch

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU here, or torch is not a CUDA build"
)


def view_of(scale: int, level: float = 0.0) -> WideView:
    torch.manual_seed(scale)
    return replace(WideNet(1, normed=True).eval().view(), scale=scale, level=level)


def bundle_of(views: Sequence[WideView], out: Path) -> Bundle:
    frames = [textured_frame(96, 96, 1)]
    path = save_detector(
        out, untrained_model(), q_a=0.1, q_b=1.0, provenance={}, frames=frames, wide=views
    )
    return Bundle.load(path)


def map_by(runtime: str, bundle: Bundle, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
    engine = open_runtime(bundle, runtime, "f32", shapes=[frame.shape], calibrating=True)
    out = np.full(map_hw(*frame.shape[:2]), np.nan, np.float32)
    engine.infer([pad_frame(frame, FRAME_MARGIN_PX)], [out])
    engine.close()
    return out


@pytest.mark.parametrize("hw", [(640, 640), (1024, 1280), (333, 471)])
def test_maps_are_weighed_as_on_the_cpu(hw: tuple[int, int], tmp_path: Path) -> None:
    bundle = bundle_of([view_of(1, -3.5), view_of(2, -3.2)], tmp_path)
    frame = textured_frame(*hw, 1)
    found, expected = (map_by(name, bundle, frame) for name in ("cuda", "torch"))
    assert float(np.abs(found - expected).max()) < TOLERANCE * float(expected.max())


def test_a_block_is_not_rounded_to_tf32() -> None:
    view = view_of(1)
    block = np.random.default_rng(0).integers(0, 256, (320, 352, 1), np.uint8)
    by_gpu, by_cpu = (open_wide_torch(view, device)(block) for device in ("cuda", "cpu"))
    assert float(np.abs(by_gpu - by_cpu).max()) < 1e-4


def test_a_view_that_answers_otherwise_does_not_run(tmp_path: Path) -> None:
    view = view_of(1)
    assert view.answer is not None
    bundle = bundle_of([replace(view, answer=view.answer + 3)], tmp_path)
    with pytest.raises(ParityError, match="wide view"):
        open_runtime(bundle, "cuda", "f32", calibrating=True)
