"""The follower, with a source, a clock and chances that the test moves."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.boundary import Boundary, Guard
from layermanager.daemon.config import DesiredStateConfig
from layermanager.daemon.following import Follower, FollowStatus, PollResult, PollSchedule
from layermanager.daemon.state_sources import Fetched
from layermanager.errors import SourceError, StoreError, UnexpectedError
from layermanager.living import LivingThreads
from layermanager.testing.clock import FakeClock
from layermanager.transfer.addresses import Backoff
from surprises import EXHAUSTED, SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layermanager.cancellation import Cancellation
    from layermanager.daemon.desired_state import DesiredState

PATIENCE_SECONDS = 30
PERIOD = timedelta(minutes=5)
BACKOFF = Backoff(timedelta(seconds=10), timedelta(hours=1))


def state(name: str) -> bytes:
    return json.dumps([{"digest": f"sha256:{'0' * 64}", "url": f"file:///{name}"}]).encode()


class Source:
    """Gives what the test puts there."""

    name: ClassVar = "the source"

    def __init__(self, *, is_local: bool = False) -> None:
        self.is_local = is_local
        self.content: Fetched | Exception = Fetched("1", state("one"))
        self.known: list[str] = []
        self.tell: Callable[[], None] = lambda: None
        self.is_closed = False

    def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
        cancellation.check()
        self.known.append(known)
        if isinstance(self.content, Exception):
            raise self.content
        return None if self.content.version == known else self.content

    @contextmanager
    def watching(self, on_change: Callable[[], None], _: LivingThreads) -> Iterator[None]:
        self.tell = on_change
        yield
        self.tell = lambda: None

    def close(self) -> None:
        self.is_closed = True


class Following:
    """A follower and what it tells."""

    def __init__(self, source: Source, *command: str, chance: float = 0.5) -> None:
        self.clock = FakeClock()
        self.unexpected: list[Boundary] = []
        self.threads = LivingThreads(Guard(self.unexpected.append), self.clock)
        self.source = source
        self.adopted: list[DesiredState] = []
        self.adopting: Exception | None = None
        self.telling: Exception | None = None
        self._polled = threading.Semaphore(0)
        self.results: list[PollResult] = []
        self.follower = Follower(
            source,
            DesiredStateConfig(poll_period=PERIOD, verify_command=command, backoff=BACKOFF),
            adopt=self._adopt,
            on_poll=self._note,
            clock=self.clock,
            threads=self.threads,
            chance=lambda: chance,
        )

    def _adopt(self, state: DesiredState) -> None:
        if self.adopting is not None:
            raise self.adopting
        self.adopted.append(state)

    def _note(self, result: PollResult, _: FollowStatus) -> None:
        self.results.append(result)
        self._polled.release()
        if self.telling is not None:
            raise self.telling

    def start(self, *, something_is_desired: bool = False) -> None:
        self.follower.start(something_is_desired=something_is_desired)

    def poll(self) -> PollResult:
        """What came of the next look, which must come without the time moving."""
        assert self._polled.acquire(timeout=PATIENCE_SECONDS)
        self.clock.wait_for_waiters(1)
        return self.results[-1]

    def pass_time(self, seconds: float) -> PollResult | None:
        """What came of the look that this time brings; None if it brings none."""
        looks = len(self.results)
        self.clock.advance(timedelta(seconds=seconds))
        self.clock.wait_for_waiters(1)
        if len(self.results) == looks:
            return None
        return self.poll()


@pytest.fixture
def following() -> Iterator[Following]:
    following = Following(Source())
    yield following
    following.follower.close()


class TestSchedule:
    schedule = PollSchedule(PERIOD, BACKOFF)

    @given(st.floats(0, 1))
    def test_nodes_are_spread(self, chance: float) -> None:
        assert 225 <= self.schedule.next(chance) <= 375
        assert 0 <= self.schedule.first(chance) <= 60
        assert PollSchedule(timedelta(seconds=2), BACKOFF).first(chance) <= 2

    @given(st.integers(1, 100), st.floats(0, 1))
    def test_waits_grow_up_to_the_longest(self, failures: int, chance: float) -> None:
        error = StoreError("full")
        wait = self.schedule.after_failure(failures, error, chance)
        assert 5 <= wait <= 3600
        assert wait == BACKOFF.delay(failures, chance)

    def test_a_server_may_ask_for_more_but_not_for_ever(self) -> None:
        def wait(asked: timedelta) -> float:
            error = SourceError("busy", url="u", is_transient=True, retry_after=asked)
            return self.schedule.after_failure(1, error, 1.0)

        assert wait(timedelta(seconds=1)) == 10
        assert wait(timedelta(seconds=100)) == 125
        assert wait(timedelta(days=1000)) == 3600


def test_what_is_there_is_taken_at_once_where_nothing_is_desired(following: Following) -> None:
    following.start()
    assert following.poll() is PollResult.CHANGED
    assert [one.document for one in following.adopted] == [state("one")]
    status = following.follower.status
    assert (status.source, status.version, status.error) == ("the source", "1", None)
    assert status.last_change == status.last_poll == following.clock.now()
    assert following.follower.next_poll == following.clock.now() + PERIOD


def test_a_node_that_has_something_takes_its_time(following: Following) -> None:
    following.start(something_is_desired=True)
    following.clock.wait_for_waiters(1)
    assert following.pass_time(29) is None
    assert following.pass_time(1) is PollResult.CHANGED


def test_a_local_source_is_looked_at_at_once() -> None:
    following = Following(Source(is_local=True))
    following.start(something_is_desired=True)
    assert following.poll() is PollResult.CHANGED
    following.follower.close()


def test_what_has_not_changed_is_not_taken_again(following: Following) -> None:
    following.start()
    following.poll()
    assert following.pass_time(300) is PollResult.UNCHANGED
    assert following.source.known == ["", "1"]
    assert len(following.adopted) == 1
    following.source.content = Fetched("2", state("two"))
    assert following.pass_time(300) is PollResult.CHANGED
    assert following.adopted[1].document == state("two")


@pytest.mark.parametrize("year", [1970, 2099])
def test_jumps_of_the_date_change_no_wait(following: Following, year: int) -> None:
    following.start()
    following.poll()
    following.clock.set_date(datetime(year, 1, 1, tzinfo=UTC))
    assert following.follower.next_poll == datetime(year, 1, 1, tzinfo=UTC) + PERIOD
    assert following.pass_time(299) is None
    following.clock.synchronise()
    assert following.pass_time(1) is PollResult.UNCHANGED


def test_time_asleep_counts(following: Following) -> None:
    following.start()
    following.poll()
    following.clock.suspend(PERIOD)
    assert following.poll() is PollResult.UNCHANGED


def test_a_source_that_tells_of_changes_is_looked_at_then(following: Following) -> None:
    following.start()
    following.poll()
    following.source.content = Fetched("2", state("two"))
    following.source.tell()
    assert following.poll() is PollResult.CHANGED


def test_it_looks_when_it_is_asked_to(following: Following) -> None:
    following.start()
    following.poll()
    following.follower.poll_now()
    assert following.poll() is PollResult.UNCHANGED


def test_failures_wait_longer_and_longer(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.source.content = SourceError("no way", url="u", is_transient=True)
    following.start()
    assert following.poll() is PollResult.FAILED
    for wait in (7.5, 15, 30):
        assert following.pass_time(wait - 1) is None
        assert following.pass_time(1) is PollResult.FAILED
    assert following.follower.status.failures == 4
    assert following.follower.status.error is following.source.content
    told = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert told == ["the desired state of the source cannot be had: no way: u"]  # once
    following.source.content = Fetched("1", state("one"))
    assert following.pass_time(60) is PollResult.CHANGED
    assert following.follower.status.failures == 0
    assert str(following.follower.status.error) == "None"


@pytest.mark.parametrize("broken", [b"{", b"[{}]", b'[{"digest": "sha256:0", "url": "u"}]'])
def test_a_broken_one_is_refused_and_stays_so(following: Following, broken: bytes) -> None:
    following.start()
    following.poll()
    following.source.content = Fetched("2", broken)
    assert following.pass_time(300) is PollResult.REFUSED
    refused = following.follower.status
    assert refused.is_refused
    assert refused.error is not None
    assert refused.version == "1"
    assert following.pass_time(300) is PollResult.UNCHANGED
    assert following.source.known[-1] == "2"  # it is not fetched again
    assert following.follower.status.error is refused.error
    following.source.content = SourceError("no way", url="u", is_transient=True)
    assert following.pass_time(300) is PollResult.FAILED
    following.source.content = Fetched("2", broken)
    assert following.pass_time(8) is PollResult.UNCHANGED
    assert following.follower.status.is_refused
    assert len(following.adopted) == 1
    following.source.content = Fetched("3", state("three"))
    assert following.pass_time(300) is PollResult.CHANGED
    assert following.follower.status.error is None


def test_what_cannot_be_kept_is_fetched_again(following: Following) -> None:
    following.adopting = StoreError("the disk is full")
    following.start()
    assert following.poll() is PollResult.FAILED
    following.adopting = None
    assert following.pass_time(8) is PollResult.CHANGED
    assert following.source.known == ["", ""]


def test_what_is_not_proved_is_looked_at_again() -> None:
    following = Following(Source(), "sh", "-c", 'grep -q two "$1"', "sh", "{document}")
    following.start()
    assert following.poll() is PollResult.FAILED
    assert "sh refuses it" in str(following.follower.status.error)
    assert following.adopted == []
    following.source.content = Fetched("1", state("two"))  # a signature may come late
    assert following.pass_time(8) is PollResult.CHANGED
    following.follower.close()


def test_it_ends_with_its_source(following: Following) -> None:
    following.start()
    following.poll()
    following.follower.close()
    assert following.source.is_closed
    following.source.tell()
    assert following.results == [PollResult.CHANGED]


@pytest.mark.parametrize("surprise", SURPRISES)
@pytest.mark.parametrize("broken", ["fetch", "adopt"])
def test_whatever_a_poll_raises_it_polls_again(
    following: Following, broken: str, surprise: str, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "fetch":
        following.source.content = made(surprise)
    else:
        following.adopting = made(surprise)
    following.start()
    assert following.poll() is PollResult.FAILED
    error = following.follower.status.error
    assert "the poll of the source" in str(error)
    assert isinstance(error, UnexpectedError) is (surprise not in EXHAUSTED)
    assert following.unexpected == [Boundary.POLL]
    assert following.threads.troubles() == ()
    for wait in (7.5, 15):
        assert following.pass_time(wait - 1) is None
        assert following.pass_time(1) is PollResult.FAILED
    following.adopting = None
    following.source.content = Fetched("1", state("one"))
    assert following.pass_time(30) is PollResult.CHANGED
    assert following.unexpected == [Boundary.POLL] * 3
    assert sum(one.exc_info is not None for one in caplog.records) == 3
    assert len(caplog.records) == 3


@pytest.mark.parametrize("surprise", SURPRISES)
def test_who_is_told_of_polls_cannot_stop_them(following: Following, surprise: str) -> None:
    following.telling = made(surprise)
    following.start()
    assert following.poll() is PollResult.CHANGED
    assert following.pass_time(300) is PollResult.UNCHANGED
    assert following.unexpected == [Boundary.POLL] * 2


@pytest.mark.parametrize("surprise", SURPRISES)
def test_a_source_that_cannot_be_watched_is_polled(surprise: str) -> None:
    class Unwatched(Source):
        def watching(self, *_: object) -> NoReturn:
            raise made(surprise)

        def close(self) -> None:
            super().close()
            raise made(surprise)

    following = Following(Unwatched())
    following.start()
    assert following.poll() is PollResult.CHANGED
    assert following.pass_time(300) is PollResult.UNCHANGED
    following.follower.close()
    assert following.source.is_closed
    assert following.unexpected == [Boundary.POLL] * 2


def test_a_source_that_asks_for_the_end_of_time_is_polled_again(following: Following) -> None:
    following.source.content = SourceError(
        "busy", url="u", is_transient=True, retry_after=timedelta.max
    )
    following.start()
    assert following.poll() is PollResult.FAILED
    following.source.content = Fetched("1", state("one"))
    assert following.pass_time(3600) is PollResult.CHANGED
    assert following.unexpected == []


def test_a_poll_that_hangs_is_told() -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Hanging(Source):
        def fetch(self, known: str, cancellation: Cancellation) -> Fetched | None:
            begun.set()
            assert may_end.wait(PATIENCE_SECONDS)
            return super().fetch(known, cancellation)

    following = Following(Hanging())
    following.start()
    assert begun.wait(PATIENCE_SECONDS)
    following.clock.advance(timedelta(hours=2))
    assert following.threads.troubles() == ("state-source is stuck for more than 3600 s",)
    may_end.set()
    assert following.poll() is PollResult.CHANGED
    assert following.threads.troubles() == ()
    following.follower.close()
