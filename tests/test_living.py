"""Threads that must live."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from layermanager.boundary import Boundary, Guard
from layermanager.living import LivingThreads
from layermanager.testing.clock import FakeClock
from surprises import SURPRISES, made

PATIENCE_SECONDS = 30


@pytest.mark.parametrize("surprise", SURPRISES)
def test_one_that_fails_is_started_again_after_a_growing_wait(
    surprise: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    counted: list[Boundary] = []
    threads = LivingThreads(Guard(counted.append), clock)
    failures = 3
    ended = threading.Event()

    def loop() -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise made(surprise)
        ended.set()

    thread = threads.thread("it", loop)
    thread.start()
    for wait in (1, 2, 4):
        clock.wait_for_waiters(1)
        assert threads.troubles() == ("it fails, and is started again",)
        clock.advance(timedelta(seconds=wait - 0.1))
        clock.wait_for_waiters(1)
        clock.advance(timedelta(seconds=0.1))
    assert ended.wait(PATIENCE_SECONDS)
    thread.close()
    assert counted == [Boundary.THREAD] * 3
    assert sum(one.exc_info is not None for one in caplog.records) == 1
    assert threads.troubles() == ()


def test_one_that_is_stuck_is_named() -> None:
    clock = FakeClock()
    threads = LivingThreads(Guard(), clock)
    begun, may_end = threading.Event(), threading.Event()

    def loop() -> None:
        with thread.working():
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)

    thread = threads.thread("it", loop, longest=timedelta(minutes=1))
    thread.start()
    assert begun.wait(PATIENCE_SECONDS)
    clock.advance(timedelta(minutes=1))
    assert threads.troubles() == ()
    clock.advance(timedelta(seconds=1))
    assert threads.troubles() == ("it is stuck for more than 60 s",)
    may_end.set()
    thread.close()
    assert threads.troubles() == ()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_one_that_is_dead_is_named() -> None:
    threads = LivingThreads(Guard(), FakeClock())

    def loop() -> None:
        raise SystemExit  # which ends a thread without a word

    thread = threads.thread("it", loop)
    thread.start()
    thread._thread.join()
    assert threads.troubles() == ("it is dead",)
    thread.close()


@pytest.mark.parametrize("surprise", SURPRISES)
def test_one_that_waits_to_be_started_again_can_be_closed(surprise: str) -> None:
    clock = FakeClock()
    threads = LivingThreads(Guard(), clock)

    def loop() -> None:
        raise made(surprise)

    thread = threads.thread("it", loop)
    thread.start()
    clock.wait_for_waiters(1)
    thread.close()
    assert threads.troubles() == ()
