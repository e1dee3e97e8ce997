"""An endless web in blocks: real surroundings in every frame, and each cell of its map once."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from models.fused import fuse
from models.references import weights_of
from models.runtimes.base import EngineOptions, Runtime
from models.runtimes.openvino_ import OpenVinoRuntime
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_model
from models.variants import map_hw
from pipeline import worker
from pipeline.board import Board
from pipeline.capture import Playback
from pipeline.config import (
    CameraConfig,
    FolderSource,
    LineConfig,
    PublishConfig,
    SyntheticSource,
    VideoSource,
    WorkerConfig,
)
from pipeline.errors import ConfigError
from pipeline.intake import Intake
from pipeline.journal import read_verdicts
from pipeline.ring import END_OF_STREAM, FrameRing
from pipeline.ringfile import create_ring
from pipeline.sources import open_source
from pipeline.sources.base import Grab, no_pixels
from pipeline.sources.recording import write_recording
from pipeline.stage import Stage
from pipeline.station import Station
from pipeline.supervisor import Line, Progress
from pipeline.types import MARGIN_PX, Reason, Verdict
from pipeline.web import TAIL_PX, Web

Pixels = NDArray[np.uint8]
LINES, WIDTH = 72, 80
CELLS = MARGIN_PX // 4
"""Map rows that a frame lags behind its block."""


class WebSource:
    """Blocks of `lines` lines of a web, uint8 (rows, W, C): a line-scan camera.

    before: called with a block's index before it is read, as things that happen meanwhile.
    faults, lost: blocks that cannot be read, and those before which the source has lost lines.
    """

    def __init__(
        self,
        web: Pixels,
        lines: int,
        *,
        start: int = 0,
        before: Callable[[int], None] = lambda index: None,
        faults: Collection[int] = (),
        lost: Collection[int] = (),
    ) -> None:
        self._web, self._lines, self._index, self._before = web, lines, start, before
        self._faults, self._lost = faults, lost

    @property
    def shape_hwc(self) -> tuple[int, int, int]:
        return self._lines, self._web.shape[1], self._web.shape[2]

    def read(self) -> Grab | None:
        index = self._index
        block = self._web[index * self._lines : (index + 1) * self._lines]
        if len(block) < self._lines:
            return None
        self._before(index)
        self._index += 1
        if index in self._faults:
            return Grab(index, no_pixels, fault=Reason.BROKEN_FRAME, detail="told to be broken")

        def write(out: Pixels) -> None:
            out[...] = block

        return Grab(index, write, follows=index not in self._lost)

    def close(self) -> None:
        return


class Bench:
    """A continuous camera's ring and capture in this process."""

    def __init__(self, folder: Path, web: Pixels, lines: int = LINES, slots: int = 16) -> None:
        config = LineConfig(
            station="web",
            run_dir=str(folder / "run"),
            state_dir=str(folder / "state"),
            shm_dir=str(folder),
            cameras={
                "web": CameraConfig(
                    source=FolderSource(kind="folder", path=str(folder)), continuous=True
                )
            },
        )
        station = Station.of(config)
        station.run_dir.mkdir()
        station.shm_dir.mkdir()
        create_ring(station.ring("web"), (lines, *web.shape[1:]), slots, 1)
        Board(station.board, station.stages, create=True).close()
        self.web, self.lines = web, lines
        self.stage = Stage(station, "capture.web")
        self.ring = FrameRing(station.ring("web"))
        self.capture = self.start()

    def start(self) -> Playback:
        """Capture as a new process has it: nothing is known of the web."""
        config = self.stage.station.config.cameras["web"]
        return Playback(Intake(self.stage, self.ring, config), config)

    def padded(self) -> dict[int, Pixels]:
        """By index of the block: the padded frames in the ring, copied."""
        return {frame_id - 1: self.ring.padded(slot).copy() for frame_id, slot, _ in self.waiting()}

    def waiting(self) -> list[tuple[int, int, int]]:
        return list(self.ring.waiting())

    def release(self) -> None:
        """All slots are free again, as if decision had done its work."""
        for frame_id, slot, generation in self.waiting():
            taken = self.ring.taken(frame_id)
            assert taken is not None
            self.ring.finish(slot, generation, 0)
            self.ring.release(taken.ref)

    def close(self) -> None:
        self.ring.close()
        self.stage.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, textured_frame(6 * LINES, WIDTH, 1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def engine() -> Runtime:
    return engine_of_scales((1,))


def engine_of_scales(scales: tuple[int, ...]) -> Runtime:
    model = untrained_model("pdn_tiny", 1, scales)
    return OpenVinoRuntime(fuse(weights_of(model), "pdn_tiny", 1, scales), EngineOptions(threads=1))


def sides(rows: Pixels) -> Pixels:
    return np.pad(rows, ((0, 0), (MARGIN_PX, MARGIN_PX), (0, 0)), mode="reflect")


def joined(web: Pixels, lines: int, index: int) -> Pixels:
    """The padded frame of a block whose lines before are known."""
    return sides(web[index * lines - TAIL_PX : (index + 1) * lines])


def reflected(web: Pixels, lines: int, index: int) -> Pixels:
    """The padded frame of a block whose lines before are not known."""
    block = web[index * lines : (index + 1) * lines]
    return sides(np.pad(block, ((TAIL_PX, 0), (0, 0), (0, 0)), mode="reflect"))


def map_of(engine: Runtime, padded: Pixels) -> NDArray[np.float32]:
    found = np.full(map_hw(*(side - 2 * MARGIN_PX for side in padded.shape[:2])), np.nan, "f4")
    engine.infer([padded], [found])
    return found


def maps_of_the_line(bench: Bench, engine: Runtime) -> list[NDArray[np.float32]]:
    jobs = worker.next_batch([bench.ring], 16)
    worker.infer(bench.stage, engine, jobs)
    return [bench.ring.map(job.slot).copy() for job in jobs]


def test_the_frames_maps_are_the_map_of_the_web(bench: Bench, engine: Runtime) -> None:
    assert bench.capture.run(WebSource(bench.web, LINES)) == END_OF_STREAM
    maps = maps_of_the_line(bench, engine)
    assert [len(found) for found in maps] == [LINES // 4] * 6
    together = np.concatenate(maps)
    whole = map_of(engine, pad_frame(bench.web, MARGIN_PX))
    # Above the web's first line lies the mirror; its last 32 lines are a margin only.
    np.testing.assert_allclose(together[CELLS:], whole[:-CELLS], rtol=1e-5, atol=1e-5 * whole.max())
    above = np.pad(bench.web, ((TAIL_PX, MARGIN_PX), (0, 0), (0, 0)), mode="reflect")
    mirrored = map_of(engine, sides(above))[:CELLS]
    np.testing.assert_allclose(together[:CELLS], mirrored, rtol=1e-5, atol=1e-5 * whole.max())


def test_blocks_with_mirrors_would_not_give_it(bench: Bench, engine: Runtime) -> None:
    """What this is for: without real surroundings the map is wrong at every seam."""
    blocks = [bench.web[at : at + LINES] for at in range(0, len(bench.web), LINES)]
    together = np.concatenate([map_of(engine, pad_frame(block, MARGIN_PX)) for block in blocks])
    whole = map_of(engine, pad_frame(bench.web, MARGIN_PX))
    assert np.abs(together - whole).max() > 0.05 * whole.max()


def test_at_two_scales_only_the_last_row_of_each_frame_differs(bench: Bench) -> None:
    engine = engine_of_scales((1, 2))
    bench.capture.run(WebSource(bench.web, LINES))
    together = np.concatenate(maps_of_the_line(bench, engine))[CELLS:]
    whole = map_of(engine, pad_frame(bench.web, MARGIN_PX))[:-CELLS]
    wrong = np.abs(together - whole).max(axis=1) > 1e-5 * whole.max()
    last = [row for row in range(len(whole)) if (row + CELLS + 1) % (LINES // 4) == 0]
    assert set(np.flatnonzero(wrong)) <= set(last)
    assert np.abs(together - whole).max() < 0.5 * whole.max()


def test_a_block_is_written_once_and_into_its_slot(bench: Bench) -> None:
    written: list[Pixels] = []
    source = WebSource(bench.web, LINES)

    class Watched:
        shape_hwc = source.shape_hwc

        def read(self) -> Grab | None:
            grab = source.read()
            return grab and Grab(grab.index, written.append)

        def close(self) -> None:
            return

    bench.capture.run(Watched())
    slots = [slot for _, slot, _ in bench.waiting()]
    assert len(slots) == len(written) == 6
    for slot, room in zip(slots, written, strict=True):
        assert room.shape == bench.ring.shape_hwc
        assert np.shares_memory(room, bench.ring.padded(slot))


def test_blocks_dropped_in_between_still_lend_their_lines(tmp_path: Path) -> None:
    web = textured_frame(8 * LINES, WIDTH, 1)
    seen: dict[int, Pixels] = {}
    with contextlib.closing(Bench(tmp_path, web, slots=2)) as bench:

        def before(index: int) -> None:
            if index == 5:  # 2, 3 and 4 were dropped
                seen.update(bench.padded())
                bench.release()

        bench.capture.run(WebSource(web, LINES, before=before))
        seen |= bench.padded()
        faults = [taken.fault for n in range(1, 9) if (taken := bench.ring.taken(n))]
    assert sorted(seen) == [0, 1, 5, 6]
    assert np.array_equal(seen.pop(0), reflected(web, LINES, 0))
    for index, padded in seen.items():
        assert np.array_equal(padded, joined(web, LINES, index))
    assert [n for n, fault in enumerate(faults) if fault is Reason.DROPPED] == [2, 3, 4, 7]


def test_after_lost_lines_the_top_is_reflected(bench: Bench) -> None:
    bench.capture.run(WebSource(bench.web, LINES, faults=[1], lost=[4]))
    found = bench.padded()
    assert sorted(found) == [0, 2, 3, 4, 5]
    for index, padded in found.items():
        expected = reflected if index in (0, 2, 4) else joined
        assert np.array_equal(padded, expected(bench.web, LINES, index)), index


def test_a_capture_that_was_started_again_knows_no_lines(bench: Bench) -> None:
    bench.capture.run(WebSource(bench.web[: 3 * LINES], LINES))
    bench.start().run(WebSource(bench.web, LINES, start=bench.ring.resume()))
    found = bench.padded()
    assert sorted(found) == [0, 1, 2, 3, 4, 5]
    for index, padded in found.items():
        expected = reflected if index in (0, 3) else joined
        assert np.array_equal(padded, expected(bench.web, LINES, index)), index


@settings(deadline=None, max_examples=60)
@given(
    lines=st.integers(8, 24).map(lambda n: 8 * n),
    width=st.integers(33, 90),
    channels=st.sampled_from([1, 3]),
    fates=st.lists(st.sampled_from(["taken", "dropped", "broken", "after a gap"]), max_size=8),
    seed=st.integers(0, 99),
)
def test_every_margin_is_real_or_reflected(
    lines: int, width: int, channels: int, fates: list[str], seed: int
) -> None:
    shape = (lines * len(fates), width, channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    web = Web("web", (lines, width, channels))
    known = False
    breaks = 0
    for index, fate in enumerate(fates):
        block = pixels[index * lines : (index + 1) * lines]

        def write(out: Pixels, block: Pixels = block) -> None:
            out[...] = block

        if fate == "dropped":
            web.skip(Grab(index, write))
        elif fate != "broken":
            padded = np.full((lines + TAIL_PX, width + TAIL_PX, channels), 99, np.uint8)
            grab = Grab(index, write, follows=fate == "taken")
            grab.write(web.room(padded))
            joins = known and fate == "taken"
            assert web.joins(grab) == joins
            web.fill(padded, grab)
            breaks += not joins
            assert np.array_equal(padded, (joined if joins else reflected)(pixels, lines, index))
        known = fate != "broken"
    assert web.breaks == breaks


@pytest.mark.parametrize("lines", [33, 56, 68, 100])
def test_blocks_that_cannot_be_joined_are_refused(lines: int) -> None:
    says = f"camera web: blocks of {lines} lines found, expected at least 64 .* multiple of 8"
    with pytest.raises(ConfigError, match=says):
        Web("web", (lines, 100, 1))


def test_rendered_frames_are_no_web() -> None:
    with pytest.raises(ValidationError, match="single parts: leave `continuous` out"):
        CameraConfig(source=SyntheticSource(kind="synthetic"), continuous=True)


def test_a_videos_next_lap_does_not_follow_on_its_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "web.mkv"
    write_recording(path, [textured_frame(64, 64, 1, seed=n) for n in range(3)])
    for start in (0, 4):
        source = open_source(VideoSource(kind="video", path=str(path), loop=True), start)
        grabs = [grab for grab in itertools.islice(iter(source.read, None), 5) if grab]
        source.close()
        assert [g.index for g in grabs if not g.follows] == [0, 3, 6][start // 3 + start % 3 :][:2]


def test_a_fault_has_no_pixels_to_lend() -> None:
    web = Web("web", (64, 40, 1))
    with pytest.raises(AssertionError, match="no pixels"):
        web.skip(Grab(0, no_pixels, fault=Reason.BROKEN_FRAME))


# Whole lines, with all their processes.


def line_of_images(work: Path, blocks: int, lines: int = LINES) -> LineConfig:
    """A web of which line k has the grey value k % 251, as a folder of images."""
    folder = work / "blocks"
    folder.mkdir()
    for index in range(blocks):
        values = (np.arange(lines) + index * lines) % 251
        image = np.repeat(values.astype(np.uint8)[:, None], 40, axis=1)
        assert cv2.imwrite(str(folder / f"{index}.png"), image)
    return LineConfig(
        station=f"web{os.getpid()}",
        run_dir=str(work / "run"),
        state_dir=str(work / "state"),
        cameras={
            "web": CameraConfig(
                source=FolderSource(kind="folder", path=str(folder)),
                continuous=True,
                on_full="wait",
                deadline_ms=None,
                slots=4,
            )
        },
        worker=WorkerConfig(runtime="tests.fakes:seam"),
        publish=PublishConfig(endpoint=f"ipc://{work}/verdicts"),
    )


class Killer:
    """Kills capture once, in the middle of the web."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.killed = False

    def watch(self, progress: Progress) -> None:
        if progress.captured >= self._at and "capture.web" in progress.pids and not self.killed:
            os.kill(progress.pids["capture.web"], signal.SIGKILL)
            self.killed = True


def verdicts_of(config: LineConfig, killer: Killer) -> list[Verdict]:
    line = Line(config)
    line.run(watch=killer.watch)
    return list(read_verdicts(Station.of(config).journal, epoch=line.epoch))


def test_capture_is_killed_in_the_middle_of_a_web(tmp_path: Path) -> None:
    killer = Killer(at=60)
    verdicts = verdicts_of(line_of_images(tmp_path, 200), killer)
    assert killer.killed
    assert [v.frame_id for v in verdicts] == list(range(1, 201))
    looked_at = [v for v in verdicts if v.reason is not Reason.TORN]
    assert len(looked_at) >= 199
    assert {v.raw_peak for v in looked_at} == {0, 64}
    mirrored = [v.frame_id for v in looked_at if v.raw_peak == 64]
    # The first frame of the web, and the first one of the second capture.
    assert mirrored[0] == 1
    assert len(mirrored) == 2
    assert mirrored[1] > 60


def test_a_line_of_blocks_that_cannot_be_joined_ends(tmp_path: Path) -> None:
    config = line_of_images(tmp_path, 3, lines=60)
    with pytest.raises(ConfigError, match="blocks of 60 lines found"):
        verdicts_of(config, Killer(at=10**9))
