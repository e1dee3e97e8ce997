"""Four emulated Basler cameras through a whole line; every frame has a number in its pixels."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import LineConfig
from pipeline.journal import read_verdicts
from pipeline.sources.stamp import write_stamp
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import Label

WIDTH, HEIGHT, RATE = 1280, 1024, 30.0
IMAGES = 31
SECONDS = 120.0
CAMERAS = 4


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with their numbers in them; the emulator plays it round and round."""
    folder = tmp_path_factory.mktemp("stamped")
    noise = np.random.default_rng(5).integers(90, 110, (HEIGHT, WIDTH), np.uint8)
    for number in range(IMAGES):
        image = np.roll(noise, 8 * number, axis=1)
        write_stamp(image, number)
        cv2.imwrite(str(folder / f"{number:04d}.bmp"), image)
    return folder


@pytest.mark.timeout(400)
def test_four_cameras_for_two_minutes(tmp_path: Path, stamped: Path) -> None:
    """The engine reads the numbers and does nothing else: `null` with eyes."""
    config = LineConfig.model_validate(
        {
            "station": f"basler{os.getpid()}",
            "run_dir": str(tmp_path / "run"),
            "state_dir": str(tmp_path / "state"),
            "cameras": {
                f"cam{number}": {
                    "source": {
                        "kind": "basler",
                        "serial": f"0815-000{number}",
                        "width": WIDTH,
                        "height": HEIGHT,
                        "frame_rate": RATE,
                        "features": {
                            "TestImageSelector": "Off",
                            "ImageFilename": str(stamped),
                            "ImageFileMode": "On",
                        },
                    },
                    "slots": 16,
                }
                for number in range(CAMERAS)
            },
            "worker": {"runtime": "tests.fakes:stamp"},
            "publish": {"endpoint": f"ipc://{tmp_path}/verdicts"},
        }
    )
    began: list[float] = []

    def watch(progress: Progress) -> None:
        if progress.captured and not began:
            began.append(time.monotonic())

    line = Line(config)
    line.run(stop=lambda: bool(began) and time.monotonic() - began[0] > SECONDS, watch=watch)
    verdicts = list(read_verdicts(Station.of(config).journal))
    assert len(verdicts) == line.captured
    assert line.captured >= 0.9 * CAMERAS * RATE * SECONDS
    assert Counter(v.label for v in verdicts if v.label is Label.INVALID) == Counter()
    for number in range(CAMERAS):
        own = [v for v in verdicts if v.camera == f"cam{number}"]
        assert [v.frame_id for v in own] == list(range(1, len(own) + 1))
        # Of each frame that the camera took, the pixels came, once and in order.
        assert [int(v.raw_peak) for v in own] == [n % IMAGES for n in range(len(own))]
    totals = sorted(v.latency_ms["total"] for v in verdicts)
    print(f"{len(verdicts)} frames, latency ms p50 {totals[len(totals) // 2]:.1f} ", end="")
    print(f"p99 {totals[len(totals) * 99 // 100]:.1f} max {totals[-1]:.1f}")
