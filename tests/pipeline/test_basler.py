"""Basler cameras, on the emulator that comes with Basler's software."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import CameraConfig
from pipeline.config.sources import BaslerSource, TriggerConfig
from pipeline.errors import ConfigError, RuntimeUnavailable, SourceLost
from pipeline.sources import FrameFormat, Grab, open_camera
from pipeline.sources.basler import BaslerCamera, find_cameras
from pipeline.sources.stamp import read_stamp, write_stamp
from pipeline.types import Reason

ROOT = Path(__file__).parents[2]
SERIALS = [f"0815-000{number}" for number in range(4)]
LONG_MS = 20_000
"""For a frame that will come: however slow the machine is."""

Open = Callable[..., BaslerCamera]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens cameras (source's keys, or `mode` of the trigger), and closes them in the end."""
    cameras: list[BaslerCamera] = []

    def open_one(mode: str = "free", **keys: object) -> BaslerCamera:
        source = {"kind": "basler", "serial": SERIALS[0], "width": 320, "height": 64, **keys}
        trigger = TriggerConfig.model_validate({"mode": mode})
        cameras.append(BaslerCamera(BaslerSource.model_validate(source), trigger))
        return cameras[-1]

    yield open_one
    for camera in cameras:
        camera.close()


def next_grab(camera: BaslerCamera) -> Grab:
    grab = camera.read(LONG_MS)
    assert grab is not None
    return grab


def pixels_of(camera: BaslerCamera, grab: Grab) -> NDArray[Any]:
    assert grab.fault is None, grab.detail
    frame = np.empty(camera.format.shape_hwc, camera.format.dtype)
    grab.write(frame)
    return frame


