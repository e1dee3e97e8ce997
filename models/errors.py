"""The errors that `models` raises on purpose (it imports nothing of `pipeline`).

    ModelsError
    ├── BundleError              a bundle that is damaged, newer than this program or not fit
    │   └── ParityError          an engine that does not reproduce the bundle's reference maps
    ├── RuntimeUnavailable       an engine that this machine or this bundle cannot run
    └── DataError                images that cannot be trained or inferred on

A message says what was found, what was expected and what to do. The command line turns each into
the exit code of the class of the same name in `pipeline.errors`.
"""

from __future__ import annotations


class ModelsError(Exception):
    """The root of all of them."""


class BundleError(ModelsError):
    pass


class ParityError(BundleError):
    pass


class RuntimeUnavailable(ModelsError):
    pass


class DataError(ModelsError):
    pass
