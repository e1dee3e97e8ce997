"""The benchmark program counts right, and each of its parts runs in small. No time is judged."""

from __future__ import annotations

import argparse
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibrate.calibration import calibrate
from models.bundle import Bundle
from models.fused import FusedGraph, fuse, weight_shapes
from models.untrained import textured_frame, untrained_bundle
from models.variants import VARIANTS
from tools import (
    bench_agree,
    bench_anomalib,
    bench_arithmetic,
    bench_bundles,
    bench_engines,
    bench_engines_found,
    bench_listener,
)
from tools.bench import main
from tools.bench_agree import Agreement, Said
from tools.bench_machine import Goal, as_json, exit_code, take_turns

SMALL = ["--width", "96", "--height", "64"]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Exit status of the program, and what it printed as JSON."""
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


# Arithmetic.


def graph_of(
    variant: str, channels: int = 3, scales: tuple[int, ...] = (1,), keep: int = 0
) -> FusedGraph:
    shapes = weight_shapes(variant, channels, scales)
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    if keep:
        of = VARIANTS[variant][-1].out_channels
        weights |= {f"scale{scale}.rotation": np.ones((keep, of), np.float32) for scale in scales}
    return fuse(weights, variant, channels, scales)


def test_arithmetic_of_pdn_small_by_hand() -> None:
    # Teacher and student; conv 4x4, halved, conv 4x4, halved, conv 3x3, conv 4x4.
    pairs = 2 * (
        253 * 253 * 128 * 3 * 4 * 4
        + 123 * 123 * 256 * 128 * 4 * 4
        + 59 * 59 * 256 * 256 * 3 * 3
        + 56 * 56 * 384 * 256 * 4 * 4
    )
    (branch,) = graph_of("pdn_small").branches
    assert bench_arithmetic.branch_flop(branch, 256, 256) == 2 * pairs
    # A quarter of the map's channels, a quarter of the last layer.
    (rotated,) = graph_of("pdn_small", keep=96).branches
    less = 2 * 2 * 56 * 56 * 288 * 256 * 4 * 4
    assert bench_arithmetic.branch_flop(rotated, 256, 256) == 2 * pairs - less


@pytest.mark.parametrize(
    ("variant", "width", "height", "gflop"),
    [
        # The floors that are known of unpadded frames.
        ("pdn_small", 256, 256, 61),
        ("pdn_medium", 256, 256, 208),
        ("pdn_small", 1280, 1024, 1381),
        ("pdn_medium", 1280, 1024, 4614),
        ("pdn_small", 2448, 2048, 5369),
        ("pdn_medium", 2448, 2048, 17905),
    ],
)
def test_arithmetic_of_unpadded_frames(variant: str, width: int, height: int, gflop: int) -> None:
    (branch,) = graph_of(variant).branches
    found = bench_arithmetic.branch_flop(branch, height, width) / 1e9
    assert round(found) == gflop


def test_arithmetic_with_the_margin_of_each_scale() -> None:
    both = graph_of("pdn_tiny", 1, (1, 2))
    fine, coarse = both.branches
    count = bench_arithmetic.branch_flop
    # 16 pixels on each side at scale 1, 32 at scale 2, where two pixels are one, rounded up.
    expected = count(fine, 64 + 32, 97 + 32) + count(coarse, (64 + 64) // 2, (97 + 64 + 1) // 2)
    assert bench_arithmetic.graph_flop(both, 64, 97) == expected


def test_peaks_are_measured_of_what_is_known() -> None:
    for engine in ("openvino/f32", "openvino/int8", "torch/f32"):
        # So large that its matrices have memory of their own, which would be gone if not held.
        found = bench_arithmetic.peak_flops(engine, 512, 0)
        assert found is not None
        assert found > 0
    for engine in ("openvino/fp4", "mine:factory/f32"):
        assert bench_arithmetic.peak_flops(engine, 64, 0) is None


# Timing and goals.


def test_turns_are_taken_until_all_have_run_enough() -> None:
    runs: dict[str, list[int]] = {"a": [], "b": []}
    entries = {name: partial(each.append, 1) for name, each in runs.items()}
    took = take_turns(entries, seconds=0, least=4)
    assert {name: len(each) for name, each in runs.items()} == {"a": 4, "b": 4}
    assert {name: len(ms) for name, ms in took.items()} == {"a": 4, "b": 4}
    assert all(ms >= 0 for each in took.values() for ms in each)


def test_rate_counts_whole_batches() -> None:
    # Four together every 0.4 s: 10 frames/s, however the first and the last batch are cut.
    times = [0.4 * batch + 0.001 * n for batch in range(5) for n in range(4)]
    assert bench_listener.rate(times, 0.05) == pytest.approx(10)
    assert bench_listener.rate(times[3:], 0.05) == pytest.approx(10)
    assert math.isnan(bench_listener.rate(times[:4], 0.05))
    assert math.isnan(bench_listener.rate([], 0.05))


def test_goals() -> None:
    assert Goal("share", 0.95, 0.95).met
    assert not Goal("share", 0.94, 0.95).met
    assert Goal("ms", 10, 10, at_most=True).met
    assert not Goal("ms", 10.1, 10, at_most=True).met
    assert not Goal("share", math.nan, 0.95).met
    assert not Goal("ms", math.nan, 10, at_most=True).met
    assert exit_code([]) == 0
    assert exit_code([Goal("share", 1, 0.95), Goal("ms", 11, 10, at_most=True)]) == 1
    assert "MISSED" in str(Goal("share", 0.5, 0.95))


@pytest.mark.parametrize(("median_ms", "met"), [(4.0, True), (4.01, False)])
def test_the_goal_of_a_gpu_is_half_of_its_bf16_peak(median_ms: float, met: bool) -> None:
    def row(engine: str, width: int, height: int) -> bench_engines_found.Row:
        return bench_engines_found.Row(
            variant="pdn_small",
            width=width,
            height=height,
            engine=engine,
            median_ms=median_ms,
            p99_ms=9.0,
            runs=9,
            frames_per_s=1e3 / median_ms,
            gflop=1600.0,
            gflop_per_s=1600.0 / median_ms * 1e3,
            map_error=0.0,
            error_frame="1280x1024",
        )

    rows = [row("cuda/fp16", 1280, 1024), row("cuda/fp16", 640, 640), row("cuda/bf16", 1280, 1024)]
    rows.append(row("openvino/bf16", 1280, 1024))
    peaks = {"cuda/fp16": 1e6, "cuda/bf16": 8e5}
    found = bench_engines_found.Found(rows, [], peaks)
    (goal,) = found.goals()
    assert goal.met == met
    assert goal.found == pytest.approx(1600 / median_ms * 1e3 / 8e5)
    assert found.floor_ms(rows[0]) == pytest.approx(2.0)
    assert found.floor_ms(rows[3]) is None
    assert found.plain()["rows"][0]["floor_ms"] == pytest.approx(2.0)
    peaks.clear()
    assert not found.goals()[0].met


def test_numbers_that_are_none_are_null() -> None:
    assert json.loads(as_json({"a": [math.nan, 1.5], "b": (math.inf,)})) == {
        "a": [None, 1.5],
        "b": [None],
    }


def test_goals_against_anomalib() -> None:
    took = {
        "anomalib whole": [300.0, 310.0, 290.0],
        "anomalib student_teacher": [150.0] * 3,
        "openvino/int8": [100.0] * 3,
        "openvino/bf16": [200.0] * 3,
        "torch/f32": [3000.0] * 3,
    }
    rows = {row["name"]: row for row in bench_anomalib.summary(took)["rows"]}
    assert rows["openvino/int8"]["whole_over_this"] == pytest.approx(3)
    assert rows["openvino/int8"]["student_teacher_over_this"] == pytest.approx(1.5)
    int8, bf16 = bench_anomalib.goals({name: float(np.median(ms)) for name, ms in took.items()})
    assert (int8.met, bf16.met) == (True, False)
    assert bench_anomalib.goals({"anomalib whole": 1.0, "openvino/f32": 1.0}) == []


# Engines.


def test_engines(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(
        capsys,
        "engines",
        *("--variants", "pdn_tiny", "--sizes", "96x64,64x64", "--map-channels", "24"),
        *("--runtimes", "openvino/f32,openvino/int8,torch/f32,none:such/f32"),
        *("--seconds", "0", "--threads", "0", "--matmul", "64", "--channels", "1"),
        # So small a matrix tells nothing of how long a frame will take.
        *("--longest", "1e9"),
    )
    assert code == 0
    names = [(row["variant"], row["width"], row["engine"]) for row in found["rows"]]
    assert names == [
        (variant, width, engine)
        for variant in ("pdn_tiny", "pdn_tiny, 24 of 96")
        for width in (64, 96)
        for engine in ("openvino/f32", "openvino/int8", "torch/f32")
    ]
    for row in found["rows"]:
        assert row["runs"] == 3
        assert row["p99_ms"] >= row["median_ms"] > 0
        assert row["gflop_per_s"] * row["median_ms"] == pytest.approx(row["gflop"] * 1e3)
        assert row["share_of_peak"] > 0
        assert row["map_error"] < (1e-4 if row["engine"].endswith("/f32") else 0.6)
        assert row["error_frame"] == f"{row['width']}x64"
    graph = graph_of("pdn_tiny", 1)
    gflop = bench_arithmetic.graph_flop(graph, 64, 96) / 1e9
    assert found["rows"][3]["gflop"] == pytest.approx(gflop)
    assert [each["engine"] for each in found["left_out"]] == 4 * ["none:such/f32"]
    assert found["anomalib"] is None
    assert found["goals"] == []


def test_engines_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--variants", "pdn_tiny", "--sizes", "64x64", "--seconds", "0", "--matmul", "64"]
    assert main(["engines", *options, "--runtimes", "openvino/f32,none:such/f32"]) == 0
    table = capsys.readouterr().out
    assert "pdn_tiny 64x64" in table
    assert "left out: pdn_tiny 64x64 none:such/f32" in table


def test_what_takes_too_long_is_left_out_and_said() -> None:
    plan = bench_engines.Plan(
        ["pdn_tiny"],
        [(1400, 1100)],
        ["torch/f32", "openvino/f32"],
        longest_s=0.0,
        channels=1,
        matmul=64,
    )
    found = bench_engines.measure(plan, lambda done, total, note="": None)
    assert found.rows == []
    slow, long = (each["why"] for each in found.left_out)
    assert "slow" in slow
    assert "over --longest 0" in long


def test_sizes_are_width_by_height() -> None:
    assert bench_engines.size_of("1280x1024") == (1280, 1024)
    for wrong in ("1280", "x", "20x64", "12ax64"):
        with pytest.raises(argparse.ArgumentTypeError):
            bench_engines.size_of(wrong)


def test_map_error_is_of_the_largest_value() -> None:
    expected = np.array([[1.0, 4.0]], np.float32)
    found = np.array([[1.5, 4.0]], np.float32)
    assert bench_bundles.map_error(found, expected) == pytest.approx(0.125)


def test_other_networks_take_turns_with_ours(tmp_path: Path) -> None:
    import openvino as ov
    from openvino import opset13 as op

    for name in bench_anomalib.NETWORKS:
        given = op.parameter([1, 3, 64, 64], np.float32)
        ov.save_model(ov.Model([op.relu(given)], [given], name), tmp_path / f"{name}.xml")
    found, goals = bench_anomalib.compare(
        tmp_path, ["openvino/f32", "null:such/f32"], threads=0, seconds=0, venv=None
    )
    names = [row["name"] for row in found["rows"]]
    assert names == ["anomalib whole", "anomalib student_teacher", "openvino/f32"]
    assert found["size"] == 64
    assert list(found["left_out"]) == ["null:such/f32"]
    assert goals == []


def test_without_anomalib_the_reason_is_told(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "something").touch()
    found, goals = bench_anomalib.compare(
        tmp_path / "networks", ["openvino/f32"], threads=0, seconds=0, venv=venv
    )
    assert list(found) == ["why_not"]
    assert "was not made by this program" in found["why_not"]
    assert goals == []


# The line.


def test_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = printed(
        capsys, "pipeline", *SMALL, "--cameras", "1", "--fps", "20", "--seconds", "0.4"
    )
    assert found["frames"] == found["verdicts"] > 0


def test_overhead(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(
        capsys, "overhead", *SMALL, "--seconds", "0.5", "--rounds", "2", "--runtime", "openvino/f32"
    )
    assert code in (0, 1)
    assert code == int(not all(goal["met"] for goal in found["goals"]))
    assert len(found["bare_fps"]) == 3
    assert all(fps > 0 for fps in found["line_fps"])
    before, between, after = found["bare_fps"]
    first, second = found["line_fps"]
    shares = [2 * first / (before + between), 2 * second / (between + after)]
    assert found["shares"] == pytest.approx(shares)
    assert found["paced_fps"] == pytest.approx(0.8 * sorted(found["bare_fps"])[1])
    assert found["paced_frames"] == sum(found["reasons"].values()) > 0
    assert 0 < found["beside_ms"]["p50"] <= found["beside_ms"]["p99"] <= found["beside_ms"]["max"]
    assert found["total_ms"]["p50"] > found["beside_ms"]["p50"]


def test_start(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = printed(capsys, "start", *SMALL, "--repeats", "1")
    assert code == int(found["worst_ready_s"] > 4)
    assert len(found["ready_s"]) == 1
    assert 0 < found["worst_ready_s"] <= found["worst_first_verdict_s"]


# Agreement.


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    good = [textured_frame(64, 96, 1, seed=k) for k in range(12)]
    bundle = untrained_bundle(folder, "pdn_tiny", 1)
    return calibrate(bundle, good, runtimes=["torch/f32", "openvino/f32"], out_dir=folder)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(6):
        frame = textured_frame(64, 96, 1, seed=100 + k)
        frame[20:32, 30 : 30 + 12 * (k % 2)] = 0
        cv2.imwrite(str(tmp_path / f"{k}.png"), frame)
    return tmp_path


def test_engines_agree(calibrated: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--bundle", str(calibrated), "--images", str(images))
    code, found = printed(capsys, "agree", *options, "--count", "4")
    assert code == 0
    (engine,) = found["engines"]
    assert (engine["engine"], engine["images"], engine["equal"]) == ("openvino/f32", 4, 4)
    assert engine["largest_score_difference"] < 1e-3
    assert engine["largest_map_difference"] < 1e-3
    assert engine["flips"] == []
    assert main(["agree", *options]) == 0
    assert "openvino/f32" in capsys.readouterr().out


def test_without_the_yardstick_the_command_is_named(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.load(untrained_bundle(tmp_path / "bundles", "pdn_tiny", 1))
    code = main(["agree", "--bundle", str(bundle.path), "--images", str(images)])
    assert code == 2
    assert "linewatch calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "flips", "met"),
    [
        ("openvino/f32", 0, True),
        ("openvino/f32", 1, False),
        ("openvino/bf16", 2, True),
        ("openvino/bf16", 3, False),
        ("openvino/int8", 4, True),
        ("openvino/int8", 5, False),
    ],
)
def test_bounds_of_differing_verdicts(engine: str, flips: int, met: bool) -> None:
    agreement = Agreement(engine)
    for k in range(200):
        failed = k < flips
        bench_agree.compare(
            agreement, f"{k}.png", Said(False, 0.9, 1.0), Said(failed, 1.1 if failed else 0.9, 1.0)
        )
    assert agreement.goal.met is met
    assert len(agreement.flips) == flips
    if flips:
        assert agreement.flips[0][engine] == {"failed": True, "score": 1.1, "threshold": 1.0}
        assert agreement.largest_score_difference == pytest.approx(0.2)


def test_no_image_is_no_agreement() -> None:
    assert not Agreement("openvino/f32").goal.met


def test_images_are_spread_evenly() -> None:
    paths = [Path(f"{k}.png") for k in range(10)]
    assert bench_agree.some_of(paths, 3) == [paths[0], paths[3], paths[6]]
    assert bench_agree.some_of(paths, 20) == paths
