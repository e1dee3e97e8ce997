"""Models compiled by OpenVINO, kept between starts: the same numbers, or compiled again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as op

from models.runtimes import open_runtime
from models.runtimes.enginecache import EngineCache, EngineKey, Machine
from models.runtimes.openvino_models import KEPT, SUFFIX, Compiled, OnDisk, arrays_sha256
from models.tiles import pad_frame
from models.untrained import textured_frame, untrained_bundle
from models.variants import FRAME_MARGIN_PX, map_hw
from pipeline.cli import run

PIXELS = np.arange(12, dtype=np.float32).reshape(3, 4)


def tripled(rows: int, columns: int, weight: float = 3) -> ov.Model:
    """Three times its input, by a weight that stands in the file."""
    pixels = op.parameter([rows, columns], np.float32)
    weights = np.full((rows, columns), weight, np.float32)
    return ov.Model([op.multiply(pixels, op.constant(weights))], [pixels], "tripled")


def built_once_more(rows: int, columns: int) -> ov.Model:
    raise AssertionError(f"{rows}x{columns} was built, expected it to be found")


def ask(
    folder: Path,
    build: Callable[[int, int], ov.Model] = tripled,
    *,
    content: str = "a",
    hint: str = "f32",
    threads: int = 1,
) -> NDArray[np.float32]:
    compiled = Compiled(build, hint=hint, threads=threads, disk=OnDisk(folder, content))
    found = compiled.request((3, 4)).infer([PIXELS])
    return np.array(next(iter(found.values())), np.float32)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_what_was_compiled_is_not_built_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    first = ask(folder)
    np.testing.assert_array_equal(first, 3 * PIXELS)
    assert len(kept(folder)) == 1
    np.testing.assert_array_equal(ask(folder, built_once_more), first)


@pytest.mark.parametrize("other", [{"content": "b"}, {"hint": "bf16"}, {"threads": 2}])
def test_what_differs_is_another_model(tmp_path: Path, other: dict[str, Any]) -> None:
    ask(tmp_path)
    ask(tmp_path, **other)
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "no digest", "of another version"])
def test_a_damaged_file_is_compiled_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask(tmp_path)
    [path] = kept(tmp_path)
    digest = path.with_name(f"{path.name}.sha256")
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[-9] ^= 1
    elif damage == "cut":
        del content[100:]
    elif damage == "empty":
        content.clear()
    elif damage == "no digest":
        digest.unlink()
    path.write_bytes(content)
    if damage == "of another version":  # a sound file that OpenVINO does not take
        path.write_bytes(b"not a model")
        digest.write_text(hashlib.sha256(path.name.encode() + b"not a model").hexdigest())
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ask(tmp_path), 3 * PIXELS)
    assert "compiled again" in caplog.text
    np.testing.assert_array_equal(ask(tmp_path, built_once_more), 3 * PIXELS)


@pytest.mark.parametrize("trouble", ["a file in its place", "others may write", "no room"])
def test_a_folder_that_cannot_be_used_costs_no_start(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "engines"
    if trouble == "a file in its place":
        folder.write_text("")
    elif trouble == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder = Path("/dev/full/engines")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ask(folder), 3 * PIXELS)
    assert "no compiled models are kept there" in caplog.text


def test_who_holds_a_model_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(tmp_path)
    [path] = kept(tmp_path)
    with path.with_suffix(".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        np.testing.assert_array_equal(ask(tmp_path), 3 * PIXELS)
    assert kept(tmp_path) == [path]
    assert not caplog.records


def test_another_models_file_by_this_ones_name_is_compiled_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a backup that was restored by hand."""
    ask(tmp_path, content="a")
    [mine] = kept(tmp_path)
    ask(tmp_path, lambda rows, columns: tripled(rows, columns, 5), content="b")
    [other] = set(kept(tmp_path)) - {mine}
    for ending in ("", ".sha256"):
        whole = Path(f"{other}{ending}").read_bytes()
        Path(f"{mine}{ending}").write_bytes(whole)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ask(tmp_path, content="a"), 3 * PIXELS)
    assert "compiled again" in caplog.text


def test_pinned_sizes_stay_however_many(tmp_path: Path) -> None:
    built = list[int]()

    def build(rows: int, columns: int) -> ov.Model:
        built.append(columns)
        return tripled(rows, columns)

    compiled = Compiled(build, hint="f32", threads=1, disk=OnDisk(tmp_path, "a"))
    pinned = range(1, KEPT + 4)
    for columns in pinned:
        compiled.pin((3, columns))
    for _ in range(2):
        for columns in pinned:
            compiled.request((3, columns))
    assert built == list(pinned)
    assert len(kept(tmp_path)) == len(pinned)


