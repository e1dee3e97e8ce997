"""A journal's disk that is full for a while: verdicts wait, none is lost, and none is made up."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from live import LiveLine, until

from pipeline.errors import ControlError
from pipeline.subscriber import Missed, Subscriber
from pipeline.types import Verdict


def test_verdicts_wait_for_room(tmp_path: Path) -> None:
    live = LiveLine(tmp_path, {"a": "free", "b": "software"})
    got: list[Verdict] = []
    ready: list[bool] = []
    with live.running(), Subscriber(live.config.publish.endpoint, topics=["frame/"]) as stream:

        def listen(seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                event = stream.receive(timeout_ms=50)
                assert not isinstance(event, Missed)
                if isinstance(event, Verdict):
                    got.append(event)
                if stream.heartbeat is not None:
                    ready.append(stream.heartbeat.ready)

        until(lambda: live.line.progress().decided > 10, "some verdicts")
        listen(0.5)
        # No file of decision may grow: what the kernel says then is as with a disk without room.
        pid = live.line.progress().pids["decision"]
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        listen(1.5)
        stalled = live.line.progress().decided
        assert not ready[-1]
        until(lambda: live.status().get("ready") is False, "the control socket says so too")
        with pytest.raises(ControlError, match="not ready"):
            live.control.trigger("b", timeout_ms=5000)
        listen(1.0)
        assert live.line.progress().decided == stalled
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        until(lambda: live.line.progress().decided > stalled + 30, "verdicts again")
        listen(1.0)
        assert ready[-1]
        until(lambda: live.status().get("ready") is True, "it is ready again")
        assert live.line.progress().pids["decision"] == pid
    ids = [verdict.frame_id for verdict in live.verdicts()]
    assert ids == list(range(1, len(ids) + 1))
    assert [v.seq for v in got] == sorted({v.seq for v in got})
    heard = [v.frame_id for v in got]
    assert heard == list(range(heard[0], heard[-1] + 1))
