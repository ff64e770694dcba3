from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from layermanager.amounts import NOTHING, Amount
from layermanager.boundary import Boundary, Guard
from layermanager.errors import CancelledError, ConfigError, NotEnoughSpaceError, StoreError
from layermanager.rooms import rooms_of
from layermanager.space import DiskUsage, Partitions, disk_usage
from layermanager.testing.space import SimulatedDisk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layermanager.protocols import Allocator, NewSpaceAllocator, Remover

DIRECTORY = Path("layers")
UNCOUNTED_STEP = 512  # told where the file system does not count inodes
LONG = 20  # seconds after which something that should happen at once counts as hanging


def day(number: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)


class Directory:
    """A directory of the simulated disk and its allocator; items are files named by their id."""

    def __init__(
        self, disk: SimulatedDisk, new_allocator: NewSpaceAllocator, part_limit: int
    ) -> None:
        self.disk = disk
        self.evicted: list[str] = []
        self.allocator = new_allocator(DIRECTORY, part_limit, self.remove)

    def remove(self, item_id: str) -> None:
        self.disk.remove(item_id)
        self.evicted.append(item_id)

    def install(self, item_id: str, size: int) -> None:
        with self.allocator.allocate_space(size) as space:
            self.disk.write(item_id, size)
            space.note_written(size)
            space.accept()

    def cache(self, item_id: str, size: int, timestamp: datetime) -> None:
        self.install(item_id, size)
        self.allocator.add_outdated_item(item_id, size, timestamp)


@pytest.fixture
def disk() -> SimulatedDisk:
    return SimulatedDisk(total=1000)


@pytest.fixture
def partitions(disk: SimulatedDisk) -> Partitions:
    return Partitions(disk.usage)


@pytest.fixture
def layers(disk: SimulatedDisk, partitions: Partitions) -> Directory:
    return Directory(disk, partitions.new_allocator, part_limit=0)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=8) as executor:
        yield executor


def refusal(allocator: Allocator, size: int) -> NotEnoughSpaceError:
    with pytest.raises(NotEnoughSpaceError) as caught:
        allocator.allocate_space(size)
    assert caught.value.needed == size
    return caught.value


def room(allocator: Allocator) -> int:
    """What the allocator says is free, learnt from its refusal of far too much."""
    return refusal(allocator, 1_000_000).free


class TestDiskUsage:
    def test_it_is_what_the_file_system_says(self, tmp_path: Path) -> None:
        usage = disk_usage(tmp_path)

        facts = os.statvfs(tmp_path)
        assert usage.device == tmp_path.stat().st_dev
        assert usage.total == facts.f_blocks * facts.f_frsize
        meanwhile_written = 64 * 1024 * 1024  # by others; far below the usual reserve
        assert abs(usage.free - facts.f_bavail * facts.f_frsize) < meanwhile_written
        assert (usage.free_inodes is None) == (facts.f_files == 0)

    def test_a_path_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="no-such-directory"):
            disk_usage(tmp_path / "no-such-directory")

    def test_a_real_partition_holds_a_byte_and_not_more_than_it_has(self, tmp_path: Path) -> None:
        allocator = Partitions().new_allocator(tmp_path, 0, _removes_nothing)

        with allocator.allocate_space(1) as space:
            assert space.size == 1
        assert not refusal(allocator, disk_usage(tmp_path).total + 1).limit_reached


