"""The catch-up socket: what it answers, and what it makes of strangers."""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq
from journals import pairs, set_meta
from streams import PATIENCE_S, Line, free_endpoint

from pipeline.catch_up import ANSWER_BYTES, MAX_MESSAGE_BYTES, CatchUp, JournalReader
from pipeline.config import PublishConfig
from pipeline.errors import ConfigError, StationBusy, WireError
from pipeline.journal import KEEP_ROWS, Journal
from pipeline.keys import Context, Socket
from pipeline.types import Defect, Label, Reason, Verdict
from pipeline.wire import (
    MAX_ASK_BYTES,
    MAX_ROWS,
    Answer,
    Ask,
    Refused,
    Rows,
    decode_answer,
    decode_ask,
    encode,
)


@pytest.fixture(params=["ipc", "tcp"])
def line(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path, endpoint=free_endpoint() if request.param == "tcp" else "")
    yield line
    line.close()


@pytest.fixture
def client(line: Line) -> Iterator[Socket]:
    context: Context = zmq.Context()
    client = context.socket(zmq.DEALER)
    client.connect(PublishConfig(endpoint=line.endpoint).replay)
    yield client
    client.close(0)
    context.term()


def asked(client: Socket, body: bytes | Ask) -> tuple[Answer, list[bytes]]:
    client.send(encode(body) if isinstance(body, Ask) else body)
    assert client.poll(PATIENCE_S * 1000)
    head, *bodies = client.recv_multipart()
    return decode_answer(head), bodies


def test_rows_after_a_seq(line: Line, client: Socket) -> None:
    rows = line.decide(7)
    parts = [row for row in rows if row.topic == "part/"]
    stream = line.journal.stream_id
    for after, limit, expected in (
        (0, MAX_ROWS, parts),
        (0, 3, parts[:3]),
        (parts[2].seq, 2, parts[3:5]),
        (parts[2].seq - 1, 2, parts[2:4]),
        (parts[-1].seq, 9, []),
        (2**62, 9, []),
    ):
        for asked_stream in (stream, ""):
            answer, bodies = asked(client, Ask(asked_stream, "part/", after, limit))
            assert answer == Rows(
                stream, "part/", after, True, stream, 1, 1, parts[-1].seq, gone=False
            )
            assert bodies == [row.body for row in expected]
    answer, bodies = asked(client, Ask(stream, "frame/none/", 0))
    assert isinstance(answer, Rows)
    assert (answer.known, answer.newest, bodies) == (True, 0, [])


def test_another_stream(line: Line, client: Socket) -> None:
    line.decide()
    answer, bodies = asked(client, Ask("0" * 32, "part/", 0))
    assert isinstance(answer, Rows)
    assert (answer.known, answer.current, bodies) == (False, line.journal.stream_id, [])


def test_an_old_stream(line: Line, client: Socket) -> None:
    old, rows = line.journal.stream_id, line.decide(2)
    line.journal.close()
    for name, value in (("clean", "no"), ("boot", "another")):
        set_meta(line.path, name, value)
    line.journal = Journal(line.path)
    rows += line.decide(3)
    new = line.journal.stream_id
    for stream, began, expected in ((old, 1, rows[:4]), (new, 5, rows[4:])):
        answer, bodies = asked(client, Ask(stream, "part/", 0))
        assert isinstance(answer, Rows)
        assert (answer.known, answer.current, answer.began) == (True, new, began)
        assert bodies == [row.body for row in expected if row.topic == "part/"]