def playback(folder: Path) -> dict[str, bool | int | float | str]:
    return {"TestImageSelector": "Off", "ImageFilename": str(folder), "ImageFileMode": "On"}


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five noisy images with their numbers in them."""
    folder = tmp_path_factory.mktemp("stamped")
    for number, image in enumerate(noise(5)):
        write_stamp(image, number)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def noise(count: int) -> Iterator[NDArray[np.uint8]]:
    generator = np.random.default_rng(7)
    for _ in range(count):
        yield generator.integers(0, 256, (64, 320), np.uint8)


def test_a_folder_is_played_back_pixel_by_pixel(opened: Open, stamped: Path) -> None:
    camera = opened(features=playback(stamped))
    assert camera.format == FrameFormat(64, 320)
    paths = [stamped / f"{number}.png" for number in range(5)]
    files = [np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)) for path in paths]
    for index in range(12):
        grab = next_grab(camera)
        assert (grab.index, grab.pts) == (index, -1)  # the emulator has no clock
        frame = pixels_of(camera, grab)
        assert read_stamp(frame) == index % 5
        assert np.array_equal(frame[:, :, 0], files[index % 5])


def test_frames_go_into_strided_rows(opened: Open, stamped: Path) -> None:
    camera = opened(features=playback(stamped))
    slot = np.full((70, 340, 1), 9, np.uint8)
    next_grab(camera).write(slot[3:67, 10:330])
    assert read_stamp(slot[3:67, 10:330]) == 0
    slot[3:67, 10:330] = 9
    assert (slot == 9).all()


def test_four_cameras_at_once_by_their_serials(opened: Open, stamped: Path) -> None:
    cameras = [opened(serial=serial, features=playback(stamped)) for serial in SERIALS]
    for index in range(3):
        for camera, serial in zip(cameras, SERIALS, strict=True):
            grab = next_grab(camera)
            assert (grab.index, read_stamp(pixels_of(camera, grab))) == (index, index)
            assert camera.settings()["DeviceSerialNumber"] == serial


def test_a_grab_that_is_dropped_gives_its_buffer_back(opened: Open, stamped: Path) -> None:
    camera = opened(features=playback(stamped), frame_rate=200.0)
    for index in range(40):  # many more than there are buffers
        assert next_grab(camera).index == index


def test_the_frame_rate_is_the_camera_s(opened: Open) -> None:
    camera = opened(frame_rate=20.0)
    assert camera.settings()["AcquisitionFrameRate"] == 20.0
    next_grab(camera)
    start = time.monotonic()
    for _ in range(6):
        next_grab(camera)
    assert time.monotonic() - start > 5 / 20 * 0.8


def test_settings_are_those_read_back(opened: Open) -> None:
    camera = opened(
        exposure_us=1234.0,
        gain=3.3,
        offset_x=8,
        offset_y=16,
        packet_size=8192,
        features={"BlackLevel": 4, "Gamma": 0.5, "ReverseX": True, "BinningHorizontal": 2},
    )
    expected: Mapping[str, object] = {
        "DeviceSerialNumber": SERIALS[0],
        "DeviceModelName": "CamEmu",
        "PixelFormat": "Mono8",
        "Width": 320,
        "Height": 64,
        "OffsetX": 8,
        "OffsetY": 16,
        "ExposureTime": 1234.0,
        "Gain": pytest.approx(3.3, abs=0.001),
        "TriggerSelector": "FrameStart",
        "TriggerMode": "Off",
        "GevSCPSPacketSize": 8192,
        "BlackLevel": pytest.approx(4.0),
        "Gamma": pytest.approx(0.5),
        "ReverseX": True,
        "BinningHorizontal": 2,
    }
    found = camera.settings()
    assert {name: found[name] for name in expected} == expected
    assert found["DeviceFirmwareVersion"]


# Colour filters of the first two rows of a Bayer pattern, as channels of RGB.
FILTERS = {
    "RG": ((0, 1), (1, 2)),
    "GR": ((1, 0), (2, 1)),
    "GB": ((1, 2), (0, 1)),
    "BG": ((2, 1), (1, 0)),
}
MONO = [("Mono8", 8), ("Mono10", 10), ("Mono12", 12), ("Mono16", 16)]
BAYER = [(f"Bayer{pattern}{bits}", bits) for pattern in FILTERS for bits in (8, 10, 12, 16)]


@pytest.mark.parametrize(("name", "bits"), MONO)
def test_mono_formats(opened: Open, tmp_path: Path, name: str, bits: int) -> None:
    """Odd sizes, of an image of 16 bits."""
    image = np.random.default_rng(3).integers(0, 2**16, (41, 55), np.uint16)
    cv2.imwrite(str(tmp_path / "0.png"), image)
    camera = opened(width=55, height=41, pixel_format=name, features=playback(tmp_path))
    assert camera.format == FrameFormat(41, 55, 1, bits)
    assert np.array_equal(pixels_of(camera, next_grab(camera))[:, :, 0], image >> (16 - bits))


@pytest.mark.parametrize(("name", "bits"), BAYER)
def test_bayer_formats(opened: Open, tmp_path: Path, name: str, bits: int) -> None:
    """The emulator makes the mosaic of a colour image: each filter in its place."""
    image = np.random.default_rng(4).integers(0, 256, (41, 55, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), image[:, :, ::-1])
    camera = opened(width=55, height=41, pixel_format=name, features=playback(tmp_path))
    assert camera.format == FrameFormat(41, 55, 1, bits, name[5:7])
    frame = pixels_of(camera, next_grab(camera))[:, :, 0]
    for y in range(2):
        for x in range(2):
            wanted = image[y::2, x::2, FILTERS[name[5:7]][y][x]].astype(int) << (bits - 8)
            assert np.array_equal(frame[y::2, x::2], wanted)


@pytest.mark.parametrize("name", ["RGB8Packed", "BGR8Packed"])
def test_colour_formats_give_rgb(opened: Open, tmp_path: Path, name: str) -> None:
    image = np.random.default_rng(5).integers(0, 256, (41, 55, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "0.png"), image[:, :, ::-1])
    keys: dict[str, Any] = {"pixel_format": name, "color": True, "features": playback(tmp_path)}
    camera = opened(width=55, height=41, **keys)
    assert camera.format == FrameFormat(41, 55, 3)
    assert np.array_equal(pixels_of(camera, next_grab(camera)), image)


@pytest.mark.parametrize("mode", ["software", "encoder"])
def test_a_triggered_camera_gives_a_frame_for_each_trigger(
    opened: Open, stamped: Path, mode: str
) -> None:
    camera = opened(mode, features=playback(stamped))
    assert camera.read(0) is None
    assert camera.read(60) is None
    for index in range(3):
        camera.trigger()
        grab = next_grab(camera)
        assert (grab.index, read_stamp(pixels_of(camera, grab))) == (index, index)
    for _ in range(3):  # one after the other: each waits until the camera has done with the last
        camera.trigger()
    assert [next_grab(camera).index for _ in range(3)] == [3, 4, 5]
    assert camera.read(60) is None


def test_a_hardware_trigger_waits_for_its_line(opened: Open) -> None:
    camera = opened("hardware", trigger_line="Line2", trigger_edge="falling")
    assert camera.read(150) is None
    names = ("TriggerMode", "TriggerSource", "TriggerActivation", "TriggerSelector")
    found = [camera.settings()[name] for name in names]
    assert found == ["On", "Line2", "FallingEdge", "FrameStart"]
    with pytest.raises(ConfigError, match="cannot be triggered"):
        camera.trigger()


def test_a_free_running_camera_waits_for_no_trigger(opened: Open) -> None:
    """Whatever its further features, or an earlier program, left on."""
    on = {"TriggerSelector": "FrameStart", "TriggerMode": "On", "TriggerSource": "Line1"}
    with pytest.raises(ConfigError, match="no_such"):
        opened(features={**on, "no_such": 1})
    assert next_grab(opened(features=on)).index == 0


def test_failed_buffers_are_broken_frames_that_count(opened: Open, stamped: Path) -> None:
    forced = {"ForceFailedBufferCount": 3, "ForceFailedBuffer": True}
    camera = opened(features={**playback(stamped), **forced})
    grabs = [next_grab(camera) for _ in range(6)]
    assert [grab.index for grab in grabs] == list(range(6))
    assert [grab.fault for grab in grabs] == [Reason.BROKEN_FRAME] * 3 + [None] * 3
    assert "incompletely grabbed" in grabs[0].detail
    assert "0x" in grabs[0].detail
    assert read_stamp(pixels_of(camera, grabs[3])) == 3


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"width": 5000}, ["Width 5000", "1 to 4096 in steps of 1"]),
        ({"offset_x": 4000}, ["OffsetX 4000", "0 to 3776"]),
        ({"pixel_format": "Mono12p"}, ["'Mono12p'", "one of Mono8, Mono10, Mono12, Mono16"]),
        ({"exposure_us": 0.5}, ["ExposureTime 0.5", "1 to 10000000 in steps of"]),
        ({"exposure_us": 1.5}, ["ExposureTime 2.0 found after it was set to 1.5"]),
        ({"gain": 99.0}, ["Gain 99.0", "0 to 48"]),
        ({"gain": -1.0}, ["Gain -1.0", "0 to 48"]),
        ({"frame_rate": 1e6}, ["AcquisitionFrameRate 1000000.0", "0.01 to 5000"]),
        ({"packet_size": 100}, ["GevSCPSPacketSize 100", "220 to 9014"]),
        ({"features": {"Gian": 3.0}}, ["no feature Gian"]),
        ({"features": {"": 3.0}}, ["at least 1 character"]),
        ({"features": {"SensorWidth": 2048}}, ["SensorWidth 2048", "not writable"]),
        ({"features": {"ReverseX": 1}}, ["ReverseX 1", "true or false"]),
        ({"features": {"Width": "wide"}}, ["Width 'wide'", "a whole number"]),
        ({"features": {"Gamma": True}}, ["Gamma True", "a number"]),
        ({"features": {"ImageFilename": 3}}, ["ImageFilename 3", "text"]),
        ({"features": {"ForceFailedBuffer": False}}, ["true, which carries out the command"]),
        ({"features": {"GainAuto": "on"}}, ["GainAuto 'on'", "Off, Once, Continuous"]),
        ({"mode": "hardware", "trigger_line": "Line9"}, ["'Line9'", "Software, Line1, Line2"]),
        ({"serial": None}, ["4 Basler cameras found", "Emulation 0815-0003"]),
    ],
)
def test_what_the_camera_does_not_do_is_refused(
    opened: Open, keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises((ConfigError, ValueError)) as caught:
        opened(**keys)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "keys", [{"serial": "24012345"}, {"serial": None, "address": "10.0.0.9"}, {"address": "::1"}]
)
def test_an_absent_camera_is_lost_and_those_connected_are_named(
    opened: Open, keys: dict[str, Any]
) -> None:
    with pytest.raises(SourceLost) as caught:
        opened(**keys)
    assert all(serial in str(caught.value) for serial in SERIALS)
    assert str(keys.get("serial") or keys.get("address")) in str(caught.value)


def test_a_camera_that_is_pulled_out_is_lost_and_can_be_opened_again(opened: Open) -> None:
    camera = opened("software")
    camera.trigger()
    assert next_grab(camera).index == 0
    camera.features.set("FirePnPCallback", True)  # what pylon does when the cable is pulled
    start = time.monotonic()
    with pytest.raises(SourceLost, match="Emulation 0815-0000"):
        camera.read(LONG_MS)
    assert time.monotonic() - start < LONG_MS / 1000 / 2
    with pytest.raises(SourceLost, match="Emulation 0815-0000"):
        camera.trigger()
    camera.close()
    camera.close()
    assert next_grab(opened()).index == 0


def test_a_camera_that_is_lost_while_it_is_set_up(opened: Open) -> None:
    with pytest.raises(SourceLost, match="Emulation 0815-0000"):
        opened(features={"FirePnPCallback": True})


def test_a_camera_opens_by_its_configuration() -> None:
    source = {"kind": "basler", "serial": SERIALS[2], "width": 320, "height": 64}
    camera = open_camera(CameraConfig.model_validate({"source": source}))
    assert isinstance(camera, BaslerCamera)
    camera.close()


def test_the_cameras_that_are_connected() -> None:
    found = find_cameras()
    assert [one.serial for one in found] == SERIALS
    for one in found:
        assert {"Mono8", "BayerRG12", "RGB8Packed"} <= set(one.formats)
        assert "BGRA8Packed" not in one.formats  # not one that is read
        assert BaslerSource.model_validate(one.source).serial == one.serial


LEAKS = """
import os, sys
from pipeline.config.sources import BaslerSource, TriggerConfig
from pipeline.sources.basler import BaslerCamera, find_cameras

