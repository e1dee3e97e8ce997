"""Configuration files that are refused: each fault with file, line, key, found, expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import dump_resolved, load, load_resolved
from pipeline.config.yamlfile import MAX_BYTES
from pipeline.errors import ConfigError

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


def refusal(tmp_path: Path, text: str | bytes) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert all(line.startswith(f"{path}:") for line in message.splitlines())
    return message.replace(f"{path}:", "")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty"),
        ("# only a comment\n", 1, "empty"),
        ("---\n", 2, "nothing (null)"),
        ("just text\n", 1, "found the text 'just text', expected a mapping"),
        ("- a\n- b\n", 1, "found a list of 2, expected a mapping"),
        ("42\n", 1, "found 42"),
        (GOOD + "\tworker: {}\n", 6, "tabs"),
        (GOOD + "worker: {\n", 7, "not valid YAML"),
        (GOOD + "worker: [\n", 7, "not valid YAML"),
        ("station: 'open\n", 2, "not valid YAML"),
        ("station: line: 1\n", 1, "not valid YAML"),
        (GOOD + "---\n" + GOOD, 6, "one file holds one configuration"),
        (GOOD + "worker: *nobody\n", 6, "undefined alias 'nobody'"),
        (GOOD + "worker: !!python/object:os.system {}\n", 6, "found the tag"),
        (GOOD + "run_dir: !!str 12\n", 6, "found the tag"),
        (GOOD + "worker: " + "[" * 5000 + "\n", 6, "levels of nesting"),
        (b"station: caf\xe9\n", 1, "0xe9, expected UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", 1, "expected UTF-8"),
        (b"station: a\n# \x00\n", 2, "U+0000"),
        (b"\x00" * 64, 1, "U+0000"),
        (b"a: 1\n" * MAX_BYTES, 0, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_a_file_that_is_no_configuration(
    tmp_path: Path, text: str | bytes, line: int, words: str
) -> None:
    message = refusal(tmp_path, text)
    assert words in message
    assert not line or message.startswith(f"{line}: ")


@pytest.mark.parametrize(
    ("old", "new", "where", "words"),
    [
        ("station: line-1\n", "", "1: station", "the key is missing"),
        ("station:", "statoin:", "1: statoin", "did you mean 'station'?"),
        ("line-1", "[a]", "1: station", "found a list of 1, expected text"),
        ("line-1", "12", "1: station", "found 12, expected text; put it in quotes"),
        ("line-1", "true", "1: station", "found true, expected text; put it in quotes"),
        ("line-1", "", "1: station", "found nothing (null), expected text"),
        ("line-1", "a/b", "1: station", "found the text 'a/b', expected 1 to 48 letters"),
        ("line-1", "x" * 49, "1: station", "expected 1 to 48 letters"),
        ("line-1", '"a\\0b"', "1: station", "control characters"),
        ("line-1", '"a\\ud800"', "1: station", "control characters"),
        (
            GOOD,
            "station: a\ncameras: {}\n",
            "2: cameras",
            "a mapping with 0 keys, expected at least 1",
        ),
        (GOOD, "station: a\ncameras: [left]\n", "2: cameras", "a list of 1, expected a mapping"),
        ("left:", "le ft:", "3: cameras.le ft", "letters, digits"),
        ("left:", "[a, b]:", "3: cameras", "as a key, expected a name"),
        ("slots: 4", "slots: 1", "5: c.left.slots", "found 1, expected a number of at least 2"),
        ("slots: 4", "slots: -4", "5: c.left.slots", "found -4"),
        ("slots: 4", "slots: 4.0", "5: c.left.slots", "found 4.0, expected a whole number"),
        (
            "slots: 4",
            "slots: yes",
            "5: c.left.slots",
            "found the text 'yes', expected a whole number",
        ),
        ("slots: 4", "slots: true", "5: c.left.slots", "found true, expected a whole number"),
        ("slots: 4", "slots: '4'", "5: c.left.slots", "without quotes"),
        ("slots: 4", "slots: 1_000", "5: c.left.slots", "found the text '1_000'"),
        ("slots: 4", "slots:", "5: c.left.slots", "leave the key out"),
        ("slots: 4", "slots: 99999999999999999999", "5: c.left.slots", "expected a"),
        ("slots: 4", "slotz: 4", "5: c.left.slotz", "did you mean 'slots'?"),
        ("slots: 4", "xyzzy: 4", "5: c.left.xyzzy", "expected one of continuous, deadline_ms, fps"),
        ("slots: 4", "fps: .nan", "5: c.left.fps", "found .nan, expected a finite number"),
        ("slots: 4", "fps: -.inf", "5: c.left.fps", "expected a finite number"),
        ("slots: 4", "fps: 1e999", "5: c.left.fps", "found 1e999, expected a finite number"),
        ("slots: 4", "fps: 0", "5: c.left.fps", "found 0, expected a number above 0"),
        ("slots: 4", "fps: true", "5: c.left.fps", "found true, expected a number"),
        ("slots: 4", "fps: 12:30", "5: c.left.fps", "found the text '12:30'"),
        ("slots: 4", "deadline_ms: -1", "5: c.left.deadline_ms", "above 0"),
        ("slots: 4", "on_full: wiat", "5: c.left.on_full", "did you mean 'wait'?"),
        ("slots: 4", "slots: 4\n    slots: 5", "6: c.left.slots", "twice, first in line 5"),
        ("", "station: b\n", "6: station", "twice, first in line 1"),
        ("slots: 4", "<<: {}", "5: c.left.<<", "merge keys are not supported"),
        ("kind: video", "kind: vidoe", "4: c.left.source.kind", "did you mean 'video'?"),
        (
            "kind: video, ",
            "",
            "4: c.left.source.kind",
            "one of 'video', 'recording', 'folder', 'synthetic'",
        ),
        ("left.mkv", "''", "4: c.left.source.path", "text that is not empty"),
        (", path: left.mkv", "", "4: c.left.source.path", "the key is missing"),
        ("left.mkv", "12", "4: c.left.source.path", "found 12, expected text"),
        (
            "left.mkv",
            "a, loop: yes",
            "4: c.left.source.loop",
            "found the text 'yes', expected true or false",
        ),
        ("left.mkv", "a, video: 1", "4: c.left.source.video", "unknown key"),
        (
            "{kind: video, path: left.mkv}",
            "left.mkv",
            "4: c.left.source",
            "found the text 'left.mkv', expected a mapping",
        ),
        ("video, path: left.mkv", "synthetic, width: 32", "4: c.left.source.width", "at least 33"),
        (
            "video, path: left.mkv",
            "synthetic, defect_share: 1.5",
            "4: c.left.source.defect_share",
            "at most 1",
        ),
        ("slots: 4", "recipe: {zones: 3}", "5: c.left.recipe.zones", "found 3, expected a list"),
        (
            "slots: 4",
            "recipe:\n      box_fraction: 1.0",
            "6: c.left.recipe.box_fraction",
            "below 1",
        ),
        (
            "slots: 4",
            "recipe: {edge_px: 8}\n    continuous: true",
            "3: c.left",
            "no `edge_px` in the recipe with `continuous: true`",
        ),
        (
            "slots: 4",
            "recipe: {edge_px: 8, fixture: {kind: threshold, taught_x: 9, taught_y: 9}}",
            "5: c.left.recipe",
            "no `edge_px` with a `fixture`",
        ),
        ("", "worker: {precision: fp32}\n", "6: worker.precision", "did you mean 'f32'?"),
        ("", "worker: {runtime: openvno}\n", "6: worker.runtime", "did you mean 'openvino'?"),
        ("", "worker: {runtime: 'a b:c'}\n", "6: worker.runtime", "package.module:factory"),
        ("", "worker: {max_batch: 0}\n", "6: worker.max_batch", "at least 1"),
        ("", "worker: {max_wait_ms: -1}\n", "6: worker.max_wait_ms", "at least 0"),
        ("", "worker: {max_wait_ms: 600}\n", "1: the file", "below the shortest deadline_ms, 500"),
        ("", "worker: {bundle: '~nobody-of-that-name/b'}\n", "6: worker.bundle", "user is known"),
        ("", "worker: {cores: 2}\n", "6: worker.cores", "found 2, expected a list"),
        ("", "worker: {cores: [0, -1]}\n", "6: worker.cores[1]", "found -1"),
        ("", "worker: {fallback: torch/f32}\n", "6: worker.fallback", "expected a list"),
        ("", "worker: {fallback: [torch]}\n", "6: worker.fallback[0]", "one of tensorrt/fp16"),
        ("", "worker: {fallback: [torch/int8]}\n", "6: worker.fallback[0]", "runtime/precision"),
        ("", "worker: {fallback: [openvino/bf61]}\n", "6: worker.fallback[0]", "'openvino/bf16'?"),
        ("", "worker: {fallback: [null/none]}\n", "6: worker.fallback[0]", "runtime/precision"),
        ("", "worker: 3\n", "6: worker", "found 3, expected a mapping"),
        ("", "supervision: {restarts: -1}\n", "6: supervision.restarts", "at least 0"),
    ],
)
def test_a_fault_names_line_key_found_and_expected(
    tmp_path: Path, old: str, new: str, where: str, words: str
) -> None:
    """`old` in the good file becomes `new`, or `new` is appended; `c.` stands for `cameras.`."""
    assert old in GOOD
    message = refusal(tmp_path, GOOD.replace(old, new) if old else GOOD + new)
    where = where.replace(": c.", ": cameras.")
    assert message.startswith(f"{where}: "), message
    assert words in message
    assert len(message.splitlines()) == 1, message


@pytest.mark.parametrize(
    ("zone", "key", "words"),
    [
        ("{polygon: [[0, 0], [1, 1]]}", ".polygon", "a list of 2, expected at least 3 entries"),
        ("{polygon: [[0, 0], [1, 1], [2]]}", ".polygon[2]", "a list of 1, expected more entries"),
        ("{polygon: [[0, 0], [1, 1], [2, 3, 4]]}", ".polygon[2]", "expected at most 2 entries"),
        ("{polygon: [[0, 0], [1, 1], [2, 0.5]]}", ".polygon[2][1]", "expected a whole number"),
        ("{polygon: [[0, 0], [1, 1], [2, 99999]]}", ".polygon[2][1]", "of at most 65536"),
        ("{polygon: [[0, 0], [1, 1], [2, 2]]}", "", "at least three corners not on one line"),
        ("{polygon: [[0, 0], [1, 1], [0, 0]]}", "", "at least three corners not on one line"),
        ("{polygon: 0 0 1 1}", ".polygon", "found the text '0 0 1 1', expected a list"),
        ("{mode: includ, polygon: [[0, 0], [1, 0], [1, 1]]}", ".mode", "did you mean 'include'?"),
        ("{threshold_factor: 2, polygon: [[0, 0], [1, 0], [1, 1]]}", "", "write `mode: include`"),
    ],
)
def test_zones(tmp_path: Path, zone: str, key: str, words: str) -> None:
    text = GOOD + "    recipe:\n      zones:\n        - " + zone + "\n"
    message = refusal(tmp_path, text)
    assert message.startswith(f"8: cameras.left.recipe.zones[0]{key}: "), message
    assert words in message


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        ("tcp://127.0.0.1", "tcp://ADDRESS:PORT"),
        ("tcp://127.0.0.1:0", "port from 1 to 65535"),
        ("tcp://127.0.0.1:65536", "port from 1 to 65535"),
        ("tcp://:5601", "tcp://ADDRESS:PORT"),
        ("udp://127.0.0.1:5601", "tcp://ADDRESS:PORT"),
        ("127.0.0.1:5601", "tcp://ADDRESS:PORT"),
        ("", "tcp://ADDRESS:PORT"),
        ("ipc://", "the path of a socket"),
        ("ipc://@hidden", "the path of a socket"),
        ("ipc:///" + "a" * 107, "at most 107 bytes"),
    ],
)
def test_other_endpoints_are_refused(tmp_path: Path, endpoint: str, words: str) -> None:
    message = refusal(tmp_path, GOOD + f"publish:\n  endpoint: '{endpoint}'\n")
    assert message.startswith("7: publish.endpoint: found the text")
    assert words in message


def test_all_faults_are_listed_by_line(tmp_path: Path) -> None:
    text = """\
