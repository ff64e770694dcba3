"""Leases: layers that somebody uses stay, until he says so, the time is over, or he has ended."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import LayerNotExistError, LeaseNotExistError, StorageError, UseError
from layermanager.leases import ProcessBond
from layermanager.testing.clock import FakeClock
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import Node, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager import LayerManager, LayerStorage

HOUR = timedelta(hours=1)
AT_ONCE = timedelta(0)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture(params=["sqlite", "memory"])
def storage(request: pytest.FixtureRequest, clock: FakeClock) -> LayerStorage | None:
    return MemoryLayerStorage(clock) if request.param == "memory" else None


def cache(node: Node, manager: LayerManager, *names: str) -> list[str]:
    """Install layers, and desire them no longer."""
    layers = [node.publish(name) for name in names]
    manager.process_desired_layers(layers)
    manager.process_desired_layers([])
    return [layer.digest for layer in layers]


def test_what_is_leased_is_cached_and_not_removed(
    node: Node, clock: FakeClock, storage: LayerStorage | None
) -> None:
    with node.manager(clock=clock, layer_storage=storage) as manager:
        one, two, three = [node.publish(name) for name in ("one", "two", "three")]
        manager.process_desired_layers([one, two, three])
        with manager.lease(["one", two.digest], owner="a test") as held:
            assert held.lease.owner == "a test"
            assert held.lease.layers == (one.digest, two.digest)
            assert manager.leases() == (held.lease,)
            assert len(manager.process_desired_layers([]).cached) == 3
            assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["three"]
            assert manager.remove_cached_layers(1 << 60) == ()
            assert {held.digest for held in manager.held_layers()} == {one.digest, two.digest}
        assert manager.leases() == ()
        assert manager.held_layers() == ()
        assert {layer.layer_id for layer in manager.remove_expired_layers(AT_ONCE)} == {
            "one",
            "two",
        }


def test_it_survives_the_process(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock) as manager:
        one, _ = cache(node, manager, "one", "two")
        lease = manager.lease(one, owner="a test").lease
    with node.manager(clock=clock) as manager:
        assert manager.leases() == (lease,)
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["two"]
        manager.release_lease(lease.lease_id)
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["one"]


def test_it_expires(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock) as manager:
        cache(node, manager, "one")
        lease = manager.lease("one", owner="a test", ttl=HOUR).lease
        assert lease.expires == clock.now() + HOUR
        clock.advance(HOUR - timedelta(microseconds=1))
        assert manager.remove_expired_layers(AT_ONCE) == ()
        clock.advance(timedelta(microseconds=1))
        assert manager.leases() == ()
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["one"]
        with pytest.raises(LeaseNotExistError, match=lease.lease_id):
            manager.release_lease(lease.lease_id)


def test_it_ends_with_a_process_that_is_killed(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock) as manager:
        cache(node, manager, "one")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            lease = manager.lease("one", owner="a test", process=process.pid).lease
            assert isinstance(lease.bond, ProcessBond)
            assert manager.remove_expired_layers(AT_ONCE) == ()
            process.kill()
        assert manager.leases() == ()
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["one"]


def test_of_a_process_that_is_not_there(node: Node, clock: FakeClock) -> None:
    with subprocess.Popen(["true"]) as process:
        pass
    with node.manager(clock=clock) as manager:
        cache(node, manager, "one")
        with pytest.raises(UseError, match=str(process.pid)):
            manager.lease("one", owner="a test", process=process.pid)
        assert manager.leases() == ()


def test_several_of_one_layer(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock) as manager:
        cache(node, manager, "one")
        first, second = (manager.lease("one", owner=owner) for owner in ("first", "second"))
        first.release()
        first.release()
        assert manager.leases() == (second.lease,)
        assert manager.remove_expired_layers(AT_ONCE) == ()
        second.release()
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["one"]


def test_of_what_is_not_installed(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock) as manager:
        cache(node, manager, "one")
        with pytest.raises(LayerNotExistError, match="two"):
            manager.lease(["one", "two"], owner="a test")
        with pytest.raises(LeaseNotExistError, match="1f2e"):
            manager.release_lease("1f2e")
        assert manager.leases() == ()


def test_it_waits_for_no_operation(node: Node, clock: FakeClock) -> None:
    """Another manager's, as if of another process, or of the same."""
    one = node.publish("one")
    with node.manager(clock=clock) as manager, node.manager(clock=clock) as other:
        manager.process_desired_layers([one])
        seen: list[int] = []

        def on_progress(_: object) -> None:
            with other.lease("one", owner="a test"):
                seen.append(len(other.leases()))

        two = node.publish("two")
        with node.manager(clock=clock, on_progress=on_progress) as installing:
            installing.process_desired_layers([one, two])
        assert set(seen) == {1}


class StorageWithoutLeases:
    """What somebody may have written for the seed's five methods."""

    def __init__(self, clock: FakeClock) -> None:
        storage = MemoryLayerStorage(clock)
        self.add_layer = storage.add_layer
        self.delete_layer_by_digest = storage.delete_layer_by_digest
        self.get_layers_info = storage.get_layers_info
        self.get_layer_info_by_digest = storage.get_layer_info_by_digest
        self.set_layer_cached = storage.set_layer_cached


def test_a_storage_that_keeps_none(node: Node, clock: FakeClock) -> None:
    with node.manager(clock=clock, layer_storage=StorageWithoutLeases(clock)) as manager:
        cache(node, manager, "one")
        with pytest.raises(StorageError, match="keeps no leases"):
            manager.lease("one", owner="a test")
        assert manager.leases() == ()
        assert names_in(manager.remove_expired_layers(AT_ONCE)) == ["one"]
    assert node.files() == {}
