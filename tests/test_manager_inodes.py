"""The manager on disks that are short of inodes, or nearly full, with layers in flight."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conftest import _require
from durability.volumes import disk, tmpfs
from layermanager import Inventory, SpaceKind
from layermanager.amounts import Amount
from layermanager.errors import LayersFailedError, NotEnoughSpaceError
from layermanager.space import disk_usage
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import LayerBuilder, compress
from manager_fixtures import MIB, Node, RecordingAllocators, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from layermanager import DesiredLayer, LayerManager

LONG = 60


def files_tar(name: str, inodes: int) -> bytes:
    """A layer of so many inodes, its root not counted, and hard links that take none."""
    builder = LayerBuilder().directory(".").directory(name)
    for number in range(inodes - 2):
        builder.file(f"{name}/{number}", b"")
    builder.symlink(f"{name}/link", "0").hardlink(f"{name}/hard", f"{name}/0")
    return builder.tar()


def content_tar(name: str, size: int) -> bytes:
    """A layer of a file that compresses well."""
    return LayerBuilder().directory("etc").file("etc/name", name.encode() * (size // 3)).tar()


def publish_files(node: Node, name: str, inodes: int) -> DesiredLayer:
    return node.publish_bytes(name, compress(files_tar(name, inodes), "gzip"))


def volume(kind: str, directory: Path) -> AbstractContextManager[Path]:
    """A disk of *kind* with about 128 inodes, where it counts them."""
    match kind:
        case "tmpfs":
            return tmpfs(directory / "disk", 32 * MIB, inodes=128)
        case "ext4":
            return disk(directory / "disk", "ext4", 32 * MIB, "-N", "128")
        case "xfs":
            return disk(directory / "disk", "xfs", 320 * MIB)
        case _:
            return disk(directory / "disk", "btrfs", 128 * MIB)


@pytest.fixture
def mounted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    context = volume(request.param, tmp_path)
    directories: list[Path] = []
    _require(f"a disk with {request.param}", lambda: directories.append(context.__enter__()))
    try:
        yield directories[0]
    finally:
        context.__exit__(None, None, None)


def refused(manager: LayerManager, *layers: DesiredLayer) -> NotEnoughSpaceError:
    with pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers(layers)
    (error,) = caught.value.exceptions
    assert isinstance(error, NotEnoughSpaceError)
    return error


@pytest.mark.parametrize("mounted", ["ext4", "tmpfs"], indirect=True)
class TestFewInodes:
    def test_a_cached_layer_makes_room(self, tmp_path: Path, mounted: Path) -> None:
        node = Node(tmp_path, layers_dir=mounted / "layers")
        first, second = publish_files(node, "first", 70), publish_files(node, "second", 70)
        with node.manager() as manager:
            manager.process_desired_layers([first])
            assert (disk_usage(mounted).free_inodes or 0) < 71
            result = manager.process_desired_layers([second])
        assert names_in(result.installed) == ["second"]
        node.assert_has([second])

    def test_it_makes_room_also_if_an_earlier_version_did_not_count_it(
        self, tmp_path: Path, mounted: Path
    ) -> None:
        node = Node(tmp_path, layers_dir=mounted / "layers")
        first, second = publish_files(node, "first", 70), publish_files(node, "second", 70)
        with node.manager() as manager:
            manager.process_desired_layers([first])
        _forget_footprints(node)
        with node.manager() as manager:
            manager.process_desired_layers([second])
        node.assert_has([second])

    def test_nothing_is_evicted_for_what_cannot_fit(self, tmp_path: Path, mounted: Path) -> None:
        node = Node(tmp_path, layers_dir=mounted / "layers")
        first = publish_files(node, "first", 40)
        huge = replace(publish_files(node, "huge", 400), unpacked=Amount(0, 400))
        with node.manager() as manager:
            manager.process_desired_layers([first])
            manager.process_desired_layers([])
            error = refused(manager, huge)
            assert error.kind is SpaceKind.INODES
            assert error.reclaimable == 41  # its root is one
            assert error.needed == 401
            assert "inodes" in str(error)
            assert "inodes" in str(error.hint)
            assert names_in(manager.get_layers_info()) == ["first"]
        node.assert_has([first])

    def test_what_is_known_is_refused_before_it_is_fetched(
        self, tmp_path: Path, mounted: Path
    ) -> None:
        """It was here before; meanwhile others took the inodes."""
        node = Node(tmp_path, layers_dir=mounted / "layers")
        layer = publish_files(node, "layer", 70)
        with node.manager() as manager:
            manager.process_desired_layers([layer])
            manager.process_desired_layers([])
            manager.remove_cached_layers(1 << 40)
            for number in range(60):
                (mounted / f"other {number}").touch()
            (node.published / "layer").unlink()
            error = refused(manager, layer)
        assert (error.kind, error.needed) == (SpaceKind.INODES, 71)

    def test_where_they_went(self, tmp_path: Path, mounted: Path) -> None:
        node = Node(tmp_path, layers_dir=mounted / "layers")
        first, second = publish_files(node, "first", 20), publish_files(node, "second", 30)
        with node.manager() as manager:
            manager.process_desired_layers([first, second])
            manager.process_desired_layers([second])
        usage = Inventory(node.config).usage().inodes
        assert usage is not None
        assert (usage.desired, usage.reclaimable, usage.held) == (31, 21, 0)
        assert usage.free == disk_usage(mounted).free_inodes
        assert usage.total == usage.free + usage.desired + usage.reclaimable + usage.other


def _forget_footprints(node: Node) -> None:
    database = sqlite3.connect(node.config.database)
    with database:
        database.execute("DELETE FROM layerFootprints")
    database.close()


@pytest.mark.parametrize("mounted", ["xfs", "btrfs"], indirect=True)
def test_a_disk_with_inodes_enough(tmp_path: Path, mounted: Path) -> None:
    """XFS makes inodes as they are needed, btrfs does not count them."""
    node = Node(tmp_path, layers_dir=mounted / "layers")
    layer = publish_files(node, "layer", 700)
    with node.manager() as manager:
        manager.process_desired_layers([layer])
    usage = Inventory(node.config).usage().inodes
    if usage is not None:
        assert usage.desired == 701
    assert (usage is None) == (disk_usage(mounted).free_inodes is None)
    node.assert_has([layer])


def test_layers_in_flight_do_not_hoard(tmp_path: Path) -> None:
    """21.6 MB are free, and two layers take 7.7 MB each; what is cached stays."""
    with tmpfs_of(tmp_path, 24 * MIB) as directory:
        node = Node(tmp_path, layers_dir=directory / "layers", parallel_installs=2)
        cached = node.publish("cached", MIB)
        layers = [
            node.publish_bytes(name, compress(content_tar(name, 7_680_000), "gzip"))
            for name in ("one", "two")
        ]
        with node.manager() as manager:
            manager.process_desired_layers([cached])
            manager.process_desired_layers([])
        (directory / "others").write_bytes(bytes(disk_usage(directory).free - 21_600_000))
        with node.manager() as manager:
            result = manager.process_desired_layers(layers)
        assert sorted(names_in(result.installed)) == ["one", "two"]
        node.assert_has([cached, *layers])


def test_an_allocator_that_counts_bytes_only(tmp_path: Path) -> None:
    allocators = RecordingAllocators()
    node = Node(tmp_path)
    layer = publish_files(node, "layer", 700)
    with node.manager(new_space_allocator=allocators) as manager:
        manager.process_desired_layers([layer])
        assert allocators.held == 0
    node.assert_has([layer])


def test_what_an_operation_replaces_is_evicted_last(tmp_path: Path) -> None:
    """Also where the clock was ahead when the other one was cached."""
    with tmpfs_of(tmp_path, 8 * MIB) as directory:
        clock = FakeClock()
        node = Node(tmp_path, layers_dir=directory / "layers")
        old, current, new = (node.publish(name, 2 * MIB) for name in ("old", "current", "new"))
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([old])
            clock.advance(timedelta(days=300))
            manager.process_desired_layers([current])
            clock.advance(timedelta(days=-300))
            (directory / "others").write_bytes(bytes(disk_usage(directory).free - MIB))
            manager.process_desired_layers([new])
        assert names_in(node.rows()) in (["current", "new"], ["new", "current"])


@contextmanager
def tmpfs_of(directory: Path, size: int) -> Iterator[Path]:
    context = tmpfs(directory / "disk", size)
    directories: list[Path] = []
    _require("a tmpfs", lambda: directories.append(context.__enter__()))
    try:
        yield directories[0]
    finally:
        context.__exit__(None, None, None)