def test_of_other_sizes_the_first_are_kept(tmp_path: Path) -> None:
    compiled = Compiled(tripled, hint="f32", threads=1, disk=OnDisk(tmp_path, "a"))
    for columns in range(1, KEPT + 4):
        compiled.request((3, columns))
    assert len(kept(tmp_path)) == KEPT


def test_what_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, most_bytes=2500)
    machine = Machine("2.13.0", "2.13.0", "11.0.0", "nvidia-h200", (9, 0))
    keys = [EngineKey("0", (1, rows, 64, 1), "fp16", machine) for rows in range(4)]
    paths = []
    for age, key in enumerate(keys[:2]):
        with cache.holding(key):
            paths.append(cache.put(key, lambda path: path.write_bytes(bytes(1000)) and None))
        os.utime(paths[-1], (age, age))
    with cache.holding(keys[0]):
        assert cache.find(keys[0]) == paths[0]  # used just now
    for key in keys[2:]:
        with cache.holding(key):
            paths.append(cache.put(key, lambda path: path.write_bytes(bytes(1000)) and None))
    assert [path.exists() for path in paths] == [False, False, True, True]
    assert len(list(tmp_path.glob("*.sha256"))) == 2


def test_what_another_process_holds_stays(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, most_bytes=100)
    machine = Machine("2.13.0", "2.13.0", "11.0.0", "nvidia-h200", (9, 0))
    first, second = (EngineKey("0", (1, rows, 64, 1), "fp16", machine) for rows in range(2))
    with cache.holding(first):
        held = cache.put(first, lambda path: path.write_bytes(bytes(1000)) and None)
        with cache.holding(second):
            cache.put(second, lambda path: path.write_bytes(bytes(1000)) and None)
        assert held.exists()


@pytest.mark.parametrize("weights", [{"a": np.zeros(3)}, {"b": np.ones(3)}, {"a": np.ones((3, 1))}])
def test_weights_are_told_apart(weights: dict[str, NDArray[np.float64]]) -> None:
    assert arrays_sha256({"a": np.ones(3)}) == arrays_sha256({"a": np.ones(3)})
    assert arrays_sha256({"a": np.ones(3)}) != arrays_sha256(weights)


@pytest.mark.parametrize("global_branch", [False, True])
def test_an_engine_of_kept_models_says_the_same(tmp_path: Path, global_branch: bool) -> None:
    from models.bundle import Bundle

    path = untrained_bundle(tmp_path / "bundles", "pdn_tiny", 1, global_branch=global_branch)
    bundle, folder = Bundle.load(path), tmp_path / "engines"
    frame = pad_frame(textured_frame(96, 128, 1), FRAME_MARGIN_PX)
    maps = []
    for _ in range(2):
        engine = open_runtime(
            bundle, "openvino", "f32", shapes=[(96, 128, 1)], cache_dir=folder, calibrating=True
        )
        maps.append(np.empty(map_hw(96, 128), np.float32))
        engine.infer([frame], [maps[-1]])
        engine.close()
    np.testing.assert_array_equal(*maps)
    times = [path.stat().st_ino for path in kept(folder)]
    assert times
    open_runtime(
        bundle, "openvino", "f32", shapes=[(96, 128, 1)], cache_dir=folder, calibrating=True
    ).close()
    assert [path.stat().st_ino for path in kept(folder)] == times


def test_compile_keeps_what_the_station_finds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder = str(untrained_bundle(tmp_path)), tmp_path / "engines"
    asked = ["compile", bundle, "--runtime", "openvino/f32", "--shape", "64x96"]
    compiled = []
    for _ in range(2):
        assert run([*asked, "--cache-dir", str(folder), "--json"]) == 0
        [opened] = json.loads(capsys.readouterr().out)["opened"]
        compiled.append(opened["compiled"])
    assert compiled == [[path.name for path in kept(folder)], []]
    assert run([*asked, "--cache-dir", str(folder)]) == 0
    assert "was there" in capsys.readouterr().out


def test_what_killed_writers_left_is_swept_up_and_counted(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, most_bytes=2500)
    machine = Machine("2.13.0", "2.13.0", "11.0.0", "nvidia-h200", (9, 0))
    key = EngineKey("0", (1, 64, 64, 1), "fp16", machine)
    other, held = "0" * 32, "1" * 32
    left = [tmp_path / f".{other}-abc.pt2", tmp_path / f".{other}-abc.pt2.sha256"]
    at_work, without_digest = tmp_path / f".{held}-abc.pt2", tmp_path / f"{other}.pt2"
    for path in (*left, at_work, without_digest):
        path.write_bytes(bytes(2000))
    with (tmp_path / f"{held}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with cache.holding(key):
            kept_path = cache.put(key, lambda path: path.write_bytes(bytes(1000)) and None)
    found = [path.exists() for path in (*left, at_work, without_digest, kept_path)]
    assert found == [False, False, True, False, True]
