from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.daemon.events import Events, Position
from layermanager.testing.clock import FakeClock

NOW = datetime(2026, 11, 25, tzinfo=UTC)
AT_ONCE = timedelta(0)


def ring(capacity: int = 3, *, heartbeat: timedelta = AT_ONCE, readers: int = 1) -> Events:
    return Events(
        FakeClock(NOW), capacity=capacity, heartbeat=heartbeat, max_readers=readers, run="run"
    )


def publish(events: Events, count: int) -> None:
    for number in range(count):
        events.publish("kind", {"number": number})


def test_a_reader_gets_what_comes_after_it() -> None:
    events = ring()
    publish(events, 1)
    position = events.position_after(None)
    assert events.wait(position) == ((), position)
    publish(events, 2)
    got, position = events.wait(position)
    assert [event.number for event in got] == [2, 3]
    assert got[0].time == NOW
    assert events.wait(position)[0] == ()


def test_who_waits_is_woken() -> None:
    events = ring(heartbeat=timedelta(seconds=60))
    threading.Timer(0.0, publish, (events, 1)).start()
    assert len(events.wait(Position(0))[0]) == 1


def test_who_waits_is_sent_home_at_the_end() -> None:
    events = ring(heartbeat=timedelta(seconds=60))
    threading.Timer(0.0, events.close).start()
    assert events.wait(Position(0))[0] == ()
    assert events.is_closed


@given(st.integers(0, 10), st.integers(1, 4), st.integers(0, 12))
def test_going_on_gives_each_event_once_or_tells_of_the_gap(
    published: int, capacity: int, seen: int
) -> None:
    events = ring(capacity)
    publish(events, published)
    position = events.position_after(f"run-{seen}")
    got, end = events.wait(position)
    numbers = [event.number for event in got]
    oldest = max(0, published - capacity) + 1
    if oldest - 1 <= seen <= published:
        assert not position.has_gap
        assert numbers == list(range(seen + 1, published + 1))
    else:
        assert position.has_gap
        assert numbers == list(range(oldest, published + 1))
    assert end == Position(published)


@pytest.mark.parametrize("event_id", ["", "other-1", "run-x", "run--1", "run-²", "nonsense"])
def test_after_an_id_that_is_none_of_this_run_all_comes_again(event_id: str) -> None:
    events = ring()
    publish(events, 2)
    position = events.position_after(event_id)
    assert position.has_gap
    assert len(events.wait(position)[0]) == 2


def test_who_is_too_slow_is_told() -> None:
    events = ring(capacity=2)
    position = events.position_after(None)
    publish(events, 3)
    got, position = events.wait(position)
    assert [event.number for event in got] == [2, 3]
    assert position.has_gap


def test_the_id_of_an_event_leads_to_the_next_one() -> None:
    events = ring()
    publish(events, 2)
    latest, first = events.latest()
    assert (latest.number, first.number) == (2, 1)
    assert events.wait(events.position_after(events.id_of(first.number)))[0] == (latest,)


def test_places_are_limited_and_given_back() -> None:
    events = ring(readers=1)
    assert events.enter()
    assert not events.enter()
    assert events.readers == 1
    events.leave()
    assert events.enter()
