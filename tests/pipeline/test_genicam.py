"""Settings are set, read back and compared, on a camera of paper that rounds, locks and ignores."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pipeline.config.sources import GenicamSource, TriggerConfig
from pipeline.errors import ConfigError
from pipeline.sources.discover import Found, with_features
from pipeline.sources.genicam import Value, agrees, configure, put, read_back


@dataclass
class PaperCamera:
    """See `pipeline.sources.genicam.Features`."""

    values: dict[str, Value]
    choices: dict[str, list[str]] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)
    told: list[tuple[str, Value]] = field(default_factory=list)
    camera: str = "paper"

    def has(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Value:
        if name in self.unreadable:
            raise ConfigError(f"{name} is not readable")
        return self.values[name]

    def set(self, name: str, value: Value) -> None:
        self.told.append((name, value))
        if name in self.deaf:
            return
        step = self.step(name)
        if step and isinstance(value, int | float):
            value = type(value)(value // step * step)
        self.values[name] = value

    def bounds(self, name: str) -> tuple[float, float] | None:
        return self.limits.get(name)

    def step(self, name: str) -> float:
        return self.steps.get(name, 0.0)

    def entries(self, name: str) -> list[str]:
        return self.choices.get(name, [])


def paper(**further: Value) -> PaperCamera:
    return PaperCamera(
        values={
            **{"PixelFormat": "Mono8", "Width": 640, "Height": 480, "OffsetX": 32, "OffsetY": 8},
            **{"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Line2"},
            **{"TriggerActivation": "RisingEdge", "AcquisitionMode": "SingleFrame"},
            **further,
        },
        choices={
            "PixelFormat": ["Mono8", "Mono12", "YUV422Packed"],
            "TriggerSelector": ["FrameStart", "FrameBurstStart"],
            "TriggerSource": ["Line1", "Line2", "Software"],
        },
        limits={"Width": (16, 1280), "Height": (16, 1024)},
        steps={"Width": 16, "ExposureTime": 0.25},
    )


def source(**keys: object) -> GenicamSource:
    return GenicamSource.model_validate({"kind": "paper", "width": 320, "height": 240} | keys)


FREE = TriggerConfig()


def test_a_region_is_set_from_the_corner_on_and_then_moved() -> None:
    camera = paper()
    configure(camera, source(offset_x=64), FREE)
    region = [told for told in camera.told if told[0] in ("OffsetX", "OffsetY", "Width", "Height")]
    assert region == [
        *[("OffsetX", 0), ("OffsetY", 0), ("Width", 320), ("Height", 240)],
        ("OffsetX", 64),
    ]


def test_further_features_come_first_and_in_their_order() -> None:
    camera = paper(BlackLevel=0.0, BinningVertical=1)
    configure(camera, source(features={"BinningVertical": 2, "BlackLevel": 4.0}), FREE)
    names = [name for name, _ in camera.told]
    assert names.index("BinningVertical") < names.index("BlackLevel") < names.index("PixelFormat")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("free", {"TriggerMode": "Off"}),
        ("every", {"TriggerMode": "Off"}),
        ("software", {"TriggerMode": "On", "TriggerSource": "Software"}),
        ("encoder", {"TriggerMode": "On", "TriggerSource": "Software"}),
        (
            "hardware",
            {"TriggerMode": "On", "TriggerSource": "Line1", "TriggerActivation": "FallingEdge"},
        ),
    ],
)
def test_triggers(mode: str, expected: dict[str, str]) -> None:
    camera = paper()
    configure(camera, source(trigger_edge="falling"), TriggerConfig.model_validate({"mode": mode}))
    assert expected.items() <= camera.values.items()
    assert camera.values["TriggerSelector"] == "FrameStart"
    assert camera.values["AcquisitionMode"] == "Continuous"
    off = camera.told.index(("TriggerSelector", "FrameBurstStart"))
    assert camera.told[off + 1] == ("TriggerMode", "Off")


def test_a_camera_without_a_trigger_of_frames_runs_freely() -> None:
    camera = paper(TriggerSelector="LineStart")
    camera.choices["TriggerSelector"] = ["LineStart"]
    configure(camera, source(), FREE)
    assert camera.values["TriggerMode"] == "Off"


@pytest.mark.parametrize("name", ["ExposureTime", "ExposureTimeAbs"])
def test_older_names_are_tried_and_automatics_switched_off(name: str) -> None:
    camera = paper(**{name: 5.0, "ExposureAuto": "Continuous", "GainRaw": 0, "GainAuto": "Once"})
    configure(camera, source(exposure_us=100.0, gain=2.0), FREE)
    assert camera.values[name] == 100.0
    assert camera.values["GainRaw"] == 2.0
    assert (camera.values["ExposureAuto"], camera.values["GainAuto"]) == ("Off", "Off")


def test_a_frame_rate_is_switched_on_and_only_for_a_camera_that_runs_freely() -> None:
    rate: dict[str, Value] = {"AcquisitionFrameRate": 5.0, "AcquisitionFrameRateEnable": False}
    camera, triggered = paper(**rate), paper(**rate)
    configure(camera, source(frame_rate=30.0), FREE)
    configure(triggered, source(frame_rate=30.0), TriggerConfig(mode="software"))
    assert camera.values["AcquisitionFrameRate"] == 30.0
    assert camera.values["AcquisitionFrameRateEnable"] is True
    assert triggered.values["AcquisitionFrameRateEnable"] is False


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"pixel_format": "Mono10"}, "PixelFormat 'Mono10' found .* one of Mono8, Mono12, YUV"),
        ({"width": 2000}, "Width 2000 found .* expected 16 to 1280 in steps of 16"),
        ({"width": 330}, "Width 320 found after it was set to 330; .* write 320"),
        ({"exposure_us": 9.0}, "none of the features ExposureTime, .* leave exposure_us out"),
        ({"gain": 1.0}, "none of the features Gain, .* leave gain out"),
        ({"frame_rate": 1.0}, "none of the features AcquisitionFrameRate, .* leave frame_rate"),
        ({"packet_size": 8192}, "none of the features GevSCPSPacketSize .* leave packet_size out"),
        ({"features": {"Hue": 1}}, "no feature Hue found, which is to be 1"),
    ],
)
def test_what_the_camera_has_not_is_refused(keys: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=f"camera paper: {expected}"):
        configure(paper(), source(**keys), FREE)


def test_a_camera_that_ignores_what_it_is_told_is_found_out() -> None:
    camera = paper(ReverseX=False)
    camera.deaf = {"ReverseX"}
    with pytest.raises(ConfigError, match="ReverseX False found after it was set to True"):
        put(camera, "ReverseX", True)


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        (100.0, 100.0, True),
        (100.0, 100.9, True),
        (100.0, 102.0, False),
        (0.0, 0.005, True),
        (0.0, 0.5, False),
        (2.0, 2, True),
        (2, 2, True),
        (1000, 1001, False),
        (1, True, False),
        (True, True, True),
        (True, False, False),
        ("On", "On", True),
        ("1", 1, False),
    ],
)
def test_agreement(wanted: Value, found: Value, expected: bool) -> None:
    assert agrees(wanted, found) is expected


def test_what_is_read_back_is_what_the_camera_says() -> None:
    camera = paper(ExposureTime=5.0, Gamma=1.0, DeviceID="secret")
    camera.unreadable = {"DeviceID"}
    configure(camera, source(exposure_us=33.3, features={"Gamma": 0.5}), FREE)
    settings = read_back(camera, source(features={"Gamma": 0.5}))
    assert (settings["ExposureTime"], settings["Gamma"]) == (33.25, 0.5)
    assert settings.keys() <= camera.values.keys()
    assert "DeviceID" not in settings


@pytest.mark.parametrize(
    ("current", "formats", "expected"),
    [
        ("Mono12", ["Mono8", "Mono12", "YUV422Packed"], "Mono12"),
        ("YUV422Packed", ["Mono8", "YUV422Packed"], "Mono8"),
        ("YUV422Packed", ["YUV422Packed"], None),
    ],
)
def test_a_camera_that_is_found_says_what_linewatch_reads(
    current: str, formats: list[str], expected: str | None
) -> None:
    camera = paper(PixelFormat=current)
    camera.choices["PixelFormat"] = formats
    found = with_features(Found("paper", "P1", "7", "here"), camera)
    assert found.source.get("pixel_format") == expected
    assert bool(found.note) == (expected is None)
