"""What the wide view learns from: bridges, and what reaches far over a surface."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from striped import stripes

from models.defects import FEW_TONES
from models.surface_defects import draw_crack, draw_patch, draw_shade
from models.wide_defects import spoil_wide


def parts(picture: NDArray[np.float32], *, dark: bool) -> int:
    """Pieces of the dark or of the bright tone that hang together."""
    return int(cv2.connectedComponents(((picture < 0.5) == dark).astype(np.uint8))[0])


def test_bridges_join_what_was_apart() -> None:
    """Tracks as often as the gaps between them."""
    image = stripes(0).astype(np.float32) / 255
    marks = shorts = cuts = 0
    for seed in range(80):
        before = image.copy()
        after, where = spoil_wide(np.random.default_rng(seed), image, 4)
        assert (image == before).all()
        assert set(np.unique(after)) <= set(np.unique(image))
        assert where.max() <= 4
        marks += int((where > 0).any())
        shorts += parts(after, dark=True) < parts(image, dark=True)
        cuts += parts(after, dark=False) < parts(image, dark=False)
    assert marks > 70
    assert shorts > 15
    assert cuts > 15


@pytest.mark.parametrize("shape", [(96, 96), (96, 96, 3)])
def test_blots_lie_by_themselves_in_the_midst_of_a_tone(shape: tuple[int, ...]) -> None:
    halves = np.zeros(shape, np.float32)
    halves[48:] = 1
    dark = bright = 0
    for seed in range(60):
        after, where = spoil_wide(np.random.default_rng(seed), halves, 3)
        assert set(np.unique(after)) == {0, 1}
        for half, marks in ((slice(0, 40), "bright"), (slice(56, 96), "dark")):
            changed = (after != halves)[half].reshape(40, 96, -1).any(axis=2)
            alone = changed.any() and not changed[[0, -1]].any() and not changed[:, [0, -1]].any()
            if alone:
                assert (where[half][changed] != 0).all()
                dark += marks == "dark"
                bright += marks == "bright"
    assert dark > 5
    assert bright > 5


@pytest.mark.parametrize("tones", [1, FEW_TONES + 1, 200])
@pytest.mark.parametrize("shape", [(40, 40), (64, 96, 3)])
def test_pictures_of_all_kinds_are_drawn_into(tones: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    picture = (rng.integers(0, tones, shape) / max(1, tones)).astype(np.float32)
    after, where = spoil_wide(rng, picture, 5, specks=2)
    assert after.shape == shape
    assert where.shape == shape[:2]
    assert after.min() >= 0
    assert after.max() <= 1


@pytest.mark.parametrize("shape", [(90, 70), (200, 160), (120, 120, 3), (30, 30)])
def test_surfaces_are_marred_where_it_says(shape: tuple[int, ...]) -> None:
    """Cracks, shades and patches: what is marked was changed, and all of them come about."""
    grain = np.random.default_rng(0).normal(0.5, 0.03, shape)
    surface = cv2.GaussianBlur(grain, (0, 0), 0.8).astype(np.float32)
    for draw in (draw_crack, draw_shade, draw_patch):
        seen = 0
        for seed in range(40):
            picture = surface.copy()
            drawn = draw(np.random.default_rng(seed), picture)
            if drawn is None:
                assert (picture == surface).all()
                continue
            assert picture.min() >= 0
            assert picture.max() <= 1
            change = np.abs(picture - surface).reshape(*shape[:2], -1).max(axis=2)
            outside = np.ones(shape[:2], np.bool_)
            outside[drawn.spot] = False
            assert not change[outside].any()
            assert drawn.seen.shape == drawn.unsure.shape == change[drawn.spot].shape
            if drawn.seen.any():
                seen += 1
                assert change[drawn.spot][drawn.seen].max() > 2 / 255
        assert seen >= 3, draw.__name__


@pytest.mark.parametrize("ground", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(189, 189), (96, 120, 3)])
def test_nothing_is_asked_where_nothing_changed(ground: float, shape: tuple[int, ...]) -> None:
    """On saturated ground black does not get darker, nor white brighter."""
    grain = np.random.default_rng(0).normal(0.5, 0.03, shape)
    surface = cv2.GaussianBlur(grain, (0, 0), 0.8).astype(np.float32)
    surface[:, : shape[1] // 2] = ground
    for draw, away_px in ((draw_crack, 0), (draw_shade, 8), (draw_patch, 6)):
        seen = 0
        for seed in range(60):
            picture = surface.copy()
            drawn = draw(np.random.default_rng(seed), picture)
            if drawn is None:
                continue
            change = np.abs(picture - surface).reshape(*shape[:2], -1).max(axis=2)[drawn.spot]
            near = np.ones((2 * away_px + 1,) * 2, np.uint8)
            changed = cv2.dilate((change > 0.5 / 255).astype(np.uint8), near) > 0
            assert changed[drawn.seen].all(), draw.__name__
            seen += int(drawn.seen.any())
        assert seen >= 5, draw.__name__
