"""The ring's file: what is refused, and what is left behind then."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline.errors import ResourceError
from pipeline.ring import FrameRing
from pipeline.ringfile import MAGIC, NotARing, create_ring, ring_bytes

SHAPE = (40, 50, 1)


@pytest.mark.parametrize(
    "shape", [(32, 100, 1), (100, 32, 3), (0, 0, 1), (100, 100, 2), (100, 100, 4), (-40, 40, 1)]
)
def test_frames_that_no_engine_can_look_at(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ResourceError, match="expected sides of at least 33"):
        create_ring(tmp_path / "cam.ring", shape, 2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_ring_is_never_made_over_another(tmp_path: Path) -> None:
    create_ring(tmp_path / "cam.ring", SHAPE, 3, 7)
    with pytest.raises(ResourceError, match="File exists"):
        create_ring(tmp_path / "cam.ring", SHAPE, 3, 8)
    ring = FrameRing(tmp_path / "cam.ring")
    assert ring.epoch == 7
    ring.close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file"):
        create_ring(tmp_path / "none" / "cam.ring", SHAPE, 3, 1)


def header(*words: int) -> bytes:
    return struct.pack("<6q", *words)


SIZE = ring_bytes(SHAPE, 3)
OF_OURS = (MAGIC, 3, *SHAPE, 7)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"", 0),
        (b"x", 1),
        (b"not a ring at all" * 300, 5100),
        (header(*OF_OURS), SIZE - 1),
        (header(*OF_OURS), SIZE + 1),
        (header(*OF_OURS), 48),
        (header(*OF_OURS)[:40], 40),
        (header(0, *OF_OURS[1:]), SIZE),
        (header(MAGIC + 1, *OF_OURS[1:]), SIZE),  # the next version
        (header(MAGIC, 4, *SHAPE, 7), SIZE),
        (header(MAGIC, 3, 5000, 50, 1, 7), SIZE),
        (header(MAGIC, 0, *SHAPE, 7), ring_bytes(SHAPE, 0)),
        (header(MAGIC, 2, -40, -50, 1, 7), ring_bytes((-40, -50, 1), 2)),
        (header(MAGIC, 2, 40, 50, 0, 7), ring_bytes((40, 50, 0), 2)),
        (header(MAGIC, 2**62, 2**62, 2**62, 3, 7), SIZE),
        (header(MAGIC, -1, *SHAPE, 7), SIZE),
    ],
)
def test_files_that_are_not_rings_of_this_version(tmp_path: Path, head: bytes, size: int) -> None:
    path = tmp_path / "cam.ring"
    path.write_bytes(head)
    os.truncate(path, size)
    with pytest.raises(NotARing, match="not a ring of this version"):
        FrameRing(path)


def test_places_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="is the line running"):
        FrameRing(tmp_path / "cam.ring")
    with pytest.raises(ResourceError):
        FrameRing(tmp_path)
    os.mkfifo(tmp_path / "fifo.ring")
    with pytest.raises(ResourceError):
        FrameRing(tmp_path / "fifo.ring")


LIMITED = """
    import resource, sys
    from pathlib import Path
    from pipeline.errors import ResourceError
    from pipeline.ringfile import create_ring, ring_bytes

    folder, room = Path(sys.argv[1]), int(sys.argv[2])
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        create_ring(folder / "cam.ring", (1024, 1280, 1), 4, 1)
    except ResourceError as error:
        print(error)
        sys.exit(error.exit_code)
"""


def limited(folder: Path, room: int = 0, prefix: tuple[str, ...] = ()) -> tuple[int, str]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(LIMITED), str(folder), str(room)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("missing", [1, 2**20])
def test_no_room_for_the_ring(tmp_path: Path, missing: int) -> None:
    """The file-size limit stands for a full tmpfs; no half ring is left behind."""
    needed = ring_bytes((1024, 1280, 1), 4)
    code, said = limited(tmp_path, needed - missing)
    assert code == ResourceError.exit_code
    assert "a ring of 4 slots needs 7 MiB" in said
    assert "lower `slots`" in said
    assert list(tmp_path.iterdir()) == []
    assert limited(tmp_path, needed) == (0, "")


def test_a_tmpfs_that_is_too_small(tmp_path: Path) -> None:
    """In a mount namespace of its own, where the machine lets us make one; else by file size."""
    mount = f'mount -t tmpfs -o size=1m none {tmp_path} && exec "$@"'
    prefix = ("unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh")
    allowed = subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    check = f'"$@"; code=$?; ls -A {tmp_path}; exit $code'
    code, said = limited(
        tmp_path, 0 if allowed else 2**20, (*(prefix if allowed else ()), "sh", "-c", check, "sh")
    )
    assert code == ResourceError.exit_code
    assert "needs 7 MiB" in said
    assert ("1 MiB free (No space left" in said) == allowed
    assert len(said.splitlines()) == 1  # `ls` found nothing left behind
