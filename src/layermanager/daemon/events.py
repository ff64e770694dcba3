"""What happened lately, for any number of readers, each at its own pace.

The last events are kept in a ring. A reader names the last one that it has seen and gets what came
after it, also over another connection; if that is not in the ring any more, or is of an earlier run
of the daemon, it is told that there is a gap.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from layermanager.daemon.http import encoded
from layermanager.header_numbers import read_count
from layermanager.json_documents import time_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from layermanager.protocols import Clock


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    Attributes:
        number: counts from 1, without a gap.
        kind: what it is; its readers choose by that.
        time: when, UTC.
        data: the facts, as JSON.
        text: all that as a server-sent event (HTML standard, section 9.2), the same for every
            reader.
    """

    number: int
    kind: str
    time: datetime
    data: Mapping[str, object]
    text: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """From where on a reader reads.

    Attributes:
        number: the number of the last event that it has.
        has_gap: whether others that it never saw are gone.
    """

    number: int
    has_gap: bool = False


class Events:
    """The ring; safe from any thread.

    Args:
        clock: the time.
        capacity: how many events are kept.
        max_readers: how many readers there may be at once.
        heartbeat: how long a reader waits for an event at most.
        run: tells this run of the daemon from others.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        capacity: int = 1000,
        max_readers: int = 128,
        heartbeat: timedelta = timedelta(seconds=15),
        run: str | None = None,
    ) -> None:
        self._clock = clock
        self._max_readers = max_readers
        self._heartbeat = heartbeat
        self._run = run or secrets.token_hex(4)
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._last = 0
        self._readers = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def publish(self, kind: str, data: Mapping[str, object]) -> None:
        """Tell all readers."""
        with self._changed:
            number, now = self._last + 1, self._clock.now()
            text = b"id: %b\nevent: %b\ndata: %b\n\n" % (
                self.id_of(number).encode("ascii"),
                kind.encode("ascii"),
                encoded({"time": time_json(now), **data}),
            )
            self._ring.append(Event(number, kind, now, data, text))
            self._last = number
            self._changed.notify_all()

    def close(self) -> None:
        """End the waiting of all readers: nothing more will come."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def enter(self) -> bool:
        """Take a reader's place, if one is free; return whether."""
        with self._changed:
            if self._readers >= self._max_readers:
                return False
            self._readers += 1
            return True

    def leave(self) -> None:
        """Give a reader's place back."""
        with self._changed:
            self._readers -= 1

    @property
    def readers(self) -> int:
        """How many readers there are."""
        with self._changed:
            return self._readers

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come."""
        with self._changed:
            return self._is_closed

    def id_of(self, number: int) -> str:
        """What a reader names to get what came after the event of that *number*."""
        return f"{self._run}-{number}"

    def position_after(self, event_id: str | None) -> Position:
        """Where a reader goes on who has seen *event_id* last; None for what happens from now on.

        After an id of another run, or none that was given here, all that there is comes again.
        """
        with self._changed:
            if event_id is None:
                return Position(self._last)
            oldest = self._last - len(self._ring)
            run, _, text = event_id.rpartition("-")
            number = read_count(text)
            if run == self._run and number is not None and oldest <= number <= self._last:
                return Position(number)
            return Position(oldest, has_gap=True)

    def latest(self) -> tuple[Event, ...]:
        """All events that there are, the latest one first."""
        with self._changed:
            return tuple(reversed(self._ring))

    def wait(self, position: Position) -> tuple[tuple[Event, ...], Position]:
        """The events after *position*, and the position after them.

        There are none if none comes for the time of a heartbeat, or if this was closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._last > position.number or self._is_closed,
                timeout=self._heartbeat.total_seconds(),
            )
            oldest = self._last - len(self._ring)
            missed = self._last - max(position.number, oldest)
            # From the end, where it is short: for most readers it is the last one.
            events = tuple(itertools.islice(reversed(self._ring), missed))[::-1]
            return events, Position(self._last, has_gap=position.number < oldest)
