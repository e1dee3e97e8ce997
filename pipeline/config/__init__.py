"""The configuration of a line: strict and typed. The one place where a parameter is defined.

`load(path)` reads YAML and returns a `LineConfig`, or raises `ConfigError` with file, line, key,
what was found and what is expected. Relative paths in a file are relative to the file's folder.
The supervisor hands the result to its stages as `dump_resolved(config)`; they need no YAML.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from pipeline.config.bridges import BridgeConfig, check_pace
from pipeline.config.fixture import FixtureConfig
from pipeline.config.optics import OpticsConfig
from pipeline.config.prepare import PreparationConfig
from pipeline.config.record import RecordingConfig
from pipeline.config.security import SecurityConfig, check_endpoints
from pipeline.config.sources import (
    FolderSource,
    LiveSource,
    SourceConfig,
    SyntheticSource,
    TriggerConfig,
    VideoSource,
    check_devices,
)
from pipeline.config.types import (
    IPC_PATH_LIMIT,
    Endpoint,
    Name,
    PathText,
    Point,
    Strict,
    check_endpoint,
)
from pipeline.wire import replay_endpoint

__all__ = [
    "IPC_PATH_LIMIT",
    "CameraConfig",
    "FolderSource",
    "LineConfig",
    "PartConfig",
    "PathText",
    "PublishConfig",
    "Recipe",
    "SecurityConfig",
    "SourceConfig",
    "Strict",
    "SupervisionConfig",
    "SyntheticSource",
    "VideoSource",
    "WorkerConfig",
    "Zone",
    "dump_resolved",
    "load",
    "load_recipe",
    "load_resolved",
]

PRECISIONS = {
    "tensorrt": ("fp16", "bf16", "f32"),
    "cuda": ("fp16", "bf16", "f32"),
    "openvino": ("int8", "bf16", "f32"),
    "torch": ("f32",),
}
"""As in `models.runtimes.RUNTIMES`; a test holds the two together."""
RUNTIME_NAMES = ("auto", *PRECISIONS, "null")


def _check_runtime(text: str) -> str:
    if text in RUNTIME_NAMES or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", text):
        return text
    guess = difflib.get_close_matches(text, RUNTIME_NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {guess[0]!r}?" if guess else ""
    names = ", ".join(RUNTIME_NAMES)
    raise ValueError(f"one of {names}, or `package.module:factory`{hint}")


def _check_engine(text: str) -> str:
    engines = [f"{name}/{one}" for name, precisions in PRECISIONS.items() for one in precisions]
    if text in engines:
        return text
    guess = difflib.get_close_matches(text, engines, n=1, cutoff=0.5)
    hint = f"; did you mean {guess[0]!r}?" if guess else ""
    raise ValueError(f"runtime/precision, one of {', '.join(engines)}{hint}")


RuntimeName = Annotated[str, AfterValidator(_check_runtime)]
EngineName = Annotated[str, AfterValidator(_check_engine)]
Core = Annotated[int, Field(ge=0, le=65535)]


class Zone(Strict):
    """A polygon in frame pixels. Outside every `include` zone nothing is inspected."""

    name: str = ""
    mode: Literal["include", "exclude"] = "exclude"
    polygon: tuple[Point, ...] = Field(min_length=3)
    threshold_factor: PositiveFloat = 1.0
    """Defects in this zone need this many times the threshold (include zones only)."""
    min_area_px: int | None = Field(default=None, ge=0)
    """Defects with their peak in this zone must be so large; None: as the recipe says."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        points = self.polygon
        pairs = zip(points, points[1:] + points[:1], strict=True)
        if len(set(points)) < 3 or not any(
            (x1 - points[0][0]) * (y0 - points[0][1]) != (x0 - points[0][0]) * (y1 - points[0][1])
            for (x0, y0), (x1, y1) in pairs
        ):
            raise ValueError("a polygon with an area: at least three corners not on one line")
        if self.mode == "exclude" and (
            self.threshold_factor != 1.0 or self.min_area_px is not None
        ):
            raise ValueError(
                "no threshold_factor or min_area_px in an exclude zone, where nothing is "
                "inspected; write `mode: include`, or leave them out"
            )
        return self


