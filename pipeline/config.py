"""The configuration of a line: strict and typed. The one place where a parameter is defined.

`load(path)` reads YAML and returns a `LineConfig`, or raises `ConfigError` with file, line, key,
what was found and what is expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")]
Point = tuple[int, int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class VideoSource(Strict):
    kind: Literal["video"]
    path: str
    loop: bool = False


class FolderSource(Strict):
    kind: Literal["folder"]
    path: str
    color: bool = False


class SyntheticSource(Strict):
    kind: Literal["synthetic"]
    width: PositiveInt = 1024
    height: PositiveInt = 768
    color: bool = False
    seed: int = 1
    frames: int | None = Field(default=None, ge=0)
    defect_share: float = Field(default=0.2, ge=0, le=1)
    prerender: int = Field(default=0, ge=0)


SourceConfig = Annotated[VideoSource | FolderSource | SyntheticSource, Field(discriminator="kind")]


class Zone(Strict):
    """A polygon in frame pixels. Outside every `include` zone nothing is inspected."""

    name: str = ""
    mode: Literal["include", "exclude"] = "exclude"
    polygon: tuple[Point, ...] = Field(min_length=3)
    threshold_factor: PositiveFloat = 1.0
    """Defects in this zone need this many times the threshold (include zones only)."""


class Recipe(Strict):
    """How one camera's maps become verdicts. None takes what the bundle suggests."""

    image_threshold: PositiveFloat | None = None
    pixel_threshold: PositiveFloat | None = None
    min_area_px: int = Field(default=0, ge=0)
    merge_px: int = Field(default=8, ge=0)
    max_boxes: PositiveInt = 64
    box_fraction: float = Field(default=0.5, ge=0, lt=1)
    """A box spans the cells of its component above this fraction of the component's peak."""
    zones: tuple[Zone, ...] = ()


class CameraConfig(Strict):
    source: SourceConfig
    slots: int = Field(default=8, ge=2, le=4096)
    fps: PositiveFloat | None = None
    """Pace of a recorded or synthetic source; None: as fast as slots come free."""
    on_full: Literal["drop", "wait"] = "drop"
    deadline_ms: PositiveFloat | None = 500.0
    recipe: Recipe = Recipe()


class WorkerConfig(Strict):
    bundle: str | None = None
    runtime: str = "auto"
    """auto, torch, openvino, null, or `package.module:factory` of your own."""
    precision: Literal["auto", "f32", "bf16"] = "auto"
    threads: int = Field(default=0, ge=0)
    max_batch: PositiveInt = 4


class PublishConfig(Strict):
    endpoint: str = "tcp://127.0.0.1:5601"
    heartbeat_ms: PositiveInt = 200


class SupervisionConfig(Strict):
    heartbeat_timeout_ms: PositiveInt = 3000
    start_timeout_ms: PositiveInt = 60000
    restarts: int = Field(default=5, ge=0)
    restart_window_s: PositiveFloat = 60.0
    drain_timeout_s: PositiveFloat = 30.0


class LineConfig(Strict):
    station: Name
    run_dir: str | None = None
    state_dir: str | None = None
    cameras: dict[Name, CameraConfig] = Field(min_length=1)
    worker: WorkerConfig = WorkerConfig()
    publish: PublishConfig = PublishConfig()
    supervision: SupervisionConfig = SupervisionConfig()


def load(path: Path) -> LineConfig:
    raise NotImplementedError
