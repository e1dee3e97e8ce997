"""The thread that waits where a library waits."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from pipeline.errors import ConfigError, SourceLost
from pipeline.sources.base import Grab, no_pixels
from pipeline.sources.reader import QUEUE_LENGTH, Grabs, Reader

PATIENCE_MS = 20_000.0


def grabs(count: int) -> Grabs:
    yield None
    for index in range(count):
        yield Grab(index, no_pixels)


def indices(reader: Reader) -> list[int]:
    """Those of all grabs, until the reader says that it is lost."""
    found = []
    with contextlib.suppress(SourceLost):
        while True:
            if (grab := reader.take(PATIENCE_MS)) is not None:
                found.append(grab.index)
    return found


@pytest.mark.parametrize("count", [0, 1, QUEUE_LENGTH])
def test_what_fits_into_the_queue_comes_whole_and_an_end_is_a_loss(count: int) -> None:
    reader = Reader("camera", lambda: grabs(count))
    assert indices(reader) == list(range(count))
    with pytest.raises(SourceLost, match="camera: the stream has ended"):
        reader.take(0)
    reader.close()


def test_a_slow_reader_sees_what_it_missed_as_a_gap() -> None:
    begun = threading.Event()

    def fast() -> Grabs:
        yield from grabs(100)
        begun.set()

    reader = Reader("camera", fast)
    assert begun.wait(20)
    assert indices(reader) == list(range(100 - QUEUE_LENGTH, 100))
    reader.close()


def test_a_file_waits_for_its_reader() -> None:
    reader = Reader("file", lambda: grabs(50), waits=lambda: True)
    assert indices(reader) == list(range(50))
    reader.close()


def test_closing_frees_a_thread_that_waits_for_room() -> None:
    closed = threading.Event()

    def endless() -> Grabs:
        try:
            yield from grabs(10_000)
        finally:
            closed.set()

    reader = Reader("file", endless, waits=lambda: True)
    reader.take(PATIENCE_MS)
    reader.close()
    assert closed.wait(20)


@pytest.mark.parametrize("kind", [SourceLost, ConfigError])
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_errors_come_through_after_the_grabs_before_them(
    kind: type[SourceLost] | type[ConfigError], when: str
) -> None:
    def failing() -> Grabs:
        if when == "reading":
            yield from grabs(1)
        raise kind("gone")

    if when == "opening":
        with pytest.raises(kind, match="gone"):
            Reader("camera", failing)
        return
    reader = Reader("camera", failing)
    assert reader.take(PATIENCE_MS) is not None
    with pytest.raises(kind, match="gone"):
        reader.take(PATIENCE_MS)
    reader.close()


def test_take_waits_no_longer_than_told_and_close_leaves_a_hanging_thread_behind() -> None:
    go_on = threading.Event()

    def hanging() -> Grabs:
        yield None
        go_on.wait(60)

    reader = Reader("camera", hanging)
    began = time.monotonic()
    assert reader.take(0) is None
    assert reader.take(50) is None
    reader.close()
    assert time.monotonic() - began < 30
    go_on.set()


def test_a_device_that_does_not_open_is_lost() -> None:
    go_on = threading.Event()

    def stuck() -> Grabs:
        go_on.wait(60)
        yield None

    with pytest.raises(SourceLost, match=r"no answer within 0\.1 s"):
        Reader("camera", stuck, open_limit_s=0.1)
    go_on.set()
