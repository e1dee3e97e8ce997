"""A thread that waits where a library waits, so that a camera's `read` waits no longer than told.

1. The thread opens the device, gives None for "it is there", and then grab after grab.
2. A queue of a few grabs holds them for `take`. When it is full the oldest one goes: a gap in the
   indices shows it, and what is inspected is what passes the camera now.
3. What ends the thread, an error or nothing at all, is raised by `take` as `SourceLost` once the
   grabs before it are taken: a camera has no end.
4. The device belongs to the thread, which closes it. `close` waits a moment for that, and leaves a
   thread that hangs in the library behind: it holds nothing that the next one needs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator

from pipeline.errors import LinewatchError, SourceLost
from pipeline.sources.base import Grab

QUEUE_LENGTH = 4
OPEN_LIMIT_S = 5.0
_CLOSE_LIMIT_S = 1.0

Grabs = Generator[Grab | None, None, None]


class Reader:
    """The grabs of `grabs`, read ahead. `name` stands in errors."""

    def __init__(
        self,
        name: str,
        grabs: Callable[[], Grabs],
        *,
        open_limit_s: float = OPEN_LIMIT_S,
        waits: Callable[[], bool] = lambda: False,
    ) -> None:
        """Returns when the device is there. `waits`: asked of a full queue; True makes the thread
        wait until there is room, for what waits for its reader, as a file does.

        Raises `SourceLost` when the device is not there, or does not come within `open_limit_s`.
        """
        self._name = name
        self._waits = waits
        self._queue: deque[Grab] = deque()
        self._changed = threading.Condition()
        self._open = self._ended = self._closing = False
        self._error: LinewatchError | None = None
        self._thread = threading.Thread(target=self._run, args=(grabs,), name=name, daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._ended, open_limit_s)
            is_open = self._open
        if not is_open:
            self.close()
            raise self._error or SourceLost(
                f"{name}: no answer within {open_limit_s:g} s found, expected a camera that can be "
                "opened; check that it is switched on and connected"
            )

    def take(self, wait_ms: float) -> Grab | None:
        """The next grab, None when none came in time. Raises `SourceLost`."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended, wait_ms / 1000)
            if self._queue:
                self._changed.notify_all()
                return self._queue.popleft()
            if self._ended:
                raise self._error or SourceLost(
                    f"{self._name}: the stream has ended; expected one without an end: check that "
                    "the camera goes on sending"
                )
        return None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_LIMIT_S)

    # The thread

    def _run(self, source: Callable[[], Grabs]) -> None:
        grabs = source()
        try:
            for grab in grabs:
                if self._closing:
                    return
                if grab is None:
                    self._say_open()
                else:
                    self._put(grab)
        except LinewatchError as error:
            self._error = error
        finally:
            grabs.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _say_open(self) -> None:
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def _put(self, grab: Grab) -> None:
        with self._changed:
            if len(self._queue) >= QUEUE_LENGTH and self._waits():
                self._changed.wait_for(lambda: len(self._queue) < QUEUE_LENGTH or self._closing)
            elif len(self._queue) >= QUEUE_LENGTH:
                self._queue.popleft()
            self._queue.append(grab)
            self._changed.notify_all()
