"""A subscriber with a cursor: nothing is missed, nothing comes twice once it is acknowledged."""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq
from journals import set_meta
from streams import PATIENCE_S, Line, free_endpoint, message, until

from pipeline.cursor import Position, read_position, write_position
from pipeline.errors import ConfigError, ResourceError
from pipeline.gaps import Event
from pipeline.journal import Journal, Row
from pipeline.keys import ClientKeys, Context, Gate, make_keys
from pipeline.subscriber import SILENT_S, Missed, Subscriber
from pipeline.wire import MAX_ROWS, replay_endpoint

PARTS = ["part/"]


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path)
    yield line
    line.close()


@pytest.fixture
def cursor(tmp_path: Path) -> Path:
    return tmp_path / "client" / "cursor"


def receive(line: Line, stream: Subscriber, count: int) -> list[Event]:
    """So many events, while the line's heart beats."""
    events: list[Event] = []

    def step() -> None:
        line.beat()
        while (event := stream.receive(timeout_ms=10)) is not None:
            events.append(event)

    until(lambda: len(events) >= count, step)
    assert len(events) == count, events
    return events


def nothing(line: Line, stream: Subscriber) -> None:
    for _ in range(3):
        line.beat()
        assert stream.receive(timeout_ms=20) is None


def messages(rows: Sequence[Row], topic: str = "part/") -> list[Event]:
    return [message(row) for row in rows if row.topic == topic]


@pytest.mark.parametrize("lost", [1, 3, MAX_ROWS, 2 * MAX_ROWS + 1])
def test_a_gap_is_filled(line: Line, cursor: Path, lost: int) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        rows = line.send() + line.decide(lost) + line.send()
        assert receive(line, stream, lost + 2) == messages(rows)
        rows = line.decide(2)  # the last ones: a heartbeat tells
        assert receive(line, stream, 2) == messages(rows)
        nothing(line, stream)


def test_topics_are_filled_each_in_order(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, cursor=cursor) as stream:
        line.join(stream)
        rows: list[Row] = []
        for n in range(1, 40):
            rows += (line.send if n % 3 else line.decide)(1, f"cam{n % 4}")
        events = receive(line, stream, len(rows))
        for topic in {row.topic for row in rows}:
            assert [e for e in events if e.topic == topic] == messages(rows, topic)
        nothing(line, stream)


def test_after_a_restart_it_goes_on_where_it_was(line: Line, cursor: Path) -> None:
    line.send(5)  # before it ever was there
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        rows = line.send(4)
        events = receive(line, stream, 4)
        stream.ack(events[1].seq)
        stream.ack(events[1].seq)  # done with already
        stream.ack(events[0].seq)
        stream.ack(10**6)  # nobody's
    rows += line.send(3)  # while it is away
    for _ in range(2):  # nothing was acknowledged: the same again
        with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
            events = receive(line, stream, 5)
            assert events == messages(rows)[2:]
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        stream.ack(receive(line, stream, 5)[-1].seq)
        nothing(line, stream)
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        nothing(line, stream)