class TestLimits:
    def test_no_limit_is_bounded_by_the_partition_alone(self, layers: Directory) -> None:
        layers.allocator.allocate_space(1000)

        error = refusal(layers.allocator, 1)

        assert (error.free, error.limit, error.reclaimable) == (0, 0, 0)
        assert not error.limit_reached

    def test_a_limit_is_a_share_of_the_partition_rounded_down(self) -> None:
        disk = SimulatedDisk(total=999)
        layers = Directory(disk, Partitions(disk.usage).new_allocator, part_limit=10)

        error = refusal(layers.allocator, 100)

        assert (error.free, error.limit, error.limit_reached) == (99, 99, True)
        layers.allocator.allocate_space(99)

    def test_used_and_reserved_bytes_count_against_the_limit(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)
        layers.install("a", 100)
        layers.allocator.allocate_space(150)

        assert room(layers.allocator) == 250

    def test_noted_used_space_replaces_what_was_known(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)
        layers.install("a", 100)
        layers.allocator.allocate_space(10)

        layers.allocator.note_used_space(300)

        assert room(layers.allocator) == 190

    def test_freed_space_can_be_used_again(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)
        layers.install("a", 500)
        disk.remove("a")

        layers.allocator.free_space(400)

        assert room(layers.allocator) == 400

    def test_freeing_more_than_is_used_gives_no_credit(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)

        layers.allocator.free_space(100)

        assert room(layers.allocator) == 500

    def test_missing_is_exact_when_more_is_used_than_the_limit_allows(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=10)
        layers.allocator.note_used_space(150)
        layers.allocator.add_outdated_item("old", 30, day(1))

        error = refusal(layers.allocator, 10)

        assert (error.free, error.reclaimable, error.missing) == (0, 30, 30)
        assert "free 0," in str(error)

    def test_missing_is_exact_when_others_took_what_was_set_aside(
        self, disk: SimulatedDisk, layers: Directory
    ) -> None:
        layers.allocator.allocate_space(400)
        disk.write("somebody else's", 800)

        error = refusal(layers.allocator, 10)

        assert (error.free, error.missing, error.limit_reached) == (0, 210, False)
        assert "free 0," in str(error)


