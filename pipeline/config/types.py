"""The kinds of value that a configuration is made of: names, paths, endpoints, strict models."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from pipeline.types import MIN_SIDE_PX

IPC_PATH_LIMIT = 107
"""Bytes of a Unix socket's path (sun_path less its terminating zero)."""
MAX_SIDE_PX = 65536


def _resolve_path(text: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get("folder")
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"a path whose user is known here, not {text!r}") from error
    return str(path if folder is None else (Path(folder) / path).absolute())


def _resolve_endpoint(text: str, info: ValidationInfo) -> str:
    name = text.removeprefix("ipc://")
    if text != name and name and not name.startswith(("@", "*")):
        text = "ipc://" + _resolve_path(name, info)
    return check_endpoint(text)


def check_endpoint(text: str) -> str:
    """An endpoint as it is. Raises `ValueError` for what cannot be one."""
    if text.startswith("ipc://"):
        name = text.removeprefix("ipc://")
        if not name or name.startswith(("@", "*")):
            raise ValueError("the path of a socket after ipc://, such as ipc:///run/line/out.sock")
        if len(name.encode()) > IPC_PATH_LIMIT:
            raise ValueError(
                f"a socket path of at most {IPC_PATH_LIMIT} bytes, and this one has "
                f"{len(name.encode())}; choose a shorter folder"
            )
        return text
    match = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\[\]:/]+):([0-9]{1,5})", text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(
            "tcp://ADDRESS:PORT with a port from 1 to 65535, or ipc:///PATH, "
            "such as tcp://127.0.0.1:5601"
        )
    return text


def is_local(endpoint: str) -> bool:
    """Whether no other machine can reach it."""
    if not endpoint.startswith("tcp://"):
        return True
    host = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$")]
PathText = Annotated[str, Field(min_length=1), AfterValidator(_resolve_path)]
Endpoint = Annotated[str, AfterValidator(_resolve_endpoint)]
Coordinate = Annotated[int, Field(ge=-MAX_SIDE_PX, le=MAX_SIDE_PX)]
Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]
Point = tuple[Coordinate, Coordinate]


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )
