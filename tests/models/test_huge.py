"""Frames of a line-scan camera: strips keep memory bounded, whatever a whole frame would take."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.runtimes.base import EngineOptions
from models.runtimes.openvino_ import OpenVinoRuntime
from models.variants import FRAME_MARGIN_PX, map_hw
from tools.huge import (
    LIMIT_BYTES,
    HugeFigures,
    crop_difference,
    lined_frame,
    main,
    random_graph,
)

ROOT = Path(__file__).parents[2]
LIBRARIES_MIB = 256
"""Python, numpy, OpenVINO and its compiled kernels."""


@pytest.mark.slow
def test_a_wide_frame_takes_a_strips_memory_and_not_a_frames() -> None:
    """As wide as a line-scan camera is, and as high as continuous integration has time for."""
    options = ["--side", "16384", "--height", "512", "--precision", "f32", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.huge", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = HugeFigures(**json.loads(done.stdout))
    assert found.strips > 3
    bound = found.frame_mib + found.map_mib + found.largest_tensor_mib + LIBRARIES_MIB
    assert found.peak_mib < bound
    # Twice as much and more would be just the first layer's output of the whole frame.
    rows, columns = 512 + 2 * FRAME_MARGIN_PX, 16384 + 2 * FRAME_MARGIN_PX
    assert random_graph("pdn_tiny").largest_tensor_bytes(rows, columns) > 2 * bound * 2**20
    assert found.crop_difference < 1e-5


def test_a_crop_around_a_seam_shows_a_wrong_seam() -> None:
    graph = random_graph("pdn_tiny")
    engine = OpenVinoRuntime(graph, EngineOptions(threads=1), strip_bytes=24 << 20)
    padded = lined_frame(400, 300)
    raw_map = np.empty(map_hw(400, 300), np.float32)
    engine.infer([padded], [raw_map])
    pieces = graph.pieces((100, 75), 24 << 20)
    assert len(pieces) > 1
    row = pieces[-1].rows.first
    assert crop_difference(engine, padded, raw_map, (4 * row, 150)) < 1e-5
    raw_map[row] *= 1.001
    assert crop_difference(engine, padded, raw_map, (4 * row, 150)) > 1e-5
    engine.close()


def test_figures_say_what_is_too_much() -> None:
    figures = HugeFigures("pdn_tiny", "f32", 512, 512, 1, 1, 1, 1, 1, 1, 3072.0, 0, 1, 1e-5)
    assert LIMIT_BYTES == 3072 * 2**20
    assert figures.fits
    assert figures.agrees
    assert not dataclasses.replace(figures, peak_mib=3073.0).fits
    assert not dataclasses.replace(figures, crop_difference=2e-5).agrees


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--side", "255"], "255x255 found, expected sides of 256 to 65536"),
        (["--height", "70000"], "16384x70000 found"),
        (["--threads", "-1"], "-1 found, expected 0 or more"),
        (["--variant", "pdn_huge"], "invalid choice"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(options)
    assert error.value.code == 2
    assert says in capsys.readouterr().err
