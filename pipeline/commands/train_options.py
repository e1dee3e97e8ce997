"""What the options of `linewatch train` say, as a configuration and settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.settings import TrainingSettings
from models.variants import ALLOWED_SCALES
from pipeline.errors import ConfigError
from pipeline.training_config import TrainingConfig, ValidationConfig, settings_of


def from_folder(source: Path) -> TrainingConfig:
    return TrainingConfig(good=str(source.absolute()))


def absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def validation_of(good: Path | None, defect: list[Path] | None) -> ValidationConfig | None:
    if (good is None) != (not defect):
        raise ConfigError(
            "one of --validate-good and --validate-defect found, expected both or none"
        )
    if good is None or not defect:
        return None
    return ValidationConfig(
        good=str(good.absolute()), defect=tuple(str(folder.absolute()) for folder in defect)
    )


def with_options(
    config: TrainingConfig,
    *,
    scales: str | None,
    steps: int | None,
    seed: int | None,
    others: list[str],
) -> TrainingSettings:
    """The file's settings, and those of the command line over them."""
    given: dict[str, Any] = dict(config.settings)
    if scales is not None:
        wanted = two_numbers(scales) if "," in scales else (scales,)
        if tuple(str(scale) for scale in wanted) not in {
            tuple(map(str, allowed)) for allowed in ALLOWED_SCALES
        }:
            raise ConfigError(f"--scales {scales!r} found, expected 1, 2 or 1,2")
        given["scales"] = [int(scale) for scale in wanted]
    if steps is not None:
        given["steps"] = steps
    if seed is not None:
        given["seed"] = seed
    for text in others:
        key, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"--set {text!r} found, expected KEY=VALUE, such as batch=8")
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value
        head, _, tail = key.partition(".")
        if tail:
            inner = given.setdefault(head, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {head} has no keys of its own")
            inner[tail] = parsed
        else:
            given[key] = parsed
    return settings_of(given)


def two_numbers(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{text!r} found, expected two whole numbers, such as 0,4095") from error
    return first, second
