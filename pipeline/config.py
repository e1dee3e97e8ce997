"""The configuration of a line: strict and typed. The one place where a parameter is defined.

`load(path)` reads YAML and returns a `LineConfig`, or raises `ConfigError` with file, line, key,
what was found and what is expected. Relative paths in a file are relative to the file's folder.
The supervisor hands the result to its stages as `dump_resolved(config)`; they need no YAML.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

from pipeline.types import MIN_SIDE_PX

PRECISIONS = {
    "tensorrt": ("fp16", "bf16", "f32"),
    "cuda": ("fp16", "bf16", "f32"),
    "openvino": ("int8", "bf16", "f32"),
    "torch": ("f32",),
}
"""As in `models.runtimes.RUNTIMES`; a test holds the two together."""
RUNTIME_NAMES = ("auto", *PRECISIONS, "null")
IPC_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (sun_path less its terminating zero)."""
MAX_SIDE_PX = 65536


def _resolve_path(text: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get("folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"a path whose user is known here, not {text!r}") from error
    return str(path if folder is None else (Path(folder) / path).absolute())


def _check_endpoint(text: str, info: ValidationInfo) -> str:
    if text.startswith("ipc://"):
        name = text.removeprefix("ipc://")
        if not name or name.startswith(("@", "*")):
            raise ValueError("the path of a socket after ipc://, such as ipc:///run/line/out.sock")
        endpoint = "ipc://" + _resolve_path(name, info)
        if len(endpoint.encode()) - len("ipc://") > IPC_PATH_LIMIT:
            raise ValueError(
                f"a socket path of at most {IPC_PATH_LIMIT} bytes, and this one has "
                f"{len(endpoint.encode()) - len('ipc://')}; choose a shorter folder"
            )
        return endpoint
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\[\]:/]+):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(
            "tcp://ADDRESS:PORT with a port from 1 to 65535, or ipc:///PATH, "
            "such as tcp://127.0.0.1:5601"
        )
    if not _is_loopback(match[1].strip("[]")):
        raise ValueError(
            "an address of this machine only, such as tcp://127.0.0.1:5601: verdicts do not "
            "leave the machine unencrypted, and this version has no encryption yet"
        )
    return text


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_resolve_path)]
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
RuntimeName = Annotated[str, AfterValidator(_check_runtime)]
EngineName = Annotated[str, AfterValidator(_check_engine)]
Core = Annotated[int, Field(ge=0, le=65535)]
Coordinate = Annotated[int, Field(ge=-MAX_SIDE_PX, le=MAX_SIDE_PX)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]
Point = tuple[Coordinate, Coordinate]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )


class VideoSource(Strict):
    kind: Literal["video"]
    path: PathText
    loop: bool = False


class FolderSource(Strict):
    kind: Literal["folder"]
    path: PathText
    color: bool = False


class SyntheticSource(Strict):
    kind: Literal["synthetic"]
    width: Side = 1024
    height: Side = 768
    color: bool = False
    seed: int = Field(default=1, ge=0, lt=2**63)
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
    spread_px: int = Field(default=0, ge=0)
    """A box spans the cells of its component above this fraction of the component's peak."""
    zones: tuple[Zone, ...] = ()


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
    recipe: Recipe = Recipe()
    """In a YAML file it may be the name of one (`linewatch recipe set` keeps its history)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.continuous and self.source.kind == "synthetic":
            raise ValueError(
                "`continuous: true` with a folder or video of blocks of one web; rendered frames "
                "show single parts: leave `continuous` out"
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
    heartbeat_ms: PositiveInt = 200


class SupervisionConfig(Strict):
    heartbeat_timeout_ms: PositiveInt = 3000
    start_timeout_ms: PositiveInt = 60000
    restarts: int = Field(default=5, ge=0)
    restart_window_s: PositiveFloat = 60.0
    drain_timeout_s: PositiveFloat = 30.0


class LineConfig(Strict):
    station: Name
    run_dir: PathText | None = None
    state_dir: PathText | None = None
    shm_dir: PathText = "/dev/shm"
    """Where the rings are made: a tmpfs, or a hugetlbfs with room for them."""
    cameras: dict[Name, CameraConfig] = Field(min_length=1)
    worker: WorkerConfig = WorkerConfig()
    publish: PublishConfig = PublishConfig()
    supervision: SupervisionConfig = SupervisionConfig()

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
    from pipeline.configfile import read_model  # the stages load no YAML

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
    from pipeline.configfile import read_model

    return read_model(path, Recipe, {"folder": path.absolute().parent})


def dump_resolved(config: LineConfig) -> str:
    """The configuration as JSON, for `load_resolved` in another process."""
    return config.model_dump_json()


def load_resolved(text: str) -> LineConfig:
    """What `dump_resolved` wrote: equal to the configuration that it was given."""
    return LineConfig.model_validate_json(text)
