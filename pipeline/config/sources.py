"""Where a camera's frames come from, and what lets it take one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from pipeline.config.types import Endpoint, PathText, Side, Strict, is_local

STREAM_SCHEMES: Final = ("rtsp", "rtsps", "http", "https")
A_DAY_MS: Final = 86_400_000.0


class VideoSource(Strict):
    kind: Literal["video"]
    path: PathText
    loop: bool = False


class RecordedSource(Strict):
    """What a line recorded (`pipeline.sources.recorded`): ids and times are repeated."""

    kind: Literal["recording"]
    path: PathText
    """A file, or a folder of consecutive ones."""
    realtime: bool = False
    """At the pace at which the frames were taken, pauses over a second cut to a second."""


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


class LiveSource(Strict):
    """A camera, or what stands for one: it may be absent, lost or frozen, and comes back.

    Its frames have this size, before any preparation, whether it is there at the start or not.
    """

    can_wait: ClassVar[bool] = False
    """Whether its frames may wait for a slot: see `on_full`."""
    can_trigger: ClassVar[bool] = False
    """Whether the line can tell it to take a frame."""
    kind: str
    width: Side
    height: Side
    color: bool = False
    """RGB frames; a Bayer pattern counts as one channel, and becomes RGB in the preparation."""
    frozen_ms: PositiveFloat = 2000.0
    """A free running camera that gives no frame for so long is opened anew."""
    retry_s: PositiveFloat = 5.0
    """The longest pause between two tries to reach a camera; the first ones come sooner."""


class RenderedSource(LiveSource):
    """A rendered conveyor that behaves as a camera: for trying triggers, parts and faults."""

    can_trigger = True
    kind: Literal["rendered"]
    width: Side = 1024
    height: Side = 768
    frame_rate: PositiveFloat = 10.0
    """Frames per second, free running."""
    seed: int = Field(default=1, ge=0, lt=2**63)
    defect_share: float = Field(default=0.2, ge=0, le=1)
    faults: PathText | None = None
    """A file that makes it fail while it holds `absent`, `freeze`, `hang` or `drop`."""


def _check_pixel_format(name: str) -> str:
    from pipeline.sources.pixel_formats import PIXEL_FORMATS, expected_instead_of  # it imports this

    if name not in PIXEL_FORMATS:
        raise ValueError(expected_instead_of(name))
    return name


def _check_feature(value: object, check: ValidatorFunctionWrapHandler) -> object:
    try:
        return check(value)
    except ValidationError:
        raise ValueError("true, false, a finite number or text") from None


PixelFormatName = Annotated[str, AfterValidator(_check_pixel_format)]
FeatureName = Annotated[str, Field(min_length=1)]
FeatureValue = Annotated[bool | int | float | str, WrapValidator(_check_feature)]


class GenicamSource(LiveSource):
    """What GenICam cameras have in common, whichever library reaches them.

    `width` and `height` are the region of the sensor that is read, from the offset on. Where None
    is allowed, the camera keeps what it has.
    """

    can_trigger = True
    serial: str | None = Field(default=None, min_length=1)
    """None, without an address either: the only camera that there is."""
    address: str | None = Field(default=None, min_length=1)
    """IP address, of GigE cameras."""
    pixel_format: PixelFormatName = "Mono8"
    """As in the PFNC; `pipeline.sources.pixel_formats` has those that are read."""
    offset_x: NonNegativeInt = 0
    offset_y: NonNegativeInt = 0
    exposure_us: PositiveFloat | None = None
    gain: float | None = None
    """In the camera's unit, mostly dB."""
    frame_rate: PositiveFloat | None = None
    """Frames per second, free running."""
    trigger_line: str = Field(default="Line1", min_length=1)
    """The input that a hardware trigger comes in on."""
    trigger_edge: Literal["rising", "falling"] = "rising"
    packet_size: PositiveInt | None = None
    """Bytes, of GigE cameras."""
    features: dict[FeatureName, FeatureValue] = Field(default_factory=dict)
    """Any further ones by their GenICam names, set in this order, before all others."""

    @model_validator(mode="after")
    def _check_color(self) -> Self:
        from pipeline.sources.pixel_formats import pixel_format

        pixels = pixel_format(self.pixel_format)
        if pixels.channels == 3 and not self.color:
            raise ValueError(
                f"`color: true` with the pixel_format {pixels.name}; for one channel take a Mono "
                "or Bayer format"
            )
        if self.color and pixels.channels == 1 and not pixels.bayer:
            raise ValueError(
                f"`color: false` with the pixel_format {pixels.name}; for colour take an RGB or "
                "Bayer format"
            )
        return self


class BaslerSource(GenicamSource):
    """A Basler camera, or one that Basler's software emulates, through pypylon."""

    kind: Literal["basler"]


class AravisSource(GenicamSource):
    """Any GigE Vision or USB3 Vision camera, through Aravis."""

    kind: Literal["aravis"]


