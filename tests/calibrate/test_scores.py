"""Maps of many images: exact quantiles in one pass, and bounded memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.scores import GoodMap, Maps, Scorer, high_quantiles
from models.variants import map_hw
from pipeline.config import Recipe, Zone
from pipeline.rules import Thresholds

SCORER = Scorer(Thresholds(0.0, 0.1, 1e30, 1.0), Recipe())
"""With these quantiles a raw value is its own score."""


def good_map(number: int, hw: tuple[int, int] = (64, 80)) -> GoodMap:
    rng = np.random.default_rng(number)
    return GoodMap(f"{number}", hw, rng.gamma(2.0, 0.3, map_hw(*hw)).astype(np.float32))


@pytest.mark.parametrize("room", [0, 1, 3000, 1 << 20])
def test_maps_come_back_as_they_were_from_memory_and_disk(room: int) -> None:
    expected = [good_map(k, (64 + 4 * k, 80)) for k in range(6)]
    maps = Maps(in_memory_bytes=room)
    for each in expected:
        maps.append(each)
    assert len(maps) == 6
    for found, each in zip(maps, expected, strict=True):
        assert (found.name, found.frame_hw) == (each.name, each.frame_hw)
        assert np.array_equal(found.raw_map, each.raw_map)
    assert [found.name for found in maps[2:]] == ["2", "3", "4", "5"]
    assert [found.name for found in maps[1:5][1:3]] == ["2", "3"]
    assert maps[-1].name == maps[3:][-1].name == "5"
    with pytest.raises(IndexError):
        maps[:2][2]


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 12),
    shares=st.lists(st.floats(0.01, 0.99999), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_quantiles_are_those_of_all_cells(count: int, shares: list[float], seed: int) -> None:
    maps = [good_map(100 * seed + k) for k in range(count)]
    found, lowest = high_quantiles(maps, SCORER, shares)
    cells = np.concatenate([each.raw_map.ravel() for each in maps])
    expected = [float(np.quantile(cells, share, method="higher")) for share in shares]
    assert found == pytest.approx(expected, rel=1e-6)
    assert lowest == pytest.approx(float(cells.min()), rel=1e-6)


def test_what_is_not_inspected_does_not_count() -> None:
    each = good_map(0)
    each.raw_map[0, 0] = 99.0
    recipe = Recipe(zones=(Zone(polygon=((0, 0), (3, 0), (3, 3), (0, 3))),))
    scorer = Scorer(Thresholds(0.0, 0.1, 1e30, 1.0), recipe)
    (highest,), _ = high_quantiles([each], scorer, [0.99999])
    assert highest < 10


MANY = """
import sys
import numpy as np
from calibrate.metrics import PixelCurves
from calibrate.scores import GoodMap, Maps, Scorer, high_quantiles
from pipeline.config import Recipe
from pipeline.rules import Thresholds

count, curves_count = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
raw_map = rng.gamma(2.0, 0.3, (1000, 1000)).astype(np.float32)
maps = Maps(in_memory_bytes=1 << 26)
for k in range(count):
    maps.append(GoodMap(str(k), (4000, 4000), raw_map))
scorer = Scorer(Thresholds(0.0, 0.1, 1e30, 1.0), Recipe())
high_quantiles(maps, scorer, [0.99, 0.9999])
curves = PixelCurves(by_image=True)
mask = np.zeros(raw_map.shape, bool)
mask[100:200, 300:500] = True
for k in range(curves_count):
    curves.add(raw_map, mask if k % 2 else None)
assert 0 < curves.au_pro() < 1
# Not ru_maxrss, in which the process that started this one has a share.
(peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak)
"""


@pytest.mark.slow
def test_maps_of_a_megapixel_need_no_memory_of_their_own() -> None:
    """400 megabytes of maps to calibrate with, 2,000 maps of 4 MB each to evaluate: 1 GB in all."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, "100", "2000"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=280,
    )
    assert int(done.stdout) < 1_000_000, "kilobytes"
