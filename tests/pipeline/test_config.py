"""Configuration files: what is read, and that every fault names file, line, key and remedy."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from models.runtimes import RUNTIMES
from pipeline.config import (
    PRECISIONS,
    RUNTIME_NAMES,
    LineConfig,
    Recipe,
    SyntheticSource,
    VideoSource,
    WorkerConfig,
    dump_resolved,
    load,
    load_recipe,
    load_resolved,
)
from pipeline.config.yamlfile import parse

CONFIGS = Path(__file__).parents[2] / "configs"

GOOD = """\
station: line-1
cameras:
  left:
    source: {kind: video, path: left.mkv}
    slots: 4
"""


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "line.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_good_file_reads_with_defaults_and_paths_relative_to_it(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))
    camera = config.cameras["left"]
    assert isinstance(camera.source, VideoSource)
    assert camera.source.path == str(tmp_path / "left.mkv")
    assert (camera.slots, camera.fps, camera.on_full, camera.deadline_ms) == (
        4,
        None,
        "drop",
        500.0,
    )
    assert config.worker.bundle is None


def test_absolute_and_home_paths_stay(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD + "worker: {bundle: ~/b}\nrun_dir: /run/x\n"))
    assert config.worker.bundle == str(Path.home() / "b")
    assert config.run_dir == "/run/x"


@pytest.mark.parametrize("name", ["station.yaml", "demo.yaml", "replay.yaml"])
def test_the_shipped_files_load_and_survive_the_way_to_a_stage(name: str) -> None:
    config = load(CONFIGS / name)
    assert load_resolved(dump_resolved(config)) == config


def test_the_replay_decides_every_frame() -> None:
    cameras = load(CONFIGS / "replay.yaml").cameras
    assert len(cameras) == 2
    for camera in cameras.values():
        assert (camera.on_full, camera.deadline_ms) == ("wait", None)


def fields(kind: object) -> Iterator[str]:
    """Every field name of every model that this annotation reaches."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, info in kind.model_fields.items():
            yield name
            yield from fields(info.annotation)
    for part in typing.get_args(kind):
        yield from fields(part)


def test_station_yaml_has_every_key_with_a_comment_above_it() -> None:
    text = (CONFIGS / "station.yaml").read_text()
    present = {str(step) for path in parse(CONFIGS / "station.yaml").lines for step in path}
    assert set(fields(LineConfig)) <= present
    explained = set()
    commented = False
    for line in text.splitlines():
        key = re.match(r" *(?:- )?([a-z_]+):", line)
        if line.strip().startswith("#"):
            commented = True
        elif key and commented:
            explained.add(key[1])  # and the keys right below share its comment
        elif not line.strip():
            commented = False
    assert set(fields(LineConfig)) <= explained


def test_station_yaml_states_the_defaults_that_the_models_have() -> None:
    text = re.sub(r"\n *# ", " ", (CONFIGS / "station.yaml").read_text())
    for model in (LineConfig, *(m for m in models(LineConfig) if m is not LineConfig)):
        for name, info in model.model_fields.items():
            default = info.default
            if isinstance(default, bool) or not isinstance(default, int | float) or not default:
                continue
            comment = text[: re.search(rf"\n *(?:- )?{name}:", text).start()]  # type: ignore[union-attr]  # the test above finds it
            number = re.escape(f"{default:g}")
            assert re.search(rf"[Dd]efaults?[^#]*?\b{number}\b", comment[-600:]), name


def models(kind: object) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
        for info in kind.model_fields.values():
            yield from models(info.annotation)
    for part in typing.get_args(kind):
        yield from models(part)


def test_models_reads_unions() -> None:
    assert SyntheticSource in set(models(LineConfig))
    assert types.UnionType is type(int | None)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("NO", "NO"),
        ("on", "on"),
        ("yes", "yes"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("2026-01-02", "2026-01-02"),
        ("1-30", "1-30"),
    ],
)
def test_yaml_1_1_traps_are_text(tmp_path: Path, written: str, expected: str) -> None:
    assert load(write(tmp_path, GOOD.replace("line-1", written))).station == expected


@pytest.mark.parametrize(
    ("written", "value"),
    [("10", 10.0), ("0x10", 16.0), ("0o10", 8.0), ("010", 10.0), ("1e1", 10.0), ("+2.5", 2.5)],
)
def test_numbers_follow_the_core_schema(tmp_path: Path, written: str, value: float) -> None:
    config = load(write(tmp_path, GOOD + f"    fps: {written}\n"))
    assert config.cameras["left"].fps == value


def test_keys_are_text_so_a_camera_may_be_called_1(tmp_path: Path) -> None:
    assert list(load(write(tmp_path, GOOD.replace("left:", "1:"))).cameras) == ["1"]


def test_aliases_share_a_recipe(tmp_path: Path) -> None:
    text = GOOD + "    recipe: &r {min_area_px: 9}\n  right:\n    source: {kind: synthetic}\n"
    config = load(write(tmp_path, text + "    recipe: *r\n"))
    assert config.cameras["right"].recipe == config.cameras["left"].recipe == Recipe(min_area_px=9)


def test_a_recipe_file(tmp_path: Path) -> None:
    path = write(tmp_path, "image_threshold: 2\nzones: [{polygon: [[0, 0], [9, 0], [9, 9]]}]\n")
    recipe = load_recipe(path)
    assert recipe.image_threshold == 2.0
    assert recipe.zones[0].polygon == ((0, 0), (9, 0), (9, 9))


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    assert load(write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode()))


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:1", "tcp://127.8.9.10:65535", "tcp://localhost:5601", "tcp://[::1]:5601"],
)
def test_endpoints_on_this_machine(tmp_path: Path, endpoint: str) -> None:
    text = GOOD + f"publish: {{endpoint: '{endpoint}'}}\n"
    assert load(write(tmp_path, text)).publish.endpoint == endpoint


def test_an_ipc_endpoint_is_a_path(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD + "publish: {endpoint: 'ipc://out.sock'}\n"))
    assert config.publish.endpoint == f"ipc://{tmp_path}/out.sock"


def test_every_runtime_can_be_configured() -> None:
    assert set(RUNTIME_NAMES) == {"auto", *RUNTIMES}
    precisions = {name: row.precisions for name, row in RUNTIMES.items() if name != "null"}
    assert precisions == PRECISIONS
    [annotation] = [WorkerConfig.model_fields["precision"].annotation]
    allowed = {"auto", *(one for precisions in PRECISIONS.values() for one in precisions)}
    assert set(typing.get_args(annotation)) == allowed


def test_fallbacks_cores_and_the_wait_for_a_batch(tmp_path: Path) -> None:
    assert load(write(tmp_path, GOOD)).worker == WorkerConfig(fallback=(), cores=(), max_wait_ms=0)
    worker = "{fallback: [openvino/bf16, torch/f32], cores: [2, 0], max_wait_ms: 1.5}"
    config = load(write(tmp_path, GOOD + f"worker: {worker}\n"))
    assert config.worker.fallback == ("openvino/bf16", "torch/f32")
    assert (config.worker.cores, config.worker.max_wait_ms) == ((2, 0), 1.5)
    assert load_resolved(dump_resolved(config)) == config
