"""The system's libraries that are not there, or are for another Python, say what to install."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pipeline.errors import RuntimeUnavailable
from pipeline.sources.introspection import library
path = list(sys.path)
try:
    library("Aravis", "0.8", "gir1.2-aravis-0.8 python3-gi", sys.argv[1])
except RuntimeUnavailable as error:
    print(error)
assert sys.path == path and not [name for name in sys.modules if name.startswith("gi.")]
"""


def said(folder: Path) -> str:
    """By a process of its own, which has loaded no `gi`."""
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], capture_output=True, text=True, check=True
    )
    return answer.stdout


def test_a_system_without_the_bindings(tmp_path: Path) -> None:
    text = said(tmp_path)
    assert f"no package `gi` found in {tmp_path}" in text
    assert "apt-get install gir1.2-aravis-0.8 python3-gi" in text


def test_bindings_that_are_for_another_python(tmp_path: Path) -> None:
    (tmp_path / "gi").mkdir()
    (tmp_path / "gi" / "__init__.py").write_text("from . import _gi\n")
    (tmp_path / "gi" / "_gi.cpython-27-x86_64-linux-gnu.so").touch()
    text = said(tmp_path)
    assert "does not load into this Python 3." in text
    assert "pip install PyGObject" in text


def test_bindings_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "gi").mkdir()
    (tmp_path / "gi" / "__init__.py").write_text(
        "def require_version(name, version):\n"
        "    raise ValueError(f'Namespace {name} not available')\n"
    )
    text = said(tmp_path)
    assert "no Aravis 0.8 on this machine (Namespace Aravis not available)" in text
    assert "apt-get install gir1.2-aravis-0.8 python3-gi" in text
