"""What of a stream was heard, what is missing, and what to ask for. No sockets, no files.

`Telling` says where something is missing. `Filling` has it fetched, and gives every message of a
topic once and in order:

1. It begins with a heartbeat: at its position, or without one at what was published until then.
2. A message that follows the last one of its topic is given. After a gap, or a heartbeat that
   counts further, the topic's rows are asked for from the last one on until it has caught up; what
   comes live of the topic meanwhile is passed over, as it will be among the rows.
3. Of a new stream all is asked for, once what is left of the old one has been fetched.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.cursor import Position
from pipeline.errors import WireError
from pipeline.types import PartVerdict, Verdict
from pipeline.wire import Ask, Heartbeat, Message, Rows


@dataclass(frozen=True, slots=True)
class Missed:
    """Messages of `topic` after seq `after` and up to `upto` exclusive are not to be had."""

    topic: str
    after: int
    upto: int

    @property
    def seq(self) -> int:
        """For `Subscriber.ack`."""
        return self.upto - 1


Event = Verdict | PartVerdict | Missed


class Order(Protocol):
    """Makes events out of what comes."""

    stream_id: str
    heartbeat: Heartbeat | None
    ready: deque[Event]

    def take(self, message: Message) -> None:
        """What came live."""


class Telling:
    """Every gap is a `Missed`. Joining late is not missing: it begins where it begins."""

    def __init__(self, topics: Sequence[str]) -> None:
        self.stream_id = ""
        self.heartbeat: Heartbeat | None = None
        self.ready: deque[Event] = deque()
        self._topics = tuple(topics)
        self._seen: dict[str, int] = {}

    def take(self, message: Message) -> None:
        if message.stream_id != self.stream_id:
            # Its seqs begin anew, or go on where rows were lost: all of it counts as unheard.
            self.stream_id = message.stream_id
            self._seen.clear()
        if isinstance(message, Heartbeat):
            # Sent on the same socket after all that it counts: whatever is not here was lost.
            for topic, seq in message.last.items():
                if topic.startswith(self._topics):
                    first = self.heartbeat is None
                    seen = self._seen.setdefault(topic, seq if first else 0)
                    if seq > seen:
                        self.ready.append(Missed(topic, seen, seq + 1))
                        self._seen[topic] = seq
            self.heartbeat = message
            return
        seen = self._seen.get(message.topic, 0 if self.heartbeat else message.prev_seq)
        if message.seq <= seen:
            return
        if message.prev_seq > seen:
            self.ready.append(Missed(message.topic, seen, message.seq))
        self._seen[message.topic] = message.seq
        self.ready.append(message)


class Filling:
    """Gaps are filled with the rows that are asked for; what is gone for good is a `Missed`."""

    def __init__(self, topics: Sequence[str], position: Position | None) -> None:
        self.stream_id = position.stream_id if position else ""
        self.heartbeat: Heartbeat | None = None
        self.ready: deque[Event] = deque()
        self.unknown = 0
        """Answers in a row that did not know the stream that is being published."""
        self._topics = tuple(topics)
        self._covered = position.topics if position else self._topics
        self._seen = dict(position.seqs) if position else {}
        self._goal: dict[str, int] = {}
        self._next_stream = ""
        self._left: set[str] = set()
        """Topics of the old stream of which rows may be left, while there is a next stream."""

    @property
    def position(self) -> Position:
        return Position(self.stream_id, self._topics, dict(self._seen))

    def take(self, message: Message) -> None:
        if isinstance(message, Heartbeat):
            self._take_heartbeat(message)
        elif self.heartbeat is not None and message.stream_id == self.stream_id:
            seen = self._seen.get(message.topic, 0)
            if message.prev_seq > seen:
                self._goal[message.topic] = max(self._goal.get(message.topic, 0), message.seq)
            elif message.seq > seen:
                self._give(message)

    def _take_heartbeat(self, beat: Heartbeat) -> None:
        mine = {topic: seq for topic, seq in beat.last.items() if topic.startswith(self._topics)}
        if not self.stream_id:
            self.stream_id = beat.stream_id
            self._seen = dict(mine)
        elif self.heartbeat is None and beat.stream_id == self.stream_id:
            # Topics that the position does not speak of are joined now.
            for topic, seq in mine.items():
                if not topic.startswith(self._covered):
                    self._seen.setdefault(topic, seq)
        self.heartbeat = beat
        if beat.stream_id == self.stream_id:
            for topic, seq in mine.items():
                self._goal[topic] = max(self._goal.get(topic, 0), seq)
        elif not self._next_stream:
            self._next_stream = beat.stream_id
            self._left = {*self._seen, *(t for t in mine if t.startswith(self._covered))}

    def ask(self) -> Ask | None:
        """What is wanted now."""
        if self._next_stream and not self._left:
            self.stream_id, self._next_stream = self._next_stream, ""
            self._seen, self._goal, self._covered = {}, {}, self._topics
            if self.heartbeat is not None:
                self._take_heartbeat(self.heartbeat)  # may tell of yet another stream
        wanted = self._left or {t for t, goal in self._goal.items() if goal > self._seen.get(t, 0)}
        if not wanted:
            return None
        topic = min(wanted, key=lambda topic: (self._seen.get(topic, 0), topic))
        return Ask(self.stream_id, topic, self._seen.get(topic, 0))

    def answer(self, rows: Rows, messages: Sequence[Message]) -> None:
        """The answer to `ask`. Raises `WireError` for rows that are not of this topic."""
        if not rows.known:
            self.unknown += not self._left
            self._left.clear()  # the old stream's journal is gone
            return
        self.unknown = 0
        topic = rows.topic
        for message in messages:
            if (
                isinstance(message, Heartbeat)
                or (message.topic, message.stream_id) != (topic, self.stream_id)
                or message.seq <= (seen := self._seen.get(topic, 0))
            ):
                raise WireError(
                    f"a row of {message.topic} found, expected one of {topic} after {rows.after}"
                )
            if message.prev_seq > seen and message.prev_seq >= rows.began:
                self.ready.append(Missed(topic, seen, message.seq))
            self._give(message)
        if not messages:  # all that there is of the topic in this stream
            self._left.discard(topic)
            if not self._next_stream:
                self._seen[topic] = max(self._seen.get(topic, 0), self._goal.get(topic, 0))

    def _give(self, message: Verdict | PartVerdict) -> None:
        self._seen[message.topic] = message.seq
        self.ready.append(message)
