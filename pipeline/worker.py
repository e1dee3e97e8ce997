"""Stage: filled slots of all cameras -> engine -> anomaly maps in the same slots.

1. Keep to the configured cores. Open the runtime (parity gate included), or the next one that the
   configuration allows; warm it up on every camera's shape, and leave the engine's name and
   thresholds for decision. What takes minutes is said on the board, and may take them.
2. Oldest frames first, whichever camera's: take up to `max_batch` slots (one, where the engine
   gains nothing from more), write their maps, answer.
   With `max_wait_ms` the first may wait a little for others (`pipeline.batching`).

A frame whose verdict is out already (its deadline passed) is answered without a look. A frame that
was taken twice before, by workers that did not live to answer, is not tried a third time. When no
frame of several batches in a row could be inspected, the worker ends, and is started again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from models.runtimes import engine_of, frames_together, open_runtime
from models.runtimes.base import Runtime
from models.runtimes.null import CALIBRATION as UNCALIBRATED
from pipeline.batching import hold
from pipeline.board import QUIT, READY
from pipeline.config import WorkerConfig
from pipeline.errors import (
    BundleError,
    ConfigError,
    LinewatchError,
    ParityError,
    RuntimeUnavailable,
)
from pipeline.ring import ANSWERED, FAILED, POISONED, SKIPPED, FrameRing
from pipeline.rules import Thresholds
from pipeline.stage import WAKE_MS, Stage, drain, main, wake
from pipeline.tolerance import check_tolerance, to_text
from pipeline.types import MARGIN_PX, map_hw
from pipeline.window import Window, inspected_window

MAX_ATTEMPTS = 2
MAX_FAILED_BATCHES = 5
"""So many in a row, and the engine counts as broken: a GPU's context that has died answers nothing
more, and only another process gets another one."""
_BUSY_FACTOR = 10
"""A batch may take so many times as long as the warm-up's before the worker counts as stuck."""
COMPILE_LIMIT_MS = 30 * 60_000
"""So long the worker may be silent after it has said that something takes minutes. By the board,
not by a thread that sends heartbeats: a compiler may keep Python from running any."""
LONG_WARM_UP_MS = 2000.0
"""After a first run of so long, a second one would tell nothing that is worth the wait."""


class EngineBroken(Exception):
    """Not one of ours (`pipeline.errors`): with those a stage gives up, and this one may mend."""


@dataclass(frozen=True, slots=True)
class Job:
    """A slot that waits for its map."""

    ring: FrameRing
    slot: int
    generation: int
    waited_ns: int = 0
    """How long it was held for others to share its batch."""


Windows = Mapping[FrameRing, Window]
"""What the engine looks at of each camera's frames; the whole frame where a camera has none."""


def work(stage: Stage) -> None:
    cameras = stage.station.config.cameras
    windows = {
        ring: inspected_window(cameras[camera].recipe, ring.shape_hwc[:2])
        for camera, ring in stage.rings().items()
    }
    rings = list(windows)
    shapes = [(*window.hw, ring.shape_hwc[2]) for ring, window in windows.items()]
    config = stage.station.config.worker
    inbox = stage.listen()
    outbox = stage.call("decision")
    pin(config.cores)
    runtime = _open(stage, config, shapes, rings)
    at_once = frames_together(runtime.engine_id, config.max_batch)
    if at_once < config.max_batch and config.max_wait_ms:
        stage.log.info("%s takes frames one by one: max_wait_ms is not used", runtime.engine_id)
    config = config.model_copy(update={"max_batch": at_once})
    batch_ms = warm_up(runtime, shapes)
    ready = f"engine {runtime.engine_id}, {batch_ms:.1f} ms for the slowest frame"
    stage.log.info(ready)
    stage.board.set_note(stage.name, ready)
    stage.board.set_busy_limit_ms(stage.name, _BUSY_FACTOR * batch_ms * config.max_batch)
    stage.board.set_state(stage.name, READY)

    def pause(seconds: float) -> bool:
        if seconds < 0.001:  # less than a poll can be told
            time.sleep(seconds)
        else:
            inbox.poll(min(WAKE_MS, int(1000 * seconds)))
        drain(inbox)
        stage.board.beat(stage.name)
        return stage.board.order != QUIT

    failed = 0
    while stage.board.order != QUIT:
        pause(WAKE_MS / 1000)
        while jobs := gather(rings, config, pause):
            failed = 0 if infer(stage, runtime, jobs, windows) else failed + 1
            wake(outbox)
            stage.board.beat(stage.name)
            if failed == MAX_FAILED_BATCHES:
                raise EngineBroken(
                    f"{failed} batches in a row failed, whatever was in them, expected at most "
                    f"{MAX_FAILED_BATCHES - 1}: the worker is started again with a new engine"
                )
            if stage.board.order == QUIT:
                break
    runtime.close()