def test_large_rows_come_in_several_answers(line: Line, client: Socket) -> None:
    defects = tuple(Defect((n, n, n + 4, n + 4), 16, 1.0 + n) for n in range(4096))
    for n in range(1, 6):
        full = Verdict(
            "s", "left", 1, n, Label.FAIL, Reason.DEFECT, defects=defects[: 4096 // (6 - n)]
        )
        line.journal.commit([(full, None)])
    after, found = 0, 0
    while after < 5:
        answer, bodies = asked(client, Ask("", "frame/left/", after))
        assert isinstance(answer, Rows)
        assert bodies
        assert len(bodies) == 1 or sum(map(len, bodies)) <= ANSWER_BYTES
        found += len(bodies)
        after += len(bodies)
    assert found == 5


def test_rows_that_are_gone(tmp_path: Path) -> None:
    """A small journal: the oldest rows made room."""
    settings = PublishConfig(keep_days=1e-9)
    path = tmp_path / "journal.sqlite"
    journal = Journal(path, settings)
    journal.commit(pairs(1, camera="once"))
    for first in range(2, KEEP_ROWS, 4000):
        journal.commit(pairs(*range(first, first + 4000)))
    reader = JournalReader(path)
    rows, bodies = reader.rows(Ask("", "part/", 0, 1))
    assert rows.gone
    assert rows.oldest > 1
    (first_body,) = bodies
    assert msgpack.unpackb(first_body)["seq"] == rows.oldest + rows.oldest % 2
    assert not reader.rows(Ask("", "part/", rows.oldest - 1))[0].gone
    # The last row of each topic stays.
    rows, bodies = reader.rows(Ask("", "frame/once/", 0))
    assert (rows.gone, rows.newest, len(bodies)) == (True, 1, 1)
    reader.close()
    journal.close()


def test_a_journal_that_is_not_there_yet(tmp_path: Path) -> None:
    reader = JournalReader(tmp_path / "journal.sqlite")
    for _ in range(2):
        with pytest.raises(sqlite3.Error):
            reader.rows(Ask("", "part/", 0))
    journal = Journal(tmp_path / "journal.sqlite")
    assert reader.rows(Ask("", "part/", 0))[1] == []
    journal.close()
    reader.close()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"hello", b"\xc1", b"\x80", b"\x91" * 4000),
        b"\xc0" * (MAX_ASK_BYTES + 1),
        encode(Ask("", "part/", 0)) + b"\0",
        msgpack.packb({"v": 2, "kind": "ask", "stream_id": "", "topic": "part/", "after": 0}),
        msgpack.packb({"v": 1, "kind": "ask", "stream_id": "", "topic": "part/", "after": 0}),
        *(
            msgpack.packb({"v": 1, "kind": "ask", "stream_id": "", **values})
            for values in (
                {"topic": "part", "after": 0, "limit": 1},
                {"topic": "", "after": 0, "limit": 1},
                {"topic": "part/", "after": -1, "limit": 1},
                {"topic": "part/", "after": 2**63, "limit": 1},
                {"topic": "part/", "after": 0, "limit": 0},
                {"topic": "part/", "after": 0, "limit": MAX_ROWS + 1},
                {"topic": "part/", "after": 0, "limit": True},
                {"topic": "part/", "after": "0; DROP TABLE verdict", "limit": 1},
                {"topic": ["part/"], "after": 0, "limit": 1},
            )
        ),
    ],
)
def test_what_is_no_ask_is_refused(line: Line, client: Socket, body: bytes) -> None:
    rows = line.decide()
    answer, bodies = asked(client, body)
    assert isinstance(answer, Refused)
    assert bodies == []
    assert line.server is not None
    assert line.server.catch_up.refused == 1
    assert asked(client, Ask("", "part/", 0))[1] == [rows[-1].body]


def test_too_many_parts_are_refused(line: Line, client: Socket) -> None:
    client.send_multipart([b"x"] * 50 + [encode(Ask("", "part/", 0))])
    assert client.poll(PATIENCE_S * 1000)
    assert isinstance(decode_answer(client.recv_multipart()[-1]), Refused)


def test_who_sends_too_much_is_cut_off(line: Line, client: Socket) -> None:
    client.send(b"x" * (MAX_MESSAGE_BYTES + 1))
    assert not client.poll(100)
    assert asked(client, Ask("", "part/", 0))[1] == []  # connected anew
    assert line.server is not None
    assert line.server.is_alive()


def test_ten_thousand_mutated_messages(
    line: Line, client: Socket, caplog: pytest.LogCaptureFixture
) -> None:
    rows = line.decide(3)
    good = encode(Ask(line.journal.stream_id, "part/", 1, 20))
    random_ = random.Random(7)
    sent = 0
    with caplog.at_level(logging.INFO):
        while sent < 10_000:
            for _ in range(10):
                body = bytearray(good)
                for _ in range(random_.randrange(1, 8)):
                    at = random_.randrange(len(body) + 1)
                    new = random_.randbytes(random_.randrange(4))
                    body[at : at + random_.randrange(4)] = new
                client.send(bytes(body))
            for _ in range(10):
                assert client.poll(PATIENCE_S * 1000)
                decode_answer(client.recv_multipart()[0])
            sent += 10
    assert line.server is not None
    served = line.server.catch_up
    assert served.refused + served.answered == sent
    assert served.refused > sent / 2
    assert len(caplog.records) < 20
    assert asked(client, Ask("", "part/", 0))[1] == [r.body for r in rows if r.topic == "part/"]


def test_an_endpoint_in_use(line: Line, tmp_path: Path) -> None:
    with zmq.Context() as context:
        endpoint = PublishConfig(endpoint=line.endpoint).replay
        with pytest.raises(StationBusy, match=r"publish\.replay_endpoint"):
            CatchUp(context, endpoint, line.path, None)
        with pytest.raises(ConfigError, match=r"publish\.replay_endpoint"):
            CatchUp(context, f"ipc://{tmp_path}/none/out", line.path, None)


def test_an_answer_is_no_ask() -> None:
    for body in (encode(Refused("no")), encode(Ask("", "part/", 0))):
        with pytest.raises(WireError):
            (decode_ask if b"refused" in body else decode_answer)(body)