statoin: a
cameras:
  left:
    source: {kind: video}
    slots: 1
    slots: 2
  right:
    sorce: {kind: video}
    fps: .inf
publish: {heartbeat_ms: 0}
"""
    lines = refusal(tmp_path, text).splitlines()
    assert lines[0] == " 6 errors"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["1", "statoin"],
        ["4", "cameras.left.source.path"],
        ["6", "cameras.left.slots"],
        ["8", "cameras.right.sorce"],
        ["9", "cameras.right.fps"],
        ["10", "publish.heartbeat_ms"],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n"
            for before, name in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
    ],
)
def test_anchors_that_explode_are_refused(tmp_path: Path, text: str) -> None:
    assert "use fewer anchors" in refusal(tmp_path, text)


def test_a_path_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_no_file_ever_ends_in_another_error(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes, and a good file with a piece replaced: a configuration or a `ConfigError`."""
    text = (CONFIGS / "station.yaml").read_bytes() if data.draw(st.booleans()) else GOOD.encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    piece = data.draw(
        st.binary(max_size=12)
        | st.text(max_size=12).map(lambda drawn: drawn.encode("utf-8", "surrogatepass"))
        | st.sampled_from(
            [b"[", b"{", b"]", b"}", b"&a ", b"*a", b"- ", b": ", b"? ", b"!!int ", b"~"]
        )
    )
    path = write(tmp_path, text[:start] + piece + text[end:])
    try:
        config = load(path)
    except ConfigError:
        return
    assert load_resolved(dump_resolved(config)) == config
