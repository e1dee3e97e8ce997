"""docs/wire.*: vectors and schema are those of the code, and the examples run."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from streams import Line, free_endpoint, until

from pipeline.journal import Row
from pipeline.types import Label, Reason
from pipeline.wire import (
    SINCE,
    Ask,
    AskPicture,
    Picture,
    Refused,
    Rows,
    decode,
    decode_answer,
    decode_ask,
    decode_picture,
    decode_picture_ask,
    encode,
    replay_endpoint,
)
from tools.wire_vectors import MESSAGES, PATH, vectors

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "wire.schema.json").read_text())
EXAMPLES = ROOT / "docs" / "examples"
VECTORS = json.loads(PATH.read_text())


def test_the_vectors_are_those_of_the_code() -> None:
    """Otherwise: python -m tools.wire_vectors."""
    assert json.loads(json.dumps(vectors())) == VECTORS


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_vectors_decode_and_follow_the_schema(vector: dict[str, Any]) -> None:
    body = bytes.fromhex(vector["hex"])
    message = MESSAGES[vector["name"]]
    read = {
        Ask: decode_ask,
        Rows: decode_answer,
        Refused: decode_answer,
        AskPicture: decode_picture_ask,
        Picture: decode_picture,
    }.get(type(message), decode)
    assert read(body) == message
    assert encode(message) == body
    assert msgpack.unpackb(body) == vector["json"]
    jsonschema.validate(vector["json"], SCHEMA)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_the_schema_asks_for_every_field_that_is_as_old_as_it(vector: dict[str, Any]) -> None:
    later = {name for kind, name in SINCE if kind == vector["json"]["kind"]}
    for name in set(vector["json"]) - later:
        less = copy.deepcopy(vector["json"])
        del less[name]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(less, SCHEMA)


def test_the_schema_knows_labels_and_reasons() -> None:
    frame = next(v["json"] for v in VECTORS if v["name"] == "a frame that passed")
    expected = {Reason.OK: Label.PASS, Reason.DEFECT: Label.FAIL}
    for reason in Reason:
        for label in Label:
            message = frame | {"label": label.value, "reason": reason.value}
            fits = label is expected.get(reason, Label.INVALID)
            assert jsonschema.Draft202012Validator(SCHEMA).is_valid(message) == fits


def test_the_page_names_every_field() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    missing = {name for v in VECTORS for name in v["json"] if f"{name}" not in page}
    assert not missing


# The examples


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path, endpoint=free_endpoint())
    yield line
    line.close()


def hears_all(line: Line, arguments: list[str], folder: Path) -> None:
    """The reader prints all parts once, also those that were never published."""
    out = folder / "out.txt"

    def heard() -> list[int]:
        lines = out.read_text().rpartition("\n")[0].splitlines()
        return [int(each.split()[0]) for each in lines if each[:1].isdigit()]

    with (
        out.open("w") as stdout,
        (folder / "err.txt").open("w") as stderr,
        subprocess.Popen(
            arguments,
            cwd=folder,
            stdout=stdout,
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        ) as reader,
    ):

        def step() -> None:
            line.beat()
            assert reader.poll() is None, (folder / "err.txt").read_text()
            time.sleep(0.02)

        try:
            rows: list[Row] = []
            until(lambda: bool(heard()), lambda: (step(), rows.extend(line.send())))
            rows += line.send(3) + line.decide(700) + line.send(2) + line.decide(1)
            parts = [row.seq for row in rows if row.topic == "part/"]
            until(lambda: heard()[-1] == parts[-1], step)
        finally:
            reader.kill()
    found = heard()
    assert found == parts[-len(found) :]
    assert len(found) > 706
    assert " pass ok left/1/" in out.read_text()


def test_the_python_example(line: Line, tmp_path: Path) -> None:
    program = str(EXAMPLES / "subscriber.py")
    hears_all(line, [sys.executable, program, line.endpoint, "mes.cursor"], tmp_path)
    assert json.loads((tmp_path / "mes.cursor").read_text())["seqs"]["part/"] > 0


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the example. LINEWATCH_NEEDS_NODE=1: missing is an error."""
    folder = tmp_path_factory.mktemp("node")
    try:
        if shutil.which("npm") is None or shutil.which("node") is None:
            raise FileNotFoundError("no node and npm here")
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "zeromq@6", "@msgpack/msgpack@3"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=240,
        )
    except (OSError, subprocess.SubprocessError) as error:
        if os.environ.get("LINEWATCH_NEEDS_NODE"):
            raise
        pytest.skip(f"the packages of the Node example cannot be installed: {error}")
    shutil.copy(EXAMPLES / "subscriber.mjs", folder)
    return folder


def test_the_node_example(line: Line, node_folder: Path) -> None:
    arguments = ["node", "subscriber.mjs", line.endpoint, replay_endpoint(line.endpoint)]
    hears_all(line, arguments, node_folder)


def test_the_vectors_in_node(node_folder: Path) -> None:
    script = """
        import { decode } from "@msgpack/msgpack";
        import { readFileSync } from "node:fs";
        import { isDeepStrictEqual } from "node:util";
        for (const each of JSON.parse(readFileSync(process.argv[2])))
          if (!isDeepStrictEqual(decode(Buffer.from(each.hex, "hex")), each.json))
            throw new Error(each.name);
    """
    (node_folder / "vectors.mjs").write_text(script)
    subprocess.run(
        ["node", "vectors.mjs", str(PATH)], cwd=node_folder, check=True, capture_output=True
    )
