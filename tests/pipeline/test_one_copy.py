"""One copy of the pixels: the source's write into the slot. Everything else sees that memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import worker
from pipeline.board import Board
from pipeline.capture import Playback
from pipeline.config import CameraConfig, LineConfig, SyntheticSource, VideoSource, dump_resolved
from pipeline.intake import Intake
from pipeline.ring import END_OF_STREAM, FrameRing
from pipeline.ringfile import create_ring
from pipeline.sources import open_source
from pipeline.sources.base import Grab
from pipeline.sources.recording import write_recording
from pipeline.stage import Stage
from pipeline.station import Station

SHAPE = (480, 640, 1)
FRAME_BYTES = 480 * 640


class WatchedSource:
    """Three frames; keeps the buffers that it was told to write into."""

    shape_hwc = SHAPE

    def __init__(self) -> None:
        self.written: list[NDArray[np.uint8]] = []
        self._index = 0

    def read(self) -> Grab | None:
        self._index += 1
        return Grab(self._index - 1, self.written.append) if self._index <= 3 else None

    def close(self) -> None:
        return


class WatchedRuntime:
    """Keeps what it was given."""

    engine_id = "watched/none/none"

    def __init__(self) -> None:
        self.frames: list[NDArray[np.uint8]] = []
        self.maps: list[NDArray[np.float32]] = []

    def infer(
        self, padded: Sequence[NDArray[np.uint8]], out: Sequence[NDArray[np.float32]]
    ) -> list[float]:
        self.frames += padded
        self.maps += out
        return [0.0] * len(padded)

    def close(self) -> None:
        return


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    config = LineConfig(
        station="copies",
        run_dir=str(tmp_path / "run"),
        state_dir=str(tmp_path / "state"),
        shm_dir=str(tmp_path),
        cameras={"cam0": CameraConfig(source=SyntheticSource(kind="synthetic"))},
    )
    station = Station.of(config)
    station.run_dir.mkdir()
    station.shm_dir.mkdir()
    (station.run_dir / "line.json").write_text(dump_resolved(config))
    assert json.loads((station.run_dir / "line.json").read_text())["station"] == "copies"
    create_ring(station.ring("cam0"), SHAPE, 4, 1)
    Board(station.board, station.stages, create=True).close()
    return Stage(station, "capture.cam0")


def test_source_worker_and_decision_share_the_slot(stage: Stage) -> None:
    ring = FrameRing(stage.station.ring("cam0"))
    source, runtime = WatchedSource(), WatchedRuntime()
    config = stage.station.config.cameras["cam0"]
    assert Playback(Intake(stage, ring, config), config).run(source) == END_OF_STREAM
    jobs = worker.next_batch([ring], 4)
    worker.infer(stage, runtime, jobs)
    assert len(source.written) == len(runtime.frames) == 3
    for job, written, seen, raw_map in zip(
        jobs, source.written, runtime.frames, runtime.maps, strict=True
    ):
        assert written.shape == SHAPE
        assert np.shares_memory(written, ring.padded(job.slot))
        assert np.shares_memory(written, seen)
        assert seen.flags.c_contiguous
        assert np.shares_memory(raw_map, ring.map(job.slot))
    stage.close()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_recording_is_written_into_the_slot_without_a_detour(
    tmp_path: Path, channels: int
) -> None:
    path = tmp_path / "a.mkv"
    rng = np.random.default_rng(1)
    frames = [rng.integers(0, 256, (480, 640, channels), dtype=np.uint8) for _ in range(3)]
    write_recording(path, frames)
    source = open_source(VideoSource(kind="video", path=str(path)))
    padded = np.zeros((512, 672, channels), np.uint8)
    for frame in frames:
        grab = source.read()
        assert grab is not None
        tracemalloc.start()
        grab.write(padded[16:-16, 16:-16])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert np.array_equal(padded[16:-16, 16:-16], frame)
        assert peak < FRAME_BYTES / 2
    source.close()
