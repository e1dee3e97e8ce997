"""What runs of the wide view is what was trained: checked when an engine is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from striped import random_view

from models.bundle import Bundle
from models.errors import BundleError, ParityError
from models.references import save_detector
from models.runtimes import open_runtime
from models.runtimes.wide_openvino import open_wide
from models.untrained import textured_frame, untrained_model
from models.variants import FRAME_MARGIN_PX
from models.wide import (
    BEHIND_PX,
    BLOCK_PX,
    LEAST,
    MOST,
    PROBE_PX,
    SMOOTHED_CELLS,
    STRIDE,
    VIEW_PX,
    WideView,
    block_sizes,
    check_answer,
    logits,
    smoothed,
    weigh,
)
from models.wide_net import open_wide_torch

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]


def bundle_with(views: Sequence[WideView], out: Path) -> Bundle:
    path = save_detector(
        out,
        untrained_model(),
        q_a=0.1,
        q_b=1.0,
        provenance={},
        frames=[textured_frame(96, 96, 1)],
        wide=views,
    )
    return Bundle.load(path)


@pytest.mark.parametrize("fault", ["low", "nan", "layer"])
def test_an_engine_that_says_something_else_is_refused(fault: str) -> None:
    view = random_view(1)
    right = open_wide(view, 1)
    check_answer(view, right)
    if fault == "layer":
        weights = dict(view.weights) | {"logit.weight": view.weights["logit.weight"] * 50}
        wrong = open_wide(replace(view, weights=weights), 1)
    else:
        off = np.float32(np.nan if fault == "nan" else -3)

        def wrong(block: Image) -> Floats:
            return right(block) + off

    with pytest.raises(ParityError, match=r"off the reference's logits.*report it"):
        check_answer(view, wrong)


SHAPES = [(400, 330), (640, 640), (1024, 352), (480, 752), (200, 600), (256, 256)]


@pytest.mark.parametrize("where", ["first", "last", "nan"])
@pytest.mark.parametrize("hw", SHAPES)
@pytest.mark.parametrize("scale", [1, 2])
def test_each_size_of_block_is_checked(hw: tuple[int, int], where: str, scale: int) -> None:
    """One that is right in the probe's own, and wrong in a part of another one."""
    view = replace(random_view(1), scale=scale)
    right = open_wide(view, 1)
    check_answer(view, right, SHAPES)

    def wrong(block: Image) -> Floats:
        z = right(block)
        if block.shape[:2] in block_sizes(hw, scale) - {(PROBE_PX, PROBE_PX)}:
            z[{"first": np.s_[4:9, 3:7], "last": np.s_[-5:, -9:], "nan": np.s_[:1, :1]}[where]] = (
                np.nan if where == "nan" else -9
            )
        return z

    (size,) = block_sizes(hw, scale)
    least = {"first": BEHIND_PX, "last": VIEW_PX, "nan": 0}[where]
    if min(size) < least:
        check_answer(view, wrong, [hw])  # too small to be compared there
    else:
        with pytest.raises(ParityError, match=f"in a block of {size[1]}x{size[0]}, at most"):
            check_answer(view, wrong, [hw])


def test_the_view_ends_where_it_is_said_to() -> None:
    look = open_wide_torch(random_view(1), "cpu")
    noise = np.random.default_rng(0).integers(0, 256, (2, 32, 640, 1)).astype(np.uint8)
    before, after = noise
    after[:, 48:] = before[:, 48:]
    there, here = look(before), look(after)
    cells = (48 + VIEW_PX) // STRIDE
    np.testing.assert_array_equal(there[:, cells:], here[:, cells:])
    assert (there[:, : cells - 8] != here[:, : cells - 8]).any()


sides = st.integers(33, 2 * BLOCK_PX)


@settings(deadline=None, max_examples=40)
@given(height=sides, width=st.integers(33, 90), turned=st.booleans(), scale=st.sampled_from([1, 2]))
def test_the_sizes_of_blocks_are_known_beforehand(
    height: int, width: int, turned: bool, scale: int
) -> None:
    if turned:
        height, width = width, height
    seen = set()

    def look(block: Image) -> Floats:
        seen.add(block.shape[:2])
        return np.zeros([side // STRIDE for side in block.shape[:2]], np.float32)

    padded = np.zeros((height + 2 * FRAME_MARGIN_PX, width + 2 * FRAME_MARGIN_PX, 1), np.uint8)
    logits(look, padded, scale)
    assert seen == block_sizes((height, width), scale)


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_a_bundle_whose_view_answers_otherwise_does_not_run(runtime: str, tmp_path: Path) -> None:
    view = random_view(1)
    assert view.answer is not None
    open_runtime(bundle_with([view], tmp_path), runtime, "f32", calibrating=True).close()
    bundle = bundle_with([view, replace(view, answer=view.answer + 3)], tmp_path)
    with pytest.raises(ParityError, match="wide view"):
        open_runtime(bundle, runtime, "f32", calibrating=True)


def test_what_breaks_in_the_check_is_fallen_back_from(tmp_path: Path) -> None:
    bundle, said = bundle_with([random_view(1)], tmp_path), list[str]()
    engine = open_runtime(
        bundle,
        "fakes:starved_stamp",
        fallback=["openvino/f32"],
        shapes=[(200, 300, 1)],
        calibrating=True,
        say=said.append,
    )
    assert engine.engine_id == "openvino/f32/cpu"
    assert any("out of memory" in each and "taken instead" in each for each in said)
    engine.close()


@pytest.mark.parametrize("broken", ["level", "weights", "channels"])
def test_a_view_that_could_not_be_read_again_is_not_written(broken: str, tmp_path: Path) -> None:
    view = random_view(3 if broken == "channels" else 1)
    if broken == "level":
        view = replace(view, level=float("nan"))
    elif broken == "weights":
        off = np.full_like(view.weights["stem.bias"], np.nan)
        view = replace(view, weights=dict(view.weights) | {"stem.bias": off})
    with pytest.raises(BundleError, match=r"wide view: .* found, expected.*train it again"):
        bundle_with([view], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(1, 1), (9, 8), (3, 40), (160, 97)])
def test_smoothing_keeps_what_is_even_and_spreads_the_rest(shape: tuple[int, int]) -> None:
    even = np.full(shape, -3.5, np.float32)
    np.testing.assert_allclose(smoothed(even), even, rtol=1e-6)
    z = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = cv2.GaussianBlur(z, (0, 0), SMOOTHED_CELLS, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(smoothed(z), expected, atol=1e-5)
    z[0, 0] = np.nan
    assert np.isnan(smoothed(z)[0, 0])


def test_a_map_is_weighed_within_limits() -> None:
    raw_map = np.array([[4, 1, 0.25, 4, 0, -1, np.nan, 4]], np.float32)
    above = np.array([[0, 1, 1000, -1000, 1, 1, 1, np.nan]], np.float32)
    weigh(raw_map, above, 4.0)
    expected = [4, 2 * np.e, np.exp(MOST), 4 * np.exp(LEAST), 0, 0, np.nan, np.nan]
    np.testing.assert_allclose(raw_map[0], expected, rtol=1e-6)
