"""A subscriber to a line under test, which notes when each verdict came."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from pipeline.subscriber import Missed, Subscriber
from pipeline.types import Verdict


class Listener(threading.Thread):
    """A subscriber like any other, in a thread. `verdicts` in the order in which they came."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(name="listener")
        self._stream = Subscriber(endpoint, topics=["frame/"])
        self._leave = threading.Event()
        self.verdicts: list[Verdict] = []
        self.received_utc_ns: list[int] = []
        """Of each verdict."""
        self.missed = 0

    def run(self) -> None:
        while not self._leave.is_set():
            event = self._stream.receive(timeout_ms=100)
            if isinstance(event, Verdict):
                self.received_utc_ns.append(time.time_ns())
                self.verdicts.append(event)
            elif isinstance(event, Missed):
                self.missed += 1

    def stop(self) -> None:
        """Leave, once what is under way has come."""
        time.sleep(0.3)
        self._leave.set()
        self.join()
        self._stream.close()

    def rates(self) -> dict[str, float]:
        """Frames per second and camera, over the capture times."""
        rates = {}
        for camera in sorted({verdict.camera for verdict in self.verdicts}):
            times = [v.t_capture_utc_ns for v in self.verdicts if v.camera == camera]
            span_s = (max(times) - min(times)) / 1e9
            rates[camera] = (len(times) - 1) / span_s if span_s else 0.0
        return rates

    def latencies(self) -> dict[str, dict[str, float]]:
        """Median, p99 and maximum per stage, and from capture to the subscriber's hands."""
        columns: dict[str, list[float]] = {}
        for verdict, received in zip(self.verdicts, self.received_utc_ns, strict=True):
            for name, value in verdict.latency_ms.items():
                columns.setdefault(name, []).append(value)
            columns.setdefault("received", []).append((received - verdict.t_capture_utc_ns) / 1e6)
        return {name: spread(values) for name, values in columns.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, p99 and maximum; NaN of nothing."""
    if not values:
        return dict.fromkeys(("p50", "p99", "max"), float("nan"))
    return {
        "p50": float(np.percentile(values, 50)),
        "p99": float(np.percentile(values, 99)),
        "max": float(max(values)),
    }


def rate(arrived_s: Sequence[float], together_s: float) -> float:
    """Frames per second of frames that came at these times, ascending, in groups.

    Frames of one batch come together, less than `together_s` apart. What is counted comes after the
    first group and up to the last one, so that no part of a batch is counted for the time of
    another. NaN when all came together.
    """
    gaps = [n for n in range(1, len(arrived_s)) if arrived_s[n] - arrived_s[n - 1] > together_s]
    if not gaps:
        return float("nan")
    counted = len(arrived_s) - gaps[0]
    return counted / (arrived_s[-1] - arrived_s[gaps[0] - 1])