def pin(cores: Sequence[int]) -> None:
    """Keep this process, and the threads that it will start, to these CPU cores; none: to all.

    Raises `ConfigError` for cores that there are not, or that this process may not use.
    """
    allowed = os.sched_getaffinity(0)
    if missing := sorted({*cores} - allowed):
        raise ConfigError(
            f"worker.cores: {', '.join(map(str, missing))} found, expected some of "
            f"{', '.join(map(str, sorted(allowed)))}: name cores that this machine has and that "
            "the line may use (`taskset -p`, the service's CPUAffinity), or leave cores out"
        )
    if cores:
        os.sched_setaffinity(0, cores)


def gather(
    rings: Sequence[FrameRing], config: WorkerConfig, pause: Callable[[float], bool]
) -> list[Job]:
    """The next batch, after the wait for it that the configuration allows; see `batching.hold`."""
    since = hold(rings, config.max_batch, config.max_wait_ms, pause)
    jobs = next_batch(rings, config.max_batch)
    if since is None:
        return jobs
    now = time.monotonic_ns()
    return [
        replace(job, waited_ns=max(0, now - max(since, job.ring.filled_ns(job.slot))))
        for job in jobs
    ]


def next_batch(rings: Sequence[FrameRing], limit: int) -> list[Job]:
    """The open slots that were filled first, of equals cameras in turn: whichever camera it is, so
    that under load none waits for ever. Those that need no map are answered here.

    A frame on which a worker died goes first and alone: it must not take others with it again.
    """
    waiting = [
        [Job(ring, slot, generation) for _, slot, generation in ring.waiting()] for ring in rings
    ]
    turns = [job for turn in itertools.zip_longest(*waiting) for job in turn if job is not None]
    fresh = sorted(turns, key=lambda job: job.ring.filled_ns(job.slot))
    tried = [job for job in fresh if job.ring.attempts(job.slot) > 0]
    jobs: list[Job] = []
    for job in (*tried, *(job for job in fresh if job not in tried)):
        if len(jobs) == (1 if tried else limit):
            break
        attempts = job.ring.take(job.slot, job.generation)
        if not job.ring.wanted(job.slot, job.generation):
            job.ring.finish(job.slot, job.generation, SKIPPED)
        elif attempts >= MAX_ATTEMPTS:
            job.ring.finish(job.slot, job.generation, POISONED)
        else:
            jobs.append(job)
    return jobs


def infer(
    stage: Stage, runtime: Runtime, jobs: Sequence[Job], windows: Windows | None = None
) -> bool:
    """Write the maps of a batch into its slots and answer. A frame that fails, fails alone.
    Whether at least one did not.

    Cells outside of a camera's window stay as the ring was made: 0.
    """
    start = time.monotonic_ns()
    frames, maps = [], []
    for job in jobs:
        window = (windows or {}).get(job.ring)
        frame, raw_map = job.ring.padded(job.slot), job.ring.map(job.slot)
        frames.append(window.padded(frame) if window else frame)
        maps.append(window.cells(raw_map) if window else raw_map)
    try:
        peaks = runtime.infer(frames, maps)
        status = ANSWERED
    except Exception:  # the outermost loop: this frame is `invalid/infer_failed`
        stage.log.exception("inference of %d frames failed", len(jobs))
        if len(jobs) > 1:
            return sum(infer(stage, runtime, [job], windows) for job in jobs) > 0
        peaks = [float("nan")]
        status = FAILED
    end = time.monotonic_ns()
    for job, peak in zip(jobs, peaks, strict=True):
        job.ring.finish(
            job.slot,
            job.generation,
            status,
            raw_peak=peak,
            t_start_ns=start,
            t_end_ns=end,
            engine_id=runtime.engine_id,
            waited_ns=job.waited_ns,
        )
    return status == ANSWERED


