"""How much time has passed for a store, whatever its clocks show; as pure values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layermanager.ages import (
    LONGEST_BELIEVED,
    LONGEST_UNSAVED,
    AgeRecord,
    Ages,
    StoreTime,
    elapsed,
    read_clock,
)
from layermanager.leases import Lease
from layermanager.model import ClockReading, ImageInfo, LayerInfo
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import digest_of

NONE = timedelta(0)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)
NOW = datetime(2026, 11, 24, tzinfo=UTC)
START_OF_UNIX = datetime(1970, 1, 1, tzinfo=UTC)


def layer(timestamp: datetime, *, cached: bool = True, name: bytes = b"one") -> LayerInfo:
    return LayerInfo(digest_of(name), "one", "", Path("/one"), "", timestamp, cached, 1)


@dataclass(frozen=True)
class Pass:
    """The machine runs."""

    duration: timedelta


@dataclass(frozen=True)
class Sleep:
    duration: timedelta


@dataclass(frozen=True)
class SetDate:
    date: datetime


@dataclass(frozen=True)
class Synchronise:
    pass


@dataclass(frozen=True)
class Reboot:
    off: timedelta
    date: datetime | None


@dataclass(frozen=True)
class Save:
    pass


Event: TypeAlias = Pass | Sleep | SetDate | Synchronise | Reboot | Save

durations = st.timedeltas(MINUTE, 60 * DAY)
dates = st.datetimes(datetime(1970, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
events = st.one_of(
    st.builds(Pass, durations),
    st.builds(Sleep, durations),
    st.builds(SetDate, dates),
    st.builds(Synchronise),
    st.builds(Reboot, st.timedeltas(NONE, 200 * DAY), st.none() | dates),
    st.builds(Save),
)


class Machine:
    """A machine, and how much time really passed."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW)
        self.true = NONE
        self.booted = NONE
        self.boots = 0
        self.is_synchronised = True

    def do(self, event: Event) -> None:
        match event:
            case Pass(duration):
                self.clock.advance(duration)
                self.true += duration
            case Sleep(duration):
                self.clock.suspend(duration)
                self.true += duration
            case SetDate(date):
                self.clock.set_date(date)
                self.is_synchronised = False
            case Synchronise():
                self.clock.synchronise()
                self.is_synchronised = True
            case Reboot(off, date):
                self.clock.reboot(off=off, date=date)
                self.true += off
                self.booted = self.true
                self.boots += 1
                self.is_synchronised = False
            case Save():
                pass


@dataclass(frozen=True)
class Known:
    """What can be known of the time at a moment, by what really passed."""

    true: timedelta
    passed: timedelta
    boot: int


