"""A YAML file as plain values, with the line of every key, and without YAML's surprises.

1. The bytes must be UTF-8 text of at most `MAX_BYTES`.
2. PyYAML scans and composes the nodes; nothing is constructed from them, and tags, merge keys and
   second documents are refused. Anchors may be used; what they expand to is limited.
3. Scalars are resolved by the YAML 1.2 core schema: `NO`, `on` and `yes` are text, `1:30` and dates
   too; keys are always text and never appear twice.
"""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from pipeline.errors import ConfigError, hide_secrets

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
MAX_DEPTH = 24

KeyPath = tuple[str | int, ...]
Value = str | int | float | bool | None | tuple["Value", ...] | dict[str, "Value"]

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_UNUSABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    line: int
    key: str
    text: str


@dataclass(slots=True)
class Document:
    """Plain values, and the line (from 1) of every key path in them."""

    root: Value = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    values: int = 0

    def line(self, path: KeyPath) -> int:
        """The line of the path, or of the nearest thing that holds it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def at(self, path: KeyPath) -> Value:
        value: Any = self.root
        for step in path:
            value = value[step]
        return typing.cast("Value", value)


class _TooMuchError(Exception):
    """The document expands to more than it may; the argument is the line."""


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """Text to nodes: no implicit types, no tags, and a limit to nesting."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        untyped: Any = self  # PyYAML's stubs leave this method bare
        event = untyped.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None:
            problem = f"found the tag {tag!r}, expected a plain value: leave the tag out"
            raise ComposerError(None, None, problem, event.start_mark)
        if self.depth >= MAX_DEPTH:
            problem = f"found more than {MAX_DEPTH} levels of nesting"
            raise ComposerError(None, None, problem, event.start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{path}: more than {MAX_BYTES} bytes; a configuration is at most that long"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: found the byte 0x{data[error.start]:02x}, expected UTF-8 text; "
            "is this a YAML file?"
        ) from error


def parse(path: Path) -> Document:
    text = _read_text(path)
    document = Document()
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            raise ConfigError(f"{path}:1: the file is empty; expected `key: value` lines")
        document.root = _value(node, (), document)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{path}:{line}: found the character U+{ord(text[error.position]):04X}, "
            "expected readable text; is this a YAML file?"
        ) from error
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax(path, text, error)) from error
    except _TooMuchError as error:
        raise ConfigError(
            f"{path}:{error.args[0]}: the file expands to more than {MAX_VALUES} values or "
            f"{MAX_DEPTH} levels here; use fewer anchors"
        ) from None
    if not isinstance(document.root, dict):
        raise ConfigError(
            f"{path}:{document.line(())}: found {describe(document.root)}, "
            "expected a mapping of `key: value` lines"
        )
    return document


def _syntax(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    rows = text.split("\n")
    row = rows[line - 1] if line <= len(rows) else ""
    what = " ".join(part for part in (error.context, error.problem) if part)
    hint = ""
    if "\t" in row[: len(row) - len(row.lstrip())]:
        hint = "; indent with spaces, YAML allows no tabs there"
    elif "another document" in what:
        hint = "; one file holds one configuration"
    column = f" at column {mark.column + 1}" if mark else ""
    return f"{path}:{line}: not valid YAML{column}: {what}{hint}"


def _value(node: Node, path: KeyPath, document: Document) -> Value:
    line = node.start_mark.line + 1
    document.values += 1
    document.lines.setdefault(path, line)
    if document.values > MAX_VALUES or len(path) > MAX_DEPTH:
        raise _TooMuchError(line)
    if isinstance(node, ScalarNode):
        return _scalar(node, path, document)
    if isinstance(node, SequenceNode):
        return tuple(_value(item, (*path, i), document) for i, item in enumerate(node.value))
    if not isinstance(node, MappingNode):
        raise AssertionError(f"a YAML node of an unknown kind: {node!r}")
    result: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key_line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            text = "found a list or mapping as a key, expected a name"
            document.faults.append(Fault(key_line, dotted(path), text))
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key == "<<" and key_node.style is None:
            text = "merge keys are not supported; write the keys out, or use an alias for the value"
            document.faults.append(Fault(key_line, dotted(here), text))
            continue
        if key in result:
            text = f"the key appears twice, first in line {document.lines[here]}; keep one of them"
            document.faults.append(Fault(key_line, dotted(here), text))
            continue
        document.lines[here] = key_line
        result[key] = _value(value_node, here, document)
    return result


def _scalar(node: ScalarNode, path: KeyPath, document: Document) -> Value:
    text = str(node.value)
    line = node.start_mark.line + 1
    if _UNUSABLE.search(text):
        fault = Fault(line, dotted(path), f"found control characters in {text[:40]!a}")
        document.faults.append(fault)
        return ""
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        return text
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    number = float(text) if _FLOAT.fullmatch(text) else 0.0
    if _NOT_FINITE.fullmatch(text) or number in (float("inf"), float("-inf")):
        document.faults.append(Fault(line, dotted(path), f"found {text}, expected a finite number"))
        return 0.0
    return number if _FLOAT.fullmatch(text) else text


def describe(value: Value) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = hide_secrets(value)
        return f"the text {value if len(value) <= 60 else value[:57] + '...'!r}"
    if isinstance(value, dict):
        return f"a mapping with {len(value)} key{'s' * (len(value) != 1)}"
    if isinstance(value, tuple):
        return f"a list of {len(value)}"
    return repr(value)


def dotted(path: KeyPath) -> str:
    """`cameras.left.recipe.zones[0].mode`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if step.isprintable() else ascii(step))
    return text or "the file"