def warm_up(runtime: Runtime, shapes_hwc: Sequence[tuple[int, int, int]]) -> float:
    """Milliseconds that the slowest camera's frame takes, first run aside if it took not long."""
    slowest = 0.0
    for height, width, channels in dict.fromkeys(shapes_hwc):
        both = 2 * MARGIN_PX
        padded = np.full((height + both, width + both, channels), 127, np.uint8)
        out = np.empty(map_hw(height, width), np.float32)
        for _ in range(2):
            start = time.monotonic_ns()
            runtime.infer([padded], [out])
            took = (time.monotonic_ns() - start) / 1e6
            if took > LONG_WARM_UP_MS:
                break
        slowest = max(slowest, took)
    return slowest


def _say(stage: Stage, sentence: str) -> None:
    """What the line is not ready for yet: in the log, and on the board with the time for it."""
    stage.log.warning(sentence)
    stage.board.set_note(stage.name, sentence)
    stage.board.set_busy_limit_ms(stage.name, COMPILE_LIMIT_MS)
    stage.board.beat(stage.name)


def _check_channels(in_channels: int, rings: Sequence[FrameRing]) -> None:
    """Raise `ConfigError` for cameras whose frames the bundle was not trained on."""
    kinds = {1: "grey", 3: "colour"}
    for ring in rings:
        if (found := ring.shape_hwc[2]) != in_channels:
            raise ConfigError(
                f"camera {ring.camera}: {kinds[found]} frames found, expected {kinds[in_channels]} "
                "ones, as the bundle was trained: set the source's `color`, or train with "
                f"`color: {str(found == 3).lower()}`"
            )


def check_same_bundle(engine: Path, sha256: str) -> None:
    """Raise `BundleError` where an earlier worker of this run had another bundle: decision goes by
    that one's thresholds."""
    with contextlib.suppress(FileNotFoundError):
        before = json.loads(engine.read_text())["bundle_sha256"]
        if before != sha256:
            raise BundleError(
                f"bundle {sha256[:12]} found, expected {before[:12]}, with which this line was "
                "started: a bundle is not replaced while the line runs; start the line again"
            )


def _open(
    stage: Stage,
    config: WorkerConfig,
    shapes_hwc: Sequence[tuple[int, int, int]],
    rings: Sequence[FrameRing],
) -> Runtime:
    """The runtime, as configured; its name, bundle and thresholds go to the station's engine file.

    Without a bundle, and for the null runtime, raw map values are the scores.

    Raises `BundleError`, `ConfigError`, `ParityError`, `RuntimeUnavailable`: no restart would mend
    that.
    """
    # `models` has an error tree of its own: it knows nothing of the pipeline.
    from models import errors as theirs
    from models.bundle import Bundle

    kinds: tuple[tuple[type[Exception], type[LinewatchError]], ...] = (
        (theirs.ParityError, ParityError),
        (theirs.BundleError, BundleError),
        (theirs.RuntimeUnavailable, RuntimeUnavailable),
    )
    path = stage.station.engine
    try:
        bundle = Bundle.load(Path(config.bundle)) if config.bundle else None
        check_same_bundle(path, bundle.sha256 if bundle else "")
        if bundle is not None:
            _check_channels(bundle.in_channels, rings)
        runtime = open_runtime(
            bundle,
            runtime=config.runtime,
            precision=config.precision,
            fallback=config.fallback,
            threads=config.threads or len(config.cores),
            shapes=shapes_hwc,
            cache_dir=stage.station.engines,
            max_batch=config.max_batch,
            memory=[ring.memory for ring in rings],
            say=lambda sentence: _say(stage, sentence),
        )
        engine = engine_of(runtime.engine_id)
        if bundle is None or engine in UNCALIBRATED.engines:
            calibration, tolerance = UNCALIBRATED, None
            thresholds = next(iter(calibration.engines.values()))
        else:
            calibration, thresholds = bundle.calibration, bundle.thresholds(engine)
            tolerance = bundle.tolerance(engine)
    except theirs.ModelsError as error:
        for their, ours in kinds:
            if isinstance(error, their):
                raise ours(str(error)) from error
        raise
    if tolerance is not None:
        for ring in rings:
            check_tolerance(tolerance, ring.shape_hwc[:2])
    note = {
        "engine_id": runtime.engine_id,
        "engine": engine,
        "bundle_sha256": bundle.sha256 if bundle else "",
        "thresholds": asdict(
            Thresholds(
                q_a=calibration.q_a,
                q_b=calibration.q_b,
                image_threshold=thresholds.image_threshold,
                pixel_threshold=thresholds.pixel_threshold,
            )
        ),
        "tolerance": to_text(tolerance),
        "optics": calibration.optics,
    }
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(note))
    partial.replace(path)
    return runtime


if __name__ == "__main__":
    main("worker", work)
