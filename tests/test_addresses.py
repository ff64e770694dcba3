from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.errors import SourceError, SourceTimeoutError
from layermanager.transfer.addresses import Addresses, Backoff, NextAddress, Retrying

BACKOFF = Backoff(timedelta(seconds=1), timedelta(seconds=60))
RETRYING = Retrying(3, BACKOFF)


def addresses(*urls: str, retrying: Retrying = RETRYING) -> Addresses:
    return Addresses(urls, retrying, began=0.0, chance=lambda: 1.0)


def busy(url: str = "a", retry_after: timedelta | None = None) -> SourceError:
    return SourceError("busy", url=url, is_transient=True, retry_after=retry_after)


class TestDelay:
    def test_doubles_up_to_the_longest(self) -> None:
        delays = [BACKOFF.delay(failures, 1.0) for failures in (1, 2, 3, 6, 7, 8, 10**6)]
        assert delays == [1, 2, 4, 32, 60, 60, 60]

    @given(st.integers(1, 10**9), st.floats(0, 1))
    def test_is_between_half_of_it_and_all_of_it(self, failures: int, chance: float) -> None:
        delay = BACKOFF.delay(failures, 1.0)
        assert delay / 2 <= BACKOFF.delay(failures, chance) <= delay <= 60


class TestChoice:
    def test_the_first_one_is_the_best(self) -> None:
        assert addresses("a", "b").next(5.0) == NextAddress("a", 0.0)

    def test_one_that_failed_makes_way(self) -> None:
        choices = addresses("a", "b")
        choices.failed("a", busy(), 5.0)
        assert choices.next(5.0) == NextAddress("b", 0.0)

    def test_and_is_the_best_again_when_its_wait_is_over(self) -> None:
        choices = addresses("a", "b")
        choices.failed("a", busy(), 5.0)
        assert choices.next(6.0) == NextAddress("a", 0.0)

    def test_when_all_have_failed_the_one_that_is_due_first_is_waited_for(self) -> None:
        choices = addresses("a", "b")
        choices.failed("a", busy(), 5.0)
        choices.failed("a", busy(), 5.0)
        choices.failed("b", busy("b"), 5.5)
        assert choices.next(5.75) == NextAddress("b", 0.75)

    def test_what_the_server_asks_for_counts_when_it_is_more(self) -> None:
        for asked, wait in ((0.25, 1.0), (30.0, 30.0)):
            choices = addresses("a")
            choices.failed("a", busy(retry_after=timedelta(seconds=asked)), 5.0)
            assert choices.next(5.0) == NextAddress("a", wait)

    def test_what_does_not_heal_is_not_asked_again(self) -> None:
        choices = addresses("a", "b")
        choices.failed("a", SourceError("gone", url="a"), 0.0)
        assert choices.next(10**6) == NextAddress("b", 0.0)

    def test_too_many_failures_in_a_row_are_the_end(self) -> None:
        choices = addresses("a")
        for _ in range(2):
            choices.failed("a", busy(), 0.0)
        choices.gave_bytes("a")
        for _ in range(2):
            choices.failed("a", busy(), 0.0)
            choices.next(0.0)
        choices.failed("a", busy(), 0.0)
        with pytest.raises(SourceError, match=r"gave up after 5 attempts"):
            choices.next(0.0)

    def test_giving_up_tells_whether_others_are_left(self) -> None:
        choices = addresses("a", "b")
        assert choices.give_up("a")
        assert not choices.give_up("b")

    @given(st.floats(0, 100))
    def test_it_always_ends(self, now: float) -> None:
        choices = addresses("a", "b", "c")
        for _ in range(3 * RETRYING.attempts):
            choice = choices.next(now)
            assert 0 <= choice.wait <= 60
            choices.failed(choice.url, busy(choice.url), now)
        with pytest.raises(SourceError):
            choices.next(now)


class TestFailure:
    def test_one_alone_is_what_it_is(self) -> None:
        choices = addresses("a")
        error = SourceError("gone", url="a")
        choices.failed("a", error, 0.0)
        assert choices.failure(0.0) is error

    def test_equal_ones_are_counted(self) -> None:
        choices = addresses("a")
        for _ in range(3):
            choices.failed("a", busy(), 0.0)
        choices.failed("a", SourceError("reset", url="a", is_transient=True), 0.0)
        error = choices.failure(75.2)
        assert str(error) == "gave up after 4 attempts in 0:01:15: busy (3 times); reset: a"
        assert [attempt.reason for attempt in error.attempts] == ["busy"] * 3 + ["reset"]
        assert error.is_transient

    def test_of_several_addresses_each_is_named(self) -> None:
        choices = addresses("a", "b")
        choices.failed("a", busy(), 0.0)
        choices.failed("b", SourceError("gone", url="b"), 0.0)
        error = choices.failure(1.0)
        assert error.reason.endswith("busy at a; gone at b")
        assert not error.is_transient

    def test_of_many_the_last_ones_are_told(self) -> None:
        choices = addresses("a")
        for number in range(1000):
            choices.failed("a", SourceError(f"no {number}", url="a"), 0.0)
        error = choices.failure(1.0)
        assert str(error) == (
            "gave up after 1000 attempts in 0:00:01: …; no 996; no 997; no 998; no 999: a"
        )
        assert len(error.attempts) < 100

    def test_a_time_out_stays_one(self) -> None:
        choices = addresses("a")
        choices.failed("a", busy(), 0.0)
        last = SourceTimeoutError("too late", url="a")
        assert isinstance(choices.failure(1.0, last), SourceTimeoutError)
