from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.boundary import Boundary, Guard
from layermanager.daemon.alarm import Alarm
from layermanager.living import LivingThreads
from layermanager.testing.clock import FakeClock
from surprises import SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 30


class Rung:
    """Counts calls, for a test that waits for them."""

    def __init__(self) -> None:
        self.times = threading.Semaphore(0)

    def __call__(self) -> None:
        self.times.release()

    def wait(self) -> bool:
        return self.times.acquire(timeout=PATIENCE_SECONDS)

    @property
    def is_silent(self) -> bool:
        return not self.times.acquire(blocking=False)


def new_alarm(call: Callable[[], None], clock: FakeClock) -> Alarm:
    threads = LivingThreads(Guard(), clock)
    return Alarm("test", call, clock, threads, longest=timedelta(minutes=1))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rung() -> Rung:
    return Rung()


@pytest.fixture
def alarm(clock: FakeClock, rung: Rung) -> Iterator[Alarm]:
    alarm = new_alarm(rung, clock)
    alarm.start()
    yield alarm
    alarm.close()


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def test_it_calls_when_it_is_time_and_once(alarm: Alarm, clock: FakeClock, rung: Rung) -> None:
    alarm.set(10)
    clock.wait_for_waiters(1)
    assert alarm.time == clock.now() + seconds(10)
    clock.advance(seconds(9))
    clock.wait_for_waiters(1)
    assert rung.is_silent
    clock.advance(seconds(1))
    assert rung.wait()
    clock.wait_for_waiters(1)
    assert alarm.time is None
    clock.advance(seconds(1000))
    clock.wait_for_waiters(1)
    assert rung.is_silent


def test_the_earlier_time_counts(alarm: Alarm, clock: FakeClock, rung: Rung) -> None:
    alarm.set(10)
    alarm.set(20)
    assert alarm.time == clock.now() + seconds(10)
    alarm.set(0)
    assert rung.wait()


def test_it_can_be_cleared(alarm: Alarm, clock: FakeClock, rung: Rung) -> None:
    alarm.set(10)
    alarm.clear()
    alarm.set(30)
    clock.wait_for_waiters(1)
    clock.advance(seconds(29))
    clock.wait_for_waiters(1)
    assert rung.is_silent


def test_what_is_set_during_a_call_counts(clock: FakeClock) -> None:
    called, go_on = threading.Semaphore(0), threading.Event()

    def call() -> None:
        called.release()
        assert go_on.wait(PATIENCE_SECONDS)

    alarm = new_alarm(call, clock)
    alarm.start()
    alarm.set(0)
    assert called.acquire(timeout=PATIENCE_SECONDS)
    alarm.set(0)
    go_on.set()
    assert called.acquire(timeout=PATIENCE_SECONDS)
    alarm.close()


def test_one_that_was_never_started_closes(clock: FakeClock) -> None:
    new_alarm(lambda: None, clock).close()


@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_call_that_fails_is_repeated_a_minute_later(clock: FakeClock, surprise: str) -> None:
    counted: list[Boundary] = []
    threads = LivingThreads(Guard(counted.append), clock)
    rung = Rung()

    def call() -> None:
        rung()
        if len(counted) < 2:
            raise made(surprise)

    alarm = Alarm("test", call, clock, threads, longest=timedelta(minutes=1))
    alarm.start()
    alarm.set(0)
    for _ in range(2):
        assert rung.wait()
        clock.wait_for_waiters(1)
        assert alarm.time == clock.now() + seconds(60)
        assert threads.troubles() == ()
        clock.advance(seconds(60))
    assert rung.wait()
    clock.wait_for_waiters(1)
    assert alarm.time is None
    assert counted == [Boundary.THREAD] * 2
    alarm.close()


def test_one_that_is_stuck_in_its_call_is_told(clock: FakeClock) -> None:
    threads = LivingThreads(Guard(), clock)
    begun, may_end = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_SECONDS)

    alarm = Alarm("test", call, clock, threads, longest=timedelta(minutes=1))
    alarm.start()
    alarm.set(0)
    assert begun.wait(PATIENCE_SECONDS)
    clock.advance(seconds(61))
    assert threads.troubles() == ("test is stuck for more than 60 s",)
    may_end.set()
    clock.wait_for_waiters(1)
    assert threads.troubles() == ()
    alarm.close()
    assert threads.troubles() == ()
