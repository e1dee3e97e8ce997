"""Parts are found where they lie, to half a pixel and a fifth of a degree; else none."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import Recipe, Zone
from pipeline.config.fixture import TemplateFixture, ThresholdFixture
from pipeline.errors import ConfigError
from pipeline.fixture.find import Fixture, Pose
from pipeline.fixture.placing import placed, placed_cells
from pipeline.rules import zone_factors, zone_min_areas
from pipeline.sources.synthetic import SyntheticLine
from pipeline.types import map_hw
from pipeline.window import inspected_window

Frame = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 480
MIDDLE = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
VIEWS = [(0, 0, 0), (37.3, -20.6, 4), (-60, 31.5, -9), (5, 5, 14.5)]
TURNED = [*VIEWS, (30, 10, 90), (-20, 15, 179), (12, -8, -120), (0, 0, 45)]


@cache
def part() -> NDArray[np.uint8]:
    """The rendered cover, upright in the middle."""
    return SyntheticLine(1280, 960, seed=3).render(0, good=True)[0][..., 0]


def view(
    dx: float = 0, dy: float = 0, degrees: float = 0, scale: float = 0.3, contrast: float = 1.0
) -> Frame:
    """The part so far from the middle and turned, clockwise as one sees it, on its belt."""
    turn = cv2.getRotationMatrix2D((639.5, 479.5), -degrees, scale)
    turn[:, 2] += MIDDLE[0] + dx - 639.5, MIDDLE[1] + dy - 479.5
    smooth = cv2.GaussianBlur(part(), (0, 0), 0.4 / scale)
    frame = cv2.warpAffine(smooth, turn, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REPLICATE)
    grey = 90 + contrast * (frame.astype(np.float32) - 90)
    grey += np.random.default_rng(7).normal(0, 2, grey.shape).astype(np.float32)
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None]


def belt() -> Frame:
    noise = np.random.default_rng(1).normal(30, 3, (HEIGHT, WIDTH, 1))
    return np.clip(np.rint(noise), 0, 255).astype(np.uint8)


def threshold(**changes: Any) -> Fixture:
    """Taught on the view in the middle."""
    plain = {"kind": "threshold", "taught_x": 0.0, "taught_y": 0.0, "part_min_area_px": 8000}
    plain |= changes
    [pose] = Fixture(ThresholdFixture.model_validate(plain)).find(view())
    plain |= {"taught_x": pose.x, "taught_y": pose.y, "taught_angle": pose.angle}
    return Fixture(ThresholdFixture.model_validate(plain))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return cut(tmp_path, (240, 180, 400, 300))


def cut(folder: Path, box: tuple[int, int, int, int]) -> Path:
    x0, y0, x1, y1 = box
    path = folder / "template.png"
    cv2.imwrite(str(path), view()[y0:y1, x0:x1])
    return path


def by_template(path: Path, **changes: Any) -> Fixture:
    plain = {"kind": "template", "template": str(path), "taught_x": MIDDLE[0], **changes}
    return Fixture(TemplateFixture.model_validate({"taught_y": MIDDLE[1], **plain}))


def far(fixture: Fixture, pose: Pose, dx: float, dy: float, degrees: float) -> tuple[float, float]:
    """How wrong a pose is: pixels and degrees."""
    config = fixture.config
    turn = math.radians(degrees)
    x, y = config.taught_x - MIDDLE[0], config.taught_y - MIDDLE[1]
    true_x = MIDDLE[0] + dx + math.cos(turn) * x - math.sin(turn) * y
    true_y = MIDDLE[1] + dy + math.sin(turn) * x + math.cos(turn) * y
    angle = (pose.angle - config.taught_angle - degrees + 180) % 360 - 180
    return math.hypot(pose.x - true_x, pose.y - true_y), abs(angle)


@pytest.mark.parametrize(
    ("angle_by", "most", "views"),
    [("axis", 20.0, VIEWS), ("rectangle", 20.0, VIEWS), ("axis", 180.0, TURNED)],
)
def test_by_threshold(angle_by: str, most: float, views: list[tuple[float, ...]]) -> None:
    fixture = threshold(angle_by=angle_by, max_turn_degrees=most)
    for where in views:
        [pose] = fixture.find(view(*where))
        off, turned = far(fixture, pose, *where)
        assert off < 0.5, where
        assert turned < 0.2, where
        assert not pose.cut_off
        assert 0 < pose.score < 1
        x0, y0, x1, y1 = pose.box_xyxy
        assert x0 < pose.x < x1
        assert y0 < pose.y < y1


@pytest.mark.parametrize(("most", "views"), [(15.0, VIEWS), (180.0, TURNED)])
def test_by_template(template: Path, most: float, views: list[tuple[float, ...]]) -> None:
    fixture = by_template(template, max_turn_degrees=most)
    for where in views:
        [pose] = fixture.find(view(*where))
        off, turned = far(fixture, pose, *where)
        assert off < 0.5, where
        assert turned < 0.2, where
        assert pose.score > 0.8
        assert not pose.cut_off


def test_rendered_parts_lie_where_the_line_put_them(tmp_path: Path) -> None:
    """Of the rendered line, places are known to within 6 px and 2 degrees; both ways must agree."""
    line = SyntheticLine(WIDTH, HEIGHT, seed=2)
    taught = line.render(0, good=True)[0]
    cv2.imwrite(str(tmp_path / "t.png"), taught[140:340, 200:440])
    named = {"taught_x": 319.5, "taught_y": 239.5, "max_turn_degrees": 6.0}
    first = by_template(tmp_path / "t.png", **named)
    second = Fixture(
        ThresholdFixture.model_validate({"kind": "threshold", "part_min_area_px": 8000, **named})
    )
    pairs = []
    for k in range(1, 9):
        frame = line.render(k)[0]
        [one], [other] = first.find(frame), second.find(frame)
        assert abs(one.x - 319.5) < 13
        assert abs(one.angle) < 4.5
        pairs.append((one.x - other.x, one.y - other.y, one.angle - other.angle))
    assert (np.ptp(pairs, axis=0) < (1.0, 1.0, 0.4)).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("shift", [-40, 30])
def test_template_is_blind_to_light(template: Path, scale: float, shift: int) -> None:
    frame = view(20, 10, 5).astype(np.float32)
    changed = np.clip(frame / scale + 40 + shift, 0, 255).astype(np.uint8)
    fixture = by_template(template)
    [pose] = fixture.find(changed)
    assert far(fixture, pose, 20, 10, 5) < (0.5, 0.2)


def test_low_contrast(template: Path) -> None:
    faint = view(25, -12, 6, contrast=0.12)
    fixture = by_template(template)
    [pose] = fixture.find(faint)
    assert far(fixture, pose, 25, -12, 6)[0] < 0.5
    assert threshold().find(faint) == []  # under min_contrast
    [pose] = threshold(min_contrast=4.0).find(faint)
    assert far(threshold(), pose, 25, -12, 6)[0] < 2.0


@pytest.mark.parametrize("frame", [belt(), np.zeros_like(belt()), np.full_like(belt(), 255)])
def test_nothing_there(template: Path, frame: Frame) -> None:
    assert threshold().find(frame) == []
    assert threshold(level=100).find(frame) == []
    assert by_template(template, max_turn_degrees=180.0).find(frame) == []


def test_half_there(template: Path) -> None:
    """A part that the frame cuts off is said to be; half of a template is none."""
    half = view(WIDTH / 2, 0)
    [pose] = threshold(max_turn_degrees=180.0).find(half)
    assert pose.cut_off
    assert pose.box_xyxy[2] == WIDTH
    assert by_template(template).find(half) == []


def test_a_template_at_the_edge_is_cut_off(tmp_path: Path) -> None:
    path = cut(tmp_path, (150, 120, 490, 360))
    fixture = by_template(path, min_score=0.5)
    [pose] = fixture.find(view(165, 0))
    assert pose.cut_off
    assert pose.box_xyxy[2] > WIDTH


def test_two_parts(template: Path) -> None:
    both = np.concatenate([view(-160, 0)[:, : WIDTH // 2], view(160, 20)[:, WIDTH // 2 :]], axis=1)
    wheres = ((-160, 0, 0), (160, 20, 0))
    for fixture in (threshold(max_parts=5), by_template(template, max_parts=5)):
        poses = sorted(fixture.find(both), key=lambda pose: pose.x)
        assert len(poses) == 2
        for pose, where in zip(poses, wheres, strict=True):
            assert far(fixture, pose, *where)[0] < 1.0
    assert len(threshold().find(both)) == 1
    assert len(by_template(template).find(both)) == 1


def test_turned_too_far_or_too_far_away_is_not_found(template: Path) -> None:
    assert threshold().find(view(0, 0, 40)) == []
    assert by_template(template, search_px=30).find(view(60, 0)) == []
    assert by_template(template, search_px=30).find(view(-20, 25))
    assert by_template(template, taught_x=-900.0, search_px=30).find(view()) == []
    assert by_template(template, max_turn_degrees=0.0).find(view())


@pytest.mark.parametrize("limits", [{"part_max_area_px": 9000}, {"part_min_area_px": 200_000}])
def test_areas_of_parts(limits: dict[str, int]) -> None:
    plain = {"kind": "threshold", "taught_x": 0.0, "taught_y": 0.0, **limits}
    assert Fixture(ThresholdFixture.model_validate(plain)).find(view()) == []


def test_a_dark_part_on_a_light_ground() -> None:
    plain = {"taught_x": 0.0, "taught_y": 0.0, "part": "dark", "part_min_area_px": 8000}
    [pose] = Fixture(ThresholdFixture.model_validate({"kind": "threshold", **plain})).find(
        255 - view(30, 10)
    )
    [light] = threshold().find(view(30, 10))
    assert (pose.x, pose.y) == pytest.approx((light.x, light.y), abs=0.2)


def test_a_round_part_has_no_axis() -> None:
    frame = belt()
    cv2.circle(frame, (300, 200), 80, (200,), -1)
    plain = {"kind": "threshold", "taught_x": 0.0, "taught_y": 0.0}
    assert Fixture(ThresholdFixture.model_validate(plain)).find(frame) == []
    round_ = ThresholdFixture.model_validate({**plain, "angle_by": "none", "taught_angle": 7.0})
    [pose] = Fixture(round_).find(frame)
    assert (pose.x, pose.y, pose.angle) == pytest.approx((300, 200, 7.0), abs=0.3)


def test_colour_is_looked_at_as_grey(template: Path) -> None:
    frame = view(11, 7, 3)
    for fixture in (threshold(), by_template(template)):
        [grey], [rgb] = fixture.find(frame), fixture.find(np.repeat(frame, 3, axis=2))
        assert (grey.x, grey.y, grey.angle) == pytest.approx((rgb.x, rgb.y, rgb.angle), abs=0.1)


def test_templates_that_cannot_be_found_again_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no picture found"):
        by_template(tmp_path / "none.png")
    for picture in (np.full((50, 50), 9, np.uint8), view()[:8, :50, 0]):
        cv2.imwrite(str(tmp_path / "t.png"), picture)
        with pytest.raises(ConfigError, match="teach it where the part has a pattern"):
            by_template(tmp_path / "t.png")


# What is drawn on the part

CORNERS = ((200, 150), (430, 150), (430, 320), (200, 320))


def test_zones_follow_the_part() -> None:
    fixture = threshold(max_turn_degrees=180.0)
    zone = Zone(name="part", mode="include", polygon=CORNERS, threshold_factor=2.0)
    for dx, dy, degrees in TURNED:
        [pose] = fixture.find(view(dx, dy, degrees))
        [moved] = placed([zone], fixture.to_frame(pose))
        assert (moved.name, moved.mode, moved.threshold_factor) == ("part", "include", 2.0)
        turn = math.radians(degrees)
        cos, sin = math.cos(turn), math.sin(turn)
        true = (np.array(CORNERS) - MIDDLE) @ np.array([[cos, sin], [-sin, cos]]) + MIDDLE
        assert np.abs(np.array(moved.polygon) - true - (dx, dy)).max() < 2


def test_the_taught_pose_moves_nothing() -> None:
    fixture = threshold()
    config = fixture.config
    taught = Pose(config.taught_x, config.taught_y, config.taught_angle, 1.0, (0, 0, 9, 9), False)
    assert np.allclose(fixture.to_frame(taught), [[1, 0, 0], [0, 1, 0]])
    cells = np.random.default_rng(0).random(map_hw(HEIGHT, WIDTH)).astype(np.float32)
    assert np.array_equal(placed_cells(cells, fixture.to_frame(taught), 0.0), cells)


@pytest.mark.parametrize("mode", ["include", "exclude"])
def test_moved_cells_are_the_rendered_ones_but_for_edges(mode: str) -> None:
    fixture = threshold(max_turn_degrees=180.0)
    recipe = Recipe(zones=(Zone.model_validate({"mode": mode, "polygon": CORNERS}),))
    cells = zone_factors(recipe, (HEIGHT, WIDTH))
    for where in itertools.islice(TURNED, 6):
        [pose] = fixture.find(view(*where))
        matrix = fixture.to_frame(pose)
        moved = placed_cells(cells, matrix, 1.0 if mode == "exclude" else 0.0)
        rendered = zone_factors(
            recipe.model_copy(update={"zones": placed(recipe.zones, matrix)}), (HEIGHT, WIDTH)
        )
        assert set(np.unique(moved)) <= {0.0, 1.0}
        assert (moved != rendered).mean() < 0.02


def test_areas_and_tolerances_move_as_well() -> None:
    recipe = Recipe(zones=(Zone(mode="include", polygon=CORNERS, min_area_px=99),))
    areas = zone_min_areas(recipe, (HEIGHT, WIDTH))
    assert areas is not None
    matrix = np.array([[1.0, 0, 40], [0, 1, -20]])
    moved = placed_cells(areas.astype(np.float32), matrix, 0.0)
    assert np.array_equal(moved[:-5, 10:], areas[5:, :-10])
    tolerance = np.arange(areas.size, dtype=np.uint8).reshape(areas.shape)
    assert np.array_equal(placed_cells(tolerance, matrix, 255.0)[:-5, 10:], tolerance[5:, :-10])


def test_with_a_fixture_the_engine_looks_at_the_whole_frame() -> None:
    zones = (Zone(mode="include", polygon=CORNERS),)
    still = inspected_window(Recipe(zones=zones), (HEIGHT, WIDTH))
    moving = inspected_window(Recipe(zones=zones, fixture=threshold().config), (HEIGHT, WIDTH))
    assert still.hw != moving.hw == (HEIGHT, WIDTH)
