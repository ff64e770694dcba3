"""Damaged layers are installed anew, and stay where they are until that is done."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import LayersFailedError, NotEnoughSpaceError, SourceError, StorageError
from layermanager.model import Repair
from layermanager.steps import Step
from layermanager.storage import read_sources
from layermanager.testing.clock import FakeClock
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import MIB, Node, RecordingAllocators, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import LayerInfo

HOUR = timedelta(hours=1)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def damage(layer: LayerInfo) -> None:
    (layer.path / "etc/name").write_text("damaged")


class TestRepair:
    def test_a_layer_becomes_what_it_was(self, node: Node, clock: FakeClock) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            layers = manager.process_desired_layers([one, two]).installed
            before = node.files()
            damage(layers[0])
            clock.advance(HOUR)
            assert manager.repair_layers([Repair(layers[0], one)]) == layers[:1]
        assert node.files() == before
        assert sorted(node.rows(), key=lambda row: row.layer_id) == list(layers)
        node.assert_has([one, two])

    def test_a_cached_layer_stays_cached_and_as_old_as_it_was(
        self, node: Node, clock: FakeClock
    ) -> None:
        one = node.publish("one")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one])
            (cached,) = manager.process_desired_layers([]).cached
            damage(cached)
            clock.advance(HOUR)
            assert manager.repair_layers([Repair(cached, one)]) == (cached,)
            assert manager.remove_cached_layers(1) == (cached,)
        node.assert_has([])

    def test_a_layer_whose_directory_is_gone_comes_back(self, node: Node, clock: FakeClock) -> None:
        one = node.publish("one")
        with node.manager(clock=clock) as manager:
            (layer,) = manager.process_desired_layers([one]).installed
            before = node.files()
            shutil.rmtree(layer.path)
        with node.manager(clock=clock) as manager:  # which forgets the layer
            assert manager.get_layers_info() == ()
            assert manager.repair_layers([Repair(layer, one)]) == (layer,)
        assert node.files() == before
        node.assert_has([one])

    def test_the_damaged_layer_is_there_until_the_new_one_is(
        self, node: Node, clock: FakeClock
    ) -> None:
        def look(step: Step) -> None:
            if is_repairing:
                seen.append((step, (layer.path / "etc/name").read_text()))

        one = node.publish("one")
        is_repairing = False
        seen: list[tuple[Step, str]] = []
        with node.manager(clock=clock, on_step=look) as manager:
            (layer,) = manager.process_desired_layers([one]).installed
            damage(layer)
            is_repairing = True
            manager.repair_layers([Repair(layer, one)])
            is_repairing = False
        contents = [content for _, content in seen]
        assert contents == sorted(contents)  # "damaged", then "one"
        assert seen[contents.index("one") - 1][0] == Step.PLACE_LAYER

    def test_a_copy_does_not_evict_what_it_replaces(
        self, small_file_system: Path, tmp_path: Path, clock: FakeClock
    ) -> None:
        node = Node(tmp_path, working_dir=small_file_system / "work")
        one = node.publish("one", 5 * MIB)
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one])
            (cached,) = manager.process_desired_layers([]).cached
            damage(cached)
            with pytest.raises(LayersFailedError) as caught:
                manager.repair_layers([Repair(cached, one)])
            assert isinstance(caught.value.exceptions[0], NotEnoughSpaceError)
            assert (cached.path / "etc/name").read_text() == "damaged"
            assert manager.remove_cached_layers(1) == (cached,)

    def test_the_space_of_the_old_files_is_given_back(self, node: Node, clock: FakeClock) -> None:
        allocators = RecordingAllocators()
        one = node.publish("one", MIB)
        with node.manager(clock=clock, new_space_allocator=allocators) as manager:
            (layer,) = manager.process_desired_layers([one]).installed
            manager.repair_layers([Repair(layer, one)])
            assert allocators.used == layer.size
            assert allocators.held == 0


class TestFailure:
    def test_what_cannot_be_fetched_stays_as_it_is(self, node: Node, clock: FakeClock) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            layers = manager.process_desired_layers([one, two]).installed
            for layer in layers:
                damage(layer)
            (node.published / "one").unlink()
            with pytest.raises(LayersFailedError) as caught:
                manager.repair_layers([Repair(layers[0], one), Repair(layers[1], two)])
        assert [type(error) for error in caught.value.exceptions] == [SourceError]
        assert names_in(caught.value.result.installed) == ["two"]
        assert (layers[0].path / "etc/name").read_text() == "damaged"
        assert (layers[1].path / "etc/name").read_text() == "two"
        node.assert_has([one, two])

    def test_a_record_that_fails_loses_neither_the_row_nor_the_layer(
        self, node: Node, clock: FakeClock
    ) -> None:
        class Failing(MemoryLayerStorage):
            fails = False

            def add_layer(self, layer: LayerInfo) -> None:
                if self.fails:
                    raise StorageError("the database is full")
                super().add_layer(layer)

        storage = Failing(clock)
        one = node.publish("one")
        with node.manager(clock=clock, layer_storage=storage) as manager:
            (layer,) = manager.process_desired_layers([one]).installed
            damage(layer)
            storage.fails = True
            with pytest.raises(LayersFailedError, match="could not be installed"):
                manager.repair_layers([Repair(layer, one)])
            assert manager.get_layers_info() == (layer,)
        assert (layer.path / "etc/name").read_text() == "one"
        assert node.leftovers() == []


class TestSources:
    def test_they_are_remembered_with_the_layer(self, node: Node, clock: FakeClock) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one, two])
            manager.process_desired_layers([one])
            assert read_sources(node.config.database) == {one.digest: one, two.digest: two}
            manager.remove_cached_layers(1)
            assert read_sources(node.config.database) == {one.digest: one}

    def test_a_new_address_is_remembered_for_what_is_there_already(
        self, node: Node, clock: FakeClock
    ) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one, two])
            manager.process_desired_layers([one])
            one, two = (replace(layer, url=f"{layer.url}-moved") for layer in (one, two))
            manager.process_desired_layers([one, two])
        assert read_sources(node.config.database) == {one.digest: one, two.digest: two}

    def test_a_failed_layer_has_none(self, node: Node, clock: FakeClock) -> None:
        one = node.publish("one")
        (node.published / "one").write_bytes(b"")
        with node.manager(clock=clock) as manager, pytest.raises(LayersFailedError):
            manager.process_desired_layers([one])
        assert read_sources(node.config.database) == {}

    def test_a_storage_need_not_remember_them(self, node: Node, clock: FakeClock) -> None:
        class Forgetful:
            """Only what the seed's ``LayerStorage`` has."""

            def __init__(self) -> None:
                storage = MemoryLayerStorage(clock)
                self.add_layer = storage.add_layer
                self.delete_layer_by_digest = storage.delete_layer_by_digest
                self.get_layers_info = storage.get_layers_info
                self.get_layer_info_by_digest = storage.get_layer_info_by_digest
                self.set_layer_cached = storage.set_layer_cached

        one = node.publish("one")
        with node.manager(clock=clock, layer_storage=Forgetful()) as manager:
            (layer,) = manager.process_desired_layers([one]).installed
            assert manager.process_desired_layers([one]).kept == (layer,)
