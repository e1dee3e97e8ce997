"""Who can be triggered, and by whom: refused with the file, before a trigger ends the line."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.config.sources import LiveSource
from pipeline.errors import ConfigError
from pipeline.sources import CAMERAS, Camera

SIZE = "width: 64, height: 64"
SOURCES = {
    "rendered": SIZE,
    "basler": SIZE,
    "aravis": SIZE,
    "stream": f"{SIZE}, url: 'rtsp://camera/stream'",
    "v4l2": SIZE,
    "watched": f"{SIZE}, path: pictures",
    "push": f"{SIZE}, endpoint: 'ipc:///run/push'",
}
TRIGGERED = ("rendered", "basler", "aravis")
BY_SOFTWARE = ("software", "encoder")


def camera(kind: str, mode: str, name: str = "left") -> str:
    source = f"{{kind: {kind}, {SOURCES[kind]}}}"
    return f"  {name}:\n    source: {source}\n    trigger: {{mode: {mode}}}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "line.yaml"
    path.write_text("station: line-1\ncameras:\n" + text)
    return path


def test_every_kind_of_camera_is_here() -> None:
    assert list(SOURCES) == list(CAMERAS)


@pytest.mark.parametrize("mode", ["free", "every", "hardware", *BY_SOFTWARE])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_camera_that_cannot_be_told_to_take_a_frame(tmp_path: Path, kind: str, mode: str) -> None:
    path = write(tmp_path, camera(kind, mode))
    if kind in TRIGGERED or mode not in BY_SOFTWARE:
        assert load(path).cameras["left"].trigger.mode == mode
        return
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: cameras.left: "), message
    assert f"trigger.mode free, every or hardware with a {kind} source" in message


@pytest.mark.parametrize("kind", SOURCES)
def test_what_the_configuration_says_of_a_camera_is_so(tmp_path: Path, kind: str) -> None:
    """A camera that can be triggered has a `trigger` of its own, and no other has."""
    source = load(write(tmp_path, camera(kind, "free"))).cameras["left"].source
    module, name = CAMERAS[kind].split(":")
    made = getattr(import_module(module), name)
    assert isinstance(source, LiveSource)
    assert source.can_trigger == (made.trigger is not Camera.trigger)


@pytest.mark.parametrize("asked", ["software", "encoder", "hardware"])
@pytest.mark.parametrize("not_asked", ["free", "every"])
def test_a_part_of_cameras_that_take_triggers_and_of_others(
    tmp_path: Path, asked: str, not_asked: str
) -> None:
    """The others give no frame for a trigger, and the part could never pass."""
    cameras = camera("rendered", asked) + camera("rendered", not_asked, "right")
    path = write(tmp_path, cameras + "parts:\n  box: {views: {left: 1, right: 1}}\n")
    with pytest.raises(ConfigError, match="cameras that all take triggers, or none of them"):
        load(path)