class TestSharing:
    def test_what_one_allocator_set_aside_another_cannot_have(
        self, disk: SimulatedDisk, partitions: Partitions, layers: Directory
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=0)
        layers.allocator.allocate_space(700)

        assert room(states.allocator) == 300

    def test_partitions_are_told_apart_by_their_device(self) -> None:
        disks = {name: SimulatedDisk(1000, device=n) for n, name in enumerate(("one", "two"))}
        partitions = Partitions(lambda path: disks[path.name].usage(path))
        first = partitions.new_allocator(Path("one"), 60, _removes_nothing)
        second = partitions.new_allocator(Path("two"), 60, _removes_nothing)

        first.allocate_space(600)

        assert second.allocate_space(600).size == 600

    def test_limits_may_sum_up_to_a_hundred_per_cent_and_no_more(
        self, partitions: Partitions
    ) -> None:
        partitions.new_allocator(DIRECTORY, 60, _removes_nothing)
        partitions.new_allocator(DIRECTORY, 40, _removes_nothing)

        with pytest.raises(ConfigError, match=r"images: .* 60 \+ 40 \+ 1 per cent"):
            partitions.new_allocator(Path("images"), 1, _removes_nothing)

    def test_an_allocator_that_was_refused_does_not_take_part(self, partitions: Partitions) -> None:
        with pytest.raises(ConfigError):
            partitions.new_allocator(DIRECTORY, 101, _removes_nothing)

        partitions.new_allocator(DIRECTORY, 100, _removes_nothing)

    def test_a_negative_limit_is_refused(self, partitions: Partitions) -> None:
        with pytest.raises(ConfigError, match="-1 per cent"):
            partitions.new_allocator(DIRECTORY, -1, _removes_nothing)

    def test_a_closed_allocator_gives_its_share_and_its_space_back(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        closed = Directory(disk, partitions.new_allocator, part_limit=100)
        space = closed.allocator.allocate_space(700)
        closed.cache("old", 100, day(1))

        closed.allocator.close()
        closed.allocator.close()

        other = Directory(disk, partitions.new_allocator, part_limit=100)
        assert room(other.allocator) == 1000
        assert refusal(other.allocator, 1000).reclaimable == 0
        with pytest.raises(CancelledError, match="layers"):
            space.grow(1)
        with pytest.raises(CancelledError, match="layers"):
            closed.allocator.allocate_space(1)
        space.release()
        assert closed.evicted == []


class TestSpace:
    def test_released_space_is_given_back_once(self, layers: Directory) -> None:
        space = layers.allocator.allocate_space(600)

        space.release()
        space.release()

        assert space.size == 0
        assert room(layers.allocator) == 1000

    def test_accepted_space_is_used(self, disk: SimulatedDisk, partitions: Partitions) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=100)
        space = layers.allocator.allocate_space(600)

        space.accept()
        space.release()
        space.accept()
        space.accept(100)

        assert room(layers.allocator) == 400

    @pytest.mark.parametrize("accepted", [0, 250, 650])
    def test_accepting_less_or_more_than_was_held(
        self, disk: SimulatedDisk, partitions: Partitions, accepted: int
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=100)
        space = layers.allocator.allocate_space(600)

        space.accept(accepted)

        assert room(layers.allocator) == 1000 - accepted

    def test_a_with_block_releases_what_it_did_not_accept(self, layers: Directory) -> None:
        with pytest.raises(ZeroDivisionError), layers.allocator.allocate_space(600):
            raise ZeroDivisionError

        assert room(layers.allocator) == 1000

    def test_it_grows_and_keeps_what_it_held_where_it_cannot(self, layers: Directory) -> None:
        space = layers.allocator.allocate_space(600)

        space.grow(300)
        with pytest.raises(NotEnoughSpaceError) as caught:
            space.grow(101)

        assert (caught.value.needed, caught.value.free) == (101, 100)
        assert space.size == 900
        assert room(layers.allocator) == 100

    def test_growing_evicts_as_allocating_does(self, layers: Directory) -> None:
        layers.cache("old", 500, day(1))
        space = layers.allocator.allocate_space(400)

        space.grow(101)

        assert layers.evicted == ["old"]
        assert space.size == 501

    def test_it_grows_if_free_without_evicting(self, layers: Directory) -> None:
        layers.cache("old", 500, day(1))
        space = layers.allocator.allocate_space(400)

        assert space.grow_if_free(100)
        assert not space.grow_if_free(1)

        assert layers.evicted == []
        assert space.size == 500

    def test_nothing_at_all_fits_where_more_is_promised_than_there_is(
        self, disk: SimulatedDisk, layers: Directory
    ) -> None:
        """Who begins with nothing must not make good for what others took."""
        layers.cache("old", 300, day(1))
        layers.allocator.allocate_space(600)
        disk.write("somebody else's", 200)

        space = layers.allocator.allocate_space(0)

        assert layers.evicted == []
        assert not space.grow_if_free(1)

    def test_it_cannot_grow_once_it_has_ended(self, layers: Directory) -> None:
        space = layers.allocator.allocate_space(1)
        space.release()

        with pytest.raises(ValueError, match="cannot grow"):
            space.grow(1)
        with pytest.raises(ValueError, match="cannot grow"):
            space.grow_if_free(1)

    def test_written_bytes_are_counted_by_the_file_system_and_not_again(
        self, disk: SimulatedDisk, layers: Directory
    ) -> None:
        space = layers.allocator.allocate_space(600)

        disk.write("growing", 250)
        assert room(layers.allocator) == 150  # on the safe side until it is noted
        space.note_written(250)
        assert room(layers.allocator) == 400
        disk.write("growing", 350)
        space.note_written(600)
        assert room(layers.allocator) == 400

    def test_writing_more_than_was_held_gives_no_credit(
        self, disk: SimulatedDisk, layers: Directory
    ) -> None:
        other = layers.allocator.allocate_space(100)
        space = layers.allocator.allocate_space(100)

        disk.write("growing", 300)
        space.note_written(300)

        assert room(layers.allocator) == 600
        assert (other.size, space.size) == (100, 100)

    def test_written_bytes_stay_reserved_in_the_limit(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)
        space = layers.allocator.allocate_space(300)

        disk.write("growing", 300)
        space.note_written(300)

        assert room(layers.allocator) == 200


