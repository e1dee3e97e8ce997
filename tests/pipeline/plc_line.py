"""A line for the bridges' tests: takes triggers, publishes parts, and is meant to be killed.

    python tests/pipeline/plc_line.py CONFIG.yaml ODD_SHARE

Of each trigger it gives the verdict that `good` says, most of the time. The rest are what a bridge
must not fall for: no verdict, a very late one, one that comes twice, a pass for the next trigger
before that is given, and bad parts' ids with a pass that was captured long ago.
"""

from __future__ import annotations

import heapq
import itertools
import random
import secrets
import sys
import time
from dataclasses import replace
from pathlib import Path

import zmq

from pipeline.config import load
from pipeline.control import pack, unpack
from pipeline.station import Station
from pipeline.types import Defect, Label, PartVerdict, Reason
from pipeline.wire import HEARTBEAT_TOPIC, Heartbeat, encode

LATENCY_S = (0.01, 0.05)


def good(trigger_id: int) -> bool:
    """Whether the part of this trigger is good: four of five are."""
    return trigger_id * 2654435761 // 7 % 5 != 0


class FakeLine:
    """Publishes and answers until it is killed."""

    def __init__(self, station: Station, odd_share: float) -> None:
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.bind(station.config.publish.endpoint)
        self._control = self._context.socket(zmq.ROUTER)
        self._control.bind(station.control)
        self._station = station.config.station
        self._beat_s = station.config.publish.heartbeat_ms / 1000
        self._odd_share = odd_share
        self._stream_id = secrets.token_hex(8)
        self._seq = 0
        self._due: list[tuple[float, int, PartVerdict]] = []
        self._order = itertools.count()
        self._random = random.Random()

    def run(self, until_s: float = float("inf")) -> None:
        end = time.monotonic() + until_s
        next_beat = 0.0
        while (now := time.monotonic()) < end:
            if now >= next_beat:
                next_beat = now + self._beat_s
                beat = Heartbeat(
                    self._stream_id, {"part/": self._seq}, time.time_ns(), True, {"cam": "ready"}
                )
                self._publisher.send_multipart([HEARTBEAT_TOPIC.encode(), encode(beat)])
            while self._due and self._due[0][0] <= now:
                self._publish(heapq.heappop(self._due)[2])
            if self._control.poll(2):
                self._answer()

    def _answer(self) -> None:
        sender, body = self._control.recv_multipart()
        request = unpack(body)
        answer = {"id": request["id"], "ok": True, "trigger_id": request["trigger_id"]}
        self._control.send_multipart([sender, pack(answer)])
        trigger_id, part_id = request["trigger_id"], request["part_id"]
        is_good = good(trigger_id)
        captured = time.time_ns()
        verdict = self._verdict(trigger_id, part_id, captured, is_good)
        delay_s = self._random.uniform(*LATENCY_S)
        if self._random.random() >= self._odd_share:
            self._later(delay_s, verdict)
            return
        odd = self._random.randrange(5)
        if odd == 1:
            self._later(1.5, verdict)
        if odd == 2:
            self._later(delay_s, verdict)
            self._later(delay_s + 0.02, verdict)
        if odd == 3:
            after = trigger_id + 1
            self._later(0.0, self._verdict(after, f"part-{after}", captured, True))
            self._later(delay_s, verdict)
        if odd == 4:
            long_ago = captured - 10**9
            self._later(0.0, self._verdict(trigger_id, part_id, long_ago, True))
            self._later(delay_s, verdict)

    def _later(self, delay_s: float, verdict: PartVerdict) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._order), verdict))

    def _verdict(self, trigger_id: int, part_id: str, captured: int, is_good: bool) -> PartVerdict:
        return PartVerdict(
            station=self._station,
            part_id=part_id,
            trigger_id=trigger_id,
            label=Label.PASS if is_good else Label.FAIL,
            reason=Reason.OK if is_good else Reason.DEFECT,
            views=(("cam", 1, trigger_id % 1000 + 1),),
            image_score=0.25 if is_good else 3.5,
            image_threshold=1.0,
            defects=() if is_good else (Defect((10, 20, 30, 40), 123, 3.5),),
            t_capture_utc_ns=captured,
        )

    def _publish(self, verdict: PartVerdict) -> None:
        before, self._seq = self._seq, self._seq + 1
        whole = replace(verdict, seq=self._seq, prev_seq=before, stream_id=self._stream_id)
        self._publisher.send_multipart([b"part/", encode(whole)])


if __name__ == "__main__":
    FakeLine(Station.of(load(Path(sys.argv[1]))), float(sys.argv[2])).run()
