"""Where frames come from: `open_source` and `open_camera` find what a configuration asks for.

A row of `SOURCES` or `CAMERAS` names the module and the class of a kind, so that opening an image
folder does not load the video library. Every module of recordings also has `probe_KIND`, the shape
without the pixels; cameras have what their configuration says.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from pipeline.config import CameraConfig, SourceConfig
from pipeline.config.sources import LiveSource
from pipeline.sources.base import Camera, FrameFormat, Grab, Source

__all__ = [
    "CAMERAS",
    "SOURCES",
    "Camera",
    "FrameFormat",
    "Grab",
    "Source",
    "open_camera",
    "open_source",
    "probe",
]

SOURCES: Final[dict[str, tuple[str, str]]] = {
    "video": ("pipeline.sources.video:VideoRecording", "pipeline.sources.video:probe_video"),
    "recording": (
        "pipeline.sources.recorded:RecordedFrames",
        "pipeline.sources.recorded:probe_recording",
    ),
    "folder": ("pipeline.sources.folder:ImageFolder", "pipeline.sources.folder:probe_folder"),
    "synthetic": (
        "pipeline.sources.conveyor:Conveyor",
        "pipeline.sources.conveyor:probe_conveyor",
    ),
}
"""Kind -> how to open it (config, start) and how to probe it (config), as `module:name`."""

CAMERAS: Final[dict[str, str]] = {
    "rendered": "pipeline.sources.rendered:RenderedCamera",
    "basler": "pipeline.sources.basler:BaslerCamera",
    "aravis": "pipeline.sources.aravis:AravisCamera",
    "stream": "pipeline.sources.stream:StreamCamera",
    "v4l2": "pipeline.sources.v4l2:V4l2Camera",
    "watched": "pipeline.sources.watched:WatchedFolder",
    "push": "pipeline.sources.push:PushCamera",
}
"""Kind -> how to open it (source's configuration, trigger's configuration), as `module:name`."""


def open_camera(config: CameraConfig) -> Camera:
    """The camera, ready to give frames.

    Raises `SourceLost` for one that is not there, `ConfigError` for settings that it refuses.
    """
    camera: Camera = _load(CAMERAS[config.source.kind])(config.source, config.trigger)
    return camera


def open_source(config: SourceConfig, start: int = 0) -> Source:
    """The recording, ready to give frame `start` first: a restarted capture goes on where it was.

    Raises `SourceError` for a source that cannot be read.
    """
    source: Source = _load(SOURCES[config.kind][0])(config, start)
    return source


def probe(config: SourceConfig) -> tuple[int, int, int]:
    """Height, width and channels of the source's frames, cheaply. Raises `SourceError`."""
    if isinstance(config, LiveSource):
        return config.height, config.width, 3 if config.color else 1
    height, width, channels = _load(SOURCES[config.kind][1])(config)
    return height, width, channels


def _load(where: str) -> Any:
    module, name = where.split(":")
    return getattr(import_module(module), name)
