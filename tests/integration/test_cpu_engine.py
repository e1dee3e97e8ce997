"""A line with an engine on the CPU: no frame waits for another."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from lines import line_config, run_line

from models.bundle import Bundle, EngineThresholds, recalibrated
from models.untrained import untrained_bundle
from pipeline.config import WorkerConfig
from pipeline.types import Reason


def test_frames_go_through_one_by_one(tmp_path: Path) -> None:
    """Together they would all be as late as the last of them."""
    limits = EngineThresholds(1e9, 1e9, 10, 0, 0.3, 0.95, "for a test")
    untrained = Bundle.load(untrained_bundle(tmp_path))
    calibration = replace(untrained.calibration, engines={"openvino/f32": limits})
    bundle = recalibrated(untrained, tmp_path, calibration)
    worker = WorkerConfig(
        runtime="openvino", precision="f32", bundle=str(bundle), max_batch=4, max_wait_ms=300.0
    )
    config = line_config(tmp_path, cameras=2, frames=10).model_copy(update={"worker": worker})
    verdicts = run_line(config)
    assert Counter(verdict.reason for verdict in verdicts) == {Reason.OK: 20}
    assert {verdict.latency_ms["batch"] for verdict in verdicts} == {0.0}
