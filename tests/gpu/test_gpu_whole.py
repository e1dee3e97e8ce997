"""The global branch on an NVIDIA GPU, beside the CUDA runtime: what the CPU says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.references import reference_map
from models.runtimes import open_runtime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_bundle, untrained_model
from models.variants import FRAME_MARGIN_PX, map_hw

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no NVIDIA GPU here, or torch is not a CUDA build"
)


@pytest.mark.parametrize("hw", [(256, 320), (333, 471)])
def test_the_map_has_both_halves(hw: tuple[int, int], tmp_path: Path) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path, global_branch=True))
    engine = open_runtime(bundle, "cuda", "f32", shapes=[(*hw, 1)], calibrating=True)
    padded = pad_frame(textured_frame(*hw, 1), FRAME_MARGIN_PX)
    found = np.full(map_hw(*hw), np.nan, np.float32)
    engine.infer([padded], [found])
    engine.close()
    expected = reference_map(untrained_model(global_branch=True), padded)
    assert float(np.abs(found - expected).max()) < 1e-4 * float(np.abs(expected).max())