class TestEviction:
    def test_nothing_is_removed_where_there_is_room(self, layers: Directory) -> None:
        layers.cache("old", 500, day(1))

        layers.allocator.allocate_space(500)

        assert layers.evicted == []

    def test_the_oldest_go_first_and_no_more_than_needed(self, layers: Directory) -> None:
        layers.cache("newest", 300, day(3))
        layers.cache("oldest", 300, day(1))
        layers.cache("older", 300, day(2))

        layers.allocator.allocate_space(500)

        assert layers.evicted == ["oldest", "older"]

    def test_a_replaced_item_counts_once_and_by_its_new_age(self, layers: Directory) -> None:
        layers.cache("a", 500, day(1))
        layers.cache("b", 500, day(2))
        layers.allocator.add_outdated_item("a", 500, day(3))

        layers.allocator.allocate_space(1)

        assert layers.evicted == ["b"]
        assert refusal(layers.allocator, 1001).reclaimable == 500

    def test_nothing_is_removed_where_even_everything_would_not_do(self, layers: Directory) -> None:
        layers.install("kept", 600)
        layers.cache("old", 300, day(1))

        error = refusal(layers.allocator, 401)

        assert (error.free, error.reclaimable, error.missing) == (100, 300, 1)
        assert layers.evicted == []
        layers.allocator.allocate_space(400)
        assert layers.evicted == ["old"]

    def test_a_restored_item_is_kept(self, layers: Directory) -> None:
        layers.cache("old", 300, day(1))

        layers.allocator.restore_outdated_item("old")
        layers.allocator.restore_outdated_item("never heard of")

        assert refusal(layers.allocator, 1000).reclaimable == 0

    def test_evicted_bytes_are_no_longer_used(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        layers = Directory(disk, partitions.new_allocator, part_limit=50)
        layers.cache("old", 400, day(1))

        layers.allocator.allocate_space(200).release()

        assert layers.evicted == ["old"]
        assert room(layers.allocator) == 500

    def test_a_full_partition_takes_the_oldest_of_any_allocator(
        self, disk: SimulatedDisk, partitions: Partitions, layers: Directory
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=40)
        layers.cache("layer 2", 300, day(2))
        layers.cache("layer 4", 300, day(4))
        states.cache("state 1", 200, day(1))
        states.cache("state 3", 200, day(3))

        layers.allocator.allocate_space(600)

        assert states.evicted == ["state 1", "state 3"]
        assert layers.evicted == ["layer 2"]
        assert room(states.allocator) == 400  # of its limit: the evicted are no longer used
        layers.allocator.restore_outdated_item("layer 4")
        assert refusal(states.allocator, 101).free == 100  # of the partition

    def test_a_limit_takes_the_allocator_s_own_items_only(
        self, disk: SimulatedDisk, partitions: Partitions, layers: Directory
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=40)
        layers.cache("layer 1", 100, day(1))
        states.cache("state 2", 200, day(2))
        states.install("state", 200)

        error = refusal(states.allocator, 201)

        assert (error.limit, error.free, error.reclaimable) == (400, 0, 200)
        assert error.limit_reached
        states.allocator.allocate_space(200)
        assert states.evicted == ["state 2"]
        assert layers.evicted == []

    def test_what_goes_for_the_limit_counts_for_the_partition_too(
        self, disk: SimulatedDisk, partitions: Partitions, layers: Directory
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=40)
        layers.cache("layer 1", 300, day(1))
        layers.cache("layer 2", 300, day(2))
        states.cache("state 3", 400, day(3))

        states.allocator.allocate_space(400)

        assert states.evicted == ["state 3"]
        assert layers.evicted == []

    def test_what_goes_for_the_limit_is_not_chosen_again_for_the_partition(
        self, disk: SimulatedDisk, partitions: Partitions, layers: Directory
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=40)
        states.cache("state 1", 300, day(1))
        layers.cache("layer 2", 300, day(2))
        disk.write("somebody else's", 400)

        states.allocator.allocate_space(400)

        assert states.evicted == ["state 1"]
        assert layers.evicted == ["layer 2"]

    def test_nothing_goes_for_a_limit_where_the_partition_cannot_follow(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        states = Directory(disk, partitions.new_allocator, part_limit=40)
        states.cache("state", 300, day(1))
        disk.write("somebody else's", 600)

        error = refusal(states.allocator, 401)
        assert error.limit_reached
        disk.write("somebody else's", 100)

        error = refusal(states.allocator, 301)

        assert (error.free, error.reclaimable, error.limit_reached) == (0, 300, False)
        assert states.evicted == []

    def test_a_disk_without_inodes_has_no_room(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        def remove(item_id: str) -> None:
            disk.remove(item_id)
            disk.free_inodes = 1

        allocator = partitions.new_allocator(DIRECTORY, 0, remove)
        disk.free_inodes = 0
        with pytest.raises(NotEnoughSpaceError) as caught:
            allocator.allocate_space(1)
        assert (caught.value.kind, caught.value.needed, caught.value.free) == ("inodes", 1, 0)

        allocator.add_outdated_item("old", 1, day(1))
        assert allocator.allocate_space(1).size == 1


class TestInFlight:
    """Rooms of layers that grow: what they are told beyond their need."""

    def test_a_layer_in_flight_does_not_hoard(self) -> None:
        """21.6 MB are free, and two layers take 7.7 MB each; what is cached stays."""
        disk = SimulatedDisk(total=22_600_000)
        layers = Directory(disk, Partitions(disk.usage).new_allocator, part_limit=0)
        layers.cache("cached", 1_000_000, day(1))
        rooms = [rooms_of(layers.allocator).allocate(Amount(10_000), NOTHING) for _ in range(2)]

        for needed in (100_000, 4_000_000, 7_700_000):
            for room in rooms:
                told = room.extend(NOTHING, Amount(needed), NOTHING)
                assert needed < told.size < needed + 1_000_000

        assert layers.evicted == []

    def test_a_request_waits_for_what_another_layer_does_not_need(
        self, threads: ThreadPoolExecutor
    ) -> None:
        disk = WatchedDisk(4300)
        layers = Directory(disk, Partitions(disk.usage).new_allocator, part_limit=0)
        layers.cache("cached", 1000, day(1))
        rooms = rooms_of(layers.allocator)
        small, large = rooms.allocate(NOTHING, NOTHING), rooms.allocate(NOTHING, NOTHING)
        assert small.extend(NOTHING, Amount(100), NOTHING) == Amount(200, UNCOUNTED_STEP)

        disk.looked.clear()
        waiting = threads.submit(large.extend, NOTHING, Amount(3200), NOTHING)
        assert disk.looked.wait(LONG)
        disk.write("small", 100)
        small.settle(Amount(100))

        assert waiting.result(timeout=LONG).size == 3200
        assert layers.evicted == []

    def test_bytes_that_are_written_and_not_yet_noted_evict_nothing(
        self, threads: ThreadPoolExecutor
    ) -> None:
        """The file system counts them, and the reservation counts them again."""
        disk = WatchedDisk(4300)
        layers = Directory(disk, Partitions(disk.usage).new_allocator, part_limit=0)
        layers.cache("cached", 1000, day(1))
        rooms = rooms_of(layers.allocator)
        small, large = rooms.allocate(NOTHING, NOTHING), rooms.allocate(NOTHING, NOTHING)
        small.extend(NOTHING, Amount(1000), NOTHING)
        disk.write("small", 1000)

        disk.looked.clear()
        waiting = threads.submit(large.extend, NOTHING, Amount(2200), NOTHING)
        assert disk.looked.wait(LONG)
        small.settle(Amount(1000))

        assert waiting.result(timeout=LONG).size >= 2200
        assert layers.evicted == []

    def test_who_waits_is_told_when_the_allocator_is_closed(
        self, threads: ThreadPoolExecutor
    ) -> None:
        disk = WatchedDisk(3300)
        allocator = Partitions(disk.usage).new_allocator(DIRECTORY, 0, _removes_nothing)
        rooms = rooms_of(allocator)
        small, large = rooms.allocate(NOTHING, NOTHING), rooms.allocate(NOTHING, NOTHING)
        small.extend(NOTHING, Amount(100), NOTHING)

        disk.looked.clear()
        waiting = threads.submit(large.extend, NOTHING, Amount(3200), NOTHING)
        assert disk.looked.wait(LONG)
        allocator.close()

        with pytest.raises(CancelledError):
            waiting.result(timeout=LONG)


class TestReallyBack:
    def test_space_that_does_not_come_back_is_not_spent(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        asked: list[str] = []
        allocator = partitions.new_allocator(DIRECTORY, 0, asked.append)
        disk.write("everything", 1000)
        allocator.add_outdated_item("old", 300, day(1))

        error = refusal(allocator, 300)

        assert asked == ["old"]
        assert (error.free, error.reclaimable) == (0, 0)

    def test_more_is_removed_where_the_first_gave_less_than_it_promised(
        self, layers: Directory, disk: SimulatedDisk
    ) -> None:
        disk.write("kept", 700)
        disk.write("shares its blocks", 10)
        layers.allocator.add_outdated_item("shares its blocks", 200, day(1))
        disk.write("honest", 290)
        layers.allocator.add_outdated_item("honest", 290, day(2))

        layers.allocator.allocate_space(200)

        assert layers.evicted == ["shares its blocks", "honest"]

    def test_space_that_others_take_while_it_is_freed_is_not_promised_twice(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        def remove(item_id: str) -> None:
            disk.remove(item_id)
            disk.write("somebody else's", 400)

        allocator = partitions.new_allocator(DIRECTORY, 0, remove)
        disk.write("old", 1000)
        allocator.add_outdated_item("old", 1000, day(1))

        assert refusal(allocator, 700).free == 600


class TestRemover:
    def test_its_error_is_the_allocation_s_own_and_accounting_stays_right(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        evicted: list[str] = []
        broken = {"b"}

        def remove(item_id: str) -> None:
            if item_id in broken:
                raise StoreError(f"cannot remove {item_id}")
            disk.remove(item_id)
            evicted.append(item_id)

        allocator = partitions.new_allocator(DIRECTORY, 100, remove)
        allocator.note_used_space(900)
        for age, item_id in enumerate(("a", "b", "c")):
            disk.write(item_id, 300)
            allocator.add_outdated_item(item_id, 300, day(age))

        with pytest.raises(StoreError, match="cannot remove b"):
            allocator.allocate_space(1000)

        assert evicted == ["a"]
        error = refusal(allocator, 1001)
        assert (error.free, error.reclaimable) == (400, 600)
        broken.clear()
        allocator.allocate_space(1000)
        assert evicted == ["a", "b", "c"]

    @pytest.mark.parametrize("error", [RuntimeError("bug"), MemoryError(), OSError(5, "EIO")])
    def test_one_that_breaks_its_contract_stands_in_the_way_of_no_other(
        self, disk: SimulatedDisk, error: Exception
    ) -> None:
        unexpected: list[Boundary] = []
        partitions = Partitions(disk.usage, guard=Guard(unexpected.append))
        evicted: list[str] = []

        def remove(item_id: str) -> None:
            if item_id == "a" and not evicted:
                raise error
            disk.remove(item_id)
            evicted.append(item_id)

        allocator = partitions.new_allocator(DIRECTORY, 100, remove)
        allocator.note_used_space(900)
        for age, item_id in enumerate(("a", "b", "c")):
            disk.write(item_id, 300)
            allocator.add_outdated_item(item_id, 300, day(age))

        allocator.allocate_space(400).release()

        assert unexpected == [Boundary.REMOVER]
        assert evicted == ["b"]
        assert refusal(allocator, 1000).reclaimable == 300  # it is withdrawn
        allocator.add_outdated_item("a", 300, day(0))
        allocator.allocate_space(1000)
        assert evicted == ["b", "a", "c"]

    def test_an_item_restored_meanwhile_is_not_offered_again(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        def remove(item_id: str) -> None:
            allocator.restore_outdated_item(item_id)
            raise StoreError("it is wanted again")

        allocator = partitions.new_allocator(DIRECTORY, 0, remove)
        disk.write("old", 1000)
        allocator.add_outdated_item("old", 1000, day(1))

        with pytest.raises(StoreError, match="wanted again"):
            allocator.allocate_space(1)

        assert refusal(allocator, 1).reclaimable == 0

    def test_an_item_restored_meanwhile_is_accounted_by_who_restored_it(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        def remove(item_id: str) -> None:
            allocator.restore_outdated_item(item_id)

        allocator = partitions.new_allocator(DIRECTORY, 100, remove)
        allocator.note_used_space(1000)
        disk.write("old", 1000)
        allocator.add_outdated_item("old", 1000, day(1))

        error = refusal(allocator, 1)

        assert (error.free, error.reclaimable, error.limit_reached) == (0, 0, True)

    def test_an_item_outdated_anew_meanwhile_keeps_its_new_age(
        self, disk: SimulatedDisk, partitions: Partitions
    ) -> None:
        asked: list[str] = []

        def remove(item_id: str) -> None:
            asked.append(item_id)
            if len(asked) == 1:
                allocator.add_outdated_item(item_id, 500, day(3))
                raise StoreError("not now")
            disk.remove(item_id)

        allocator = partitions.new_allocator(DIRECTORY, 0, remove)
        for age, item_id in ((1, "a"), (2, "b")):
            disk.write(item_id, 500)
            allocator.add_outdated_item(item_id, 500, day(age))

        with pytest.raises(StoreError, match="not now"):
            allocator.allocate_space(1)
        allocator.allocate_space(1)

        assert asked == ["a", "b"]


class Gate:
    """A remover that says when it has begun, and waits until it may go on."""

    def __init__(self, remove: Remover) -> None:
        self._remove = remove
        self.begun = threading.Event()
        self.may_go_on = threading.Event()

    def __call__(self, item_id: str) -> None:
        self.begun.set()
        assert self.may_go_on.wait(LONG)
        self._remove(item_id)


class WatchedDisk(SimulatedDisk):
    """A simulated disk that says that somebody looked at it."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.looked = threading.Event()

    def usage(self, path: Path) -> DiskUsage:
        self.looked.set()
        return super().usage(path)


class TestThreads:
    def test_removers_run_without_the_lock(
        self, disk: SimulatedDisk, partitions: Partitions, threads: ThreadPoolExecutor
    ) -> None:
        done = threading.Event()

        def remove(item_id: str) -> None:
            disk.remove(item_id)
            threads.submit(use_everything_that_does_not_wait).result(timeout=LONG)

        def use_everything_that_does_not_wait() -> None:
            other.note_used_space(100)
            other.free_space(100)
            other.add_outdated_item("another", 1, day(2))
            other.restore_outdated_item("another")
            space.note_written(1)
            space.accept()
            space.release()
            done.set()

        allocator = partitions.new_allocator(DIRECTORY, 0, remove)
        other = partitions.new_allocator(DIRECTORY, 0, _removes_nothing)
        space = other.allocate_space(100)
        disk.write("old", 900)
        allocator.add_outdated_item("old", 900, day(1))

        allocator.allocate_space(1)

        assert done.is_set()

    def test_who_finds_room_does_not_wait_for_an_eviction(
        self, disk: SimulatedDisk, partitions: Partitions, threads: ThreadPoolExecutor
    ) -> None:
        gate = Gate(disk.remove)
        allocator = partitions.new_allocator(DIRECTORY, 0, gate)
        disk.write("old", 500)
        allocator.add_outdated_item("old", 500, day(1))
        large = threads.submit(allocator.allocate_space, 600)
        assert gate.begun.wait(LONG)

        small = threads.submit(allocator.allocate_space, 400).result(timeout=LONG)

        assert small.size == 400
        gate.may_go_on.set()
        assert large.result(timeout=LONG).size == 600

    def test_who_finds_no_room_waits_for_what_is_being_removed(
        self, threads: ThreadPoolExecutor
    ) -> None:
        disk = WatchedDisk(1000)
        gate = Gate(disk.remove)
        allocator = Partitions(disk.usage).new_allocator(DIRECTORY, 0, gate)
        disk.write("old", 1000)
        allocator.add_outdated_item("old", 1000, day(1))
        first = threads.submit(allocator.allocate_space, 300)
        assert gate.begun.wait(LONG)

        disk.looked.clear()
        second = threads.submit(allocator.allocate_space, 300)
        assert disk.looked.wait(LONG)  # it finds no room, and waits
        gate.may_go_on.set()

        assert first.result(timeout=LONG).size == 300
        assert second.result(timeout=LONG).size == 300

    def test_freed_space_is_never_promised_twice(self, threads: ThreadPoolExecutor) -> None:
        disk = WatchedDisk(1000)
        gate = Gate(disk.remove)
        allocator = Partitions(disk.usage).new_allocator(DIRECTORY, 0, gate)
        disk.write("old", 1000)
        allocator.add_outdated_item("old", 1000, day(1))
        first = threads.submit(allocator.allocate_space, 600)
        assert gate.begun.wait(LONG)

        disk.looked.clear()
        second = threads.submit(allocator.allocate_space, 600)
        assert disk.looked.wait(LONG)  # it finds no room, and waits
        gate.may_go_on.set()

        errors = [one.exception(timeout=LONG) for one in (first, second)]
        assert sorted(type(error).__name__ for error in errors) == [
            "NoneType",
            "NotEnoughSpaceError",
        ]

    def test_closing_waits_until_the_allocator_s_remover_has_ended(
        self, disk: SimulatedDisk, partitions: Partitions, threads: ThreadPoolExecutor
    ) -> None:
        gate = Gate(disk.remove)
        owner = partitions.new_allocator(DIRECTORY, 0, gate)
        other = partitions.new_allocator(DIRECTORY, 0, _removes_nothing)
        disk.write("old", 1000)
        owner.add_outdated_item("old", 1000, day(1))
        allocation = threads.submit(other.allocate_space, 1)
        assert gate.begun.wait(LONG)

        closing = threads.submit(owner.close)

        assert not wait([closing], timeout=0.1).done
        gate.may_go_on.set()
        closing.result(timeout=LONG)
        assert allocation.result(timeout=LONG).size == 1

    def test_many_threads_neither_hang_nor_promise_too_much(
        self, disk: SimulatedDisk, partitions: Partitions, threads: ThreadPoolExecutor
    ) -> None:
        owners = [Owner(disk, partitions, name, part_limit=40) for name in ("layers", "states")]
        disk.write("somebody else's", 400)  # so that the partition is short more often than limits

        workers = [
            threads.submit(owners[number % 2].work, str(number), Random(number), rounds=60)  # noqa: S311 - no secret
            for number in range(8)
        ]
        done, hanging = wait(workers, timeout=5 * LONG)

        assert not hanging
        for worker in done:
            worker.result()
        assert sum(owner.installed for owner in owners) > 0
        assert sum(owner.evicted for owner in owners) > 0
        for owner in owners:
            mine = sum(
                size for name, size in disk.files.items() if name.startswith(owner.directory)
            )
            error = refusal(owner.allocator, 1000)
            assert (error.free, error.limit_reached) == (400 - mine, True)


class Owner:
    """What a manager does to its allocator, with a lock of its own that its remover takes."""

    def __init__(
        self, disk: SimulatedDisk, partitions: Partitions, directory: str, part_limit: int
    ) -> None:
        self.directory = directory
        self.allocator = partitions.new_allocator(Path(directory), part_limit, self.remove)
        self.installed = 0
        self.evicted = 0
        self._disk = disk
        self._lock = threading.Lock()

    def remove(self, item_id: str) -> None:
        with self._lock:
            self._disk.remove(item_id)
            self.evicted += 1

    def work(self, worker: str, random: Random, rounds: int) -> None:
        for number in range(rounds):
            item_id = f"{self.directory} {worker} {number}"
            try:
                size = self._install(item_id, random)
            except NotEnoughSpaceError:
                self._disk.remove(item_id)
                continue
            with self._lock:
                self.installed += 1
                self.allocator.add_outdated_item(item_id, size, day(random.randrange(9)))
                if random.random() < 0.2:
                    self._remove_own(item_id, size)

    def _install(self, item_id: str, random: Random) -> int:
        with self.allocator.allocate_space(random.randrange(1, 60)) as space:
            written = 0
            for _ in range(random.randrange(3)):
                self._disk.write(item_id, space.size - written)
                written = space.size
                space.note_written(written)
                space.grow(random.randrange(1, 60))
            self._disk.write(item_id, space.size - written)
            size = space.size
            space.note_written(size)
            space.accept()
            return size

    def _remove_own(self, item_id: str, size: int) -> None:
        if item_id in self._disk.files:
            self.allocator.restore_outdated_item(item_id)
            self._disk.remove(item_id)
            self.allocator.free_space(size)


def _removes_nothing(item_id: str) -> None:
    """Keep everything; for allocators that are given no outdated items."""
    raise AssertionError(f"nobody should remove {item_id}")
