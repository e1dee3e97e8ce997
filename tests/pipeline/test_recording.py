from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import VideoSource
from pipeline.errors import SourceError
from pipeline.sources import open_source, probe
from pipeline.sources.recording import write_recording


def _noise(count: int, shape: tuple[int, ...], seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    "shape",
    [(33, 33, 1), (64, 64, 1), (95, 131, 1), (480, 641, 1), (33, 47, 3), (240, 320, 3)],
    ids=str,
)
def test_round_trip_is_bit_exact(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = _noise(5, shape)
    path = tmp_path / "lines.mkv"
    assert write_recording(path, iter(frames), fps=25) == 5
    config = VideoSource(kind="video", path=str(path))
    assert probe(config) == shape
    source = open_source(config)
    height, width, channels = source.shape_hwc
    padded = np.zeros((height + 64, width + 64, channels), np.uint8)
    inside = padded[32:-32, 32:-32]
    for number, frame in enumerate(frames):
        grab = source.read()
        assert grab is not None
        assert (grab.index, grab.fault) == (number, None)
        grab.write(inside)
        assert np.array_equal(inside, frame)
    assert source.read() is None
    source.close()
    assert not padded[:32].any()
    assert not padded[:, :32].any()


@pytest.mark.parametrize("fps", [1, 29.97, 30, 60, 400.5])
def test_time_stamps_follow_the_rate(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "rate.mkv"
    write_recording(path, _noise(12, (33, 40, 1)), fps=fps)
    source = open_source(VideoSource(kind="video", path=str(path)))
    for number in range(12):
        grab = source.read()
        assert grab is not None
        assert grab.index == number
        assert abs(grab.pts - number * 1e9 / fps) <= 1e6  # Matroska counts milliseconds
    assert source.read() is None


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no frames to write"),
        ([np.zeros((40, 40), np.uint8)], r"expected uint8 \(H, W, 1\)"),
        ([np.zeros((40, 40, 1), np.float32)], "float32"),
        ([np.zeros((40, 40, 1), np.uint8), np.zeros((40, 41, 1), np.uint8)], "frame 1 is"),
    ],
)
def test_refuses_what_is_no_recording(
    tmp_path: Path, frames: list[NDArray[np.uint8]], says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        write_recording(tmp_path / "x.mkv", frames)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be written"):
        write_recording(tmp_path / "absent" / "x.mkv", _noise(1, (33, 33, 1)))


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> object:
        yield np.zeros((40, 40, 1), np.uint8)
        raise RuntimeError("the renderer broke")

    with pytest.raises(RuntimeError, match="renderer"):
        write_recording(tmp_path / "x.mkv", frames())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
