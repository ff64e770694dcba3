"""The manager on disks that are too small; the real ones are ext4 of 8 MiB."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import LayersFailedError, NotEnoughSpaceError
from layermanager.linux import sync_file_system
from layermanager.space import DiskUsage, Partitions, disk_usage
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import LayerBuilder, compress
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import (
    MIB,
    Node,
    RecordingAllocators,
    layer_tar,
    name_on_disk,
    names_in,
)

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.manager import LayerManager
    from layermanager.model import DesiredLayer, Digest, LayerInfo
    from layermanager.protocols import Allocator, Remover

MINUTE = timedelta(minutes=1)


def free(path: Path) -> int:
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def settled_free(path: Path) -> int:
    """What is free once everything that was removed has been given back."""
    sync(path)
    return free(path)


def sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync_file_system(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def small(tmp_path: Path, small_file_system: Path) -> Node:
    """A node whose layers, but not its database and packages, are on a small disk."""
    return Node(tmp_path, layers_dir=small_file_system / "layers", parallel_installs=2)


def install_one_after_the_other(
    manager: LayerManager, clock: FakeClock, layers: list[DesiredLayer]
) -> None:
    """Install each of *layers* and let it be cached when the next one comes."""
    for layer in layers:
        manager.process_desired_layers([layer])
        clock.advance(MINUTE)


def error_of(manager: LayerManager, *layers: DesiredLayer) -> NotEnoughSpaceError:
    with pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers(layers)
    (error,) = caught.value.exceptions
    assert type(error) is NotEnoughSpaceError
    return error


class TestEviction:
    def test_the_oldest_cached_layers_make_room(self, small: Node, clock: FakeClock) -> None:
        layers = [small.publish(name, MIB) for name in "zyxw"]
        big = small.publish("big", 3 * MIB)
        allocators = RecordingAllocators()
        with small.manager(clock=clock, new_space_allocator=allocators) as manager:
            install_one_after_the_other(manager, clock, layers)
            assert free(small.config.layers_dir) < 3 * MIB
            result = manager.process_desired_layers([layers[-1], big])
            assert names_in(result.installed) == ["big"]
            left = names_in(manager.get_layers_info())
            assert "z" not in left
            assert {"w", "big"} <= set(left)
            # Oldest first: where one had to go, so had all that are older.
            cached = [name for name in "zyx" if name in left]
            assert cached == list("zyx")[3 - len(cached) :]
            assert allocators.held == 0
        small.assert_has(row.digest for row in small.rows())
        total = sum(row.size for row in small.rows())
        taken = disk_usage(small.config.layers_dir)
        assert taken.total - settled_free(small.config.layers_dir) >= total

    def test_what_can_never_fit_evicts_nothing(self, small: Node, clock: FakeClock) -> None:
        layers = [small.publish(name, MIB) for name in "ab"]
        huge = small.publish("huge", 9 * MIB)
        with small.manager(clock=clock) as manager:
            install_one_after_the_other(manager, clock, layers)
            before = free(small.config.layers_dir)
            error = error_of(manager, layers[1], huge)
            assert sorted(names_in(manager.get_layers_info())) == ["a", "b"]
        small.assert_has(layers)
        assert huge.size is not None
        assert error.digest == huge.digest
        assert error.needed == huge.size
        assert error.free == pytest.approx(before, abs=MIB // 4)
        assert error.limit == 0
        assert not error.limit_reached
        cached = next(row for row in small.rows() if row.cached)
        assert error.reclaimable == cached.size
        for number in (error.needed, error.free, error.reclaimable):
            assert str(number) in str(error)
        assert "limit none" in str(error)

    def test_what_unpacks_to_more_than_fits_is_given_back(
        self, small: Node, clock: FakeClock
    ) -> None:
        """It seems to fit by the size of its file."""
        zeros = layer_tar("zeros")[:-1024] + _file("zeros", b"\1" * 9 * MIB)
        blob = compress(zeros, "gzip")
        bomb = small.publish_bytes("bomb", blob)
        kept, cached, good = (small.publish(name, MIB // 2) for name in ("kept", "cached", "good"))
        allocators = RecordingAllocators()
        with small.manager(clock=clock, new_space_allocator=allocators) as manager:
            manager.process_desired_layers([kept, cached])
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([kept, bomb, good])
            (error,) = caught.value.exceptions
            assert isinstance(error, NotEnoughSpaceError)
            assert names_in(caught.value.result.installed) == ["good"]
            assert allocators.held == 0
            assert len(blob) < MIB // 8 < error.needed
            assert error.free < error.needed
        small.assert_has(row.digest for row in small.rows())
        assert {"kept", "good"} <= set(names_in(small.rows()))

    def test_several_layers_on_a_nearly_full_disk(self, small: Node, clock: FakeClock) -> None:
        """Whoever comes too late fails; nothing is overcommitted, nothing is half there."""
        old = [small.publish(f"old-{number}", MIB) for number in range(4)]
        new = [small.publish(f"new-{number}", 2 * MIB) for number in range(4)]
        allocators = RecordingAllocators()
        with small.manager(clock=clock, new_space_allocator=allocators) as manager:
            install_one_after_the_other(manager, clock, old)
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers(new)
            result = caught.value.result
            assert {type(error) for error in caught.value.exceptions} == {NotEnoughSpaceError}
            assert len(result.installed) + len(result.failed) == 4
            assert result.installed
            for layer in result.installed:
                assert name_on_disk(layer) == layer.layer_id
            assert allocators.held == 0
            again = manager.process_desired_layers(
                [layer for layer in new if layer.digest in {one.digest for one in result.installed}]
            )
            assert len(again.kept) == len(result.installed)
        small.assert_has(row.digest for row in small.rows())

    def test_a_disk_that_is_fuller_than_it_says(self, small: Node, clock: FakeClock) -> None:
        """Another process may take what was promised: then the kernel refuses the write."""

        def boast(path: Path) -> DiskUsage:
            usage = disk_usage(path)
            return DiskUsage(usage.device, usage.total * 100, usage.free + 100 * MIB)

        huge, good = small.publish("huge", 9 * MIB), small.publish("good", MIB // 2)
        allocators = RecordingAllocators(Partitions(boast))
        with small.manager(clock=clock, new_space_allocator=allocators) as manager:
            manager.process_desired_layers([good])
            error = error_of(manager, good, huge)
            assert error.digest == huge.digest
            assert error.free < MIB
            assert allocators.held == 0
        small.assert_has([good])

    def test_a_disk_without_inodes_left(self, small: Node, clock: FakeClock) -> None:
        other = small.config.layers_dir.parent / "other"
        other.mkdir()
        good = small.publish("good")
        with small.manager(clock=clock) as manager:
            with pytest.raises(OSError, match="No space left"):
                _make_files(other)
            error = error_of(manager, good)
            assert error.digest == good.digest
            for path in other.iterdir():
                path.unlink()
            manager.process_desired_layers([good])
        small.assert_has([good])


def _file(name: str, content: bytes) -> bytes:
    return LayerBuilder().file(name, content).tar()


def _make_files(directory: Path) -> None:
    number = 0
    while True:
        (directory / str(number)).touch()
        number += 1


class TestLimit:
    @pytest.fixture
    def limited(self, tmp_path: Path, small_file_system: Path) -> Node:
        return Node(tmp_path, layers_dir=small_file_system / "layers", layers_part_limit=40)

    def test_layers_stay_within_it(self, limited: Node, clock: FakeClock) -> None:
        layers = [limited.publish(str(number), MIB) for number in range(5)]
        limit = disk_usage(limited.config.layers_dir.parent).total * 40 // 100
        with limited.manager(clock=clock) as manager:
            for layer in layers:
                manager.process_desired_layers([layer])
                clock.advance(MINUTE)
                rows = limited.rows()
                assert sum(row.size for row in rows) <= limit
                assert layer.digest in {row.digest for row in rows}
            # The youngest are left, and as many of them as fit.
            names = sorted(names_in(limited.rows()))
            assert names == [str(number) for number in range(5 - len(names), 5)]
            assert len(names) == 2
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers(layers)
            assert len(caught.value.exceptions) == 3
            for error in caught.value.exceptions:
                assert isinstance(error, NotEnoughSpaceError)
                assert (error.limit, error.limit_reached) == (limit, True)

    def test_layers_of_one_list_stay_within_it_together(
        self, limited: Node, clock: FakeClock
    ) -> None:
        layers = [limited.publish(str(number), MIB) for number in range(6)]
        limit = disk_usage(limited.config.layers_dir.parent).total * 40 // 100
        with limited.manager(clock=clock) as manager:
            with pytest.raises(LayersFailedError):
                manager.process_desired_layers(layers)
            assert sum(row.size for row in limited.rows()) <= limit
            assert len(limited.rows()) == 2
        limited.assert_has(row.digest for row in limited.rows())

    def test_it_is_named_by_what_it_refuses(self, limited: Node, clock: FakeClock) -> None:
        limit = disk_usage(limited.config.layers_dir.parent).total * 40 // 100
        huge = limited.publish("huge", 4 * MIB)
        with limited.manager(clock=clock) as manager:
            error = error_of(manager, huge)
        assert (error.limit, error.free, error.reclaimable) == (limit, limit, 0)
        assert error.needed == huge.size
        assert f"limit {limit}" in str(error)
        assert error.hint is not None
        assert "layersPartLimit" in error.hint


@dataclass
class Neighbour:
    """A ``SpaceAllocator`` with a file to give up."""

    file: Path
    asked: list[int] = field(default_factory=list)

    def allocate_layers_space(self, extra_space: int) -> int:
        self.asked.append(extra_space)
        if not self.file.exists():
            return 0
        size = self.file.stat().st_size
        self.file.unlink()
        sync(self.file.parent)
        return size


class TestNeighbour:
    @pytest.fixture
    def neighbour(self, small: Node) -> Neighbour:
        """It has taken so much that a layer of 3 MiB does not fit."""
        path = small.config.layers_dir.parent / "neighbours"
        path.write_bytes(bytes(free(path.parent) - 2 * MIB))
        sync(path.parent)
        return Neighbour(path)

    def test_it_is_asked_for_what_is_missing(
        self, small: Node, clock: FakeClock, neighbour: Neighbour
    ) -> None:
        cached, big = small.publish("cached", MIB // 2), small.publish("big", 3 * MIB)
        with small.manager(clock=clock, space_allocator=neighbour) as manager:
            install_one_after_the_other(manager, clock, [cached])
            before, reclaimable = free(small.config.layers_dir), small.rows()[0].size
            result = manager.process_desired_layers([big])
            assert names_in(result.installed) == ["big"]
        assert big.size is not None
        assert neighbour.asked == [
            pytest.approx(big.size - before - reclaimable, abs=MIB // 8),
        ]
        # The neighbour made room enough: nothing of ours had to go.
        small.assert_has([cached, big])

    def test_it_is_not_asked_when_evicting_is_enough(
        self, small: Node, clock: FakeClock, neighbour: Neighbour
    ) -> None:
        first, second = small.publish("first", MIB), small.publish("second", MIB)
        with small.manager(clock=clock, space_allocator=neighbour) as manager:
            install_one_after_the_other(manager, clock, [first, second])
        assert neighbour.asked == []
        small.assert_has([second])

    def test_it_is_asked_while_a_layer_grows(
        self, small: Node, clock: FakeClock, neighbour: Neighbour
    ) -> None:
        blob = compress(_file("ones", b"\1" * 3 * MIB), "gzip")
        layer = small.publish_bytes("ones", blob)
        with small.manager(clock=clock, space_allocator=neighbour) as manager:
            manager.process_desired_layers([layer])
        assert len(neighbour.asked) == 1
        assert neighbour.asked[0] > 0
        small.assert_has([layer])

    def test_what_it_says_is_not_believed(self, small: Node, clock: FakeClock) -> None:
        @dataclass
        class Liar:
            asked: int = 0

            def allocate_layers_space(self, extra_space: int) -> int:
                self.asked += 1
                return extra_space * 2

        liar = Liar()
        with small.manager(clock=clock, space_allocator=liar) as manager:
            error = error_of(manager, small.publish("big", 9 * MIB))
        assert liar.asked == 1
        assert error.missing > 0
        small.assert_has([])

    def test_it_is_not_asked_when_our_own_limit_is_in_the_way(
        self, tmp_path: Path, small_file_system: Path, clock: FakeClock
    ) -> None:
        base = tmp_path / "limited"
        base.mkdir()
        node = Node(base, layers_dir=small_file_system / "layers", layers_part_limit=20)
        neighbour = Neighbour(small_file_system / "neighbours")
        neighbour.file.write_bytes(bytes(100))
        with node.manager(clock=clock, space_allocator=neighbour) as manager:
            error = error_of(manager, node.publish("big", 3 * MIB))
        assert error.limit_reached
        assert neighbour.asked == []
        assert neighbour.file.exists()


class TestSharedPartition:
    def test_a_neighbour_of_the_process_evicts_our_cached_layers(
        self, small: Node, clock: FakeClock
    ) -> None:
        partitions = Partitions()
        kept, cached = small.publish("kept", MIB), small.publish("cached", 3 * MIB)
        with small.manager(clock=clock, new_space_allocator=partitions.new_allocator) as manager:
            manager.process_desired_layers([kept, cached])
            manager.process_desired_layers([kept])
            services = partitions.new_allocator(small.config.layers_dir.parent, 0, lambda _: None)
            wanted = free(small.config.layers_dir) + MIB
            with services.allocate_space(wanted) as space:
                assert space.size == wanted
                assert names_in(manager.get_layers_info()) == ["kept"]
                small.assert_has([kept])
            services.close()
            result = manager.process_desired_layers([kept, cached])
            assert (names_in(result.kept), names_in(result.installed)) == (["kept"], ["cached"])

    def test_while_we_install_as_well(self, small: Node, clock: FakeClock) -> None:
        """Threads that evict for the neighbour meet ours, at every moment: no deadlock."""
        partitions = Partitions()
        allocators = RecordingAllocators(partitions)
        layers = [small.publish(str(number), MIB) for number in range(6)]
        failures: list[BaseException] = []
        done = threading.Event()

        def allocate() -> None:
            services = partitions.new_allocator(small.config.layers_dir.parent, 0, lambda _: None)
            while not done.is_set():
                try:
                    services.allocate_space(free(small.config.layers_dir) // 2 + MIB).release()
                except NotEnoughSpaceError:
                    continue
                except BaseException as error:
                    failures.append(error)
                    raise
            services.close()

        with small.manager(clock=clock, new_space_allocator=allocators) as manager:
            neighbour = threading.Thread(target=allocate)
            neighbour.start()
            try:
                for round_ in range(8):
                    _apply_what_fits(manager, layers[round_ % 6 :][:2])
                    clock.advance(MINUTE)
            finally:
                done.set()
                neighbour.join()
            assert failures == []
            assert allocators.held == 0
            manager.process_desired_layers([])
            assert allocators.used == sum(row.size for row in small.rows())
        small.assert_has(row.digest for row in small.rows())

    def test_an_eviction_that_is_under_way_is_no_leftover_of_a_crash(
        self, small: Node, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An operation begins when the row is gone and the directory still there."""
        evicting, go_on, looked = threading.Event(), threading.Event(), threading.Event()

        class Slow(MemoryLayerStorage):
            def delete_layer_by_digest(self, digest: Digest) -> None:
                super().delete_layer_by_digest(digest)
                evicting.set()
                go_on.wait()

            def get_layers_info(self) -> tuple[LayerInfo, ...]:
                if evicting.is_set():
                    looked.set()
                return super().get_layers_info()

        partitions = Partitions()
        kept, cached = small.publish("kept"), small.publish("cached", 2 * MIB)
        with small.manager(
            clock=clock,
            layer_storage=Slow(clock),
            new_space_allocator=partitions.new_allocator,
        ) as manager:
            manager.process_desired_layers([kept, cached])
            manager.process_desired_layers([kept])
            services = partitions.new_allocator(small.config.layers_dir.parent, 0, lambda _: None)
            wanted = free(small.config.layers_dir) + MIB
            with ThreadPoolExecutor(2) as threads, caplog.at_level(logging.WARNING):
                allocating = threads.submit(services.allocate_space, wanted)
                evicting.wait()
                applying = threads.submit(manager.process_desired_layers, [kept])
                assert not looked.wait(0.1)  # it must wait for the eviction to end
                go_on.set()
                allocating.result().release()
                assert names_in(applying.result().kept) == ["kept"]
            services.close()
        assert caplog.messages == []

    def test_a_layer_that_is_evicted_just_before_it_is_restored_is_installed_anew(
        self, small: Node, clock: FakeClock
    ) -> None:
        class Forgetful(MemoryLayerStorage):
            def set_layer_cached(self, digest: Digest, cached: bool) -> None:
                if not cached:
                    self.delete_layer_by_digest(digest)
                super().set_layer_cached(digest, cached)

        one, two = small.publish("one"), small.publish("two")
        with small.manager(clock=clock, layer_storage=Forgetful(clock)) as manager:
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            result = manager.process_desired_layers([one, two, one])
            assert result.restored == ()
            assert sorted(names_in(result.installed)) == ["one", "two"]
            assert [name_on_disk(layer) for layer in result.installed] == names_in(result.installed)
            assert small.leftovers() == []

    def test_a_layer_that_is_restored_is_not_evicted(self, small: Node, clock: FakeClock) -> None:
        """The eviction was decided before the layer was restored and begins after that."""
        hold, held = threading.Event(), threading.Event()

        def new_slow_allocator(path: Path, part_limit: int, remover: Remover) -> Allocator:
            def slow_remover(item_id: str) -> None:
                held.set()
                hold.wait()
                remover(item_id)

            return partitions.new_allocator(path, part_limit, slow_remover)

        partitions = Partitions()
        one = small.publish("one", 2 * MIB)
        errors: list[NotEnoughSpaceError] = []
        with small.manager(clock=clock, new_space_allocator=new_slow_allocator) as manager:
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            services = partitions.new_allocator(small.config.layers_dir.parent, 0, lambda _: None)

            def allocate() -> None:
                try:
                    services.allocate_space(free(small.config.layers_dir) + MIB)
                except NotEnoughSpaceError as error:
                    errors.append(error)

            neighbour = threading.Thread(target=allocate)
            neighbour.start()
            held.wait()
            assert names_in(manager.process_desired_layers([one]).restored) == ["one"]
            hold.set()
            neighbour.join()
            services.close()
            assert len(errors) == 1
            assert names_in(manager.process_desired_layers([one]).kept) == ["one"]
        small.assert_has([one])


def _apply_what_fits(manager: LayerManager, layers: list[DesiredLayer]) -> None:
    try:
        manager.process_desired_layers(layers)
    except LayersFailedError as errors:
        if errors.split(NotEnoughSpaceError)[1] is not None:
            raise
