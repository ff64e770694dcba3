"""Removing many layers at once: what is looked at once, and what one that refuses stops."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from conftest import _require
from counting import count_calls
from durability.volumes import disk, full
from foreign_mounts import IN_A_MOUNT_NAMESPACE, mount_command, shell
from layermanager.errors import (
    LayerNotExistError,
    LayersFailedError,
    StorageFullError,
    StoreError,
)
from layermanager.model import Repair
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step
from layermanager.storage import SqliteLayerStorage
from layermanager.testing.clock import FakeClock
from layermanager.testing.storage import MemoryLayerStorage
from layermanager.use.in_use import look
from manager_fixtures import MIB, Node, names_in, wait_until_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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
            assert len(storage.get_layers_info()) == 2
            assert list(manager.get_layers_info()) == []
            storage.times = 1
            assert manager.remove_cached_layers(ALL) == ()  # they do not count
            assert manager.remove_cached_layers(ALL) == ()
            assert list(storage.get_layers_info()) == []

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
            with pytest.raises(LayerNotExistError):
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


class Steps:
    """Steps that fail, by their error numbers, from the moment at which they are put in."""

    def __init__(self) -> None:
        self.errors: dict[Step, int] = {}

    def __call__(self, step: Step) -> None:
        if step in self.errors:
            raise OSError(self.errors[step], os.strerror(self.errors[step]))


class TestNoRoomToMove:
    """Where nothing can be renamed, a layer is removed in its place."""

    @pytest.mark.parametrize("removal", REMOVALS)
    def test_it_is_removed(self, node: Node, removal: str) -> None:
        steps = Steps()
        with node.manager(on_step=steps) as manager:
            cached(node, manager, 2)
            steps.errors[Step.MOVE_TO_TRASH] = errno.ENOSPC
            REMOVALS[removal](manager)
            assert (manager.get_layers_info(), node.files()) == ((), {})
            assert node.leftovers() == []

    @pytest.mark.usefixtures("needs_overlay")
    def test_what_comes_into_use_stays(self, node: Node, tmp_path: Path) -> None:
        for name in ("target", "empty"):
            (tmp_path / name).mkdir()
        with node.manager() as manager:
            layers = cached(node, manager, 2)
        with ExitStack() as mounts:
            script = mount_command([layers[0].path, tmp_path / "empty"], tmp_path / "target")
            once = iter([script])

            def mount(step: Step) -> None:
                if step is Step.MOVE_TO_TRASH:
                    for script in once:
                        mounts.enter_context(shell(script, prefix=IN_A_MOUNT_NAMESPACE))
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with node.manager(on_step=mount) as manager:
                before = node.files()[layers[0].digest]
                assert names_in(manager.remove_cached_layers(ALL)) == ["layer-1"]
                assert manager.get_layers_info() == (layers[0],)
                assert node.files() == {layers[0].digest: before}

    @pytest.mark.usefixtures("needs_overlay")
    def test_without_room_for_the_row_what_is_half_gone_does_not_count(
        self, node: Node, tmp_path: Path
    ) -> None:
        (tmp_path / "target").mkdir()
        steps, storage = Steps(), FullStorage(FakeClock())
        with node.manager(layer_storage=storage, on_step=steps) as manager:
            (layer,) = cached(node, manager, 1)
            storage.times = 2
            steps.errors = {Step.MOVE_TO_TRASH: errno.ENOSPC, Step.REMOVE_TREE: errno.EIO}
            with pytest.raises(StoreError, match="Input/output error"):
                manager.remove_cached_layers(ALL)
            (layer.path / "etc/name").unlink()  # as if it had failed a moment later
            assert [*storage.get_layers_info()] == [layer]
            assert manager.get_layers_info() == ()
            with pytest.raises(LayerNotExistError):
                manager.get_layer_info_by_digest(layer.digest)
            with pytest.raises(LayerNotExistError):
                manager.lease(layer.digest, owner="a test")
            with pytest.raises(LayerNotExistError):
                manager.mount("app", layer.digest, target=tmp_path / "target")
            steps.errors.clear()
            (again,) = manager.process_desired_layers([node.publish("layer-0")]).installed
            assert (again.path / "etc/name").read_text() == "layer-0"

    def test_a_layer_without_a_known_index_is_not_removed_before_its_row(self, node: Node) -> None:
        """Nothing would tell that a part of it is missing."""
        steps, storage = Steps(), FullStorage(FakeClock())
        with node.manager(layer_storage=storage, on_step=steps) as manager:
            (layer,) = cached(node, manager, 1)
            storage.get_footprints = dict  # type: ignore[method-assign]
            before = node.files()
            storage.times = 1
            steps.errors = {Step.MOVE_TO_TRASH: errno.ENOSPC}
            with pytest.raises(StoreError, match="No space left"):
                manager.remove_cached_layers(ALL)
            assert manager.get_layers_info() == (layer,)
            assert node.files() == before


@pytest.fixture
def immovable(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Have a directory refuse to be moved, until the test ends."""
    _require(
        "immutable files",
        lambda: subprocess.run(["chattr", "-i", tmp_path], check=True, capture_output=True),
    )
    with ExitStack() as stack:

        def fix(path: Path) -> None:
            subprocess.run(["chattr", "+i", path], check=True)
            stack.callback(lambda: subprocess.run(["chattr", "-i", path], check=True))

        yield fix