class Recipe(Strict):
    """How one camera's maps become verdicts. None takes what the bundle suggests."""

    image_threshold: PositiveFloat | None = None
    pixel_threshold: PositiveFloat | None = None
    min_area_px: int = Field(default=0, ge=0)
    merge_px: int = Field(default=8, ge=0)
    max_boxes: int = Field(default=64, ge=1, le=4096)
    """At most as many as a message may hold (`pipeline.wire`)."""
    box_fraction: float = Field(default=0.5, ge=0, lt=1)
    """A box spans the cells of its component above this fraction of the component's peak."""
    spread_px: int = Field(default=0, ge=0)
    """Then its sides move inwards by so much, for the network's wide view."""
    box_margin_px: int = Field(default=0, ge=0, le=1000)
    """At last it is drawn larger by so much on every side, as people draw boxes."""
    edge_px: int = Field(default=0, ge=0, le=10_000)
    """Along the frame's sides, whatever its size, so much is not inspected: where a part ends with
    the picture, and what is beyond cannot be seen."""
    zones: tuple[Zone, ...] = ()
    optics: OpticsConfig = OpticsConfig()
    fixture: FixtureConfig | None = None
    """Zones lie on the part, wherever it is found; None: they lie in the frame."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.edge_px and self.fixture is not None:
            raise ValueError(
                "no `edge_px` with a `fixture`: what is inspected moves with the part; draw a zone "
                "of `mode: include` on it instead"
            )
        return self


class CameraConfig(Strict):
    source: SourceConfig
    slots: int = Field(default=8, ge=2, le=4096)
    fps: PositiveFloat | None = None
    """Pace of a recorded or synthetic source; None: as fast as slots come free."""
    on_full: Literal["drop", "wait"] = "drop"
    deadline_ms: PositiveFloat | None = 500.0
    continuous: bool = False
    """Frames are blocks of consecutive lines of an endless web: each is inspected in its real
    surroundings, the last 64 lines of the block before it. Blocks have one size, at least 64 lines
    and a multiple of 8; what becomes of coordinates is in `pipeline.web`."""
    prepare: PreparationConfig = PreparationConfig()
    trigger: TriggerConfig = TriggerConfig()
    recipe: Recipe = Recipe()
    """In a YAML file it may be the name of one (`linewatch recipe set` keeps its history)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.continuous and self.source.kind == "synthetic":
            raise ValueError(
                "`continuous: true` with a folder or video of blocks of one web; rendered frames "
                "show single parts: leave `continuous` out"
            )
        if self.source.kind == "recording" and self.prepare != PreparationConfig():
            raise ValueError(
                "no `prepare` with a recording: its frames were prepared before they were "
                "recorded; write `kind: video` for one whose frames were not"
            )
        if self.continuous and (self.prepare.lens is not None or self.prepare.rotate):
            raise ValueError(
                "no `lens` and no `rotate` in `prepare` with `continuous: true`: a web's lines "
                "stay lines, in their order"
            )
        if self.continuous and self.recipe.edge_px:
            raise ValueError(
                "no `edge_px` in the recipe with `continuous: true`: a web goes on above and below "
                "each block; exclude its left and right side by zones"
            )
        if self.continuous and self.trigger.mode != "free":
            raise ValueError("no `trigger` with `continuous: true`: a web's lines never pause")
        is_live = isinstance(self.source, LiveSource) and not self.source.can_wait
        if is_live and self.on_full == "wait":
            raise ValueError(
                f"`on_full: drop` with a {self.source.kind} source: a camera waits for nobody"
            )
        by_software = self.trigger.mode in ("software", "encoder")
        if by_software and isinstance(self.source, LiveSource) and not self.source.can_trigger:
            raise ValueError(
                f"trigger.mode free, every or hardware with a {self.source.kind} source: it cannot "
                "be told to take a frame"
            )
        if isinstance(self.source, LiveSource) and self.fps is not None:
            raise ValueError(
                f"no `fps` with a {self.source.kind} source: it is the pace of a recording, and a "
                "camera has its own (`frame_rate` of its source, where it can be set)"
            )
        return self


class WorkerConfig(Strict):
    bundle: PathText | None = None
    runtime: RuntimeName = "auto"
    """auto, tensorrt, cuda, openvino, torch, null, or `package.module:factory` of your own."""
    precision: Literal["auto", "f32", "bf16", "fp16", "int8"] = "auto"
    fallback: tuple[EngineName, ...] = ()
    """`runtime/precision` each: what is taken, in this order, when the configured engine cannot be
    opened or is refused. The bundle must have thresholds for each. (): the line does not start."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Of the engine on the CPU; 0: as many as `cores` names, else the engine's choice."""
    max_batch: int = Field(default=4, ge=1, le=256)
    max_wait_ms: float = Field(default=0.0, ge=0)
    """How long a frame may wait for others to share a batch; 0: not at all."""
    cores: tuple[Core, ...] = ()
    """CPU cores that the worker's engine may use; () all: give capture and decision the others."""


class PublishConfig(Strict):
    endpoint: Endpoint = "tcp://127.0.0.1:5601"
    replay_endpoint: Endpoint | None = None
    """Where subscribers fetch what they have not received; None: `replay`."""
    catch_up: bool = True
    """Whether subscribers can fetch at all: a process of its own."""
    heartbeat_ms: PositiveInt = 50
    durability: Literal["process", "power"] = "process"
    """What a published verdict survives: `kill -9` at once and a power cut after 100 ms, or both
    at once."""
    keep_days: PositiveFloat = 30.0
    keep_mb: int = Field(default=8192, ge=64)
    """The journal's size; the oldest rows go first."""

    @property
    def replay(self) -> str:
        """The port after that of `endpoint`, or its path with `.replay`, where nothing is said."""
        return self.replay_endpoint or replay_endpoint(self.endpoint)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.replay_endpoint is None:
            try:
                check_endpoint(self.replay)
            except ValueError as error:
                raise ValueError(
                    f"a `replay_endpoint`, as {self.replay} cannot be one: {error}"
                ) from error
        return self


