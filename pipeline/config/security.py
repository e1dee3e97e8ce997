"""Who may talk to a line: keys, and which endpoints may do without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import BaseModel, model_validator

from pipeline.config.types import PathText, Strict, is_local


class SecurityConfig(Strict):
    """CURVE for every tcp endpoint of the line; `linewatch keys` makes what it needs."""

    secret: PathText | None = None
    """The line's own secret key file, mode 0600."""
    allow: PathText | None = None
    """Folder of the public keys that may come in."""
    insecure: bool = False
    """No keys: whoever reaches an endpoint is let in."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.insecure and (self.secret or self.allow):
            raise ValueError("`insecure: true` alone, or `secret` and `allow` without it")
        if not self.insecure and not (self.secret and self.allow):
            raise ValueError(
                "`secret` and `allow` (see `linewatch keys make --help`), or `insecure: true` for "
                "a network that no stranger can reach"
            )
        return self


def open_endpoints(model: BaseModel, path: str = "") -> Iterator[tuple[str, str]]:
    """Key and value of every endpoint in a configuration that other machines can reach."""
    for name, value in model:
        yield from _open_within(value, f"{path}.{name}" if path else name)


def _open_within(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from open_endpoints(value, path)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _open_within(inner, f"{path}.{key}")
    elif path.endswith("endpoint") and isinstance(value, str) and not is_local(value):
        yield path, value


def check_endpoints(model: BaseModel, security: SecurityConfig | None) -> None:
    """Raises `ValueError` for an endpoint that others can reach when nothing says who may."""
    for path, endpoint in open_endpoints(model) if security is None else ():
        raise ValueError(
            f"`security` beside {path}: {endpoint}, which other machines can reach: `secret` and "
            "`allow` (see `linewatch keys make --help`), or `insecure: true`; or an address of "
            "this machine only, such as tcp://127.0.0.1:5601"
        )
