"""What is kept for a time is kept so long, whatever happens to the clocks of the machine."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layermanager import ImageInfo, Inventory, LayerInfo
from layermanager.rooms import rooms_of
from layermanager.space import Partitions
from layermanager.steps import Step
from layermanager.storage import SqliteLayerStorage, read_ages
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import digest_of
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import Node, names_in
from test_ages import Event, Machine, PlainClock, Reboot, Reference, Save, events

if TYPE_CHECKING:
    from collections.abc import Callable

    from layermanager import Allocator, LayerStorage
    from layermanager.amounts import Amount
    from layermanager.protocols import Remover

NOW = datetime(2026, 11, 24, tzinfo=UTC)
START_OF_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
AHEAD = datetime(2099, 1, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
TIME_TO_LIVE = 10 * DAY
PERIOD = timedelta(hours=6)


def from_1970_to_now(clock: FakeClock) -> None:
    clock.set_date(NOW)


def from_now_to_1970(clock: FakeClock) -> None:
    clock.set_date(START_OF_UNIX)


def ahead(clock: FakeClock) -> None:
    clock.set_date(AHEAD)


def right(clock: FakeClock) -> None:
    clock.synchronise()


def an_hour_forward(clock: FakeClock) -> None:
    clock.set_date(clock.now() + HOUR)


def an_hour_back(clock: FakeClock) -> None:
    clock.set_date(clock.now() - HOUR)


JUMPS: list[tuple[datetime, Callable[[FakeClock], None]]] = [
    (START_OF_UNIX, from_1970_to_now),
    (START_OF_UNIX, right),
    (NOW, from_now_to_1970),
    (NOW, ahead),
    (AHEAD, right),
    (AHEAD, from_now_to_1970),
    (NOW, an_hour_forward),
    (NOW, an_hour_back),
]
"""The date at which something begins to be kept, and what happens to the clock then."""

NAMES = [f"{begin.year}-{jump.__name__}" for begin, jump in JUMPS]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(NOW)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, layer_ttl_days=TIME_TO_LIVE.days, remove_cached_layers_period=PERIOD)


def add(node: Node, storage: LayerStorage, name: str, **changes: object) -> LayerInfo:
    """Add a desired layer without a file."""
    digest = digest_of(name.encode())
    layer = LayerInfo(
        digest=digest,
        layer_id=name,
        version="",
        path=node.config.layers_dir / "sha256" / digest.encoded,
        os_version="",
        timestamp=NOW,
        cached=False,
        size=4096,
    )
    layer.path.mkdir(parents=True)
    layer = replace(layer, **changes)  # type: ignore[arg-type]
    storage.add_layer(layer)
    return layer


def cache(node: Node, clock: FakeClock, *names: str) -> None:
    """Have layers that are no longer desired."""
    node.config.working_dir.mkdir(exist_ok=True)
    with SqliteLayerStorage(node.config.database, clock) as storage:
        for name in names:
            add(node, storage, name)
    with node.manager(clock=clock) as manager:
        manager.process_desired_layers([])


def names_after(node: Node, clock: FakeClock) -> list[str]:
    """What is left when a manager has started."""
    with node.manager(clock=clock) as manager:
        return names_in(manager.get_layers_info())


@pytest.mark.parametrize(("begin", "jump"), JUMPS, ids=NAMES)
class TestJumps:
    def test_a_cached_layer_stays_for_its_time(
        self, node: Node, clock: FakeClock, begin: datetime, jump: Callable[[FakeClock], None]
    ) -> None:
        clock.set_date(begin)
        cache(node, clock, "one")
        clock.advance(MINUTE)
        jump(clock)
        assert names_after(node, clock) == ["one"]
        clock.advance(TIME_TO_LIVE - MINUTE - MOMENT)
        assert names_after(node, clock) == ["one"]
        clock.advance(MOMENT)
        assert names_after(node, clock) == []

    def test_the_timer_does_not_heed_them(
        self, node: Node, clock: FakeClock, begin: datetime, jump: Callable[[FakeClock], None]
    ) -> None:
        clock.set_date(begin)
        cache(node, clock, "one")
        with node.manager(clock=clock) as manager:
            clock.wait_for_waiters(1)
            jump(clock)
            clock.advance(TIME_TO_LIVE - MOMENT)
            clock.wait_for_waiters(1)
            assert names_in(manager.get_layers_info()) == ["one"]
            jump(clock)
            clock.advance(PERIOD)
            clock.wait_for_waiters(1)
            assert manager.get_layers_info() == ()

    def test_no_time_to_live_removes_all(
        self, node: Node, clock: FakeClock, begin: datetime, jump: Callable[[FakeClock], None]
    ) -> None:
        clock.set_date(begin)
        cache(node, clock, "one", "two")
        jump(clock)
        with node.manager(clock=clock) as manager:
            assert len(manager.remove_expired_layers(timedelta(0))) == 2

    def test_the_oldest_go_first(
        self, node: Node, clock: FakeClock, begin: datetime, jump: Callable[[FakeClock], None]
    ) -> None:
        clock.set_date(begin)
        cache(node, clock, "b")
        clock.advance(MINUTE)
        jump(clock)
        cache(node, clock, "a")
        clock.advance(MINUTE)
        clock.set_date(begin)
        cache(node, clock, "c")
        dates = Dates()
        with node.manager(clock=clock, new_space_allocator=dates) as manager:
            assert [name for _, name in sorted(dates.noted)] == [
                digest_of(name) for name in (b"b", b"a", b"c")
            ]
            assert names_in(manager.remove_cached_layers(1 << 40)) == ["b", "a", "c"]

    def test_a_lease_lasts_as_long_as_it_was_taken_for(
        self, node: Node, clock: FakeClock, begin: datetime, jump: Callable[[FakeClock], None]
    ) -> None:
        clock.set_date(begin)
        cache(node, clock, "one")
        inventory = Inventory(node.config, clock=clock)
        with node.manager(clock=clock) as manager:
            lease = manager.lease("one", owner="a test", ttl=HOUR).lease
        clock.advance(MINUTE)
        jump(clock)
        clock.advance(HOUR - MINUTE - MOMENT)
        assert inventory.leases() == (lease,)
        with node.manager(clock=clock) as manager:
            assert manager.leases() == (lease,)
            assert manager.remove_expired_layers(timedelta(0)) == ()
        clock.advance(MOMENT)
        assert inventory.leases() == ()
        with node.manager(clock=clock) as manager:
            assert manager.leases() == ()
            assert names_in(manager.remove_expired_layers(timedelta(0))) == ["one"]

    @pytest.mark.parametrize("kind", ["seed", "memory"])
    def test_with_a_storage_of_the_callers(
        self,
        tmp_path: Path,
        clock: FakeClock,
        begin: datetime,
        jump: Callable[[FakeClock], None],
        kind: str,
    ) -> None:
        """One with the seed's methods alone is as good as long as the manager lives."""
        # The timer must not come first.
        node = Node(tmp_path, layer_ttl_days=10, remove_cached_layers_period=1000 * DAY)
        storage = MemoryLayerStorage(clock)
        add(node, storage, "one")
        given = SeedStorage(storage) if kind == "seed" else storage
        with node.manager(clock=clock, layer_storage=given) as manager:
            clock.set_date(begin)
            manager.process_desired_layers([])
            jump(clock)
            clock.advance(TIME_TO_LIVE - MOMENT)
            assert manager.remove_expired_layers() == ()
            clock.advance(MOMENT)
            assert names_in(manager.remove_expired_layers()) == ["one"]


