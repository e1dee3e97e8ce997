"""Where frames come from: `open_source` finds the source that a configuration asks for.

A row of `SOURCES` names the module and the class of a kind, so that opening an image folder does
not load the video library. Every module also has `probe_KIND`, the shape without the pixels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from pipeline.config import SourceConfig
from pipeline.errors import ConfigError
from pipeline.sources.base import Grab, Source

__all__ = ["SOURCES", "Grab", "Source", "open_source", "probe"]

SOURCES: Final[dict[str, tuple[str, str]]] = {
    "video": ("pipeline.sources.video:VideoRecording", "pipeline.sources.video:probe_video"),
    "folder": ("pipeline.sources.folder:ImageFolder", "pipeline.sources.folder:probe_folder"),
    "synthetic": (
        "pipeline.sources.conveyor:Conveyor",
        "pipeline.sources.conveyor:probe_conveyor",
    ),
}
"""Kind -> how to open it (config, start) and how to probe it (config), as `module:name`."""


def open_source(config: SourceConfig, start: int = 0) -> Source:
    """The source, ready to give frame `start` first: a restarted capture goes on where it was.

    Raises `SourceError` for a source that cannot be read.
    """
    source: Source = _named(config.kind, 0)(config, start)
    return source


def probe(config: SourceConfig) -> tuple[int, int, int]:
    """Height, width and channels of the source's frames, cheaply. Raises `SourceError`."""
    height, width, channels = _named(config.kind, 1)(config)
    return height, width, channels


def _named(kind: str, column: int) -> Any:
    if kind not in SOURCES:
        raise ConfigError(f"source kind {kind!r}; expected one of {', '.join(SOURCES)}")
    module, name = SOURCES[kind][column].split(":")
    return getattr(import_module(module), name)
