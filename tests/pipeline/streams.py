"""For tests of the stream: a line's journal, publisher and catch-up socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from ports import free_port

from pipeline.catch_up import CatchUp
from pipeline.config import PublishConfig
from pipeline.journal import Journal, Row
from pipeline.keys import Context, Gate
from pipeline.publish import Publisher
from pipeline.subscriber import Subscriber
from pipeline.types import Label, PartVerdict, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import Heartbeat, decode, replay_endpoint

PATIENCE_S = 20.0


def free_endpoint() -> str:
    """A tcp endpoint of this machine, with the port after it free as well."""
    return f"tcp://127.0.0.1:{free_port()}"


def until(condition: Callable[[], bool], act: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        act()


def message(row: Row) -> Verdict | PartVerdict:
    found = decode(row.body)
    assert not isinstance(found, Heartbeat)
    return found


class Server(threading.Thread):
    """The catch-up socket of a journal, until it is closed."""

    def __init__(self, endpoint: str, journal: Path, gate: Gate | None, context: Context) -> None:
        super().__init__(daemon=True)
        self._leave = threading.Event()
        self.catch_up = CatchUp(context, endpoint, journal, gate)
        self.start()

    def run(self) -> None:
        while not self._leave.is_set():
            self.catch_up.answer(20)
        self.catch_up.close()

    def close(self) -> None:
        self._leave.set()
        self.join()


class Line:
    """What decision and catch-up do, one step at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: PublishConfig | None = None,
        endpoint: str = "",
        gate: Gate | None = None,
        context: Context | None = None,
    ) -> None:
        self.path = folder / "journal.sqlite"
        self.settings = settings
        self.endpoint = endpoint or f"ipc://{folder}/out"
        self.gate = gate
        self.own_context = context is None
        self.context: Context = context or zmq.Context()
        self.frame_id = 0
        self.journal = Journal(self.path, settings)
        self.publisher = Publisher(self.context, self.endpoint, 50, gate)
        self.server: Server | None = None
        self.serve()

    def serve(self) -> None:
        self.server = Server(replay_endpoint(self.endpoint), self.path, self.gate, self.context)

    def stop_serving(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def decide(self, count: int = 1, camera: str = "left") -> list[Row]:
        """Journaled, not published."""
        verdicts = []
        for _ in range(count):
            self.frame_id += 1
            verdicts.append(Verdict("s", camera, 1, self.frame_id, Label.PASS, Reason.OK))
        return self.journal.commit((each, part_of(each)) for each in verdicts)

    def send(self, count: int = 1, camera: str = "left") -> list[Row]:
        rows = self.decide(count, camera)
        self.publisher.publish(rows)
        return rows

    def beat(self) -> None:
        self.publisher.heartbeat(self.journal.stream_id, self.journal.last, ready=True)

    def reopen(self) -> None:
        """The journal, by another writer."""
        self.journal.close()
        self.journal = Journal(self.path, self.settings)

    def join(self, stream: Subscriber) -> None:
        """Heartbeats until one is heard and nothing is left to be fetched."""
        before = stream.heartbeat

        def beat() -> None:
            self.beat()
            event = stream.receive(timeout_ms=20)
            assert event is None, event

        until(lambda: stream.heartbeat is not before, beat)

    def close(self) -> None:
        self.publisher.close()
        self.stop_serving()
        self.journal.close()
        if self.gate is not None:
            self.gate.close()
        if self.own_context:
            self.context.term()