def held():
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

source = BaslerSource(kind="basler", serial="0815-0001", width=320, height=64)
counts = []
for _ in range(21):
    camera = BaslerCamera(source, TriggerConfig())
    assert camera.read(20000) is not None
    camera.close()
    counts.append(held())
print(len(find_cameras()) == 4, *(max(each) <= each[0] for each in zip(*counts)), counts)
"""


def run_python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=200,
    )


def test_opening_and_closing_twenty_times_leaves_nothing_behind() -> None:
    answer = run_python(LEAKS)
    assert answer.stdout.startswith("True True True"), answer.stdout + answer.stderr


def test_the_library_loads_where_warnings_are_errors() -> None:
    program = "from pipeline.sources.basler import Pylon; Pylon.load(); print('loaded')"
    answer = run_python(program, "-W", "error")
    assert (answer.returncode, answer.stdout) == (0, "loaded\n"), answer.stderr


def test_without_the_library_the_error_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['pypylon'] = None\n"
        "from pipeline.errors import RuntimeUnavailable\n"
        "from pipeline.sources.basler import find_cameras\n"
        "try: find_cameras()\n"
        "except RuntimeUnavailable as error: print(error)\n"
    )
    assert "pip install 'linewatch[basler]'" in run_python(program).stdout
    assert RuntimeUnavailable.exit_code == 5
