"""What `linewatch train` is told, in a YAML file or by its options: strict, one definition each.

The keys under `settings` are those of `models.settings.TrainingSettings`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from models.augment import Augmentation
from models.errors import DataError
from models.settings import TrainingSettings, check_settings
from pipeline.config import PathText, Strict
from pipeline.config.file import read_model
from pipeline.errors import ConfigError


class ValidationConfig(Strict):
    """Full-size images that choose the best state; never those that set the threshold."""

    good: PathText
    defect: tuple[PathText, ...] = Field(min_length=1)


class TrainingConfig(Strict):
    """Images, detector and settings of one training."""

    good: PathText
    """A folder of images, or a recording."""
    every: int = Field(default=1, ge=1)
    """Of a recording: each so many-th frame."""
    levels: tuple[int, int] | None = None
    """Black and white point of 16 bit pixels."""
    validation: ValidationConfig | None = None
    penalty: PathText | None = None
    """A folder of images of anything else; None: drawn ones."""
    variant: Literal["pdn_tiny", "pdn_small", "pdn_medium"] = "pdn_tiny"
    color: bool | None = None
    """None: colour if the images have any."""
    recipe: PathText | None = None
    teacher: PathText | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


def load_training(path: Path) -> TrainingConfig:
    """Read a file. Raises `ConfigError` that lists every fault in it."""
    config = read_model(path, TrainingConfig, {"folder": path.absolute().parent})
    try:
        settings_of(config.settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def settings_of(given: Mapping[str, Any]) -> TrainingSettings:
    """Settings by their names, the others as by default. Raises `ConfigError`."""
    _check_names(given, TrainingSettings, "settings")
    augment = given.get("augment")
    if isinstance(augment, dict):
        _check_names(augment, Augmentation, "settings.augment")
    try:
        settings = TypeAdapter(TrainingSettings).validate_json(json.dumps(dict(given)), strict=True)
        check_settings(settings)
    except ValidationError as error:
        faults = [
            f"settings.{'.'.join(map(str, item['loc']))}: found {item['input']!r}: {item['msg']}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(faults)) from error
    except DataError as error:
        raise ConfigError(str(error)) from error
    return settings


def _check_names(given: Mapping[str, Any], kind: type[Any], where: str) -> None:
    known = [entry.name for entry in fields(kind)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"{where}.{name}: no such key, expected one of {', '.join(known)}{meant}"
            )
