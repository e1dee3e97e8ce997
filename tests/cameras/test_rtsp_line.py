"""A whole line with an RTSP camera that is absent, killed, frozen and back."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path

from integration.live import LiveLine, until
from rtsp import HEIGHT, WIDTH, Server, write_frames

from pipeline.types import Label


def test_a_stream_that_is_absent_killed_and_frozen_comes_back_without_a_restart(
    tmp_path: Path,
) -> None:
    frames = write_frames(tmp_path / "frames.raw")
    server = Server(frames)
    port = str(server.port)
    source = {"kind": "stream", "url": server.url(), "width": WIDTH, "height": HEIGHT}
    source |= {"read_timeout_ms": 1000.0, "frozen_ms": 5000.0, "retry_s": 0.5}
    server.stop()
    live = LiveLine(tmp_path, {"a": "free"}, source=source)

    def more_frames() -> None:
        live.wait_for("a", "ready")
        seen = live.line.progress().captured
        until(lambda: live.line.progress().captured >= seen + 20, "20 more frames")

    with live.running():
        live.wait_for("a", "lost")
        pids = live.line.progress().pids
        server = Server(frames, "--port", port)
        try:
            more_frames()
            server.stop()
            live.wait_for("a", "lost")
            server = Server(frames, "--port", port)
            more_frames()
            server.signal(signal.SIGSTOP)
            live.wait_for("a", "lost")
            server.signal(signal.SIGCONT)
            more_frames()
            assert live.line.progress().pids == pids
        finally:
            server.stop()
    verdicts = live.verdicts()
    assert [v.frame_id for v in verdicts] == list(range(1, len(verdicts) + 1))
    stamps = [round(v.raw_peak) for v in verdicts if v.label is not Label.INVALID]
    assert len(stamps) >= 50
    assert -1 not in stamps
    assert sum(after < before for before, after in pairwise(stamps)) <= 4
