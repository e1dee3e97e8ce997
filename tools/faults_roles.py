"""The processes that `tools.faults delivery` kills: real journal, sockets and subscriber, and
verdicts that nobody looked for.

    python -m tools.faults_roles publisher|catch_up|subscriber FOLDER [RESULTS RATE DURABILITY]

In FOLDER lie the journal, the sockets, the subscriber's cursor and its log: lines `s` (it started),
`r TOPIC SEQ` (it was given this) and `a` (all that it was given is acknowledged), each one write.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import zmq

from pipeline.catch_up import CatchUp
from pipeline.config import PublishConfig
from pipeline.errors import ResourceError
from pipeline.journal import Journal, JournalFull
from pipeline.keys import Context
from pipeline.publish import Publisher
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import Defect, Label, Reason, Verdict
from pipeline.verdicts import part_of
from pipeline.wire import replay_endpoint

ROUND_S = 0.004
ACK_EVERY = 50
_SLOW_S = 0.003


def endpoint(folder: Path) -> str:
    return f"ipc://{folder}/out"


def synthetic(frame_id: int, boxes: int = 1) -> Verdict:
    """Every third fails."""
    failed = frame_id % 3 == 0
    defects = tuple(Defect((n, n, n + 9, n + 9), 81, 1.5) for n in range(boxes))
    return Verdict(
        "bench",
        "cam",
        1,
        frame_id,
        Label.FAIL if failed else Label.PASS,
        Reason.DEFECT if failed else Reason.OK,
        image_score=1.5 if failed else 0.5,
        image_threshold=1.0,
        defects=defects if failed else (),
        trigger_id=frame_id,
        t_capture_utc_ns=time.time_ns(),
        latency_ms={"capture": 1.0, "queue": 0.5, "infer": 8.0, "decide": 0.5, "total": 10.0},
        bundle_sha256="ab" * 32,
        recipe_revision="0c1d2e3f",
        engine_id="synthetic",
    )


def _journal(path: Path, settings: PublishConfig) -> Journal:
    """As decision opens it: waits while the disk is full."""
    while True:
        try:
            return Journal(path, settings)
        except JournalFull:
            time.sleep(0.05)


def publisher(folder: Path, results: int, rate: float, durability: str) -> None:
    """Decides `results` frames, `rate` in a second, as decision would: journal, then PUB."""
    settings = PublishConfig.model_validate({"durability": durability})
    journal = _journal(folder / "journal.sqlite", settings)
    voice = Publisher(zmq.Context(), endpoint(folder), settings.heartbeat_ms)
    done = max(journal.decided("cam", 1), default=0)
    began, before = time.monotonic(), done
    while True:
        # What is due by now, but no more than decision would have pending.
        due = before + round((time.monotonic() - began) * rate) if _told(folder, "go") else done
        due = min(due, results, done + 200)
        if due > done:
            ripe = [synthetic(n) for n in range(done + 1, due + 1)]
            with contextlib.suppress(ResourceError):  # no room: nothing has changed, once more
                voice.publish(journal.commit((each, part_of(each)) for each in ripe))
                done = due
        elif not _told(folder, "go"):
            began = time.monotonic()
        if time.monotonic_ns() >= voice.next_ns:
            voice.heartbeat(journal.stream_id, journal.last, ready=True)
        time.sleep(ROUND_S)


def catch_up(folder: Path) -> None:
    context: Context = zmq.Context()
    served = CatchUp(context, replay_endpoint(endpoint(folder)), folder / "journal.sqlite", None)
    while True:
        served.answer(50)


def subscriber(folder: Path) -> None:
    """Notes what it is given, and acknowledges now and then."""
    log = os.open(folder / "received.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(log, b"s\n")
    open_ = 0
    last = 0
    with Subscriber(endpoint(folder), cursor=folder / "cursor") as stream:
        while True:
            event = stream.receive(timeout_ms=50)
            if event is not None:
                kind = "m" if isinstance(event, Missed) else "r"
                os.write(log, f"{kind} {event.topic} {event.seq}\n".encode())
                open_, last = open_ + 1, event.seq
                if _told(folder, "slow"):
                    time.sleep(_SLOW_S)
            if open_ >= ACK_EVERY or (event is None and open_):
                stream.ack(last)
                os.write(log, b"a\n")
                open_ = 0


def _told(folder: Path, word: str) -> bool:
    return (folder / word).exists()


if __name__ == "__main__":
    role, where, *rest = sys.argv[1:]
    if role == "publisher":
        publisher(Path(where), int(rest[0]), float(rest[1]), rest[2])
    elif role == "catch_up":
        catch_up(Path(where))
    else:
        subscriber(Path(where))
