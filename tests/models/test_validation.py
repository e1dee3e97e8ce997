"""Validation ranks students, looks where it is told to, and needs no memory for more pixels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.settings import TrainingSettings
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.validation import (
    ValidationImages,
    auroc,
    drawn_crops,
    image_peak,
    on_drawn_defects,
    on_images,
)
from models.variants import MARGIN_PX


def write(
    folder: Path, count: int, size: tuple[int, int] = (150, 210), mark: int = -1
) -> list[Path]:
    folder.mkdir()
    for k in range(count):
        frame = textured_frame(*size, 1, seed=k)
        if mark >= 0:
            frame[60:80, 40:60] = mark
        cv2.imwrite(str(folder / f"{k}.png"), frame)
    return sorted(folder.iterdir())


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([2.0, 3.0])) == pytest.approx(0.875)
    assert auroc(np.array([]), np.array([1.0])) == 0.5


@pytest.mark.parametrize("scale", [1, 2])
def test_images_with_marks_rank_higher(tmp_path: Path, scale: int) -> None:
    good = write(tmp_path / "good", 4)
    bad = write(tmp_path / "bad", 4, mark=255)
    model = untrained_model("pdn_tiny", 1, (1, 2)).pair(scale)
    images = ValidationImages(good, bad)
    assert on_images(images, scale, None, 0)(model) > 0.9
    elsewhere = np.zeros((150, 210), np.bool_)
    elsewhere[:, 120:] = True
    same = ValidationImages(good, good)
    assert on_images(images, scale, elsewhere, 0)(model) == pytest.approx(
        on_images(same, scale, elsewhere, 0)(model), abs=0.01
    )


def test_pieces_have_the_peak_of_the_whole(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "good", 1, size=(203, 301))
    model = untrained_model("pdn_tiny", 1).pair(1)
    whole = image_peak(model, path)
    assert image_peak(model, path, piece_px=64) == pytest.approx(whole, rel=0.02)
    padded = pad_frame(cv2.imread(str(path), 0)[..., None], MARGIN_PX)
    with torch.inference_mode():
        exact = float(model(torch.from_numpy(padded[None])).max())
    assert whole == pytest.approx(exact, rel=0.1)  # bfloat16


def test_drawn_defects_are_the_same_each_time(tmp_path: Path) -> None:
    good = write(tmp_path / "good", 3)
    model = untrained_model("pdn_tiny", 1).pair(1)
    drawn = [drawn_crops(good, 1, 1, TrainingSettings(seed=seed)) for seed in (0, 0, 1)]
    first, again, other = ([crop.after.tobytes() for crop in crops] for crops in drawn)
    assert first == again != other
    values = [on_drawn_defects(crops)(model) for crops in drawn]
    assert values[0] == values[1]
    assert all(0 <= value <= 1 for value in values)


@pytest.mark.slow
def test_pdn_small_on_12_megapixels_stays_under_4_gb(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(3):
        frame = rng.integers(0, 255, (3000, 4000), np.uint8)
        cv2.imwrite(str(folder / f"{k}.png"), cv2.blur(frame, (5, 5)))
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from models.settings import TrainingSettings\n"
        "from models.training import train\n"
        "from models.untrained import untrained_model\n"
        "from models.teacher import Teacher\n"
        "pair = untrained_model('pdn_small', 1).pair(1)\n"
        "teacher = Teacher(pair.teacher, pair.input_mean, pair.input_std, 'random', 'none')\n"
        "paths = sorted(Path(sys.argv[1]).iterdir())\n"
        "settings = TrainingSettings(steps=1, validations=1)\n"
        "train(paths, 'pdn_small', teacher=teacher, settings=settings,\n"
        "      cache_dir=Path(sys.argv[2]))\n"
        "status = Path('/proc/self/status').read_text().splitlines()\n"
        "print(*(line.split()[1] for line in status if line.startswith('VmHWM')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert int(done.stdout) < 4 << 20  # KiB
