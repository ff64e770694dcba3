"""Removing many layers at once: what is looked at once, and what one that refuses stops."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from conftest import _require
from counting import count_calls
from durability.volumes import disk, full
from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.errors import StorageFullError, StoreError
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step
from layermanager.storage import SqliteLayerStorage
from layermanager.testing.clock import FakeClock
from layermanager.testing.storage import MemoryLayerStorage
from layermanager.use.in_use import look
from manager_fixtures import MIB, Node, names_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layermanager import LayerInfo, LayerManager
    from layermanager.model import Digest

ALL: Final = 1 << 60
AT_ONCE: Final = timedelta(0)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def cached(node: Node, manager: LayerManager, count: int) -> list[LayerInfo]:
    """Install so many layers and desire them no longer; ordered by name."""
    manager.process_desired_layers([node.publish(f"layer-{number}") for number in range(count)])
    layers = manager.process_desired_layers([]).cached
    return sorted(layers, key=lambda layer: layer.layer_id)


REMOVALS: Final[dict[str, Callable[[LayerManager], object]]] = {
    "garbage": lambda manager: manager.remove_cached_layers(ALL),
    "expired": lambda manager: manager.remove_expired_layers(AT_ONCE),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_mounts_are_looked_at_once_an_operation(node: Node, removal: str) -> None:
    looks, reads = [], []
    with node.manager() as manager:
        for count in (1, 8):
            cached(node, manager, count)
            looks.append(count_calls(lambda: REMOVALS[removal](manager), look))
            assert manager.get_layers_info() == ()
        for count in (1, 8):
            cached(node, manager, count)
            called = SqliteLayerStorage.get_sources
            reads.append(count_calls(lambda: REMOVALS[removal](manager), called))
    assert looks == [2, 2]  # when it begins, and when all are out of their places
    assert reads == [1, 1]


def test_an_eviction_looks_once_for_a_layer(node: Node) -> None:
    """It is asked for one at a time; what was mounted when the operation began is known."""
    partitions = Partitions(lambda _: DiskUsage(device=1, total=9 * MIB, free=1 << 40))
    with node.manager(new_space_allocator=partitions.new_allocator) as manager:
        (layer,) = cached(node, manager, 1)
        assert count_calls(lambda: manager._evict(layer.digest), look) == 1
        assert manager.get_layers_info() == ()


@pytest.mark.parametrize("place", [".trash", ".staging", "sha256"])
def test_leftovers_are_looked_at_together(node: Node, place: str) -> None:
    looks = []
    with node.manager() as manager:
        for count in (1, 8):
            for number in range(count):
                name = f"{number:064x}" if place == "sha256" else f"{number:064x}.0123abcd"
                (node.config.layers_dir / place / name).mkdir(parents=True)
            looks.append(count_calls(lambda: manager.remove_cached_layers(0), look))
            assert node.leftovers() == []
            assert node.files() == {}
    assert looks[0] == looks[1] <= 2


def test_one_that_refuses_stops_no_other(node: Node, tmp_path: Path) -> None:
    _require(
        "immutable files",
        lambda: subprocess.run(["chattr", "-i", tmp_path], check=True, capture_output=True),
    )
    with node.manager() as manager:
        layers = cached(node, manager, 4)
        for layer in layers[1:3]:
            subprocess.run(["chattr", "+i", layer.path / "data"], check=True)
        try:
            with pytest.raises(StoreError, match=r"data: it may not be removed.*and 1 more layers"):
                manager.remove_cached_layers(ALL)
            assert manager.get_layers_info() == ()
            assert len(node.leftovers()) == 2
        finally:
            for path in (node.config.layers_dir / ".trash").glob("*/data"):
                subprocess.run(["chattr", "-i", path], check=True)
        manager.remove_cached_layers(ALL)
        assert node.leftovers() == []


@pytest.mark.usefixtures("needs_overlay")
def test_of_several_only_what_comes_into_use_is_put_back(node: Node, tmp_path: Path) -> None:
    for name in ("target", "empty"):
        (tmp_path / name).mkdir()
    with node.manager() as manager:
        layers = cached(node, manager, 3)
    with ExitStack() as mounts:
        once = iter([mount_command([layers[1].path, tmp_path / "empty"], tmp_path / "target")])

        def mount(step: Step) -> None:
            if step is Step.MOVE_TO_TRASH:
                for script in once:
                    mounts.enter_context(shell(script, prefix=IN_A_MOUNT_NAMESPACE))

        with node.manager(on_step=mount) as manager:
            removed = manager.remove_cached_layers(ALL)
            assert {*names_in(removed)} == {"layer-0", "layer-2"}
            assert manager.get_layers_info() == (layers[1],)
            assert layers[1].digest in manager._storage.get_sources()  # type: ignore[attr-defined]
            assert node.leftovers() == []


class FullStorage(MemoryLayerStorage):
    """A storage whose disk has no room to delete a row, for so many times."""

    times = 0

    def delete_layer_by_digest(self, digest: Digest) -> None:
        if self.times:
            self.times -= 1
            raise StorageFullError("a test: the disk is full")
        super().delete_layer_by_digest(digest)


class TestNoRoomForTheRow:
    """The directory goes first, and the row when there is room."""

    def test_it_is_deleted_when_the_directory_is_gone(self, node: Node) -> None:
        storage = FullStorage(FakeClock())
        with node.manager(layer_storage=storage) as manager:
            cached(node, manager, 2)
            storage.times = 1
            removed = manager.remove_cached_layers(ALL)
            assert {*names_in(removed)} == {"layer-0", "layer-1"}
            assert list(manager.get_layers_info()) == []
            assert node.files() == {}

    def test_the_next_operation_deletes_it(self, node: Node) -> None:
        storage = FullStorage(FakeClock())
        with node.manager(layer_storage=storage) as manager:
            cached(node, manager, 2)
            storage.times = 2
            assert len(manager.remove_cached_layers(ALL)) == 2
            assert node.files() == {}
            assert len(manager.get_layers_info()) == 2
            storage.times = 1
            assert manager.remove_cached_layers(ALL) == ()  # they do not count
            assert manager.remove_cached_layers(ALL) == ()
            assert list(manager.get_layers_info()) == []

    def test_a_lease_still_keeps_it(self, node: Node) -> None:
        storage = FullStorage(FakeClock())
        with node.manager(layer_storage=storage) as manager:
            layers = cached(node, manager, 2)
            storage.times = 1
            with manager.lease(layers[0].digest, owner="a test"):
                assert names_in(manager.remove_cached_layers(ALL)) == ["layer-1"]
                assert list(manager.get_layers_info()) == [layers[0]]
                assert set(node.files()) == {layers[0].digest}

    def test_no_lease_is_taken_of_a_layer_that_is_gone(self, node: Node) -> None:
        storage = FullStorage(FakeClock())
        with node.manager(layer_storage=storage) as manager:
            layers = cached(node, manager, 1)
            storage.times = 2
            manager.remove_cached_layers(ALL)
            with pytest.raises(StoreError, match="cannot read a layer"):
                manager.lease(layers[0].digest, owner="a test")
            assert manager.leases() == ()


def test_a_database_in_the_old_form_on_a_full_disk(tmp_path: Path) -> None:
    """Without a journal and without the reserve, on a disk that writes nothing in place."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    with disk(tmp_path / "volume", "btrfs", 256 * MIB) as mount_point:
        node = Node(tmp_path, working_dir=mount_point / "work")
        with node.manager() as manager:
            cached(node, manager, 3)
        database = node.config.database
        for suffix in ("-journal", "-reserve"):
            database.with_name(database.name + suffix).unlink()
        with full(mount_point, free=0):
            with node.manager() as manager:
                assert len(manager.remove_cached_layers(ALL)) == 3
            assert node.files() == {}
        with node.manager() as manager:
            assert manager.get_layers_info() == ()
