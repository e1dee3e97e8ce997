"""Libraries of the system that Python reaches through GObject introspection.

Their bindings, the package `gi`, come with Debian for Debian's Python. A virtual environment does
not see them, and should not see all the other packages beside them: so `gi` alone is taken from
there, whatever `sys.path` says. It is compiled for one minor version of Python. With another one,
`pip install PyGObject` in the environment is what `gi` is then taken from.
"""

from __future__ import annotations

import functools
import sys
import warnings
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from typing import Any, Final

from pipeline.errors import RuntimeUnavailable

DIST_PACKAGES: Final = "/usr/lib/python3/dist-packages"
"""Where Debian and Ubuntu keep the Python packages of the system."""


@functools.cache
def library(namespace: str, version: str, packages: str, folder: str = DIST_PACKAGES) -> Any:
    """The library's module, such as `gi.repository.Aravis`.

    Raises `RuntimeUnavailable` with the names of Debian's `packages` when it, or `gi`, is missing.
    """
    gi = _gi(packages, folder)
    try:
        gi.require_version(namespace, version)
        with warnings.catch_warnings():
            # Debian 12's gi hangs itself into imports in the way of older Pythons.
            warnings.simplefilter("ignore", ImportWarning)
            return import_module(f"gi.repository.{namespace}")
    except (ValueError, ImportError) as error:
        raise RuntimeUnavailable(
            f"no {namespace} {version} on this machine ({error}); expected Debian's packages: "
            f"apt-get install {packages}"
        ) from error


def _gi(packages: str, folder: str) -> Any:
    """Of the environment, else of the system."""
    try:
        return import_module("gi")
    except ModuleNotFoundError:
        pass
    spec = PathFinder.find_spec("gi", [folder])
    if spec is None or spec.loader is None:
        raise RuntimeUnavailable(
            f"no package `gi` found in {folder}; expected Debian's: apt-get install {packages}"
        )
    module = sys.modules["gi"] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "gi"]:
            del sys.modules[name]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise RuntimeUnavailable(
            f"the `gi` in {folder} does not load into this Python {python} ({error}); "
            "expected one for this Python: pip install PyGObject, or an environment of the "
            "system's own Python"
        ) from error
    return module
