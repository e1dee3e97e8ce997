"""GenICam cameras in a configuration: what is read, and what is refused at load."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import dump_resolved, load, load_resolved
from pipeline.config.sources import BaslerSource
from pipeline.errors import ConfigError


def write(tmp_path: Path, *sources: str) -> Path:
    path = tmp_path / "line.yaml"
    lines = ["station: line-1", "cameras:"]
    for number, source in enumerate(sources, 1):
        size = "width: 640, height: 480"
        lines += [f"  cam{number}:", f"    source: {{kind: basler, {size}, {source}}}"]
    path.write_text("\n".join(lines) + "\n")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return str(caught.value)


def test_features_keep_their_types_and_their_order(tmp_path: Path) -> None:
    features = "{Zeta: true, Alpha: 3, Mid: 3.0, Name: Line1, Text: '7'}"
    config = load(write(tmp_path, f"serial: '12', features: {features}"))
    source = config.cameras["cam1"].source
    assert isinstance(source, BaslerSource)
    found = [(name, type(value), value) for name, value in source.features.items()]
    assert found == [
        ("Zeta", bool, True),
        ("Alpha", int, 3),
        ("Mid", float, 3.0),
        ("Name", str, "Line1"),
        ("Text", str, "7"),
    ]
    resolved = load_resolved(dump_resolved(config))
    assert resolved == config
    again = resolved.cameras["cam1"].source
    assert isinstance(again, BaslerSource)
    assert [(n, type(v), v) for n, v in again.features.items()] == found


@pytest.mark.parametrize(
    ("pixel_format", "color"),
    [("Mono12p", False), ("BayerRG8", False), ("BayerRG8", True), ("RGB8", True)],
)
def test_formats_with_and_without_colour(tmp_path: Path, pixel_format: str, color: bool) -> None:
    path = write(tmp_path, f"pixel_format: {pixel_format}, color: {str(color).lower()}")
    assert load(path).cameras["cam1"].source.color is color  # type: ignore[union-attr]  # a live one


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pixel_format: mono8", "expected one of RGB8"),
        ("pixel_format: mono8", "did you mean 'Mono8'?"),
        ("pixel_format: RGB8", "expected `color: true` with the pixel_format RGB8"),
        ("pixel_format: Mono16, color: true", "expected `color: false` with the pixel_format"),
        ("serial: 24012345", "serial: found 24012345, expected text; put it in quotes"),
        ("serial: ''", "serial: found the text '', expected text that is not empty"),
        ("exposure_us: 0", "exposure_us: found 0, expected a number above 0"),
        ("offset_x: -1", "offset_x: found -1, expected a number of at least 0"),
        ("trigger_edge: risng", "did you mean 'rising'?"),
        ("features: {Gain: [1]}", "Gain: found a list of 1, expected true, false, a finite number"),
        ("features: {Gain: null}", "expected true, false, a finite number or text"),
        ("features: {Gain: .inf}", "expected a finite number"),
        ("features: {'': 1}", "not empty"),
        ("features: [Gain]", "features: found a list of 1, expected a mapping"),
        ("expsure_us: 10.0", "did you mean 'exposure_us'?"),
    ],
)
def test_what_is_refused(tmp_path: Path, source: str, words: str) -> None:
    message = refusal(write(tmp_path, source))
    assert words in message
    assert "line.yaml:4" in message or "line.yaml:2" in message


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("serial: '7'", "serial: '7'"), "cameras.cam2.source.serial: a camera of its own"),
        (("address: 10.0.0.7", "address: 10.0.0.7"), "'10.0.0.7' is that of cameras.cam1"),
        (("serial: '7'", "gain: 0.0"), "cameras.cam2.source: a serial or an address"),
        (("gain: 0.0", "serial: '7'"), "this line has 2 basler cameras"),
        (("serial: '7', address: a", "serial: '8', address: a"), "source.address"),
    ],
)
def test_two_cameras_that_may_be_one_are_refused(
    tmp_path: Path, sources: tuple[str, str], words: str
) -> None:
    assert words in refusal(write(tmp_path, *sources))


@pytest.mark.parametrize(
    "sources", [("gain: 0.0",), ("serial: '7'", "serial: '8'"), ("serial: '7'", "address: a")]
)
def test_cameras_of_their_own(tmp_path: Path, sources: tuple[str, ...]) -> None:
    assert len(load(write(tmp_path, *sources)).cameras) == len(sources)