class TestSleepAndReboot:
    def test_sleep_counts(self, node: Node, clock: FakeClock) -> None:
        cache(node, clock, "one")
        with node.manager(clock=clock) as manager:
            clock.wait_for_waiters(1)
            clock.suspend(TIME_TO_LIVE)
            clock.wait_for_waiters(1)
            assert manager.get_layers_info() == ()

    @pytest.mark.parametrize("date", [None, START_OF_UNIX, AHEAD])
    def test_a_reboot_counts_when_the_date_is_right_again(
        self, node: Node, clock: FakeClock, date: datetime | None
    ) -> None:
        cache(node, clock, "one")
        clock.reboot(off=TIME_TO_LIVE, date=date)
        assert names_after(node, clock) == ["one"]
        clock.synchronise()
        assert names_after(node, clock) == []

    def test_without_a_right_date_what_is_known_to_have_passed_counts(
        self, node: Node, clock: FakeClock
    ) -> None:
        clock.set_date(START_OF_UNIX)
        cache(node, clock, "one")
        for _ in range(TIME_TO_LIVE.days - 1):
            clock.reboot(off=DAY, date=START_OF_UNIX)
            clock.advance(DAY)
            assert names_after(node, clock) == ["one"]
        clock.reboot(off=DAY, date=START_OF_UNIX)
        clock.advance(DAY - MOMENT)
        assert names_after(node, clock) == ["one"]
        clock.advance(MOMENT)
        assert names_after(node, clock) == []

    def test_a_power_cut_costs_an_hour_of_it_at_most(self, node: Node, clock: FakeClock) -> None:
        clock.set_date(START_OF_UNIX)
        cache(node, clock, "one")
        with node.manager(clock=clock):
            for _ in range(3):
                clock.wait_for_waiters(1)
                clock.advance(HOUR)
            clock.wait_for_waiters(1)
            clock.advance(MINUTE)
            saved = read_ages(node.config.database).time
        assert saved is not None
        assert saved.passed == 3 * HOUR

    @settings(max_examples=15, deadline=None)
    @given(st.lists(events, max_size=12), st.timedeltas(MINUTE, 90 * DAY))
    def test_whatever_happens_a_cached_layer_stays_for_its_time_and_no_longer(
        self, happened: list[Event], time_to_live: timedelta
    ) -> None:
        machine = Machine()
        with tempfile.TemporaryDirectory() as base:
            node = Node(Path(base), layer_ttl_days=10**9)
            cache(node, machine.clock, "one")
            reference = Reference(machine)
            for event in happened:
                machine.do(event)
                if isinstance(event, Save | Reboot):
                    # Mostly saved by this, and always where more than an hour would be lost.
                    before = read_ages(node.config.database).time
                    age = reference.now()
                    with node.manager(clock=machine.clock) as manager:
                        removed = manager.remove_expired_layers(time_to_live)
                    assert (removed != ()) is (age >= time_to_live)
                    if removed:
                        return
                    if read_ages(node.config.database).time != before:
                        reference.save()


