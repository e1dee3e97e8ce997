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
    └── WireError                  10   a message that is not one of ours

A message says what was found, what was expected and what to do, in this order.
"""

from __future__ import annotations

from typing import ClassVar


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
