"""Clocks that a test moves: one stands still until then, one lets every wait pass at once."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, Self

from layermanager.clock import SystemClock
from layermanager.model import ClockReading

if TYPE_CHECKING:
    from collections.abc import Callable

_POLL_SECONDS: Final = 0.002


class FakeClock:
    """A ``MachineClock`` of which nothing passes but by ``advance``, ``suspend`` and ``reboot``.

    A thread in ``wait`` goes on when the time that it waits for was reached, or when its event
    is set. The first wakes it at once. The second is looked at every two milliseconds of real
    time, since nothing tells a clock that a foreign ``threading.Event`` was set; so a test never
    depends on how long that takes, only its duration does.

    Its date is right and synchronised until ``set_date`` or ``reboot``.

    Args:
        start: the time at first.
        patience: how long ``wait_for_waiters`` waits, in real time.
        boot: names the boot of its machine; by default none else is called so. Empty: the machine
            does not tell.
        since_boot: how long ago that was at first.
    """

    def __init__(
        self,
        start: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        *,
        patience: timedelta = timedelta(seconds=30),
        boot: str | None = None,
        since_boot: timedelta = timedelta(0),
    ) -> None:
        self._start = start
        self._patience = patience
        self._passed = timedelta(0)
        self._asleep = timedelta(0)
        self._booted = -since_boot
        self._boot = _new_boot() if boot is None else boot
        self._date_error = timedelta(0)
        self._is_synchronised = True
        self._waiters: list[_Waiter] = []
        self._changed = threading.Condition()

    @classmethod
    def ago(cls, duration: timedelta) -> Self:
        """Return a clock that shows what those of this machine showed *duration* ago."""
        reading = SystemClock().reading()
        return cls(
            reading.calendar - duration,
            boot=reading.boot,
            since_boot=reading.since_boot - duration,
        )

    def now(self) -> datetime:
        """The date that the test has set."""
        with self._changed:
            return self._date

    def monotonic(self) -> float:
        """Seconds since the start that the machine was awake."""
        with self._changed:
            return (self._passed - self._asleep).total_seconds()

    def reading(self) -> ClockReading:
        """Return what the clocks show."""
        with self._changed:
            return ClockReading(
                calendar=self._date,
                boot=self._boot,
                since_boot=self._passed - self._booted,
                is_synchronised=self._is_synchronised,
            )

    def advance(self, duration: timedelta) -> None:
        """Let *duration* pass at once.

        Who waits for less goes on and sees the new time; who waits periodically is woken once,
        however many periods passed. When this returns such a thread no longer counts as waiting,
        so that ``wait_for_waiters`` tells when it waits again.
        """
        with self._changed:
            self._passed += duration
            self._changed.notify_all()

    def suspend(self, duration: timedelta) -> None:
        """Let the machine sleep for *duration*; then it goes on."""
        with self._changed:
            self._asleep += duration
        self.advance(duration)

    def set_date(self, date: datetime) -> None:
        """Set the date, which is not synchronised then."""
        with self._changed:
            self._date_error += date - self._date
            self._is_synchronised = False

    def synchronise(self) -> None:
        """Set the date to the right one, as a time server does."""
        with self._changed:
            self._date_error = timedelta(0)
            self._is_synchronised = True

    def reboot(self, *, off: timedelta = timedelta(0), date: datetime | None = None) -> None:
        """Boot again, after *off*; the date is not synchronised then.

        Args:
            off: how long the machine is off.
            date: what its clock begins with if no battery keeps it.
        """
        with self._changed:
            self._boot = _new_boot() if self._boot else ""
            self._is_synchronised = False
            self._booted = self._passed + off
        self.advance(off)
        if date is not None:
            self.set_date(date)

    @property
    def _date(self) -> datetime:
        return self._start + self._passed + self._date_error

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait until *event* is set, at most *seconds* of this clock; return whether it is set."""
        with self._changed:
            waiter = _Waiter(event, self._passed, seconds)
            self._waiters.append(waiter)
            self._changed.notify_all()
            while waiter.waits(self._passed):
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
        return sum(waiter.waits(self._passed) for waiter in self._waiters)


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
    since: timedelta
    seconds: float

    def waits(self, passed: timedelta) -> bool:
        """Whether the event is not set and the time is not over."""
        return not self.event.is_set() and (passed - self.since).total_seconds() < self.seconds


def _new_boot() -> str:
    return str(uuid.uuid4())
