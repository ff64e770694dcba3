from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.cancellation import Cancellation
from layermanager.errors import CancelledError, SourceError, SourceTimeoutError
from layermanager.testing.clock import FakeClock, PassingClock
from layermanager.testing.sources import MemorySource, Mishap
from layermanager.transfer.pace import RateLimit, TimedStream

if TYPE_CHECKING:
    from layermanager.protocols import ByteStream, Clock

URL = "memory://host/a"
SOON = 20.0
MINUTE = timedelta(minutes=1)


CREDIT = 1 / 16
"""How many seconds may be made good."""


class TestRateLimit:
    def test_bytes_are_paid_for_in_time(self) -> None:
        clock = PassingClock()
        limit = RateLimit(1000, clock)
        for _ in range(10):
            limit.spend(500, Cancellation())
        assert clock.monotonic() == pytest.approx(5.0 - CREDIT)

    def test_time_in_which_nothing_came_is_hardly_saved_up(self) -> None:
        clock = PassingClock()
        limit = RateLimit(1000, clock)
        clock.wait(threading.Event(), 3600)
        limit.spend(1000, Cancellation())
        assert clock.waits == [3600, pytest.approx(1.0 - CREDIT)]

    def test_the_rate_is_reached_by_who_is_busy_with_each_piece(self) -> None:
        clock = PassingClock()
        limit = RateLimit(1000, clock)
        for _ in range(100):
            clock.wait(threading.Event(), 0.04)
            limit.spend(50, Cancellation())
        assert clock.monotonic() == pytest.approx(5.0, abs=0.1)

    def test_one_who_is_too_busy_for_it_does_not_wait(self) -> None:
        clock = PassingClock()
        limit = RateLimit(1000, clock)
        for _ in range(10):
            clock.wait(threading.Event(), 0.06)
            limit.spend(50, Cancellation())
        assert clock.monotonic() == pytest.approx(0.6)

    def test_all_share_one_bound_in_turn(self) -> None:
        clock = StandingClock()
        limit = RateLimit(1000, clock)
        for _ in range(4):
            limit.spend(100, Cancellation())
        assert clock.asked == pytest.approx([seconds - CREDIT for seconds in (0.1, 0.2, 0.3, 0.4)])

    def test_no_bound_is_no_wait(self) -> None:
        clock = PassingClock()
        limit = RateLimit(0, clock)
        limit.spend(10**12, Cancellation())
        assert clock.waits == []
        assert limit.piece(262144) == 262144

    @pytest.mark.parametrize(("rate", "piece"), [(1, 1024), (160_000, 10_000), (10**9, 65536)])
    def test_pieces_are_small_where_the_rate_is(self, rate: int, piece: int) -> None:
        assert RateLimit(rate, PassingClock()).piece(262144) == piece

    def test_a_cancelled_transfer_does_not_wait_for_its_turn(self) -> None:
        clock, cancellation = FakeClock(), Cancellation()
        limit = RateLimit(1, clock)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(limit.spend, 10**6, cancellation)
            clock.wait_for_waiters(1)
            cancellation.cancel()
            assert isinstance(waiting.exception(SOON), CancelledError)


class StandingClock(FakeClock):
    """Notes what it is asked to wait for, and lets no time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self.asked.append(seconds)
        return event.is_set()


class EndlessStream:
    """Gives a byte as often as it is asked, or is silent, until it is aborted."""

    is_local = False
    size = None
    offset = 0
    validator = ""

    def __init__(self, *, is_silent: bool = False) -> None:
        self._is_silent = is_silent
        self.was_aborted = threading.Event()

    def read(self, size: int) -> bytes:
        assert size > 0
        if self._is_silent:
            self.was_aborted.wait(SOON)
        if self.was_aborted.is_set():
            raise SourceError("aborted", url=URL)
        return b"x"

    def abort(self) -> None:
        self.was_aborted.set()

    def close(self) -> None:
        raise AssertionError("who opened it closes it")


class DrippingStream(EndlessStream):
    """Gives a byte a second of the test's clock: the seconds pass while it is read."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def read(self, size: int) -> bytes:
        self._clock.advance(timedelta(seconds=1))
        return super().read(size)


def timed(
    stream: ByteStream, clock: Clock, *, least_rate: int = 10, deadline: float = 1e9
) -> TimedStream:
    return TimedStream(
        stream, clock, least_rate=least_rate, period=MINUTE, deadline=deadline, url=URL
    )


class TestTimedStream:
    def test_bytes_and_errors_pass_through(self) -> None:
        source = MemorySource({URL: b"12345"}, [Mishap(breaks_after=3)])
        with timed(source.open(URL, Cancellation()), FakeClock()) as stream:
            assert stream.read(2) == b"12"
            assert stream.read(2) == b"3"
            with pytest.raises(SourceError, match="broken off"):
                stream.read(2)

    def test_a_stream_that_drips_is_given_up(self) -> None:
        clock = FakeClock()
        with (
            timed(DrippingStream(clock), clock) as stream,
            pytest.raises(SourceTimeoutError, match="bytes in 60 seconds") as caught,
        ):
            read_all(stream)
        assert caught.value.is_transient

    def test_one_that_sends_nothing_at_all_is_given_up_without_a_least_rate_too(self) -> None:
        clock = FakeClock()
        silent = EndlessStream(is_silent=True)
        with ThreadPoolExecutor(1) as thread, timed(silent, clock, least_rate=0) as stream:
            reading = thread.submit(read_all, stream)
            while not silent.was_aborted.is_set():
                clock.advance(timedelta(seconds=15))
            assert "only 0 bytes" in str(reading.exception(SOON))

    def test_a_reader_who_is_busy_elsewhere_makes_no_stream_slow(self) -> None:
        clock = FakeClock()
        source = MemorySource({URL: b"12345"})
        with timed(source.open(URL, Cancellation()), clock) as stream:
            for expected in (b"1", b"2", b"3"):
                assert stream.read(1) == expected
                for _ in range(20):
                    clock.wait_for_waiters(1)
                    clock.advance(timedelta(seconds=30))

    def test_the_deadline_ends_a_stream_that_is_fast_enough(self) -> None:
        clock = FakeClock()
        endless = EndlessStream()
        with ThreadPoolExecutor(1) as thread, timed(endless, clock, deadline=90.0) as stream:
            reading = thread.submit(read_all, stream)
            while not endless.was_aborted.is_set():
                clock.advance(timedelta(seconds=1))
            assert clock.monotonic() >= 90
            assert "transferTimeoutSeconds" in str(reading.exception(SOON))


def read_all(stream: TimedStream) -> None:
    while stream.read(100):
        pass