class TestOtherPrograms:
    @pytest.mark.parametrize(
        ("timestamp", "age"),
        [
            (NOW - 9 * DAY, 9 * DAY),
            (NOW - 11 * DAY, 11 * DAY),
            (AHEAD, timedelta(0)),
            (START_OF_UNIX, timedelta(0)),
        ],
    )
    def test_layers_that_they_cached(
        self, node: Node, clock: FakeClock, timestamp: datetime, age: timedelta
    ) -> None:
        node.config.working_dir.mkdir()
        with SqliteLayerStorage(node.config.database, clock) as storage:
            layer = add(node, storage, "one", cached=True, timestamp=timestamp)
        assert Inventory(node.config, clock=clock).ages().of(layer) == age
        left = names_after(node, clock)
        assert left == ([] if age >= TIME_TO_LIVE else ["one"])
        if left:
            clock.set_date(START_OF_UNIX)
            clock.advance(TIME_TO_LIVE - age - MOMENT)
            assert names_after(node, clock) == ["one"]
            clock.advance(MOMENT)
            assert names_after(node, clock) == []

    def test_a_layer_without_a_readable_time_goes_in_the_end(
        self, node: Node, clock: FakeClock
    ) -> None:
        """Also where each operation is another process."""
        cache(node, clock)
        with SqliteLayerStorage(node.config.database, clock) as storage:
            add(node, storage, "one", cached=True)
        with closing(sqlite3.connect(node.config.database)) as database, database:
            database.execute("UPDATE layers SET timestamp = 'soon'")
        for _ in range(TIME_TO_LIVE.days):
            assert names_after(node, clock) == ["one"]
            clock.advance(DAY)
        assert names_after(node, clock) == []

    def test_a_clock_of_theirs_tells_by_its_date(self, node: Node, clock: FakeClock) -> None:
        cache(node, clock, "one")
        plain = PlainClock(clock)
        with node.manager(clock=plain):
            pass
        clock.advance(TIME_TO_LIVE - MOMENT)
        with node.manager(clock=plain) as manager:
            assert names_in(manager.get_layers_info()) == ["one"]
        clock.advance(MOMENT)
        with node.manager(clock=plain) as manager:
            assert manager.get_layers_info() == ()


