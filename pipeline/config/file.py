"""Reading a YAML file into a strict pydantic model, with every fault named by file, line and key.

`yamlfile` reads the values, the model validates them strictly, and all faults that either
finds are reported together, by line, with a guess where a key or a choice looks misspelt.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.yamlfile import Document, Fault, KeyPath, Value, describe, dotted, parse
from pipeline.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def read_model(
    path: Path,
    model: type[Model],
    context: Mapping[str, object],
    prepare: Callable[[Value], None] = lambda root: None,
) -> Model:
    """The file as a `model`, validated strictly with the pydantic `context` given.

    prepare: may change what was read, in place, before it is validated.
    Raises `ConfigError` that lists every fault as `FILE:LINE: KEY: found ..., expected ...`.
    """
    document = parse(path)
    faults = set(document.faults)
    prepare(document.root)
    try:
        result = model.model_validate(document.root, context=dict(context))
        if not faults:
            return result
    except ValidationError as error:
        known = {fault.key for fault in faults}
        faults |= {f for f in _validation_faults(document, model, error) if f.key not in known}
    lines = [f"{path}:{fault.line}: {fault.key}: {fault.text}" for fault in sorted(faults)]
    if len(lines) > 1:
        lines.insert(0, f"{path}: {len(lines)} errors")
    raise ConfigError("\n".join(lines))


def _validation_faults(
    document: Document, model: type[BaseModel], error: ValidationError
) -> list[Fault]:
    faults: list[Fault] = []
    missing: list[KeyPath] = []
    suggested: set[KeyPath] = set()
    for item in error.errors(include_url=False):
        path, owner = _locate(model, item["loc"])
        kind = str(item["type"])
        context = item.get("ctx", {})
        if kind == "missing" and isinstance(path[-1], int):
            text = f"found {describe(document.at(path[:-1]))}, expected more entries"
            faults.append(Fault(document.line(path[:-1]), dotted(path[:-1]), text))
            continue
        if kind == "missing":
            missing.append(path)
            continue
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, context["discriminator"].strip("'"))
            if kind == "union_tag_not_found":
                text = f"the key is missing, expected one of {_tags(model, path[:-1])}"
                faults.append(Fault(document.line(path), dotted(path), text))
                continue
        if kind == "extra_forbidden":
            known = sorted(owner.model_fields) if owner else []
            text, guess = _unknown(str(path[-1]), known)
            if guess:
                suggested.add((*path[:-1], guess))
        else:
            by_key = bool(path) and item["loc"][-1] == "[key]"
            found = str(path[-1]) if by_key else document.at(path)
            entries = len(found) if isinstance(found, tuple | dict) else 0
            if kind == "too_short" and entries >= context["min_length"]:
                continue  # pydantic counts valid entries only, and the others are reported
            text = _explain(kind, context, found, str(item["msg"]))
        faults.append(Fault(document.line(path), dotted(path), text))
    for path in missing:
        if path not in suggested:  # a misspelt key is one fault, not two
            text = "the key is missing; add it"
            faults.append(Fault(document.line(path), dotted(path), text))
    return faults


def _unknown(key: str, known: list[str]) -> tuple[str, str]:
    guess = "".join(difflib.get_close_matches(key, known, n=1, cutoff=0.6))
    hint = f"did you mean {guess!r}?" if guess else f"expected one of {', '.join(known)}"
    return f"unknown key; {hint}", guess


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of `name: value` lines",
    "model_type": "a mapping of `key: value` lines",
    "model_attributes_type": "a mapping of `key: value` lines",
}


def _explain(kind: str, context: Mapping[str, Any], found: Value, message: str) -> str:
    """`found ..., expected ...` and what to do, of one pydantic error."""
    hint = ""
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
        if kind == "string_type" and isinstance(found, int | float):
            hint = "; put it in quotes"
        if kind in ("int_type", "float_type") and isinstance(found, str):
            hint = "; write it without quotes, units or separators"
        if found is None:
            hint = "; leave the key out to take the default"
    elif kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
        expected = " and ".join(
            f"a number {words[name]} {context[name]}" for name in words if name in context
        )
    elif kind in ("literal_error", "union_tag_invalid"):
        expected = "one of " + str(context.get("expected") or context["expected_tags"])
        choices = re.findall(r"'([^']*)'", expected)
        guess = difflib.get_close_matches(str(found), choices, n=1, cutoff=0.6)
        hint = f"; did you mean {guess[0]!r}?" if guess else ""
    elif kind in ("too_short", "too_long"):
        bound = context.get("min_length", context.get("max_length"))
        expected = f"at {'least' if kind == 'too_short' else 'most'} {bound} entries"
    elif kind == "string_pattern_mismatch":
        expected = "1 to 48 letters, digits, `-` and `_`, a letter or digit first"
    elif kind == "string_too_short":
        expected = "text that is not empty"
    elif kind == "value_error":
        expected = str(context["error"])
    else:
        expected = message
    return f"found {describe(found)}, expected {expected}{hint}"


def _locate(
    model: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[KeyPath, type[BaseModel] | None]:
    """A pydantic location as the path in the file, and the model that its last key belongs to.

    They differ in two ways: pydantic adds the tag of a tagged union, and `[key]`.
    """
    path: KeyPath = ()
    owner: type[BaseModel] | None = None
    kind: object = model
    for step in location:
        members = list(_models(kind))
        if step == "[key]":
            break
        if len(members) > 1:
            kind = next(member for member in members if step in _tag_values(member))
            continue
        owner = members[0] if members else None
        kind = _child(kind, owner, step)
        path = (*path, step)
    return path, owner


def _models(kind: object) -> Iterator[type[BaseModel]]:
    """The models that a value of this annotation may be: none, one, or those of a tagged union."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(kind):
            yield from _models(part)


def _child(kind: object, owner: type[BaseModel] | None, step: str | int) -> object:
    if owner is not None:
        info = owner.model_fields.get(str(step))
        return info.annotation if info else None
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        kind = next(part for part in typing.get_args(kind) if typing.get_args(part))
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return arguments[1]
    return arguments[0] if arguments else None


def _tag_values(member: type[BaseModel]) -> tuple[object, ...]:
    info = member.model_fields.get("kind")
    return typing.get_args(info.annotation) if info else ()


def _tags(model: type[BaseModel], path: KeyPath) -> str:
    kind: object = model
    for step in path:
        kind = _child(kind, next(_models(kind), None), step)
    return ", ".join(repr(tag) for member in _models(kind) for tag in _tag_values(member))
