"""A training needs no more memory for more images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

TRAIN = """
import sys, threading, time
from pathlib import Path
from pipeline.cli import run

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        lines = Path("/proc/self/status").read_text().splitlines()
        # What is mapped from files can be given back at any time.
        (own,) = (int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
        peak = max(peak, own)

watching = threading.Thread(target=watch)
watching.start()
code = run(["train", *sys.argv[1:]])
done.set()
watching.join()
print("peak KiB", peak)
sys.exit(code)
"""
SIDES = (900, 1200)


def peak_bytes(folder: Path, out: Path) -> int:
    command = [
        "--out",
        str(out),
        "--steps",
        "2",
        "--set",
        "batch=1",
        "--set",
        "held_out=0.5",
        "--set",
        "validations=1",
    ]
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder), *command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "MALLOC_ARENA_MAX": "1"},
    )
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
def test_more_images_need_no_more_memory(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    peaks = []
    for counts in (range(6), range(6, 30)):
        for k in counts:
            frame = cv2.blur(rng.integers(0, 255, (*SIDES, 3), np.uint8), (9, 9))
            cv2.imwrite(str(folder / f"{k}.bmp"), frame)
        peaks.append(peak_bytes(folder, tmp_path / "out"))
    of_one = 3 * SIDES[0] * SIDES[1]
    # Kept in memory, the 24 more would be 24 and their tiles as many again. What an allocator keeps
    # differs from run to run by the worth of some.
    assert peaks[1] - peaks[0] < 8 * of_one, [peak / of_one for peak in peaks]