def check_devices(sources: Mapping[str, Strict]) -> None:
    """Raises `ValueError` when two cameras of a line may be one and the same."""
    genicam = {name: one for name, one in sources.items() if isinstance(one, GenicamSource)}
    seen: dict[tuple[str, str], str] = {}
    for name, source in genicam.items():
        for key, value in (("serial", source.serial), ("address", source.address)):
            if value is None:
                continue
            other = seen.setdefault((key, value), name)
            if other != name:
                raise ValueError(
                    f"cameras.{name}.source.{key}: a camera of its own, and {value!r} is that of "
                    f"cameras.{other}; `linewatch cameras` lists those that are connected"
                )
        alike = [one for one in genicam.values() if one.kind == source.kind]
        if len(alike) > 1 and source.serial is None and source.address is None:
            raise ValueError(
                f"cameras.{name}.source: a serial or an address, as this line has {len(alike)} "
                f"{source.kind} cameras; `linewatch cameras` lists those that are connected"
            )
    for name, one in sources.items():
        for key in ("device", "path", "endpoint") if isinstance(one, LiveSource) else ():
            value = getattr(one, key, None)
            other = name if value is None else seen.setdefault((key, value), name)
            if other != name:
                raise ValueError(
                    f"cameras.{name}.source.{key}: one of its own, and {value!r} is that of "
                    f"cameras.{other}"
                )


def _check_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in STREAM_SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address, a port that is no number
        usable = False
    if not usable or re.search(r"\s", text):
        raise ValueError(
            f"{', '.join(STREAM_SCHEMES)} and an address, such as rtsp://10.0.0.7:554/stream1"
        )
    return text


def _check_device(device: object) -> object:
    """An index is the device of that number."""
    is_index = isinstance(device, int) and not isinstance(device, bool) and device >= 0
    return f"/dev/video{device}" if is_index else device


def _check_fourcc(code: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9 ]{4}", code):
        raise ValueError("four characters, such as YUYV, MJPG or GREY")
    return code


def _check_part_id(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"a regular expression, and this is none: {error}") from error
    if "part_id" not in groups:
        raise ValueError("a regular expression with a group (?P<part_id>...)")
    return pattern


class StreamSource(LiveSource):
    """A network camera's RTSP or HTTP stream, in whatever codec."""

    kind: Literal["stream"]
    url: Annotated[str, AfterValidator(_check_url)]
    transport: Literal["tcp", "udp"] = "tcp"
    """What RTSP's pictures travel by. udp never waits for a lost packet: the frame is broken."""
    read_timeout_ms: PositiveFloat = 3000.0
    """A server that sends nothing for so long is lost."""


class V4l2Source(LiveSource):
    """A camera of Video4Linux."""

    kind: Literal["v4l2"]
    device: Annotated[PathText, BeforeValidator(_check_device)] = "/dev/video0"
    fourcc: Annotated[str, AfterValidator(_check_fourcc)] | None = None
    frame_rate: PositiveFloat | None = None


class WatchedSource(LiveSource):
    """A folder into which another program puts images."""

    can_wait = True
    kind: Literal["watched"]
    path: PathText
    after: Literal["keep", "delete", "move"] = "keep"
    """What becomes of an image that was taken."""
    move_to: PathText | None = None
    existing: bool = False
    """Take the images that are there at the start too; `delete` and `move` always do."""
    settle_ms: PositiveFloat = 200.0
    poll_ms: PositiveFloat = 20.0
    part_id: Annotated[str, AfterValidator(_check_part_id)] | None = None
    """A regular expression with a group `part_id`, searched for in the file's name."""
    frozen_ms: PositiveFloat = A_DAY_MS
    """A folder may be quiet."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.after == "move") != (self.move_to is not None):
            raise ValueError("`move_to: FOLDER` with `after: move`, and with nothing else")
        if self.move_to is not None and Path(self.move_to).resolve() == Path(self.path).resolve():
            raise ValueError("`move_to` another folder than `path`")
        return self


class PushSource(LiveSource):
    """A socket that takes frames from a program which owns its camera. See docs/push.md."""

    can_wait = True
    kind: Literal["push"]
    endpoint: Endpoint
    secret_key: PathText | None = None
    """The line's CURVE key; with `allow`, and required off this machine."""
    allow: PathText | None = None
    """Folder of the public keys of the programs that may push."""
    frozen_ms: PositiveFloat = A_DAY_MS
    """A program may be quiet."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.secret_key is None) != (self.allow is None):
            raise ValueError("`secret_key` and `allow`, or neither of them")
        if self.secret_key is None and not is_local(self.endpoint):
            raise ValueError(
                f"`secret_key` and `allow` with {self.endpoint}, which other machines can reach "
                "(see `linewatch keys make --help`), or an address of this machine only, such as "
                "tcp://127.0.0.1:5610"
            )
        return self


SourceConfig = Annotated[
    VideoSource
    | RecordedSource
    | FolderSource
    | SyntheticSource
    | RenderedSource
    | BaslerSource
    | AravisSource
    | StreamSource
    | V4l2Source
    | WatchedSource
    | PushSource,
    Field(discriminator="kind"),
]


class TriggerConfig(Strict):
    """What makes a frame one that is to be inspected, and which trigger it belongs to."""

    mode: Literal["free", "every", "software", "hardware", "encoder"] = "free"
    """free: every frame. every: each `every`-th. software: the control socket's `trigger` makes the
    camera take a frame. encoder: as software, by the counts that the control socket is told.
    hardware: the camera's own input line; triggers that the control socket is told of as well are
    expected to have a frame."""
    every: PositiveInt = 1
    counts: PositiveInt = 1
    """Encoder counts from one trigger to the next."""
    timeout_ms: PositiveFloat = 200.0
    """From a trigger to its frame: then it is `invalid/no_frame`."""