class TestImmovable:
    """A layer that cannot be put out of its place stays what it is, and stops nothing else."""

    HINT = "it may not be removed; clear its attributes with `chattr -i -a`"

    @pytest.mark.parametrize("removal", REMOVALS)
    def test_it_keeps_its_row(
        self, node: Node, immovable: Callable[[Path], None], removal: str
    ) -> None:
        with node.manager() as manager:
            layers = cached(node, manager, 3)
            sources = manager._storage.get_sources()  # type: ignore[attr-defined]
            immovable(layers[1].path)
            with pytest.raises(StoreError) as caught:
                REMOVALS[removal](manager)
            assert str(caught.value) == f"cannot remove {layers[1].path}: {self.HINT}"
            assert manager.get_layers_info() == (layers[1],)
            assert set(node.files()) == {layers[1].digest}
            assert manager._storage.get_sources() == {  # type: ignore[attr-defined]
                layers[1].digest: sources[layers[1].digest]
            }
            again = manager.process_desired_layers([node.publish("layer-1")])
            assert names_in(again.restored) == ["layer-1"]

    @pytest.mark.usefixtures("needs_root")
    def test_one_that_is_mounted_on(self, node: Node) -> None:
        with node.manager() as manager:
            layers = cached(node, manager, 2)
            subprocess.run(["mount", "-t", "tmpfs", "none", layers[0].path], check=True)
            try:
                with pytest.raises(StoreError, match=r"a file system is mounted on it; unmount"):
                    manager.remove_cached_layers(ALL)
            finally:
                subprocess.run(["umount", layers[0].path], check=True)
            assert manager.get_layers_info() == (layers[0],)
            assert (layers[0].path / "etc/name").read_text() == "layer-0"

    def test_it_keeps_no_manager_from_starting(
        self,
        node: Node,
        immovable: Callable[[Path], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with node.manager() as manager:
            layers = cached(node, manager, 2)
        immovable(layers[0].path)
        node.config = replace(node.config, layer_ttl_days=0)
        with node.manager() as manager:
            assert manager.get_layers_info() == (layers[0],)
            assert caplog.messages == [f"cannot remove {layers[0].path}: {self.HINT}"]
            result = manager.process_desired_layers([node.publish("other")])
            assert names_in(result.installed) == ["other"]

    def test_another_one_is_evicted(
        self, node: Node, immovable: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        node.config = replace(node.config, layers_part_limit=100)
        partitions = Partitions(lambda _: DiskUsage(device=1, total=4 * MIB, free=1 << 40))
        clock = FakeClock()
        with node.manager(new_space_allocator=partitions.new_allocator, clock=clock) as manager:
            for name in ("one", "two"):
                manager.process_desired_layers([node.publish(name, MIB)])
                clock.advance(timedelta(hours=1))
            manager.process_desired_layers([])
            one, _ = sorted(manager.get_layers_info(), key=lambda layer: layer.layer_id)
            immovable(one.path)
            new = node.publish("new", 2 * MIB)
            assert names_in(manager.process_desired_layers([new]).installed) == ["new"]
            assert {*names_in(manager.get_layers_info())} == {"one", "new"}
            assert caplog.messages == [f"cannot remove {one.path}: {self.HINT}"]

    def test_one_without_a_row_stops_nothing_and_is_told_once(
        self, node: Node, immovable: Callable[[Path], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        stuck = node.publish("stuck")
        with node.manager() as manager:
            (layer,) = manager.process_desired_layers([stuck]).installed
            manager._storage.delete_layer_by_digest(layer.digest)
            immovable(layer.path)
            for name in ("one", "two"):
                result = manager.process_desired_layers([node.publish(name)])
                assert names_in(result.installed) == [name]
                manager.remove_cached_layers(ALL)
            assert caplog.messages == [
                f"cannot remove {layer.path}: {self.HINT}; it is left to the next operation"
            ]
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([stuck, node.publish("three")])
            assert names_in(caught.value.result.installed) == ["three"]

    @pytest.mark.usefixtures("needs_overlay")
    def test_what_a_mount_has_written(
        self,
        node: Node,
        tmp_path: Path,
        immovable: Callable[[Path], None],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        target = tmp_path / "target"
        target.mkdir()
        with node.manager() as manager:
            manager.process_desired_layers([node.publish("one")])
            with manager.mount("app", "one", target=target) as mounted:
                (target / "mine").touch()
                directory = node.config.working_dir / "mounts" / mounted.mount.lease_id
                immovable(directory / "upper/mine")
            wait_until_unused(manager)
            assert manager.mounts() == ()
            for name in ("two", "three"):
                result = manager.process_desired_layers([node.publish(name)])
                assert names_in(result.installed) == [name]
        (message,) = [one for one in caplog.messages if "left to the next operation" in one]
        assert f"{mounted.mount.lease_id}/upper/mine: {self.HINT}" in message


class TestNoRoomForANewLayer:
    """Cached layers go, the oldest first, until there is room for a name."""

    @pytest.mark.parametrize(
        "step", [Step.STAGE_LAYER, Step.STAGE_INDEX, Step.PLACE_LAYER, Step.PLACE_INDEX]
    )
    @pytest.mark.parametrize("count", [1, 2])
    def test_as_many_are_evicted_as_it_takes(self, node: Node, step: Step, count: int) -> None:
        armed: list[bool] = []

        def fail(now: Step) -> None:
            most = 4 - count + (step is Step.PLACE_INDEX)  # then the new one is in its place
            if armed and now is step and len(node.files()) > most:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        clock = FakeClock()
        kept, new = node.publish("kept"), node.publish("new")
        with node.manager(on_step=fail, clock=clock) as manager:
            for number in range(3):
                manager.process_desired_layers([kept, node.publish(f"layer-{number}")])
                clock.advance(timedelta(hours=1))
            manager.process_desired_layers([kept])
            armed.append(True)
            assert names_in(manager.process_desired_layers([kept, new]).installed) == ["new"]
            left = {f"layer-{number}" for number in range(count, 3)}
            assert {*names_in(manager.get_layers_info())} == {"kept", "new", *left}

    def test_it_ends(self, node: Node) -> None:
        steps = Steps()
        with node.manager(on_step=steps) as manager:
            cached(node, manager, 3)
            kept, new = node.publish("kept"), node.publish("new")
            manager.process_desired_layers([kept])
            steps.errors[Step.PLACE_LAYER] = errno.ENOSPC
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([kept, new])
            assert "cannot commit: " in str(caught.value.exceptions[0])
            assert names_in(manager.get_layers_info()) == ["kept"]
            assert node.leftovers() == []

    def test_no_other_error_evicts(self, node: Node) -> None:
        steps = Steps()
        with node.manager(on_step=steps) as manager:
            cached(node, manager, 1)
            steps.errors[Step.PLACE_LAYER] = errno.EIO
            with pytest.raises(LayersFailedError):
                manager.process_desired_layers([node.publish("new")])
            assert names_in(manager.get_layers_info()) == ["layer-0"]

    def test_what_is_being_repaired_is_not_evicted(self, node: Node) -> None:
        steps = Steps()
        with node.manager(on_step=steps) as manager:
            (layer,) = cached(node, manager, 1)
            steps.errors[Step.PLACE_LAYER] = errno.ENOSPC
            with pytest.raises(LayersFailedError):
                manager.repair_layers([Repair(layer, node.publish("layer-0"))])
            assert manager.get_layers_info() == (layer,)


def test_what_is_gone_is_said_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    storage = FullStorage(FakeClock())
    with node.manager(layer_storage=storage) as manager:
        cached(node, manager, 1)
        storage.times = 4
        manager.remove_cached_layers(ALL)
        for _ in range(2):
            manager.remove_cached_layers(ALL)
        full = "a test: the disk is full"
        assert caplog.messages == [
            f"removing layers before their rows: {full}",
            f"layers that are gone stay recorded: {full}",
        ]
        manager.remove_cached_layers(ALL)
        assert list(storage.get_layers_info()) == []
