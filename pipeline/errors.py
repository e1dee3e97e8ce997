"""Every error that linewatch raises on purpose, and the exit code it ends a command with.

    LinewatchError                exit  what happened
    ├── ConfigError                 2   a configuration, recipe or command line that cannot be used
    ├── SourceError                 3   a camera or a recording that cannot be read
    │   └── SourceLost              3   it could be read, and then no more
    ├── BundleError                 4   a bundle that is damaged, too new or not fit
    │   └── ParityError             4   an engine that does not give the bundle's reference maps
    ├── RuntimeUnavailable          5   an engine that this machine or this bundle cannot run
    ├── StationBusy                 6   another daemon holds this station, or an endpoint is taken
    ├── ResourceError               7   shared memory, disk or another resource does not suffice
    ├── StageFailed                 8   a stage died more often than its restart budget allows
    ├── DataError                   9   images or labels that cannot be trained or calibrated on
    ├── WireError                  10   a message that is not one of ours
    └── ControlError               11   a request that a running line refused, or did not answer

A message says what was found, what was expected and what to do, in this order.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final

_URL: Final = re.compile(r"(\w+:/*)(.*@)?([^?]*)(\?.*)?", re.DOTALL)


def hide_secrets(text: str) -> str:
    """What a message may say of a URL: not what stands before its @, nor what is behind its ?."""
    if (parts := _URL.fullmatch(text)) is None:
        return text
    scheme, user, place, query = parts.groups()
    return f"{scheme}{'***@' if user else ''}{place}{'?***' if query else ''}"


class LinewatchError(Exception):
    """The root: catching it catches every fault that linewatch foresees."""

    exit_code: ClassVar[int] = 1


class ConfigError(LinewatchError):
    exit_code = 2


class SourceError(LinewatchError):
    exit_code = 3


class SourceLost(SourceError):
    pass


class BundleError(LinewatchError):
    exit_code = 4


class ParityError(BundleError):
    pass


class RuntimeUnavailable(LinewatchError):
    exit_code = 5


class StationBusy(LinewatchError):
    exit_code = 6


class ResourceError(LinewatchError):
    exit_code = 7


class StageFailed(LinewatchError):
    exit_code = 8


class DataError(LinewatchError):
    exit_code = 9


class WireError(LinewatchError):
    exit_code = 10


class ControlError(LinewatchError):
    exit_code = 11
