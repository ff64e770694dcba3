"""Clocks that a test moves: one stands still until then, one lets every wait pass at once."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_SECONDS: Final = 0.002


class FakeClock:
    """A ``Clock`` whose time passes only by ``advance``.

    A thread in ``wait`` goes on when the time that it waits for was reached, or when its event
    is set. The first wakes it at once. The second is looked at every two milliseconds of real
    time, since nothing tells a clock that a foreign ``threading.Event`` was set; so a test never
    depends on how long that takes, only its duration does.

    Args:
        start: the time at first.
        patience: how long ``wait_for_waiters`` waits, in real time.
    """

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        *,
        patience: timedelta = timedelta(seconds=30),
    ) -> None:
        self._start = start
        self._now = start
        self._patience = patience
        self._waiters: list[_Waiter] = []
        self._changed = threading.Condition()

    def now(self) -> datetime:
        """The time that the test has set."""
        with self._changed:
            return self._now

    def monotonic(self) -> float:
        """Seconds since the start; of this clock every second passes evenly."""
        with self._changed:
            return (self._now - self._start).total_seconds()

    def advance(self, duration: timedelta) -> None:
        """Let *duration* pass at once.

        Who waits for less goes on and sees the new time; who waits periodically is woken once,
        however many periods passed. When this returns such a thread no longer counts as waiting,
        so that ``wait_for_waiters`` tells when it waits again.
        """
        with self._changed:
            self._now += duration
            self._changed.notify_all()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set, at most *seconds* of this clock; return whether it is set."""
        with self._changed:
            waiter = _Waiter(event, self._now, seconds)
            self._waiters.append(waiter)
            self._changed.notify_all()
            while waiter.waits(self._now):
                self._changed.wait(_POLL_SECONDS)
            self._waiters.remove(waiter)
        return event.is_set()

    def wait_for_waiters(self, count: int) -> None:
        """Return when at least *count* threads wait for this clock.

        Raises:
            TimeoutError: they still do not when the clock's patience is over.
        """
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._count_waiting() >= count, self._patience.total_seconds()
            ):
                raise TimeoutError(f"{self._count_waiting()} threads wait, not {count}")

    def _count_waiting(self) -> int:
        return sum(waiter.waits(self._now) for waiter in self._waiters)


class PassingClock:
    """A ``Clock`` on which nobody waits: the time that a wait takes has passed at once.

    Who waits for an event that was not set yet, and for no matter how long, waits in real time
    until it is set: only what the thread that made the clock waits for is skipped.

    Attributes:
        waits: the seconds that were waited.
        on_wait: is called before each wait.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._seconds = 0.0
        self._thread = threading.get_ident()
        self.waits: list[float] = []
        self.on_wait: Callable[[], None] = lambda: None

    def now(self) -> datetime:
        """The time by the waits until now."""
        return self._start + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        """The seconds that were waited until now."""
        return self._seconds

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Let *seconds* pass unless *event* is set; return whether it is set."""
        if threading.get_ident() != self._thread:
            return event.wait()
        self.on_wait()
        if event.is_set():
            return True
        self.waits.append(seconds)
        self._seconds += seconds
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """A thread in ``FakeClock.wait``."""

    event: threading.Event
    since: datetime
    seconds: float

    def waits(self, now: datetime) -> bool:
        """Whether the event is not set and the time is not over.

        Durations are compared, not points in time: a wait of millennia has no end in any calendar.
        """
        return not self.event.is_set() and (now - self.since).total_seconds() < self.seconds
