"""Aravis against its fake camera: the count of frames, faults on the way, settings, coming back."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from fake_camera import ADDRESS, FIRST_ID, PATIENCE_S, SERIAL, FakeCamera

from pipeline.config.sources import AravisSource, TriggerConfig
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.aravis import AravisCamera
from pipeline.sources.base import Grab
from pipeline.sources.discover import discover
from pipeline.types import Reason

WIDTH, HEIGHT = 256, 128
FREE = TriggerConfig()
SOFTWARE = TriggerConfig(mode="software")


@pytest.fixture
def fake() -> Iterator[FakeCamera]:
    with FakeCamera() as camera:
        yield camera


def source(**keys: object) -> AravisSource:
    settings: dict[str, object] = {
        "kind": "aravis",
        "address": ADDRESS,
        "width": WIDTH,
        "height": HEIGHT,
        "exposure_us": 10000.0,
        "gain": 0.0,
        "frame_rate": 100.0,
    }
    return AravisSource.model_validate(settings | keys)


@contextlib.contextmanager
def opened(trigger: TriggerConfig = FREE, **keys: object) -> Iterator[AravisCamera]:
    camera = AravisCamera(source(**keys), trigger)
    try:
        yield camera
    finally:
        camera.close()


def next_grab(camera: AravisCamera) -> Grab:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        grab = camera.read(100)
        if grab is not None:
            return grab
    raise AssertionError("no frame came")


def pixels(camera: AravisCamera, grab: Grab) -> np.ndarray:
    out = np.zeros(camera.format.shape_hwc, camera.format.dtype)
    grab.write(out)
    return out


def stamped(index: int) -> int:
    """What the fake camera draws into the corner of frame `index`, counted from the first id."""
    number = FIRST_ID + index
    return (number if number <= 65535 else number - 65535) % 255


def until_lost(camera: AravisCamera) -> str:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            camera.read(100)
        except SourceLost as error:
            return str(error)
    raise AssertionError("the camera was never lost")


def until_open() -> AravisCamera:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return AravisCamera(source(), FREE)
        except SourceLost:
            assert time.monotonic() < until


def test_frames_are_counted_on_when_their_ids_wrap(fake: FakeCamera) -> None:
    with opened() as camera:
        seen = []
        first = next_grab(camera)
        base = int(pixels(camera, first)[0, 0, 0])  # 65401's, unless it was lost on the way
        while not seen or seen[-1] < 200:
            grab = next_grab(camera)
            seen.append(grab.index)
            if grab.fault is None:
                found = pixels(camera, grab)
                assert found[0, 0, 0] == (base + grab.index) % 255
                assert found[0, 1, 0] == (base + grab.index + 1) % 255
        assert first.index == 0
        assert base == stamped(0)
        assert seen == sorted(set(seen))


def test_a_slow_reader_sees_how_many_frames_it_missed(fake: FakeCamera) -> None:
    with opened() as camera:
        last = next_grab(camera).index
        time.sleep(0.5)  # 50 frames for 8 buffers
        gaps = 0
        for _ in range(30):
            grab = next_grab(camera)
            assert grab.fault is not None or pixels(camera, grab)[0, 0, 0] == stamped(grab.index)
            gaps += grab.index - last - 1
            last = grab.index
        assert gaps >= 20


def test_frames_that_nobody_writes_cost_no_buffer(fake: FakeCamera) -> None:
    with opened() as camera:
        indices = [next_grab(camera).index for _ in range(50)]
    assert indices == sorted(set(indices))


def test_lost_packets_are_broken_frames_and_never_silence() -> None:
    """The fake camera sends nothing again: what is lost on the way stays lost."""
    details: list[str] = []
    whole: list[tuple[int, int]] = []
    with FakeCamera(lost_per_thousand=20), opened() as camera:
        # Some lose the packet that has the frame's id.
        while len(whole) < 20 or not any("frame without its id" in detail for detail in details):
            grab = next_grab(camera)
            if grab.fault is None:
                frame = pixels(camera, grab)
                rows = np.arange(HEIGHT)[:, None] + np.arange(WIDTH)
                assert np.array_equal(frame[:, :, 0], (frame[0, 0, 0] + rows) % 255)
                whole.append((grab.index, int(frame[0, 0, 0])))
            else:
                assert grab.fault is Reason.BROKEN_FRAME
                details.append(grab.detail)
    assert all("did not arrive whole (" in detail for detail in details)
    # By what is in the pixels, every frame between the first and the last one was counted.
    assert len({(corner - index) % 255 for index, corner in whole}) == 1


def test_a_camera_that_answers_no_more_is_lost_and_comes_back(fake: FakeCamera) -> None:
    with opened() as camera:
        next_grab(camera)
        fake.freeze()
        assert "does not answer any more" in until_lost(camera)
    with pytest.raises(SourceLost, match="no answer"):
        AravisCamera(source(), FREE)
    fake.thaw()
    camera = until_open()
    assert next_grab(camera).index == 0
    camera.close()


def test_a_camera_that_was_killed_comes_back(fake: FakeCamera) -> None:
    with opened() as camera:
        next_grab(camera)
        fake.kill()
        until_lost(camera)
    fake.start()
    camera = until_open()
    assert pixels(camera, next_grab(camera))[0, 0, 0] == stamped(0)
    camera.close()


def test_closing_does_not_wait_for_a_camera_that_is_away(fake: FakeCamera) -> None:
    with opened() as camera:
        next_grab(camera)
        fake.kill()
        began = time.monotonic()
    # Aravis itself waits 5 s for an answer.
    assert time.monotonic() - began < 4.0


@pytest.mark.parametrize("keys", [{}, {"address": None, "serial": SERIAL}, {"address": "x"}])
def test_an_absent_camera_is_lost_at_once(keys: dict[str, object]) -> None:
    began = time.monotonic()
    with pytest.raises(SourceLost, match="check power"):
        AravisCamera(source(**keys), FREE)
    assert time.monotonic() - began < 6.0


def test_a_camera_in_use_is_lost_and_not_disturbed(fake: FakeCamera) -> None:
    with opened() as camera:
        next_grab(camera)
        with pytest.raises(SourceLost, match="in use by another program"):
            AravisCamera(source(), FREE)
        assert next_grab(camera).fault is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"pixel_format": "Mono12"}, "PixelFormat 'Mono12' found .* expected one of .*, Mono8, "),
        ({"width": 4000}, "Width 4000 found .* expected 1 to 2048"),
        ({"offset_y": 5000}, "OffsetY 5000 found .* expected 0 to 2048"),
        ({"exposure_us": 1.0}, "ExposureTimeAbs 1.0 found .* expected 10 to 1"),
        ({"gain": 0.5}, "GainRaw 0.5 found .* expected"),
        ({"gain": 99.0}, "GainRaw 99.0 found .* expected 0 to 10"),
        ({"features": {"Sharpness": 1}}, "no feature Sharpness found"),
        ({"features": {"TestBoolean": 1}}, "TestBoolean 1 found .* expected"),
        ({"features": {"GainAuto": "Sometimes"}}, "'Sometimes' found .* Off, Once, Continuous"),
        ({"serial": "other"}, f"serial '{SERIAL}' found, expected 'other'"),
    ],
)
def test_settings_that_the_camera_has_not_are_refused(
    fake: FakeCamera, keys: dict[str, object], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        AravisCamera(source(**keys), FREE)
    with opened() as camera:  # and nothing of the refused try is left over
        assert next_grab(camera).fault is None


def test_a_trigger_line_that_the_camera_has_not_is_refused(fake: FakeCamera) -> None:
    with pytest.raises(ConfigError, match=r"TriggerSource 'Line7' found .* Line0, Software"):
        AravisCamera(source(trigger_line="Line7"), TriggerConfig(mode="hardware"))


def test_settings_are_read_back(fake: FakeCamera) -> None:
    keys = {"offset_x": 16, "gain": 3.0, "packet_size": 1000, "features": {"TestBoolean": True}}
    with opened(**keys) as camera:
        settings = camera.settings()
        assert next_grab(camera).fault is None
    expected = {
        **{"DeviceModelName": "Fake", "DeviceID": SERIAL, "PixelFormat": "Mono8"},
        **{"Width": WIDTH, "Height": HEIGHT, "OffsetX": 16, "OffsetY": 0},
        **{"ExposureTimeAbs": 10000.0, "GainRaw": 3, "GainAuto": "Off"},
        **{"AcquisitionFrameRate": 100.0, "GevSCPSPacketSize": 1000, "TestBoolean": True},
        **{"TriggerSelector": "FrameStart", "TriggerMode": "Off"},
    }
    assert expected.items() <= settings.items()


@pytest.mark.parametrize("name", ["Mono8", "Mono16", "BayerRG8", "BayerGB8", "RGB8"])
def test_pixel_formats(fake: FakeCamera, name: str) -> None:
    with opened(pixel_format=name, color=name == "RGB8") as camera:
        grab = next_grab(camera)
        assert grab.fault is None
        assert grab.pts > 0
        frame = pixels(camera, grab)
    assert frame.dtype == (np.uint16 if name == "Mono16" else np.uint8)
    assert frame.shape == (HEIGHT, WIDTH, 3 if name == "RGB8" else 1)
    assert len(np.unique(frame)) > 1
    assert camera.format.bayer == (name[5:7] if name.startswith("Bayer") else "")


def test_a_software_trigger_takes_one_frame(fake: FakeCamera) -> None:
    with opened(SOFTWARE) as camera:
        assert camera.read(300) is None
        for index in range(3):
            camera.trigger()
            assert next_grab(camera).index == index
        assert camera.read(300) is None


def test_a_hardware_trigger_waits_for_its_line(fake: FakeCamera) -> None:
    with opened(TriggerConfig(mode="hardware"), trigger_line="Line0") as camera:
        settings = camera.settings()
        assert camera.read(300) is None
    assert (settings["TriggerMode"], settings["TriggerSource"]) == ("On", "Line0")


@pytest.mark.parametrize("keys", [{"serial": SERIAL}, {}])
def test_a_camera_is_found_by_its_serial_or_as_the_only_one(
    fake: FakeCamera, keys: dict[str, object]
) -> None:
    with opened(address=None, **keys) as camera:
        assert next_grab(camera).fault is None


def test_connected_cameras_are_listed(fake: FakeCamera) -> None:
    found = next(one for one in discover()[0] if one.serial == SERIAL)
    assert (found.kind, found.model, found.address) == ("aravis", "Aravis Fake", ADDRESS)
    assert "Mono16" in found.formats
    AravisSource.model_validate(found.source)
    with opened() as camera:
        next_grab(camera)
        busy = next(one for one in discover()[0] if one.serial == SERIAL)
        assert "in use by another program" in busy.note
        assert next_grab(camera).fault is None


def test_opening_and_closing_leaves_nothing_behind(fake: FakeCamera) -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    def once() -> None:
        with opened() as camera:
            next_grab(camera)

    once()
    files, threads = counts()
    for _ in range(10):
        once()
    assert counts()[0] == files
    assert counts()[1] <= threads + 1  # GLib keeps one for the next
