from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import VideoSource
from pipeline.errors import SourceError, SourceLost
from pipeline.sources import open_source, probe
from pipeline.sources.base import Grab, Source
from pipeline.sources.packets import slices_intact
from pipeline.sources.recording import write_recording
from pipeline.sources.stamp import read_stamp, write_stamp

COUNT = 24
SHAPE = (96, 288, 1)


def _stamped(count: int = COUNT, shape: tuple[int, int, int] = SHAPE) -> list[NDArray[np.uint8]]:
    """A bright blob on a dull scene that moves along, and the number."""
    scene = cv2.GaussianBlur(
        np.random.default_rng(1).integers(60, 120, shape[:2], dtype=np.uint8), (0, 0), 2
    )
    frames = []
    for number in range(count):
        frame = np.roll(scene, 3 * number, axis=1)
        frame = np.repeat(frame[:, :, None], shape[2], axis=2)
        write_stamp(frame, number)
        frames.append(frame)
    return frames


def _encode(
    path: Path,
    frames: list[NDArray[np.uint8]],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    *,
    format_options: dict[str, str] | None = None,
    ticks: list[int] | None = None,
) -> None:
    with av.open(str(path), "w", options=format_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for number, frame in enumerate(frames):
            kind = "gray" if frame.shape[2] == 1 else "rgb24"
            pixels = frame[:, :, 0] if frame.shape[2] == 1 else frame
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
            picture = picture.reformat(format=pix_fmt)
            picture.pts = ticks[number] if ticks else number
            picture.time_base = Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _open(path: Path, start: int = 0, loop: bool = False) -> Source:
    return open_source(VideoSource(kind="video", path=str(path), loop=loop), start)


def _grabs(source: Source) -> Iterator[Grab]:
    while (grab := source.read()) is not None:
        yield grab


def _pixels(source: Source, grab: Grab) -> NDArray[np.uint8]:
    out = np.zeros(source.shape_hwc, np.uint8)
    grab.write(out)
    return out


def _read(source: Source) -> list[tuple[int, int | str]]:
    """(index, stamp) of every frame, or (index, fault) of a faulty one."""
    found: list[tuple[int, int | str]] = []
    for grab in _grabs(source):
        if grab.fault is not None:
            assert grab.detail
            found.append((grab.index, grab.fault.value))
        else:
            stamp = read_stamp(_pixels(source, grab))
            assert stamp is not None
            found.append((grab.index, stamp))
    source.close()
    return found


def _whole(count: int = COUNT) -> list[tuple[int, int | str]]:
    return [(number, number) for number in range(count)]


def _packets(path: Path) -> list[tuple[int, int, bool]]:
    """(position, size, key) of each packet in the file."""
    with av.open(str(path)) as container:
        return [
            (packet.pos or 0, packet.size, packet.is_keyframe)
            for packet in container.demux(video=0)
            if packet.size
        ]


def _hurt(path: Path, position: int, size: int) -> None:
    data = bytearray(path.read_bytes())
    for place in range(position, position + size):
        data[place] ^= 0x5A
    path.write_bytes(data)


KINDS = {
    "ours.mkv": None,
    "h264.mkv": ("libx264", "yuv420p", {"g": "7", "bf": "2"}),
    "h264.mp4": ("libx264", "yuv420p", {"g": "7", "bf": "2"}),
    "open.mkv": ("libx264", "yuv444p", {"g": "7", "bf": "2", "x264-params": "open-gop=1"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"g": "5", "qscale": "2"}),
    "long.mkv": ("ffv1", "gray", {"level": "3", "g": "6", "slicecrc": "1", "slices": "4"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {"qscale": "2"}),
    "huff.avi": ("ffvhuff", "bgra", {}),
    "png.mov": ("png", "rgb24", {}),
    "raw.nut": ("rawvideo", "gray", {}),
    "deep.mkv": ("ffv1", "gray10le", {"level": "3", "g": "1"}),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, kind in KINDS.items():
        if kind is None:
            write_recording(folder / name, _stamped(), fps=25)
        else:
            _encode(folder / name, _stamped(), kind[0], kind[1], kind[2])
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_once_and_in_order(videos: Path, name: str) -> None:
    source = _open(videos / name)
    channels = 1 if name in ("ours.mkv", "long.mkv", "raw.nut", "deep.mkv") else 3
    assert source.shape_hwc == (*SHAPE[:2], channels)
    assert probe(VideoSource(kind="video", path=str(videos / name))) == source.shape_hwc
    assert _read(source) == _whole()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("start", [1, 6, 7, 8, 13, 14, COUNT - 1, COUNT, COUNT + 90])
def test_goes_on_at_exactly_the_frame(videos: Path, name: str, start: int) -> None:
    assert _read(_open(videos / name, start)) == _whole()[start:]


@pytest.mark.parametrize("name", ["ours.mkv", "h264.mp4", "mpeg4.avi"])
@pytest.mark.parametrize("start", [0, 5, COUNT - 1, COUNT, 3 * COUNT + 9])
def test_loop_counts_on(videos: Path, name: str, start: int) -> None:
    source = _open(videos / name, start, loop=True)
    for index in range(start, start + 2 * COUNT + 3):
        grab = source.read()
        assert grab is not None
        assert grab.index == index
        assert read_stamp(_pixels(source, grab)) == index % COUNT
    source.close()


def test_varying_rate_keeps_indices_and_time_stamps(tmp_path: Path) -> None:
    ticks = [int(k * k / 3) + k for k in range(COUNT)]
    path = tmp_path / "vfr.mkv"
    _encode(path, _stamped(), options={"g": "5", "bf": "2"}, ticks=ticks)
    source = _open(path)
    stamps = [grab.pts for grab in _grabs(source)]
    assert stamps == [tick * 40_000_000 for tick in ticks]
    assert _read(_open(path, 11)) == _whole()[11:]


@pytest.mark.parametrize("pix_fmt", ["bgr0", "gbrp", "rgb24", "bgr24", "rgba"])
def test_colours_keep_their_places(tmp_path: Path, pix_fmt: str) -> None:
    codec = {"bgr0": "ffv1", "gbrp": "libx264rgb", "rgb24": "png", "rgba": "png"}
    frames = [np.full((64, 80, 3), (200, 90, 20), np.uint8)]
    frames[0][:32] = (10, 60, 250)
    path = tmp_path / "colours.mov"
    if pix_fmt == "gbrp":
        _encode(path, frames, "libx264rgb", "rgb24", {"qp": "0"})
    elif pix_fmt == "bgr24":
        path = path.with_suffix(".nut")
        _encode(path, frames, "rawvideo", pix_fmt)
    else:
        path = path.with_suffix(".mkv" if pix_fmt == "bgr0" else ".mov")
        _encode(path, frames, codec[pix_fmt], pix_fmt)
    source = _open(path)
    grab = source.read()
    assert grab is not None
    slot = np.zeros((96, 112, 3), np.uint8)
    grab.write(slot[16:-16, 16:-16])
    assert np.array_equal(slot[16:-16, 16:-16], frames[0])
    assert not slot[:16].any()


# Damage.


@pytest.mark.parametrize("victims", [(0,), (9,), (COUNT - 1,), (3, 4, 17), tuple(range(COUNT))])
def test_a_damaged_packet_costs_its_frame_alone(tmp_path: Path, victims: tuple[int, ...]) -> None:
    path = tmp_path / "hurt.mkv"
    write_recording(path, _stamped(), fps=25)
    packets = _packets(path)
    for victim in victims:
        position, size, _ = packets[victim]
        _hurt(path, position + size // 2, 3)
    expected = [(k, "broken_frame" if k in victims else k) for k in range(COUNT)]
    assert _read(_open(path)) == expected
    for start in (1, 9, 10):
        assert _read(_open(path, start)) == expected[start:]


@pytest.mark.parametrize("place", ["first byte", "footer", "last byte"])
def test_damage_anywhere_in_a_packet_is_seen(tmp_path: Path, place: str) -> None:
    path = tmp_path / "hurt.mkv"
    write_recording(path, _stamped(), fps=25)
    position, size, _ = _packets(path)[5]
    _hurt(path, position + {"first byte": 0, "footer": size - 7, "last byte": size - 1}[place], 1)
    assert _read(_open(path)) == [(k, "broken_frame" if k == 5 else k) for k in range(COUNT)]


def test_a_packet_that_the_container_lost_counts(tmp_path: Path) -> None:
    path = tmp_path / "gap.mkv"
    write_recording(path, _stamped(), fps=25)
    position, _, _ = _packets(path)[6]
    data = bytearray(path.read_bytes())
    data[position - 6 : position + 40] = bytes(46)
    path.write_bytes(data)
    found = _read(_open(path))
    assert [index for index, _ in found] == list(range(COUNT))
    assert all(what in (index, "broken_frame") for index, what in found)
    assert sum(what == "broken_frame" for _, what in found) <= 2
    assert _read(_open(path, 9)) == found[9:]


def test_frames_are_broken_until_the_next_key_frame(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    options = {"level": "3", "g": "6", "slicecrc": "1", "slices": "4"}
    _encode(path, _stamped(), "ffv1", "gray", options)
    position, size, is_key = _packets(path)[8]
    assert not is_key
    _hurt(path, position + size // 2, 2)
    found = _read(_open(path))
    assert found == [(k, "broken_frame" if 8 <= k < 12 else k) for k in range(COUNT)]


@pytest.mark.parametrize("extra", ["", ":open-gop=1"])
@pytest.mark.parametrize("victim", [0, 7, 8, 9])
def test_h264_damage_counts_every_frame_once(tmp_path: Path, victim: int, extra: str) -> None:
    path = tmp_path / "hurt264.mkv"
    params = f"keyint=7:min-keyint=7:bframes=2:scenecut=0{extra}"
    _encode(path, _stamped(), options={"x264-params": params, "crf": "12"})
    position, size, _ = _packets(path)[victim]
    data = bytearray(path.read_bytes())
    data[position + 8 : position + size] = b"\xff" * (size - 8)
    path.write_bytes(data)
    found = _read(_open(path))
    assert [index for index, _ in found] == list(range(COUNT))
    assert all(what in (index, "broken_frame") for index, what in found)
    broken = [index for index, what in found if what == "broken_frame"]
    assert 1 <= len(broken) <= (17 if extra else 10)  # an open group hangs on the one before
    assert max(broken) < COUNT - 3


def test_a_cut_off_recording_gives_what_it_has_then_says_so(tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    write_recording(path, _stamped(), fps=25)
    position, size, _ = _packets(path)[14]
    path.write_bytes(path.read_bytes()[: position + size // 2])
    source = _open(path)
    for number in range(14):
        grab = source.read()
        assert grab is not None
        assert grab.index == number
    indices: list[int] = []
    with pytest.raises(SourceLost, match=f"after 14 of {COUNT} frames.*cut off"):
        indices.extend(grab.index for grab in _grabs(source))
    assert indices == []
    source.close()


def test_a_recorder_that_was_killed_leaves_no_end_mark(tmp_path: Path) -> None:
    path = tmp_path / "killed.mkv"
    with av.open(str(tmp_path / "whole.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25, options={"level": "3", "g": "1"})
        stream.height, stream.width = SHAPE[:2]
        stream.pix_fmt = "gray"
        for frame in _stamped(200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame[:, :, 0], format="gray")))
        path.write_bytes((tmp_path / "whole.mkv").read_bytes())
        container.mux(stream.encode())
    source = _open(path)
    indices: list[int] = []
    with pytest.raises(SourceLost, match="no end mark"):
        indices.extend(grab.index for grab in _grabs(source))
    assert indices == list(range(len(indices)))
    assert indices


def test_a_cut_off_mp4(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    movflags = {"movflags": "faststart"}
    _encode(path, _stamped(), options={"g": "7", "bf": "2"}, format_options=movflags)
    position, _, _ = _packets(path)[20]
    path.write_bytes(path.read_bytes()[:position])
    source = _open(path)
    indices: list[int] = []
    with pytest.raises(SourceLost, match=f"of {COUNT} frames"):
        indices.extend(grab.index for grab in _grabs(source))
    assert indices == list(range(20))


def test_the_size_changes_in_mid_stream(tmp_path: Path) -> None:
    path = tmp_path / "sizes.h264"
    parts = []
    for name, shape in (("a", SHAPE), ("b", (112, 320, 1)), ("c", SHAPE)):
        part = tmp_path / f"{name}.h264"
        _encode(part, _stamped(6, shape), options={"g": "3", "bf": "0"})
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    found = _read(_open(path))
    assert [index for index, _ in found] == list(range(18))
    assert [what for _, what in found] == [*range(6), *(["wrong_size"] * 6), *range(6)]


# What is no recording at all.


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file.*check `path`"):
        _open(tmp_path / "absent.mkv")
    with pytest.raises(SourceError, match="no such file"):
        probe(VideoSource(kind="video", path=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"not a video at all\n" * 100])
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.mkv"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"text\.mkv"):
        _open(path)
    with pytest.raises(SourceError, match=r"text\.mkv"):
        probe(VideoSource(kind="video", path=str(path)))


def test_a_video_without_frames(tmp_path: Path) -> None:
    path = tmp_path / "empty.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "gray"
        container.start_encoding()
    with pytest.raises(SourceError, match="without frames"):
        _open(path)
    whole = tmp_path / "whole.mkv"
    write_recording(whole, _stamped(), fps=25)
    head = tmp_path / "head.mkv"
    head.write_bytes(whole.read_bytes()[: _packets(whole)[0][0] - 8])
    with pytest.raises(SourceError, match=r"without frames|cut off|no end mark"):
        _open(head)


def test_sound_without_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(SourceError, match="no video stream"):
        _open(path)


def test_slice_checksums_of_what_is_no_ffv1() -> None:
    assert slices_intact(b"") is True
    assert slices_intact(b"short") is None
    assert slices_intact(b"\xff" * 64) is None
