"""Publisher and subscriber over real sockets, with a real journal behind them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from ports import free_port

from pipeline.errors import ConfigError, LinewatchError, StationBusy, WireError
from pipeline.journal import Journal, Row
from pipeline.publish import Publisher
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import decode

Event = Verdict | PartVerdict | Missed
PATIENCE_S = 10.0


@dataclass
class Line:
    """What decision does with journal and publisher."""

    journal: Journal
    publisher: Publisher
    frame_id: int = 0

    def decide(self, camera: str = "left", count: int = 1) -> list[Row]:
        """Journaled, not published."""
        rows: list[Row] = []
        for _ in range(count):
            self.frame_id += 1
            verdict = Verdict("s", camera, 1, self.frame_id, Label.PASS, Reason.OK)
            rows += self.journal.commit([(verdict, part_of(verdict))])
        return rows

    def send(self, camera: str = "left", count: int = 1) -> list[Row]:
        rows = self.decide(camera, count)
        self.publisher.publish(rows)
        return rows

    def beat(self) -> None:
        self.publisher.heartbeat(self.journal.stream_id, self.journal.last, ready=True)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "ipc":
        return f"ipc://{tmp_path}/out"
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def line(tmp_path: Path, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Line]:
    line = Line(Journal(tmp_path / "journal.sqlite"), Publisher(context, endpoint, 200))
    yield line
    line.publisher.close()
    line.journal.close()


def until(condition: Callable[[], bool], act: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        act()


def join(line: Line, stream: Subscriber) -> None:
    """Heartbeats until one is heard: from now on the subscription stands."""
    before = stream.heartbeat

    def beat() -> None:
        line.beat()
        event = stream.receive(timeout_ms=20)
        assert event is None, event

    until(lambda: stream.heartbeat is not before, beat)


def receive(stream: Subscriber, count: int) -> list[Event]:
    events: list[Event] = []
    for _ in range(count):
        event = stream.receive(timeout_ms=PATIENCE_S * 1000)
        assert event is not None, f"only {events} came"
        events.append(event)
    return events


def nothing(stream: Subscriber) -> None:
    assert stream.receive(timeout_ms=30) is None


def test_all_that_is_published_comes_in_order(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint) as stream:
        join(line, stream)
        rows = line.send("left", 3) + line.send("right", 2) + line.send("left", 200)
        assert receive(stream, len(rows)) == [decode(row.body) for row in rows]
        line.beat()
        nothing(stream)
        assert stream.heartbeat is not None
        assert stream.heartbeat.ready
        assert stream.heartbeat.last == line.journal.last


def test_a_gap_between_messages(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint, topics=["part/"]) as stream:
        join(line, stream)
        (first,) = line.send()[1:]
        line.decide(count=2)
        (last,) = line.send()[1:]
        missed = Missed("part/", after=first.seq, upto=last.seq)
        assert receive(stream, 3) == [decode(first.body), missed, decode(last.body)]
        line.beat()
        nothing(stream)  # told once


def test_a_gap_before_the_first_message(line: Line, endpoint: str) -> None:
    """The subscription stood, so that even a new topic's first message is missed."""
    with Subscriber(endpoint) as stream:
        join(line, stream)
        line.decide("new")
        rows = line.send("new")
        assert receive(stream, 4) == [
            Missed("frame/new/", 0, rows[0].seq),
            decode(rows[0].body),
            Missed("part/", 0, rows[1].seq),
            decode(rows[1].body),
        ]


def test_a_gap_at_the_end(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint, topics=["frame/"]) as stream:
        join(line, stream)
        (sent, _) = line.send()
        assert receive(stream, 1) == [decode(sent.body)]
        lost = line.decide(count=3)
        nothing(stream)
        line.beat()
        assert receive(stream, 1) == [Missed("frame/left/", sent.seq, lost[-2].seq + 1)]
        line.beat()
        nothing(stream)
        after = line.send()
        assert receive(stream, 1) == [decode(after[0].body)]


def test_a_late_joiner_has_missed_nothing(line: Line, endpoint: str) -> None:
    line.send("left", 3)
    line.send("right", 3)
    with Subscriber(endpoint) as stream:
        join(line, stream)
        rows = line.send("right") + line.send("third")
        assert receive(stream, 4) == [decode(row.body) for row in rows]
        line.beat()
        nothing(stream)


