"""Ages of cached layers and images, and of leases: told by what has passed, not by the calendar.

A device without a battery starts in 1970 and jumps. So a store has a time of its own: the seconds
that have passed for it. Within one boot of the machine it advances as ``CLOCK_BOOTTIME`` does,
which counts sleep and which nothing sets. Over a reboot it advances by the boot time of the new
boot; the time that the machine was off is added as soon as the calendar is synchronised again, if
it was in an earlier boot as well.

When a layer or image is first seen as cached, or a lease is taken, the store time at which that
period began is noted. Items without a note, such as those of another program, are judged by the
calendar as far as it can be believed.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager.leases import Lease
from layermanager.model import ClockReading, LayerInfo
from layermanager.protocols import AgeStore, MachineClock, Transactional

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from layermanager.model import Digest, ImageInfo
    from layermanager.protocols import Clock, LayerStorage

    Aged: TypeAlias = LayerInfo | ImageInfo | Lease

_NONE: Final = timedelta(0)
_EARLIEST: Final = datetime.min.replace(tzinfo=UTC)

LONGEST_BELIEVED: Final = timedelta(days=3653)
"""Ten years. A calendar that says that more has passed was wrong before, or is now."""

LONGEST_UNSAVED: Final = timedelta(hours=1)
"""How much of the store time a power cut may cost."""


@dataclass(frozen=True, slots=True)
class SynchronisedTime:
    """A moment at which the calendar was right.

    Attributes:
        passed: the store time.
        boot: the boot of the machine.
        calendar: the date.
    """

    passed: timedelta
    boot: str
    calendar: datetime


@dataclass(frozen=True, slots=True)
class StoreTime:
    """How much time has passed for a store, and what the clocks showed then.

    Attributes:
        passed: the store time; it never goes back.
        boot: the boot of the machine; empty: unknown.
        since_boot: the time since that.
        newest: the newest date seen; where the calendar is synchronised, the date.
        synchronised: the last moment at which the calendar was right.
    """

    passed: timedelta
    boot: str
    since_boot: timedelta
    newest: datetime
    synchronised: SynchronisedTime | None = None

    @classmethod
    def begun(cls, reading: ClockReading) -> StoreTime:
        """Return the time of a store that begins now."""
        begin = cls(_NONE, reading.boot, reading.since_boot, reading.calendar)
        return begin.advanced(reading)

    def advanced(self, reading: ClockReading) -> StoreTime:
        """Return the time when the clocks show *reading*."""
        passed = self.passed + self._since(reading)
        passed += self._off(reading, passed)
        since_boot = reading.since_boot
        if self._is_same_boot(reading):  # containers may have different offsets
            since_boot = max(since_boot, self.since_boot)
        newest, synchronised = max(self.newest, reading.calendar), self.synchronised
        if reading.is_synchronised:
            newest = reading.calendar
            synchronised = SynchronisedTime(passed, reading.boot, reading.calendar)
        return StoreTime(passed, reading.boot, since_boot, newest, synchronised)

    def believes(self, reading: ClockReading) -> bool:
        """Return whether the date of *reading* can be right."""
        return reading.is_synchronised or reading.calendar >= self.newest

    def _since(self, reading: ClockReading) -> timedelta:
        """Return how much has passed at least, by the clock that nothing sets."""
        since_then = reading.since_boot - self.since_boot
        if self._is_same_boot(reading):
            return max(since_then, _NONE)
        is_unknown = not (reading.boot and self.boot)
        if is_unknown and since_then >= _NONE:
            return since_then  # what has passed if it is the same boot, and less if it is not
        return max(reading.since_boot, _NONE)

    def _off(self, reading: ClockReading, passed: timedelta) -> timedelta:
        """Return how long the machine was off, and not counted yet, by two right calendars."""
        before = self.synchronised
        if before is None or not reading.is_synchronised:
            return _NONE
        if reading.boot and reading.boot == before.boot:
            return _NONE
        missing = reading.calendar - before.calendar - (passed - before.passed)
        return missing if _NONE <= missing <= LONGEST_BELIEVED else _NONE

    def _is_same_boot(self, reading: ClockReading) -> bool:
        return reading.boot != "" and reading.boot == self.boot


@dataclass(frozen=True, slots=True)
class Period:
    """When a layer or image became cached, or a lease was taken.

    Attributes:
        timestamp: the date, as recorded. Another date is another period.
        begun: the store time.
    """

    timestamp: datetime
    begun: timedelta


@dataclass(frozen=True, slots=True)
class AgeRecord:
    """What is kept of the time and the ages of a store.

    Attributes:
        time: the store time when this was saved; None if it never was.
        periods: the periods by what they are of.
    """

    time: StoreTime | None = None
    periods: Mapping[str, Period] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ages:
    """The ages at one moment.

    Attributes:
        record: what was saved last.
        time: the store time now.
        calendar: the date now.
        is_believed: whether that can be right.
    """

    record: AgeRecord
    time: StoreTime
    calendar: datetime
    is_believed: bool

    @classmethod
    def at(cls, record: AgeRecord, reading: ClockReading) -> Ages:
        """Return the ages when the clocks show *reading*."""
        if record.time is None:
            return cls(record, StoreTime.begun(reading), reading.calendar, is_believed=True)
        return cls(
            record,
            record.time.advanced(reading),
            reading.calendar,
            is_believed=record.time.believes(reading),
        )

    def of(self, item: Aged) -> timedelta:
        """Return for how long *item* has been cached, or leased; never negative."""
        return max(self.time.passed - self._period(item).begun, _NONE)

    def since(self, item: Aged) -> datetime:
        """Return since when, by the calendar as it is now."""
        try:
            return self.calendar - self.of(item)
        except OverflowError:
            return _EARLIEST

    def noting(self, items: Iterable[Aged], *, are_all: bool) -> AgeRecord:
        """Return the record with the periods of *items*.

        Args:
            items: layers, images and leases; those that do not age are passed over.
            are_all: whether there are no others, so that all other periods can be forgotten.
        """
        noted = {subject_of(item): self._period(item) for item in items if _is_aging(item)}
        return AgeRecord(self.time, noted if are_all else {**self.record.periods, **noted})

    def must_save(self, record: AgeRecord) -> bool:
        """Return whether *record*, made of this, says enough new to be written."""
        before = self.record.time
        if before is None or record.periods != self.record.periods or before.boot != self.time.boot:
            return True
        if self.time.passed - before.passed >= LONGEST_UNSAVED:
            return True
        if abs(self.time.newest - before.newest) >= LONGEST_UNSAVED:
            return True
        here, there = self.time.synchronised, before.synchronised
        return here is not None and (there is None or there.boot != here.boot)

    def _period(self, item: Aged) -> Period:
        """Return the period of *item*, as noted or else as it is seen now."""
        timestamp = item.created if isinstance(item, Lease) else item.timestamp
        noted = self.record.periods.get(subject_of(item))
        if noted is not None and noted.timestamp == timestamp:
            return noted
        return Period(timestamp, self.time.passed - self._estimate(timestamp))

    def _estimate(self, timestamp: datetime) -> timedelta:
        """Return the age of what was not noted, by the calendar; none if that cannot be right.

        All that was there when the record was saved is noted: it cannot be older than that.
        """
        age = self.calendar - timestamp
        if not self.is_believed or not _NONE <= age <= LONGEST_BELIEVED:
            return _NONE
        before = self.record.time
        return age if before is None else min(age, self.time.passed - before.passed)


class AgeKeeper:
    """Keeps the ages of the layers, images and leases in *storage*; safe from any thread.

    Where the storage is no ``AgeStore`` they are kept in memory.
    """

    def __init__(self, storage: LayerStorage, clock: Clock) -> None:
        self._store: AgeStore = storage if isinstance(storage, AgeStore) else _MemoryAges()
        self._transactional = self._store if isinstance(self._store, Transactional) else None
        self._clock = clock

    def ages(self) -> Ages:
        """Return the ages now; nothing is written."""
        return Ages.at(self._store.get_ages(), read_clock(self._clock))

    def note(self, items: Iterable[Aged], *, are_all: bool = False) -> None:
        """Note periods that begin now, or are seen for the first time; see ``Ages.noting``.

        It is called in the transaction that changes the items. Nothing is written where there is
        nothing new and the store time was saved not long ago.
        """
        items = tuple(items)
        ages = self.ages()
        if not ages.must_save(ages.noting(items, are_all=are_all)):
            return
        with self._transaction():  # another process may have saved it meanwhile
            ages = self.ages()
            self._store.put_ages(ages.noting(items, are_all=are_all))

    def _transaction(self) -> AbstractContextManager[None]:
        return self._transactional.transaction() if self._transactional else nullcontext()


def read_clock(clock: Clock) -> ClockReading:
    """Return what *clock* shows; one that tells no more than the date is believed."""
    if isinstance(clock, MachineClock):
        return clock.reading()
    return ClockReading(clock.now(), boot="", since_boot=_NONE, is_synchronised=True)


def elapsed(clock: Clock) -> float:
    """Return the seconds since some moment; time asleep counts where *clock* can tell it."""
    if isinstance(clock, MachineClock):
        return clock.reading().since_boot.total_seconds()
    return clock.monotonic()


def subject_of(item: Aged) -> str:
    """Return what a period of *item* is recorded by."""
    match item:
        case Lease():
            return f"lease {item.lease_id}"
        case LayerInfo():
            return layer_subject(item.digest)
        case _:
            return f"image {item.digest} {item.reference}"


def layer_subject(digest: Digest) -> str:
    """Return what a period of a layer is recorded by."""
    return f"layer {digest}"


def _is_aging(item: Aged) -> bool:
    return item.expires is not None if isinstance(item, Lease) else item.cached


class _MemoryAges:
    """An ``AgeStore`` that forgets everything when the process ends."""

    def __init__(self) -> None:
        self._record = AgeRecord()
        self._lock = threading.RLock()

    def get_ages(self) -> AgeRecord:
        with self._lock:
            return self._record

    def put_ages(self, record: AgeRecord) -> None:
        with self._lock:
            self._record = record

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with self._lock:
            yield