class ControlConfig(Strict):
    endpoint: Endpoint | None = None
    """Where triggers are taken and questions answered; None: a socket in the run directory."""


class SupervisionConfig(Strict):
    heartbeat_timeout_ms: PositiveInt = 3000
    start_timeout_ms: PositiveInt = 60000
    restarts: int = Field(default=5, ge=0)
    restart_window_s: PositiveFloat = 60.0
    drain_timeout_s: PositiveFloat = 30.0


class PartConfig(Strict):
    """Views that are one part: a frame of each of these cameras for each trigger."""

    views: dict[Name, PositiveInt] = Field(min_length=1)
    """Camera -> frames that it gives for each trigger."""
    deadline_ms: PositiveFloat = 500.0
    """From the trigger, or without one from the first view, to the part's verdict."""


class LineConfig(Strict):
    station: Name
    run_dir: PathText | None = None
    state_dir: PathText | None = None
    shm_dir: PathText = "/dev/shm"
    """Where the rings are made: a tmpfs, or a hugetlbfs with room for them."""
    cameras: dict[Name, CameraConfig] = Field(min_length=1)
    parts: dict[Name, PartConfig] = Field(default_factory=dict)
    """Cameras that are in none: each of their frames is a part of its own."""
    worker: WorkerConfig = WorkerConfig()
    publish: PublishConfig = PublishConfig()
    control: ControlConfig = ControlConfig()
    recording: RecordingConfig | None = None
    supervision: SupervisionConfig = SupervisionConfig()
    security: SecurityConfig | None = None
    bridges: dict[Name, BridgeConfig] = Field(default_factory=dict)
    """Who tells a PLC; one process each."""

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        check_devices({name: camera.source for name, camera in self.cameras.items()})
        return self

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        seen: set[str] = set()
        for name, part in self.parts.items():
            for camera in part.views:
                if camera not in self.cameras or camera in seen:
                    raise ValueError(
                        f"parts.{name}.views: cameras of this line, each in one part; "
                        f"{camera!r} is {'in two' if camera in seen else 'none of them'}"
                    )
                seen.add(camera)
            asked = {self.cameras[c].trigger.mode not in ("free", "every") for c in part.views}
            if len(asked) > 1:
                raise ValueError(
                    f"parts.{name}.views: cameras that all take triggers, or none of them; a "
                    "`free` one gives no frame for a trigger"
                )
        return self

    @model_validator(mode="after")
    def _check_bridges(self) -> Self:
        check_pace(self.bridges, self.publish.heartbeat_ms)
        for name, bridge in self.bridges.items():
            if bridge.target and bridge.target not in (*self.parts, *self.cameras):
                raise ValueError(
                    f"bridges.{name}.target: a part or a camera of this line, and "
                    f"{bridge.target!r} is neither"
                )
        return self

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        check_endpoints(self, self.security)
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        deadlines = [c.deadline_ms for c in self.cameras.values() if c.deadline_ms is not None]
        if deadlines and self.worker.max_wait_ms >= min(deadlines):
            raise ValueError(
                f"worker.max_wait_ms below the shortest deadline_ms, {min(deadlines):g}, and it is "
                f"{self.worker.max_wait_ms:g}: frames that wait for a batch would all be late"
            )
        return self


def load(path: Path) -> LineConfig:
    """The configuration in a YAML file. Raises `ConfigError` that lists every fault in it."""
    from pipeline.config.file import read_model  # the stages load no YAML

    folder = path.absolute().parent
    return read_model(
        path, LineConfig, {"folder": folder}, lambda root: _read_recipes(root, folder)
    )


def _read_recipes(root: object, folder: Path) -> None:
    """Put the recipes in the place of the names of their files."""
    cameras = root.get("cameras") if isinstance(root, dict) else None
    for camera in cameras.values() if isinstance(cameras, dict) else ():
        if isinstance(camera, dict) and isinstance(camera.get("recipe"), str):
            camera["recipe"] = load_recipe(folder / camera["recipe"]).model_dump()


def load_recipe(path: Path) -> Recipe:
    """A recipe in a YAML file of its own. Raises `ConfigError` that lists every fault in it."""
    from pipeline.config.file import read_model

    return read_model(path, Recipe, {"folder": path.absolute().parent})


def dump_resolved(config: LineConfig) -> str:
    """The configuration as JSON, for `load_resolved` in another process."""
    return config.model_dump_json()


def load_resolved(text: str) -> LineConfig:
    """What `dump_resolved` wrote: equal to the configuration that it was given."""
    return LineConfig.model_validate_json(text)