class TestImages:
    def test_they_are_as_old_as_they_are(self, node: Node, clock: FakeClock) -> None:
        node.config.working_dir.mkdir()
        with SqliteLayerStorage(node.config.database, clock) as storage:
            layer = add(node, storage, "one")
            image = ImageInfo(
                reference="registry/app:1",
                digest=digest_of(b"image"),
                platform="linux/amd64",
                layers=(layer.digest,),
                diff_ids=(layer.digest,),
                config_digest=digest_of(b"config"),
                config=b"{}",
                timestamp=NOW,
                cached=False,
            )
            storage.add_image(image)
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([])
            (cached,) = manager.get_images_info()
            assert cached.cached
        clock.set_date(AHEAD)
        with node.manager(clock=clock) as manager:
            assert manager.get_images_info() == (cached,)
        clock.set_date(START_OF_UNIX)
        clock.advance(TIME_TO_LIVE)
        with node.manager(clock=clock) as manager:
            assert manager.get_images_info() == ()


class TestCost:
    def test_what_changes_nothing_writes_nothing(self, node: Node, clock: FakeClock) -> None:
        cache(node, clock, "one")
        steps: list[Step] = []
        for duration, writes in ((HOUR - MOMENT, 0), (MOMENT, 1), (MINUTE, 0)):
            clock.advance(duration)
            steps.clear()
            with node.manager(clock=clock, on_step=steps.append) as manager:
                manager.process_desired_layers([])
                manager.remove_expired_layers()
            assert steps.count(Step.WRITE_ROW) == writes

    def test_looking_writes_nothing(self, node: Node, clock: FakeClock) -> None:
        cache(node, clock, "one")
        before = read_ages(node.config.database)
        clock.reboot(off=DAY)
        inventory = Inventory(node.config, clock=clock)
        (layer,) = inventory.layers()
        clock.advance(HOUR)
        assert inventory.ages().of(layer) == HOUR
        assert read_ages(node.config.database) == before


class SeedStorage:
    """The five methods of the seed's storage."""

    def __init__(self, storage: MemoryLayerStorage) -> None:
        self.add_layer = storage.add_layer
        self.delete_layer_by_digest = storage.delete_layer_by_digest
        self.get_layers_info = storage.get_layers_info
        self.get_layer_info_by_digest = storage.get_layer_info_by_digest
        self.set_layer_cached = storage.set_layer_cached


class Dates:
    """A ``NewSpaceAllocator`` that notes since when items are outdated."""

    def __init__(self) -> None:
        self.noted: set[tuple[datetime, str]] = set()

    def __call__(self, path: Path, part_limit: int, remover: Remover) -> Allocator:
        allocator = Partitions().new_allocator(path, part_limit, remover)
        rooms = rooms_of(allocator)
        offer = rooms.offer

        def note(
            item_id: str, amount: Amount, timestamp: datetime, *, goes_last: bool = False
        ) -> None:
            self.noted.add((timestamp, item_id))
            offer(item_id, amount, timestamp, goes_last=goes_last)

        rooms.offer = note  # type: ignore[method-assign]
        return allocator
