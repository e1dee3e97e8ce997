"""Endpoints that others can reach need keys, or a word that they shall not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import dump_resolved, load, load_resolved
from pipeline.errors import ConfigError

GOOD = "station: s\ncameras: {a: {source: {kind: synthetic}}}\n"
KEYS = "security: {secret: line.secret, allow: allowed}\n"
OPEN = ["tcp://0.0.0.0:5601", "tcp://*:5601", "tcp://192.168.1.2:5601", "tcp://example.org:5601"]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "line.yaml"
    path.write_text(GOOD + text)
    return path


@pytest.mark.parametrize("key", ["endpoint", "replay_endpoint"])
@pytest.mark.parametrize("endpoint", OPEN)
def test_an_open_endpoint_needs_security(tmp_path: Path, endpoint: str, key: str) -> None:
    publish = f"publish: {{{key}: '{endpoint}'}}\n"
    with pytest.raises(ConfigError, match=rf"publish\.{key}: tcp.*`insecure: true`"):
        load(write(tmp_path, publish))
    for security in (KEYS, "security: {insecure: true}\n"):
        config = load(write(tmp_path, publish + security))
        assert getattr(config.publish, key) == endpoint
        assert load_resolved(dump_resolved(config)) == config


@pytest.mark.parametrize(
    ("security", "words"),
    [
        ("{}", "linewatch keys make"),
        ("{insecure: false}", "linewatch keys make"),
        ("{secret: a.secret}", "`secret` and `allow`"),
        ("{allow: keys}", "`secret` and `allow`"),
        ("{secret: a, allow: b, insecure: true}", "alone"),
        ("{secret: a, alow: b}", "did you mean"),
    ],
)
def test_half_a_security(tmp_path: Path, security: str, words: str) -> None:
    with pytest.raises(ConfigError, match="security") as refused:
        load(write(tmp_path, f"security: {security}\n"))
    assert words in str(refused.value)


def test_paths_of_keys_are_relative_to_the_file(tmp_path: Path) -> None:
    security = load(write(tmp_path, KEYS)).security
    assert security is not None
    assert security.secret == str(tmp_path / "line.secret")
    assert security.allow == str(tmp_path / "allowed")


@pytest.mark.parametrize(
    ("endpoint", "replay"),
    [
        ("tcp://127.0.0.1:5601", "tcp://127.0.0.1:5602"),
        ("tcp://[::1]:5601", "tcp://[::1]:5602"),
        ("tcp://127.0.0.1:65535", "tcp://127.0.0.1:65534"),
        ("ipc:///run/out", "ipc:///run/out.replay"),
    ],
)
def test_where_rows_are_fetched(tmp_path: Path, endpoint: str, replay: str) -> None:
    publish = load(write(tmp_path, f"publish: {{endpoint: '{endpoint}'}}\n")).publish
    assert publish.replay == replay
    stated = f"publish: {{endpoint: '{endpoint}', replay_endpoint: 'ipc:///x'}}\n"
    assert load(write(tmp_path, stated)).publish.replay == "ipc:///x"


def test_no_room_for_the_replay_endpoint(tmp_path: Path) -> None:
    endpoint = "ipc:///" + "a" * 105
    with pytest.raises(ConfigError, match="a `replay_endpoint`"):
        load(write(tmp_path, f"publish: {{endpoint: '{endpoint}'}}\n"))
