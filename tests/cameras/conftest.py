"""Tests that need cameras' software from Debian: `make test-cameras` installs it and runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Asked for, they run, and fail where something is missing."""
    asked = os.environ.get("LINEWATCH_NEEDS_CAMERAS") == "1"
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.cameras)
            if not asked:
                item.add_marker(pytest.mark.skip(reason="`make test-cameras` runs it"))
