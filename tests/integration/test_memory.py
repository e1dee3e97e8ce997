"""Ten thousand frames: small stages that do not grow, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

from lines import leftovers, line_config, run_line

from pipeline.station import Station
from pipeline.supervisor import Progress
from pipeline.telemetry import usage

FRAMES = 10_000
LIMIT_BYTES = 150 * 2**20
GROWTH_BYTES = 4 * 2**20


class Scales:
    """Weighs every stage as the line goes: private bytes, without the ring."""

    def __init__(self) -> None:
        self.weights: dict[str, list[tuple[int, int]]] = {}

    def watch(self, progress: Progress) -> None:
        for name, pid in progress.pids.items():
            if used := usage(pid):
                self.weights.setdefault(name, []).append((progress.captured, used.private_bytes))


def test_stages_are_small_and_do_not_grow(tmp_path: Path) -> None:
    config = line_config(tmp_path, cameras=2, frames=FRAMES // 2, runtime="null", slots=8)
    scales = Scales()
    verdicts = run_line(config, watch=scales.watch)
    assert len(verdicts) == FRAMES
    assert set(scales.weights) == {"capture.cam0", "capture.cam1", "worker", "decision", "catch_up"}
    for name, weights in scales.weights.items():
        early = [w for captured, w in weights if 0.2 * FRAMES < captured < 0.5 * FRAMES]
        late = [w for captured, w in weights if captured > 0.8 * FRAMES]
        assert early, name
        assert late, name
        assert max(late) - max(early) < GROWTH_BYTES, name
        if name != "worker":
            assert max(late) < LIMIT_BYTES, name
    assert leftovers(config) == []
    left = [path.name for path in Station.of(config).run_dir.iterdir()]
    assert sorted(left) == ["daemon.lock", "stages.lock"]
