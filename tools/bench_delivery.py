"""`python -m tools.bench delivery`: from a verdict to the hands of a subscriber.

A publisher (journal with durability `power`, PUB) gets a frame verdict and its part's at an even
pace and commits what has come together, as decision does; a subscriber with a cursor in another
process notes when each came. The time is from when the verdict was due, its wait for the commit
before it included. Verdicts of 500 boxes are among them.

Exit status: 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import zmq

from pipeline.config import PublishConfig
from pipeline.journal import Journal
from pipeline.publish import Publisher
from pipeline.subscriber import Subscriber
from pipeline.types import PartVerdict
from pipeline.verdicts import part_of
from tools.bench_listener import spread
from tools.bench_machine import Goal, as_json, exit_code, figure_table, machine, today, wide_console
from tools.faults_roles import synthetic

P99_GOAL_MS = 15.0
RATE = 1000.0
BOXES = 500
_BOXES_EVERY = 300
"""Results from one of BOXES boxes to the next; a multiple of 3, as those fail (`synthetic`)."""
_ACK_EVERY = 200
_WARM_UP_S = 1.0
_ROUND_S = 0.001
"""Between two looks for what is due."""
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Heard:
    """A part verdict in the subscriber's hands."""

    frame_id: int
    came_utc_ns: int
    ms: float
    """Since it was due."""
    boxes: int


@dataclass(frozen=True, slots=True)
class DeliveryFigures:
    """All that `--json` prints. Times in ms."""

    durability: str
    results: int
    asked_rate: float
    rate: float
    """Results per second that came."""
    part_ms: dict[str, float]
    """Due to the subscriber's hands: p50, p99, max."""
    boxes_ms: dict[str, float]
    """Of the parts with BOXES boxes alone."""
    commit_ms: dict[str, float]
    lost: int
    boxes_whole: bool

    @property
    def goals(self) -> list[Goal]:
        return [
            Goal(
                "p99 ms from verdict to subscriber", self.part_ms["p99"], P99_GOAL_MS, at_most=True
            ),
            Goal("share of the results per second", self.rate / self.asked_rate, 0.99),
            Goal("results lost", self.lost, 0, at_most=True),
            Goal(f"verdicts of {BOXES} boxes whole", float(self.boxes_whole), 1),
        ]


def bench_delivery(*, seconds: float, rate: float, durability: str) -> DeliveryFigures:
    with tempfile.TemporaryDirectory(prefix="linewatch-bench-") as work:
        return _measure(Path(work), seconds, rate, durability)


def _measure(folder: Path, seconds: float, rate: float, durability: str) -> DeliveryFigures:
    endpoint = f"ipc://{folder}/out"
    settings = PublishConfig.model_validate({"endpoint": endpoint, "durability": durability})
    journal = Journal(folder / "journal.sqlite", settings)
    context = zmq.Context()
    voice = Publisher(context, endpoint, settings.heartbeat_ms)
    near, far = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    count = round((seconds + _WARM_UP_S) * rate)
    listener = spawn.Process(target=_listen, args=(endpoint, folder / "cursor", count, far))
    listener.start()
    try:
        while not near.poll(0.01):  # until it has joined
            voice.heartbeat(journal.stream_id, journal.last, ready=True)
        near.recv()
        commit_ms = _publish(journal, voice, count, rate)
        until = time.monotonic() + _PATIENCE_S
        while not near.poll(0.02) and time.monotonic() < until:
            voice.heartbeat(journal.stream_id, journal.last, ready=True)
        heard: list[Heard] = near.recv() if near.poll(0) else []
    finally:
        listener.kill()
        listener.join()
        voice.close()
        context.term()
        journal.close()
    warm = [each for each in heard if each.frame_id > _WARM_UP_S * rate]
    full = [each for each in warm if each.frame_id % _BOXES_EVERY == 0]
    took_s = (warm[-1].came_utc_ns - warm[0].came_utc_ns) / 1e9 if warm else float("nan")
    return DeliveryFigures(
        durability,
        len(warm),
        rate,
        (len(warm) - 1) / took_s if took_s else 0.0,
        spread([each.ms for each in warm]),
        spread([each.ms for each in full]),
        spread(commit_ms),
        count - len(heard),
        bool(full) and all(each.boxes == BOXES for each in full),
    )


def _publish(journal: Journal, voice: Publisher, count: int, rate: float) -> list[float]:
    """All results at their pace; how long each commit took, in ms."""
    commit_ms = []
    began, began_utc_ns = time.monotonic(), time.time_ns()
    done = 0
    while done < count:
        due = min(count, int((time.monotonic() - began) * rate))
        if due > done:
            ripe = [
                replace(
                    synthetic(n, boxes=BOXES if n % _BOXES_EVERY == 0 else 1),
                    t_capture_utc_ns=began_utc_ns + round(n / rate * 1e9),
                )
                for n in range(done + 1, due + 1)
            ]
            start = time.monotonic()
            rows = journal.commit((each, part_of(each)) for each in ripe)
            commit_ms.append((time.monotonic() - start) * 1e3)
            voice.publish(rows)
            done = due
        if time.monotonic_ns() >= voice.next_ns:
            voice.heartbeat(journal.stream_id, journal.last, ready=True)
        time.sleep(_ROUND_S)
    return commit_ms


def _listen(endpoint: str, cursor: Path, count: int, far: Connection) -> None:
    """The subscriber's process: joins, says so, and hands over what it heard at the end."""
    heard: list[Heard] = []
    with Subscriber(endpoint, topics=["part/"], cursor=cursor) as stream:
        while stream.heartbeat is None:
            stream.receive(timeout_ms=10)
        far.send("joined")
        while len(heard) < count:
            event = stream.receive(timeout_ms=1000)
            if isinstance(event, PartVerdict):
                now = time.time_ns()
                frame_id = event.views[0][2]
                ms = (now - event.t_capture_utc_ns) / 1e6
                heard.append(Heard(frame_id, now, ms, len(event.defects)))
                if len(heard) % _ACK_EVERY == 0:
                    stream.ack(event.seq)
    far.send(heard)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=RATE, help="results per second")
    parser.add_argument("--durability", choices=("power", "process"), default="power")
    parser.add_argument("--json", action="store_true", help="figures as JSON")


def run(chosen: argparse.Namespace) -> int:
    figures = bench_delivery(seconds=chosen.seconds, rate=chosen.rate, durability=chosen.durability)
    if chosen.json:
        goals = {"goals": [goal.plain() for goal in figures.goals]}
        print(as_json(asdict(figures) | goals | {"machine": machine(), "when": today()}))
    else:
        _print(figures)
    return exit_code(figures.goals)


def _print(figures: DeliveryFigures) -> None:
    table = figure_table(
        f"delivery, durability {figures.durability}, {figures.asked_rate:g} results/s"
    )
    table.add_row("results", str(figures.results))
    table.add_row("results/s that came", f"{figures.rate:.1f}")
    for name, spread_ms in (
        ("verdict to subscriber", figures.part_ms),
        (f"those of {BOXES} boxes", figures.boxes_ms),
        ("commit", figures.commit_ms),
    ):
        text = " / ".join(f"{value:.2f}" for value in spread_ms.values())
        table.add_row(f"{name} ms, p50 / p99 / max", text)
    table.caption = f"{machine()}, {today()}"
    console = wide_console()
    console.print(table)
    for goal in figures.goals:
        console.print(str(goal), highlight=False)
