"""A cell for the bridges' tests: a line and a bridge in processes, and a simulated PLC."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from plc_line import good

from tools.plc_machine import Link, Plc, Tally

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


class Cell:
    """Two processes that can be killed and come back: the line and one bridge."""

    def __init__(self, folder: Path, bridge: str, odd_share: float = 0.0) -> None:
        """bridge: its part of the configuration, kind and port included, as a YAML flow map."""
        self.config = folder / "cell.yaml"
        self.config.write_text(
            f"station: cell\n"
            f"run_dir: {folder}/run\n"
            f"state_dir: {folder}/state\n"
            f"cameras: {{cam: {{source: {{kind: rendered}}, trigger: {{mode: software}}}}}}\n"
            f"publish: {{endpoint: 'ipc://{folder}/out', heartbeat_ms: 50}}\n"
            f"bridges: {{cell: {bridge}}}\n"
        )
        (folder / "run").mkdir(exist_ok=True)
        self.log = folder / "log"
        kind = bridge.partition("kind: ")[2].partition(",")[0]
        self._commands = {
            "line": [str(HERE / "plc_line.py"), str(self.config), str(odd_share)],
            "bridge": ["-m", "pipeline.cli", "bridge", kind, str(self.config)],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with self.log.open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *self._commands[name]], stdout=log, stderr=log, cwd=ROOT
            )

    def kill(self, name: str) -> None:
        self._running[name].kill()
        self._running[name].wait()

    def ended(self, name: str) -> int | None:
        return self._running[name].poll()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.start("line")
        self.start("bridge")
        try:
            yield
        finally:
            for name in self._running:
                self.kill(name)

    def run_plc(
        self,
        link: Link,
        parts: int,
        *,
        rate: float = 30.0,
        gate_ms: float = 700.0,
        watchdog_ms: float = 500.0,
    ) -> Tally:
        """A PLC whose truth is that of the fake line."""
        plc = Plc(link, rate=rate, gate_ms=gate_ms, truth=good, watchdog_ms=watchdog_ms)
        return plc.run(parts, start_s=60.0)


@contextlib.contextmanager
def saboteur(cell: Cell, seed: int, pause_s: tuple[float, float]) -> Iterator[list[str]]:
    """Kills bridge and line in turn with `kill -9`, at random times, and starts them again, until
    the block ends."""
    stop = threading.Event()
    killed: list[str] = []

    def work() -> None:
        choice = random.Random(seed)
        while not stop.wait(choice.uniform(*pause_s)):
            name = "line" if len(killed) % 2 else "bridge"
            cell.kill(name)
            killed.append(name)
            time.sleep(choice.uniform(0.0, 0.4))
            cell.start(name)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
