"""A full disk is said in one line, and leaves nothing half written. The kernel's limit on the size
of a process's files stands for the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from models.untrained import textured_frame

LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from pipeline.cli import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("limit", "what"),
    [(20_000, "tiles cannot be written"), (400_000, "state cannot be written")],
)
def test_training_on_a_full_disk_says_so(tmp_path: Path, limit: int, what: str) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for k in range(6):
        cv2.imwrite(str(good / f"{k}.png"), textured_frame(80, 80, 1, seed=k))
    out, cache = tmp_path / "out", tmp_path / "cache"
    options = ["--out", str(out), "--cache", str(cache), "--steps", "2", "--set", "crop_px=64"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "train", str(good), *options],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 9, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("linewatch: ")]
    assert what in line
    for folder in (out, cache):
        left = [path for path in folder.glob("**/*") if path.is_file()] if folder.exists() else []
        assert all(path.name in ("tiles.bin", "index.json") for path in left)
    if what.startswith("tiles"):
        assert not list(cache.iterdir())


def test_a_bundle_on_a_full_disk_says_so(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from models.errors import BundleError\n"
        "from models.untrained import untrained_bundle\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    untrained_bundle(Path(sys.argv[1]))\n"
        "except BundleError as error:\n"
        "    sys.exit('disk full' not in str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 0
    assert not list((tmp_path / "out").iterdir())
