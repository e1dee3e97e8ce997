"""The format of pushed frames; the programs in docs/push.md work as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.sources import PushSource, TriggerConfig
from pipeline.errors import WireError
from pipeline.push import Header, decode_answer, decode_header
from pipeline.sources.push import PushCamera

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "push.md").read_text()
ENDPOINT = "ipc:///run/line/robot.sock"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_programs_push_what_the_configuration_takes(tmp_path: Path) -> None:
    source = yaml.safe_load(blocks("yaml")[0])["cameras"]["robot"]["source"]
    source["endpoint"] = endpoint = f"ipc://{tmp_path}/robot.sock"
    programs = blocks("python")[:2]  # the one after them has keys
    camera = PushCamera(PushSource.model_validate(source), TriggerConfig())
    for program in programs:
        grabs = []
        with subprocess.Popen(
            [sys.executable, "-c", program.replace(ENDPOINT, endpoint)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                if (grab := camera.read(20)) is not None:
                    grabs.append(grab)
            said, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert [grab.part_id for grab in grabs] == ["A-17"]
        assert said in ("", "taken\n")
    camera.close()


TEXT = st.text(max_size=16)


@given(
    st.builds(
        Header,
        height=st.integers(1, 65536),
        width=st.integers(1, 65536),
        channels=st.integers(1, 3),
        index=st.integers(-1, 2**63 - 1),
        trigger_id=st.integers(0, 2**32 - 1),
        part_id=TEXT,
        pts=st.integers(-1, 2**63 - 1),
    )
)
def test_headers_survive_the_way(found: Header) -> None:
    assert decode_header(found.encode()) == found


@given(st.binary(max_size=200) | st.recursive(TEXT | st.integers() | st.none(), st.lists).map(repr))
def test_any_bytes_are_a_header_or_an_error(body: bytes | str) -> None:
    data = body if isinstance(body, bytes) else body.encode()
    for decode in (decode_header, decode_answer):
        try:
            decode(data)
        except WireError:
            continue