class Reference:
    """The store time as it should be, from what really passed and no clock at all."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._saved = Known(machine.true, NONE, machine.boots)
        self._right: Known | None = self._saved if machine.is_synchronised else None

    def now(self) -> timedelta:
        machine, saved, right = self._machine, self._saved, self._right
        is_same = machine.boots == saved.boot
        passed = saved.passed + machine.true - (saved.true if is_same else machine.booted)
        if machine.is_synchronised and right is not None and right.boot != machine.boots:
            passed = max(passed, right.passed + machine.true - right.true)
        return passed

    def save(self) -> None:
        self._saved = Known(self._machine.true, self.now(), self._machine.boots)
        if self._machine.is_synchronised:
            self._right = self._saved


class TestStoreTime:
    @given(st.lists(events, max_size=15))
    def test_is_what_can_be_known_of_what_passed(self, happened: list[Event]) -> None:
        machine = Machine()
        reference = Reference(machine)
        saved = StoreTime.begun(machine.clock.reading())
        for event in happened:
            machine.do(event)
            now = saved.advanced(machine.clock.reading())
            assert saved.passed <= now.passed <= machine.true
            assert now.passed == reference.now()
            if isinstance(event, Save):
                reference.save()
                saved = now

    @given(st.lists(st.one_of(events.filter(lambda one: not isinstance(one, Reboot))), max_size=9))
    def test_within_one_boot_it_is_what_passed(self, happened: list[Event]) -> None:
        machine = Machine()
        begun = StoreTime.begun(machine.clock.reading())
        for event in happened:
            machine.do(event)
        assert begun.advanced(machine.clock.reading()).passed == machine.true

    def test_a_machine_that_was_off_is_counted_once_the_date_is_right(self) -> None:
        clock = FakeClock(NOW)
        time = StoreTime.begun(clock.reading())
        clock.reboot(off=30 * DAY, date=START_OF_UNIX)
        clock.advance(MINUTE)
        time = time.advanced(clock.reading())  # and saved, before the date is right
        assert time.passed == MINUTE
        clock.advance(MINUTE)
        clock.synchronise()
        time = time.advanced(clock.reading())
        assert time.passed == 30 * DAY + 2 * MINUTE
        assert time.advanced(clock.reading()) == time

    def test_a_right_date_that_cannot_be_is_not_believed(self) -> None:
        """A time server that is wrong, or a receiver of GPS whose weeks begin again."""
        clock = FakeClock(NOW)
        begun = StoreTime.begun(clock.reading())
        for off, passed in ((LONGEST_BELIEVED, LONGEST_BELIEVED), (1024 * 7 * DAY, NONE)):
            later = FakeClock(NOW + off)
            assert begun.advanced(later.reading()).passed == passed
            assert begun.advanced(FakeClock(NOW - off).reading()).passed == NONE

    def test_two_containers_with_offsets_of_their_own_count_nothing_twice(self) -> None:
        clock = FakeClock(NOW)
        other = FakeClock(NOW, boot=clock.reading().boot, since_boot=99 * DAY)
        time = StoreTime.begun(clock.reading())
        for _ in range(5):
            time = time.advanced(other.reading()).advanced(clock.reading())
        assert time.passed == 99 * DAY

    @given(st.lists(events, max_size=15))
    def test_where_the_boot_has_no_name_nothing_is_counted_twice(
        self, happened: list[Event]
    ) -> None:
        """But that no calendar may be right once and wrong later: there it is all that is left."""
        machine = Machine()
        machine.clock = FakeClock(NOW, boot="")
        saved = StoreTime.begun(replace(machine.clock.reading(), is_synchronised=False))
        for event in happened:
            machine.do(event)
            reading = replace(machine.clock.reading(), is_synchronised=False)
            now = saved.advanced(reading)
            assert saved.passed <= now.passed <= machine.true
            if isinstance(event, Save):
                saved = now

    def test_where_the_boot_has_no_name_time_passes_all_the_same(self) -> None:
        clock = FakeClock(NOW, boot="")
        time = StoreTime.begun(clock.reading())
        clock.set_date(START_OF_UNIX)
        clock.suspend(DAY)
        assert time.advanced(clock.reading()).passed == DAY
        clock.reboot(off=DAY)
        clock.advance(HOUR)
        assert time.advanced(clock.reading()).passed == HOUR
        clock.synchronise()
        assert time.advanced(clock.reading()).passed == 2 * DAY + HOUR


class PlainClock:
    """What a program may have written for the three methods of ``Clock``."""

    def __init__(self, clock: FakeClock) -> None:
        self.now = clock.now
        self.monotonic = clock.monotonic
        self.wait = clock.wait


class TestPlainClock:
    def test_its_date_is_believed_unless_it_goes_back(self) -> None:
        clock = FakeClock(NOW)
        plain = PlainClock(clock)
        time = StoreTime.begun(read_clock(plain))
        clock.advance(DAY)
        time = time.advanced(read_clock(plain))
        assert time.passed == DAY
        clock.set_date(NOW - YEAR)
        time = time.advanced(read_clock(plain))
        assert time.passed == DAY
        clock.advance(HOUR)
        assert time.advanced(read_clock(plain)).passed == DAY + HOUR

    def test_what_elapses(self) -> None:
        clock = FakeClock(NOW)
        plain = PlainClock(clock)
        before, plain_before = elapsed(clock), elapsed(plain)
        clock.suspend(HOUR)
        clock.advance(MINUTE)
        assert elapsed(clock) - before == 3660
        assert elapsed(plain) - plain_before == 60


class TestAges:
    def test_what_was_noted_is_as_old_as_its_period(self) -> None:
        clock = FakeClock(NOW)
        one = layer(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([one], are_all=True)
        clock.set_date(START_OF_UNIX)
        clock.advance(HOUR)
        assert Ages.at(record, clock.reading()).of(one) == HOUR
        assert Ages.at(record, clock.reading()).since(one) == START_OF_UNIX

    def test_another_timestamp_is_another_period(self) -> None:
        clock = FakeClock(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([layer(NOW)], are_all=True)
        clock.advance(DAY)
        assert Ages.at(record, clock.reading()).of(layer(NOW + HOUR)) == DAY - HOUR

    @pytest.mark.parametrize(
        ("timestamp", "age"),
        [
            (NOW - DAY, DAY),
            (NOW + DAY, NONE),
            (START_OF_UNIX, NONE),
            (datetime.min.replace(tzinfo=UTC), NONE),
            (datetime.max.replace(tzinfo=UTC), NONE),
            (NOW - LONGEST_BELIEVED, LONGEST_BELIEVED),
        ],
    )
    def test_what_another_program_wrote_is_judged_by_the_calendar(
        self, timestamp: datetime, age: timedelta
    ) -> None:
        clock = FakeClock(NOW)
        one = layer(timestamp)
        ages = Ages.at(AgeRecord(), clock.reading())
        assert ages.of(one) == age
        assert ages.since(one) == NOW - age
        record = ages.noting([one], are_all=True)
        clock.advance(HOUR)
        assert Ages.at(record, clock.reading()).of(one) == age + HOUR

    def test_it_is_no_older_than_the_last_look(self) -> None:
        clock = FakeClock(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([], are_all=True)
        clock.advance(DAY)
        clock.set_date(NOW + YEAR)
        assert Ages.at(record, clock.reading()).of(layer(NOW)) == DAY

    def test_a_date_older_than_the_newest_seen_is_not_believed(self) -> None:
        clock = FakeClock(NOW)
        clock.set_date(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([], are_all=True)
        clock.advance(DAY)
        clock.set_date(NOW - MINUTE)
        assert Ages.at(record, clock.reading()).of(layer(NOW - DAY)) == NONE
        clock.synchronise()
        assert Ages.at(record, clock.reading()).of(layer(NOW)) == DAY

    def test_an_age_beyond_the_calendar(self) -> None:
        clock = FakeClock(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([layer(NOW)], are_all=True)
        clock.advance(5000 * YEAR)
        clock.set_date(START_OF_UNIX)
        ages = Ages.at(record, clock.reading())
        assert ages.since(layer(NOW)) == datetime.min.replace(tzinfo=UTC)

    def test_only_what_ages_is_noted(self) -> None:
        lease = Lease("1f", "a test", (), NOW)
        image = ImageInfo("a:1", digest_of(b"a"), "", (), (), digest_of(b"c"), b"", NOW, False)
        items: list[LayerInfo | ImageInfo | Lease] = [
            *(layer(NOW), layer(NOW, cached=False, name=b"two")),
            *(lease, replace(lease, lease_id="2f", expires=NOW)),
            *(image, replace(image, reference="b:1", cached=True)),
        ]
        ages = Ages.at(AgeRecord(), FakeClock(NOW).reading())
        assert {*ages.noting(items, are_all=True).periods} == {
            f"layer {digest_of(b'one')}",
            "lease 2f",
            f"image {digest_of(b'a')} b:1",
        }

    def test_what_is_gone_is_forgotten(self) -> None:
        reading = FakeClock(NOW).reading()
        one, two = layer(NOW), layer(NOW, name=b"two")
        record = Ages.at(AgeRecord(), reading).noting([one], are_all=True)
        both = Ages.at(record, reading).noting([two], are_all=False)
        assert len(both.periods) == 2
        assert {*Ages.at(both, reading).noting([two], are_all=True).periods} == {
            f"layer {two.digest}"
        }


class TestSaving:
    def saves(self, record: AgeRecord, reading: ClockReading, *items: LayerInfo) -> bool:
        ages = Ages.at(record, reading)
        return ages.must_save(ages.noting(items, are_all=True))

    def test_what_is_new_is_saved_and_the_time_now_and_then(self) -> None:
        clock = FakeClock(NOW)
        one = layer(NOW)
        assert self.saves(AgeRecord(), clock.reading())
        record = Ages.at(AgeRecord(), clock.reading()).noting([one], are_all=True)
        assert not self.saves(record, clock.reading(), one)
        assert self.saves(record, clock.reading())
        clock.advance(LONGEST_UNSAVED - timedelta(microseconds=1))
        assert not self.saves(record, clock.reading(), one)
        clock.advance(timedelta(microseconds=1))
        assert self.saves(record, clock.reading(), one)

    def test_a_date_that_jumps_ahead_is_saved(self) -> None:
        clock = FakeClock(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([], are_all=True)
        clock.set_date(NOW + LONGEST_UNSAVED - timedelta(microseconds=1))
        assert not self.saves(record, clock.reading())
        clock.set_date(NOW + LONGEST_UNSAVED)
        assert self.saves(record, clock.reading())

    def test_another_boot_is_saved_and_that_its_date_is_right(self) -> None:
        clock = FakeClock(NOW)
        record = Ages.at(AgeRecord(), clock.reading()).noting([], are_all=True)
        clock.reboot()
        assert self.saves(record, clock.reading())
        record = Ages.at(record, clock.reading()).noting([], are_all=True)
        assert not self.saves(record, clock.reading())
        clock.synchronise()
        assert self.saves(record, clock.reading())