def test_a_late_joiner_whose_first_message_is_a_verdict(line: Line, endpoint: str) -> None:
    line.send("left", 3)
    with Subscriber(endpoint, topics=["part/"]) as stream:
        heard: list[Event] = []

        def send() -> None:
            line.send()
            if (event := stream.receive(timeout_ms=20)) is not None:
                heard.append(event)

        until(lambda: bool(heard), send)
        assert stream.heartbeat is None
        first = heard[0]
        assert isinstance(first, PartVerdict)
        assert first.prev_seq > 0
        line.decide()
        line.beat()
        while isinstance(event := receive(stream, 1)[0], PartVerdict):
            first = event
        assert event == Missed("part/", first.seq, line.journal.last["part/"] + 1)


def test_topics_are_whole_names(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint, topics=["frame/cam1/"]) as stream:
        join(line, stream)
        line.send("cam10", 3)
        line.decide("cam10")
        mine = line.send("cam1")
        line.beat()
        assert receive(stream, 1) == [decode(mine[0].body)]
        nothing(stream)
    for topics in (["frame/cam1"], ["part/", ""], "part/"):
        with pytest.raises(ConfigError, match="end in a slash"):
            Subscriber(endpoint, topics=topics)


def test_what_comes_twice_is_told_once(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint) as stream:
        join(line, stream)
        rows = line.send("left", 2)
        line.publisher.publish(rows[:2])
        line.publisher.publish(rows)
        assert receive(stream, 4) == [decode(row.body) for row in rows]
        nothing(stream)


