from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.clock import SystemClock, wait_in_slices
from layermanager.testing.clock import FakeClock
from layermanager.use.processes import boot_name

if TYPE_CHECKING:
    from layermanager.protocols import Clock

START = datetime(2026, 11, 24, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(params=["system", "fake"])
def clock(request: pytest.FixtureRequest) -> Clock:
    if request.param == "system":
        return SystemClock()
    return FakeClock(START)


def test_now_is_utc(clock: Clock) -> None:
    assert clock.now().tzinfo is UTC


def test_waiting_for_an_event_that_is_set_ends_at_once(clock: Clock) -> None:
    event = threading.Event()
    event.set()
    assert clock.wait(event, 3600)


def test_waiting_no_time_tells_whether_the_event_is_set(clock: Clock) -> None:
    assert not clock.wait(threading.Event(), 0)
    assert not clock.wait(threading.Event(), -1)


@pytest.mark.parametrize("seconds", [3600.0, 1e12, timedelta.max.total_seconds()])
def test_an_event_ends_the_longest_wait(clock: Clock, seconds: float) -> None:
    waiter = Waiter(clock, seconds)
    waiter.event.set()
    assert waiter.result() is True


def test_the_system_clock_is_the_time_of_the_machine() -> None:
    before = datetime.now(UTC)
    now = SystemClock().now()
    assert before <= now <= datetime.now(UTC)


class Sleeping(threading.Event):
    """An event while whose first wait the machine sleeps, so that nothing of it is noticed."""

    def __init__(self, machine: list[float], slept: float) -> None:
        super().__init__()
        self.machine = machine
        self.slept = slept
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        self.machine[0] += (timeout or 0) + self.slept
        self.slept = 0
        return self.is_set()


def test_time_asleep_counts_for_a_wait_of_the_system_clock() -> None:
    machine = [1000.0]
    event = Sleeping(machine, slept=8 * 3600)
    assert not wait_in_slices(event, 8 * 3600, lambda: machine[0])
    assert event.waits == [60]
    assert not wait_in_slices(event, 90, lambda: machine[0])
    assert event.waits == [60, 60, 30]


def test_the_system_clock_wakes_up_once_a_minute_at_most() -> None:
    machine = [0.0]
    event = Sleeping(machine, slept=0)
    wait_in_slices(event, 3600, lambda: machine[0])
    assert len(event.waits) == 60


def test_the_system_clock_reads_the_clocks_of_the_machine() -> None:
    clock = SystemClock()
    before, after = clock.reading(), clock.reading()
    assert before.boot == after.boot == boot_name()
    assert timedelta(0) < before.since_boot <= after.since_boot
    assert before.calendar.tzinfo is UTC
    assert before.since_boot.total_seconds() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_the_fake_clock_shows_what_a_machine_would() -> None:
    clock = FakeClock(START)
    first = clock.reading()
    clock.suspend(HOUR)
    clock.advance(HOUR)
    assert (clock.monotonic(), clock.now()) == (3600, START + 2 * HOUR)
    assert clock.reading() == replace(
        first, since_boot=2 * HOUR, calendar=START + 2 * HOUR, is_synchronised=True
    )
    clock.set_date(START - HOUR)
    assert clock.reading().calendar == START - HOUR
    assert not clock.reading().is_synchronised
    clock.synchronise()
    assert clock.reading().calendar == START + 2 * HOUR
    clock.reboot(off=HOUR)
    booted = clock.reading()
    assert booted.boot != first.boot
    assert (booted.since_boot, booted.calendar) == (timedelta(0), START + 3 * HOUR)
    assert not booted.is_synchronised
    clock.reboot(date=START)
    assert clock.now() == START


def test_a_suspended_machine_ends_the_waits_that_are_over() -> None:
    clock = FakeClock(START)
    waiter = Waiter(clock, 3600)
    clock.wait_for_waiters(1)
    clock.set_date(START + 2 * HOUR)
    clock.wait_for_waiters(1)
    clock.suspend(HOUR)
    assert waiter.result() is False


def test_a_clock_of_the_past_is_that_of_this_machine() -> None:
    past, now = FakeClock.ago(HOUR).reading(), SystemClock().reading()
    assert past.boot == now.boot
    assert now.since_boot - past.since_boot >= HOUR


def test_the_fake_clock_moves_only_when_it_is_told_to() -> None:
    clock = FakeClock(START)
    assert clock.now() == START
    clock.advance(HOUR)
    assert clock.now() == START + HOUR


def test_a_wait_ends_exactly_when_its_time_is_reached() -> None:
    clock = FakeClock(START)
    waiter = Waiter(clock, 3600)
    clock.wait_for_waiters(1)
    clock.advance(HOUR - timedelta(microseconds=1))
    clock.wait_for_waiters(1)
    assert waiter.is_waiting()
    clock.advance(timedelta(microseconds=1))
    assert waiter.result() is False


def test_only_those_whose_time_is_reached_go_on() -> None:
    clock = FakeClock(START)
    sooner, later = Waiter(clock, 60), Waiter(clock, 3600)
    clock.wait_for_waiters(2)
    clock.advance(timedelta(minutes=1))
    assert sooner.result() is False
    clock.wait_for_waiters(1)
    assert later.is_waiting()
    clock.advance(HOUR)
    assert later.result() is False


def test_a_thread_that_goes_on_does_not_count_as_waiting_until_it_waits_again() -> None:
    clock = FakeClock(START)
    ticks: list[datetime] = []
    stop = threading.Event()

    def tick() -> None:
        while not clock.wait(stop, 3600):
            ticks.append(clock.now())

    thread = threading.Thread(target=tick)
    thread.start()
    for _ in range(50):
        clock.wait_for_waiters(1)
        clock.advance(HOUR)
    clock.wait_for_waiters(1)
    stop.set()
    thread.join()
    assert ticks == [START + n * HOUR for n in range(1, 51)]


def test_waiting_for_waiters_that_never_come_has_an_end() -> None:
    clock = FakeClock(START, patience=timedelta(milliseconds=1))
    with pytest.raises(TimeoutError, match="0 threads wait, not 1"):
        clock.wait_for_waiters(1)


class Waiter:
    """A thread in ``wait``."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.event = threading.Event()
        self._results: list[bool] = []
        self._thread = threading.Thread(
            target=lambda: self._results.append(clock.wait(self.event, seconds))
        )
        self._thread.start()

    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> bool:
        self._thread.join()
        return self._results[0]
