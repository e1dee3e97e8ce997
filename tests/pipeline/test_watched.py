"""A watched folder: files as programs drop them, whole and not, and what becomes of them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import CameraConfig
from pipeline.config.sources import TriggerConfig, WatchedSource
from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.base import Grab
from pipeline.sources.stamp import read_stamp, write_stamp
from pipeline.sources.watched import WatchedFolder
from pipeline.types import Reason

WIDTH, HEIGHT = 288, 64
PATIENCE_S = 20.0
QUIET_MS = 300.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "incoming"
    path.mkdir()
    (tmp_path / "done").mkdir()
    return path


def watch(folder: Path, **keys: object) -> WatchedFolder:
    basic = {"kind": "watched", "path": str(folder), "width": WIDTH, "height": HEIGHT}
    quick = {"settle_ms": 60.0, "poll_ms": 5.0}
    return WatchedFolder(WatchedSource.model_validate(basic | quick | keys), TriggerConfig())


def image(number: int, width: int = WIDTH) -> NDArray[np.uint8]:
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, width), np.uint8)
    write_stamp(pixels, number)
    return pixels


def encoded(number: int, suffix: str = ".png", width: int = WIDTH) -> bytes:
    done, data = cv2.imencode(suffix, image(number, width))
    assert done
    return data.tobytes()


def drop(path: Path, number: int) -> Path:
    """As a well-behaved program does it: under another name, then renamed."""
    hidden = path.with_name(f".{path.name}.part")
    hidden.write_bytes(encoded(number, path.suffix))
    return hidden.rename(path)


def take(camera: WatchedFolder) -> Grab:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if (grab := camera.read(50)) is not None:
            return grab
    raise AssertionError("no file was taken")


def stamp(grab: Grab) -> int | None:
    assert grab.fault is None, grab.detail
    out = np.zeros((HEIGHT, WIDTH, 1), np.uint8)
    grab.write(out)
    return read_stamp(out)


def nothing(camera: WatchedFolder) -> bool:
    return camera.read(QUIET_MS) is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".TIFF"])
def test_files_come_once_each_in_the_order_of_their_times(folder: Path, suffix: str) -> None:
    camera = watch(folder)
    assert camera.format.shape_hwc == (HEIGHT, WIDTH, 1)
    for number, name in enumerate(["b", "a", "a10", "a2"]):
        path = drop(folder / f"{name}{suffix}", number)
        os.utime(path, ns=(0, min(number, 2) * 10**9))  # the last two at once: by name
    grabs = [take(camera) for _ in range(4)]
    assert [grab.index for grab in grabs] == [0, 1, 2, 3]
    assert [stamp(grab) for grab in grabs] == [0, 1, 3, 2]
    assert [grab.pts for grab in grabs] == [0, 10**9, 2 * 10**9, 2 * 10**9]
    assert nothing(camera)


def test_what_is_there_at_the_start(folder: Path) -> None:
    drop(folder / "old.png", 1)
    camera = watch(folder)
    assert nothing(camera)
    drop(folder / "new.png", 2)
    assert stamp(take(camera)) == 2
    shutil.copytree(folder, other := folder.with_name("other"))
    camera = watch(other, existing=True)
    assert {stamp(take(camera)), stamp(take(camera))} == {1, 2}


def test_a_camera_opened_anew_goes_on_where_the_last_one_was(folder: Path) -> None:
    camera = watch(folder, existing=True)
    drop(folder / "a.png", 1)
    take(camera)
    camera.close()
    drop(folder / "b.png", 2)
    camera = watch(folder, existing=True)
    assert stamp(take(camera)) == 2
    assert nothing(camera)


def test_a_file_that_is_being_written_is_left_alone(folder: Path) -> None:
    camera = watch(folder, settle_ms=400.0)
    data = encoded(7)
    path = folder / "slow.png"
    with path.open("wb") as file:
        for start in range(0, len(data), len(data) // 6):
            file.write(data[start : start + len(data) // 6])
            file.flush()
            assert camera.read(40) is None
    assert stamp(take(camera)) == 7
    assert nothing(camera)


def test_a_renamed_file_does_not_wait(folder: Path) -> None:
    camera = watch(folder, settle_ms=3_600_000.0)
    path = folder / "a.png"
    (hidden := folder / ".a").write_bytes(encoded(3))
    time.sleep(0.05)  # file systems' clocks tick this slowly
    hidden.rename(path)
    assert stamp(take(camera)) == 3


def test_a_file_that_was_overwritten_is_a_new_one(folder: Path) -> None:
    camera = watch(folder)
    path = folder / "latest.png"
    for number in (1, 2):
        path.write_bytes(encoded(number))
        assert stamp(take(camera)) == number
    drop(path, 3)
    assert stamp(take(camera)) == 3
    assert nothing(camera)


@pytest.mark.parametrize("after", ["keep", "delete", "move"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.png", encoded(1)[:-200]),
        ("cut.jpg", encoded(1, ".jpg")[:-200]),
        ("empty.bmp", b""),
        ("text.tif", b"no image"),
    ],
)
def test_a_broken_file_is_a_broken_frame_and_is_never_deleted(
    folder: Path, name: str, data: bytes, after: str
) -> None:
    done = str(folder.with_name("done"))
    camera = watch(folder, after=after, move_to=done if after == "move" else None)
    (folder / name).write_bytes(data)
    grab = take(camera)
    assert (grab.fault, grab.index) == (Reason.BROKEN_FRAME, 0)
    assert name in grab.detail
    assert nothing(camera)
    drop(folder / "good.png", 5)
    assert stamp(take(camera)) == 5
    assert [*folder.parent.glob(f"*/{name}")]


def test_an_image_of_another_size(folder: Path) -> None:
    camera = watch(folder)
    (folder / "wide.png").write_bytes(encoded(1, width=WIDTH + 8))
    grab = take(camera)
    assert grab.fault is Reason.WRONG_SIZE
    assert "296 x 64 px found, expected 288 x 64" in grab.detail


def test_what_is_not_an_image_is_passed_over(folder: Path) -> None:
    camera = watch(folder)
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(encoded(1))
    (folder / "folder.png").mkdir()
    (folder / "nowhere.png").symlink_to(folder / "none")
    (folder / "a.png.part").write_bytes(encoded(1))
    assert nothing(camera)


def test_deleted_when_the_next_one_is_asked_for(folder: Path) -> None:
    path = drop(folder / "a.png", 1)
    camera = watch(folder, after="delete")
    assert stamp(take(camera)) == 1  # it was there before: with `delete` a folder is a queue
    assert path.exists()
    camera.read(0)
    assert not path.exists()
    drop(path, 2)
    assert stamp(take(camera)) == 2
    camera.close()
    assert not path.exists()


def test_a_file_that_nobody_took_stays(folder: Path) -> None:
    """A line that stops while a frame waits for a slot has not taken it."""
    path = drop(folder / "a.png", 1)
    camera = watch(folder, after="delete")
    take(camera)
    camera.close()
    assert path.exists()


def test_a_file_replaced_before_it_was_deleted_is_taken(folder: Path) -> None:
    camera = watch(folder, after="delete")
    path = drop(folder / "a.png", 1)
    assert stamp(take(camera)) == 1
    drop(path, 2)
    assert stamp(take(camera)) == 2
    assert nothing(camera)
    assert not path.exists()


def test_moved_without_overwriting(folder: Path) -> None:
    done = folder.with_name("done")
    camera = watch(folder, after="move", move_to=str(done))
    for number in range(3):
        drop(folder / "a.png", number)
        assert stamp(take(camera)) == number
        assert camera.read(0) is None
    camera.close()
    assert sorted(path.name for path in done.iterdir()) == ["a-2.png", "a-3.png", "a.png"]
    assert (done / "a-3.png").read_bytes() == encoded(2)
    assert not [*folder.iterdir()]


def test_taken_away_before_it_was_looked_at(folder: Path) -> None:
    camera = watch(folder)
    drop(folder / "a.png", 1)
    drop(folder / "b.png", 2)
    assert take(camera).index == 0
    (folder / "b.png").unlink()
    (folder / "a.png").unlink()
    assert nothing(camera)


def test_a_folder_that_vanishes_is_lost_and_comes_back(folder: Path) -> None:
    camera = watch(folder)
    assert nothing(camera)
    gone = folder.rename(folder.with_name("gone"))
    with pytest.raises(SourceLost, match="not a folder that can be read"):
        take(camera)
    camera.close()
    with pytest.raises(SourceLost, match="check `path`"):
        watch(folder)
    drop(gone / "a.png", 4)
    gone.rename(folder)
    assert stamp(take(watch(folder))) == 4


def test_a_part_id_in_the_name(folder: Path) -> None:
    camera = watch(folder, part_id=r"^(?P<part_id>[^_]+)?_")
    names = ["A7_left.png", "plain.png", "_none.png", "ä" * 40 + "_.png"]
    found = []
    for number, name in enumerate(names):
        drop(folder / name, number)
        found.append(take(camera).part_id)
    assert found == ["A7", "", "", "ä" * 32]


def test_a_folder_that_the_line_may_not_change(folder: Path) -> None:
    with pytest.raises(ConfigError, match="a folder that the line may change expected"):
        watch(folder, after="move", move_to=str(folder / "none"))


@pytest.mark.parametrize(
    "keys",
    [
        {"after": "move"},
        {"move_to": "done"},
        {"after": "move", "move_to": "/tmp/x/../incoming", "path": "/tmp/incoming"},
        {"part_id": "("},
        {"part_id": "[A-Z]+"},
        {"settle_ms": 0.0},
    ],
)
def test_what_cannot_be_is_refused(folder: Path, keys: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        watch(folder, **keys)


def test_thousands_of_files_that_are_kept(folder: Path) -> None:
    data = encoded(1)
    for number in range(5000):
        (folder / f"old{number}.png").touch()
    camera = watch(folder)
    for number in range(20):
        (hidden := folder / ".next").write_bytes(data)
        hidden.rename(folder / f"new{number}.png")
        assert take(camera).index == number


def test_a_folder_may_wait_for_a_slot_and_a_camera_may_not() -> None:
    sizes = {"width": WIDTH, "height": HEIGHT}
    watched = {"kind": "watched", "path": "incoming"} | sizes
    camera = CameraConfig.model_validate({"source": watched, "on_full": "wait"})
    assert camera.on_full == "wait"
    with pytest.raises(ValueError, match="a camera waits for nobody"):
        CameraConfig.model_validate({"source": {"kind": "v4l2"} | sizes, "on_full": "wait"})