def test_publisher_restarted(
    line: Line, endpoint: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """The subscriber finds it again, and is told what went by meanwhile."""
    with Subscriber(endpoint) as stream:
        join(line, stream)
        rows = line.send()
        assert receive(stream, 2) == [decode(row.body) for row in rows]
        line.publisher.close()
        lost = line.decide()  # committed by a decision that was killed before it could publish
        line.publisher = rebound(context, endpoint)
        events: list[Event] = []

        def beat() -> None:
            line.beat()
            if (event := stream.receive(timeout_ms=20)) is not None:
                events.append(event)

        until(lambda: len(events) == 2, beat)
        assert events == [Missed(r.topic, r.seq - 2, r.seq + 1) for r in lost]
        rows = line.send()
        assert receive(stream, 2) == [decode(row.body) for row in rows]


def test_a_new_stream_is_followed(line: Line, endpoint: str, tmp_path: Path) -> None:
    """A journal that was moved away counts from 1 again: no verdict may be taken for an old one."""
    with Subscriber(endpoint, topics=["frame/"]) as stream:
        join(line, stream)
        line.send(count=20)
        receive(stream, 20)
        line.journal.close()
        line.journal = Journal(tmp_path / "another.sqlite")
        first = line.send()[0]
        assert first.seq == 1
        assert receive(stream, 1) == [decode(first.body)]
        line.beat()
        nothing(stream)
        line.journal.close()
        line.journal = Journal(tmp_path / "third.sqlite")
        line.decide(count=2)
        line.beat()  # told by the heartbeat alone
        second = line.send()[0]
        assert receive(stream, 2) == [Missed("frame/left/", 0, 4), decode(second.body)]


def test_strangers_on_the_endpoint(
    endpoint: str, context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    with contextlib.closing(Journal(tmp_path / "journal.sqlite")) as journal:
        publisher = Publisher(context, endpoint, 200)
        line = Line(journal, publisher)
        with Subscriber(endpoint, topics=["frame/"]) as stream:
            join(line, stream)
            publisher.publish([Row(1, "frame/left/", b"not ours"), Row(1, "frame/left/", b"")])
            rows = line.send()
            for _ in range(2):
                with pytest.raises(WireError):
                    stream.receive(timeout_ms=PATIENCE_S * 1000)
            assert receive(stream, 1) == [decode(rows[0].body)]
        publisher.close()


def test_silence(line: Line, endpoint: str) -> None:
    with Subscriber(endpoint) as stream:
        join(line, stream)
        time.sleep(0.05)
        assert stream.silent_ms >= 50
        line.beat()
        nothing(stream)
        assert stream.silent_ms < 50


@pytest.mark.parametrize("timeout_ms", [0, 0.2, 40])
def test_time_is_up(endpoint: str, timeout_ms: float) -> None:
    with Subscriber(endpoint) as stream:  # nobody there
        start = time.monotonic()
        assert stream.receive(timeout_ms=timeout_ms) is None
        assert time.monotonic() - start >= timeout_ms / 1000 - 0.001


def test_heartbeats_have_a_pace(endpoint: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    publisher = Publisher(context, endpoint, 20)
    listener = context.socket(zmq.SUB)
    listener.connect(endpoint)
    listener.subscribe("heartbeat/")
    until(
        lambda: listener.poll(10) > 0,
        lambda: publisher.heartbeat("s", {}, ready=False),
    )
    time.sleep(0.03)
    while listener.poll(0):
        listener.recv_multipart()
    start = time.monotonic()
    while time.monotonic() - start < 0.2:
        if publisher.next_ns <= time.monotonic_ns():
            publisher.heartbeat("s", {}, ready=False)
        time.sleep(0.001)
    took_s = time.monotonic() - start
    count = 0
    while listener.poll(50):
        listener.recv_multipart()
        count += 1
    assert 1 <= count <= took_s / 0.02 + 1
    listener.close(0)
    publisher.close()


def test_closed_twice_and_nothing_left_open(tmp_path: Path) -> None:
    # The first one opens what the library keeps for good.
    Subscriber(f"ipc://{tmp_path}/x").close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        stream = Subscriber(f"ipc://{tmp_path}/x")
        stream.close()
        stream.close()
        with pytest.raises(ConfigError):
            Subscriber("nonsense")
    assert len(os.listdir("/proc/self/fd")) == before


# Endpoints


def test_an_endpoint_in_use(line: Line, endpoint: str) -> None:
    """A second bind of an ipc path would silently take over the first one's."""
    with zmq.Context() as other:
        with pytest.raises(StationBusy, match="choose another") as busy:
            Publisher(other, endpoint, 200)
        assert busy.value.exit_code == 6
        with Subscriber(endpoint) as stream:
            join(line, stream)  # the first one has kept it
        line.publisher.close()
        rebound(other, endpoint).close()


def rebound(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> Publisher:
    """A publisher where another was closed, which in one process takes a moment."""
    made: list[Publisher] = []

    def attempt() -> None:
        with contextlib.suppress(StationBusy):
            made.append(Publisher(context, endpoint, 200))
            return
        time.sleep(0.02)

    until(lambda: bool(made), attempt)
    return made[0]


def free(context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> bool:
    try:
        Publisher(context, endpoint, 200).close()
    except StationBusy:
        return False
    return True


def test_an_endpoint_whose_holder_was_killed(
    endpoint: str, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    script = """
        import sys, time, zmq
        from pipeline.publish import Publisher
        publisher = Publisher(zmq.Context(), sys.argv[1], 200)
        print("bound", flush=True)
        time.sleep(60)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), endpoint]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"bound\n"
        assert not free(context, endpoint)
        holder.kill()
    assert free(context, endpoint)


BAD = ["", "tcp", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:port", "udp://x:1", "ipc://"]


@pytest.mark.parametrize("bad", BAD)
def test_bad_endpoints(bad: str, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    calls: list[Callable[[], object]] = [lambda: Publisher(context, bad, 200)]
    if bad != "ipc://":  # whoever connects to it waits in vain
        calls.append(lambda: Subscriber(bad))
    for call in calls:
        with pytest.raises(ConfigError, match=r"expected .*tcp://127\.0\.0\.1:5601"):
            call()


def test_endpoints_that_cannot_be_bound(
    tmp_path: Path, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    for bad in (f"ipc://{tmp_path}/none/out", "tcp://192.0.2.1:5601", f"ipc://{'x' * 200}"):
        with pytest.raises(LinewatchError) as refused:
            Publisher(context, bad, 200)
        assert type(refused.value) is ConfigError
