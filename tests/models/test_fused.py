"""The fused graph equals the plain reference, and its pieces are what they say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError
from models.fused import Strip, fuse, input_rows, strips
from models.references import reference_map, weights_of
from models.runtimes.base import EngineOptions
from models.runtimes.torch_ import TorchRuntime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.variants import FRAME_MARGIN_PX, VARIANTS, map_hw


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("hw", "scales"),
    [((33, 33), (1, 2)), ((61, 50), (2,)), ((96, 130), (1,)), ((41, 57), (1, 2))],
)
def test_fused_equals_plain_reference(
    variant: str, channels: int, hw: tuple[int, int], scales: tuple[int, ...]
) -> None:
    model = untrained_model(variant, channels, scales)
    padded = pad_frame(textured_frame(*hw, channels, seed=3), FRAME_MARGIN_PX)
    expected = reference_map(model, padded)
    out = np.full(map_hw(*hw), np.nan, np.float32)
    graph = fuse(weights_of(model), variant, channels, scales)
    [peak] = TorchRuntime(graph, EngineOptions()).infer([padded], [out])
    assert expected.shape == out.shape
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5 * expected.max())
    assert peak == out.max()


def test_folding_costs_no_more_than_float32_itself() -> None:
    """Against float64, the fused graph is not a worse float32 than the plain one."""
    model = untrained_model("pdn_small", 3)
    padded = pad_frame(textured_frame(64, 64, 3), FRAME_MARGIN_PX)
    plain = reference_map(model, padded)
    out = np.empty((16, 16), np.float32)
    TorchRuntime(fuse(weights_of(model), "pdn_small", 3), EngineOptions()).infer([padded], [out])
    exact = model.double()(torch.from_numpy(padded[None]))[0].detach().numpy()
    assert np.abs(out - exact).max() <= max(4 * np.abs(plain - exact).max(), 1e-6 * exact.max())


def test_a_frame_of_the_mean_grey_gives_the_teachers_bias() -> None:
    """The first layer sees pixels around zero: what is left in its bias is the network's own."""
    weights = weights_of(untrained_model("pdn_tiny", 3))
    graph = fuse(weights, "pdn_tiny", 3)
    assert np.abs(graph.offset - 255 * weights["input_mean"]).max() <= 0.5
    own = np.concatenate([weights[f"{net}.conv1.bias"] for net in ("teacher", "scale1.student")])
    assert np.abs(graph.branches[0].layers[0].bias - own).max() < 0.1


@settings(deadline=None)
@given(rows=st.integers(1, 3000), at_most=st.integers(8, 400))
def test_strips_cover_every_row_with_one_height(rows: int, at_most: int) -> None:
    found = strips(rows, at_most)
    heights = {strip.last - strip.first for strip in found}
    assert len(heights) == 1
    assert heights.pop() <= at_most
    covered = sorted({row for strip in found for row in range(strip.first, strip.last)})
    assert covered == list(range(rows))
    assert all(strip.first % 2 == 0 for strip in found)  # where rows of half the size begin
    assert len(found) <= 2 * (rows // at_most + 1)
    for before, after in itertools.pairwise(found):
        assert before.last - after.first >= 2  # the last rows of all but the last are not right
    # The frame that gives `rows` rows has 4 rows - 3 pixel rows at least, and 64 of margin.
    assert found[-1].input_rows.stop == input_rows(rows) <= 4 * rows - 3 + 64 + 1


@settings(deadline=None, max_examples=20)
@given(
    st.integers(33, 200),
    st.integers(33, 80),
    st.integers(8, 20),
    st.sampled_from([(1,), (2,), (1, 2)]),
)
def test_strips_give_the_map_of_the_whole(
    height: int, width: int, at_most: int, scales: tuple[int, ...]
) -> None:
    model = untrained_model("pdn_tiny", 1, scales)
    padded = pad_frame(textured_frame(height, width, 1, seed=height), FRAME_MARGIN_PX)
    whole = reference_map(model, padded)
    found = np.full_like(whole, np.nan)
    for strip in strips(len(whole), at_most):
        found[strip.first : strip.last] = reference_map(model, padded[strip.input_rows])
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(9, 90),
    columns=st.integers(9, 90),
    kib=st.sampled_from([400, 1500, 6000, 10**6]),
)
def test_pieces_cover_a_map_and_stay_small(rows: int, columns: int, kib: int) -> None:
    """Written in their order, every cell ends up from a piece in which it is right."""
    graph = fuse(weights_of(untrained_model("pdn_tiny", 1)), "pdn_tiny", 1)
    pieces = graph.pieces((rows, columns), kib << 10)
    right = np.zeros((rows, columns), np.bool_)
    for piece in pieces:
        inside = np.ones((rows, columns), np.bool_)[piece.cells]
        for axis, part, end in ((0, piece.rows, rows), (1, piece.columns, columns)):
            if part.last < end:  # the last two rows or columns of a piece are not
                inside[(slice(None),) * axis + (slice(-2, None),)] = False
        right[piece.cells] = inside
    assert right.all()
    sizes = {np.ones((rows, columns))[piece.cells].shape for piece in pieces}
    assert len(sizes) == 1
    height, width = sizes.pop()
    smallest = graph.largest_tensor_bytes(4 * 8, 4 * 8)
    assert graph.largest_tensor_bytes(4 * height, 4 * width) <= max(kib << 10, smallest)


def test_a_wide_frame_is_cut_both_ways() -> None:
    """A web of 16,384 pixels in strips of whole rows would be computed six times."""
    graph = fuse(weights_of(untrained_model("pdn_small", 1)), "pdn_small", 1)
    pieces = graph.pieces((4096, 4096), 512 << 20)
    pixels = sum(np.prod(piece.padded_hw((16448, 16448))) for piece in pieces)
    assert pixels < 1.3 * 16384**2
    # One of 1280 pixels goes through in strips of whole rows.
    assert {piece.columns for piece in graph.pieces((256, 320), 512 << 20)} == {Strip(0, 320)}


def test_a_detector_of_two_scales_gives_the_mean_of_both() -> None:
    both = untrained_model("pdn_tiny", 3, (1, 2))
    padded = pad_frame(textured_frame(72, 90, 3), FRAME_MARGIN_PX)
    weights = weights_of(both)
    maps = []
    for scale in (1, 2):
        kept = {name: w for name, w in weights.items() if not name.startswith(f"scale{3 - scale}")}
        out = np.empty((18, 23), np.float32)
        TorchRuntime(fuse(kept, "pdn_tiny", 3, (scale,)), EngineOptions()).infer([padded], [out])
        maps.append(out)
    np.testing.assert_allclose(reference_map(both, padded), np.mean(maps, axis=0), rtol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "nan", "dtype", "variant"])
def test_wrong_weights_are_refused(damage: str) -> None:
    weights = weights_of(untrained_model())
    name, variant = "scale1.student.conv2.weight", "pdn_tiny"
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        name = "scale1.student.conv9.weight"
        weights[name] = np.zeros(1, np.float32)
    elif damage == "shape":
        weights[name] = weights[name][:-1]
    elif damage == "nan":
        weights[name][0, 0, 0, 0] = np.nan
    elif damage == "dtype":
        weights[name] = weights[name].astype(np.float64)
    else:
        name = variant = "pdn_huge"
    with pytest.raises(BundleError, match=name):
        fuse(weights, variant, 1)
