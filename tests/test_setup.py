"""What set-up relies on: pinned dependencies, and a build that any machine can repeat."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import files
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = (ROOT / "configs" / "constraints.txt").read_text().splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(row.split("==")[0]): row.split("==")[1] for row in rows}


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    extras = PROJECT["optional-dependencies"]
    installed = ("station", "basler", "plc", "test")
    assert f"-e '.[{','.join(installed)}]'" in (ROOT / "Makefile").read_text()
    for text in (*PROJECT["dependencies"], *(row for name in installed for row in extras[name])):
        requirement = Requirement(text)
        version = pins()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text


def test_pins_are_plain_versions() -> None:
    """No local versions, which one index has and another has not; no addresses, no paths."""
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


def test_a_bare_install_is_small() -> None:
    """What a subscriber needs: our packages and the dependencies that are no extra."""
    needed = [canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]]
    assert sorted(needed) == ["msgpack", "pyzmq"]
    theirs = [Path(str(file.locate())) for name in needed for file in files(name) or ()]
    ours = [
        path
        for folder in ("pipeline", "models", "calibrate", "tools")
        for path in (ROOT / folder).rglob("*")
        if "__pycache__" not in path.parts
    ]
    size = sum(path.stat().st_size for path in [*theirs, *ours] if path.is_file())
    assert 5_000_000 < size < 25_000_000, f"{size:,} bytes"  # and some for .pyc: 30 MB in all


def test_ci_sets_up_by_itself_and_stops_at_the_first_fault() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    targets = re.findall(r"^ *make ([a-z-]+)$", text, re.MULTILINE)
    assert targets == ["test", "conformance", "test-cameras", "demo", "deeppcb", "magnetic"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}: $(STAMP)\n" in makefile for target in targets)