def test_killed_before_its_first_ack(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        rows = line.send(2)
        assert receive(line, stream, 2) == messages(rows)
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        assert receive(line, stream, 2) == messages(rows)


def test_a_topic_that_is_new_is_whole(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, ["frame/"], cursor=cursor) as stream:
        line.join(stream)
    rows = line.decide(3, "new")
    with Subscriber(line.endpoint, ["frame/"], cursor=cursor) as stream:
        assert receive(line, stream, 3) == messages(rows, "frame/new/")


def test_a_subscription_that_grows_joins_the_new_topics_now(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
    line.decide(3)
    with Subscriber(line.endpoint, cursor=cursor) as stream:
        assert [event.topic for event in receive(line, stream, 3)] == ["part/"] * 3
        rows = line.decide()
        assert len(receive(line, stream, 2)) == len(rows)


def test_gaps_without_a_cursor(line: Line) -> None:
    with Subscriber(line.endpoint, PARTS, replay=f"{line.endpoint}.replay") as stream:
        line.join(stream)
        rows = line.send() + line.decide(3) + line.send()
        assert receive(line, stream, 5) == messages(rows)
        with pytest.raises(ConfigError, match="without a cursor"):
            stream.ack(1)


def test_the_catch_up_socket_was_away(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        line.stop_serving()
        rows = line.send() + line.decide(2) + line.send()
        assert receive(line, stream, 1) == messages(rows)[:1]
        nothing(line, stream)
        line.serve()
        assert receive(line, stream, 3) == messages(rows)[1:]


def test_a_slow_subscriber_catches_up(line: Line, cursor: Path) -> None:
    """More than all buffers hold is published while it does not look."""
    count = 33_000
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        rows: list[Row] = []
        for _ in range(count // 1000):
            rows += line.send(1000)
        expected = [row.seq for row in rows if row.topic == "part/"]
        assert [event.seq for event in receive(line, stream, count)] == expected


def test_an_application_that_was_long_busy_misses_nothing(line: Line) -> None:
    """What came meanwhile waits here: it is no silence, after which the connection is made anew."""
    with Subscriber(line.endpoint, PARTS) as stream:
        line.join(stream)
        rows = line.send(3)
        time.sleep(SILENT_S + 0.2)
        rows += line.send(3)
        assert receive(line, stream, 6) == messages(rows)


# Streams


def test_what_is_left_of_an_old_stream_comes_first(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        rows = line.send(2)
        stream.ack(receive(line, stream, 2)[0].seq)
        rows += line.decide(2)
        line.journal.close()
        for name, value in (("clean", "no"), ("boot", "another")):
            set_meta(line.path, name, value)  # the machine lost its power
        old = line.journal.stream_id
        line.journal = Journal(line.path)
        assert line.journal.stream_id != old
        rows += line.decide() + line.send()
        assert receive(line, stream, 4) == messages(rows)[2:]
        nothing(line, stream)
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        events = receive(line, stream, 5)
        assert events == messages(rows)[1:]
        stream.ack(events[3].seq)
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        assert receive(line, stream, 1) == messages(rows)[-1:]


def test_a_journal_that_was_moved_away(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        line.send(20)
        stream.ack(receive(line, stream, 20)[-1].seq)
    line.stop_serving()
    line.journal.close()
    for path in line.path.parent.glob("journal*"):
        path.rename(path.with_name("old-" + path.name))
    line.journal = Journal(line.path)
    line.serve()
    rows = line.decide(3)
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        events = receive(line, stream, 3)
        assert events == messages(rows)
        stream.ack(events[-1].seq)
        nothing(line, stream)


def test_another_lines_journal(line: Line, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Line(tmp_path / "other")
    with Subscriber(line.endpoint, PARTS, replay=f"{other.endpoint}.replay") as stream:
        line.join(stream)
        line.decide()
        with pytest.raises(ConfigError, match=r"is it the `publish\.replay_endpoint`"):
            receive(line, stream, 1)
    other.close()


# Connections


class Wire(threading.Thread):
    """A cable between subscriber and line that can go dead without a word."""

    def __init__(self, target: str) -> None:
        super().__init__(daemon=True)
        self._target = target.removeprefix("tcp://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[tuple[socket.socket, socket.socket]] = []
        self._dead: list[tuple[socket.socket, socket.socket]] = []
        self._leave = threading.Event()
        self._to_cut = threading.Event()
        self._is_cut = threading.Event()
        self.start()

    def cut(self) -> None:
        """Everything that is connected hears nothing more; new connections work."""
        self._to_cut.set()
        assert self._is_cut.wait(PATIENCE_S)
        self._is_cut.clear()

    def run(self) -> None:
        while not self._leave.is_set():
            if self._to_cut.is_set():
                self._to_cut.clear()
                self._dead, self._open = self._dead + self._open, []
                self._is_cut.set()
            ends = {one: other for pair in self._open for one, other in (pair, pair[::-1])}
            ready, _, _ = select.select([self._listener, *ends], [], [], 0.02)
            for each in ready:
                if each is self._listener:
                    near = self._listener.accept()[0]
                    far = socket.create_connection((self._target[0], int(self._target[1])))
                    self._open.append((near, far))
                elif data := each.recv(65536):
                    ends[each].sendall(data)
                else:
                    ends[each].close()
                    each.close()
                    self._open = [pair for pair in self._open if each not in pair]
                    break
        for pair in (*self._open, *self._dead):
            for each in pair:
                each.close()
        self._listener.close()

    def close(self) -> None:
        self._leave.set()
        self.join()


def test_a_connection_that_died_silently_is_made_anew(tmp_path: Path, cursor: Path) -> None:
    line = Line(tmp_path, endpoint=free_endpoint())
    wire = Wire(line.endpoint)
    replay = replay_endpoint(line.endpoint)
    with Subscriber(wire.endpoint, PARTS, replay=replay, cursor=cursor) as stream:
        line.join(stream)
        wire.cut()
        rows = line.send(3)
        assert receive(line, stream, 3) == messages(rows)
    with Subscriber(wire.endpoint, PARTS) as stream:  # without a cursor as well
        line.join(stream)
        wire.cut()
        lost = line.send(1)
        assert receive(line, stream, 1) == [Missed("part/", rows[-1].seq, lost[-1].seq + 1)]
    wire.close()
    line.close()


def test_keys(tmp_path: Path, cursor: Path) -> None:
    own, friend = make_keys(tmp_path, "line"), make_keys(tmp_path, "friend")
    stranger = make_keys(tmp_path, "stranger")
    allow = tmp_path / "allow"
    allow.mkdir(mode=0o700)
    (tmp_path / "friend.public").rename(allow / "friend.public")
    context: Context = zmq.Context()
    gate = Gate(context, own, allow)
    line = Line(tmp_path, endpoint=free_endpoint(), gate=gate, context=context)
    with Subscriber(
        line.endpoint, PARTS, cursor=cursor, keys=ClientKeys(friend, own.public)
    ) as stream:
        line.join(stream)
        rows = line.send() + line.decide(2)
        assert receive(line, stream, 3) == messages(rows)
    for keys in (None, ClientKeys(stranger, own.public)):
        with Subscriber(line.endpoint, PARTS, replay=None, keys=keys) as stream:
            nothing(line, stream)
            assert stream.heartbeat is None
    until(lambda: {"no key", "unknown key"} <= set(gate.refused), lambda: time.sleep(0.01))
    line.close()
    context.term()


# The cursor's file


def test_positions(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "cursor"
    assert read_position(path) is None
    for position in (Position("a", ("part/",), {}), Position("b", (), {"part/": 3, "ü/": 2**60})):
        write_position(path, position)
        assert read_position(path) == position
    assert [each.name for each in path.parent.iterdir()] == ["cursor"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "nonsense", '{"v": 2, "stream_id": "", "topics": [], "seqs": {}}'),
        '{"v": 1, "stream_id": "", "topics": [], "seqs": {"a": "1"}}',
        '{"v": 1, "stream_id": "", "topics": [1], "seqs": {}}',
        '{"v": 1, "stream_id": 4, "topics": [], "seqs": {}}',
    ],
)
def test_files_that_are_no_cursor(line: Line, cursor: Path, text: str) -> None:
    cursor.parent.mkdir()
    cursor.write_text(text)
    with pytest.raises(ConfigError, match=r"expected the file of a subscriber"):
        Subscriber(line.endpoint, cursor=cursor)
    assert cursor.read_text() == text


def test_a_cursor_that_cannot_be_written(line: Line, cursor: Path) -> None:
    with Subscriber(line.endpoint, PARTS, cursor=cursor) as stream:
        line.join(stream)
        before = json.loads(cursor.read_text())
        line.send(2)
        events = receive(line, stream, 2)
        aside = cursor.with_name("cursor.new")
        aside.mkdir()
        with pytest.raises(ResourceError, match="check the disk's space"):
            stream.ack(events[-1].seq)
        assert json.loads(cursor.read_text()) == before
        aside.rmdir()
        stream.ack(events[-1].seq)
        position = read_position(cursor)
        assert position is not None
        assert position.seqs["part/"] == events[-1].seq
