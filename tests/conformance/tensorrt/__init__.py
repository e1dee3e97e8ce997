"""A stand-in for TensorRT's Python module, just enough for torch-tensorrt to be imported.

Every name is a class, and every name in a class another one: kinds of layers, types, flags. None of
them does anything. Lowering and partitioning ask for nothing more; building an engine would.
"""

from __future__ import annotations

import sys

__version__ = "11.0.0"
_package_name = "tensorrt"
tensorrt = sys.modules[__name__]  # TensorRT's own names are there too


class _Named(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _Named(name, (), {"__init__": lambda self, *_, **__: None})
        setattr(cls, name, found)
        return found


class _Names(metaclass=_Named):
    pass


def __getattr__(name: str) -> type:
    if name.startswith("__") or name == "tensorrt_rtx":
        raise AttributeError(name)
    return _Named.__getattr__(_Names, name) if name not in vars(_Names) else vars(_Names)[name]
