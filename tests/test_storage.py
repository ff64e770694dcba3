from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aos_schema import AOS_TABLES, make_tables_of_aos
from layermanager.ages import AgeRecord, Ages
from layermanager.amounts import Amount
from layermanager.errors import LayerNotExistError, StorageError
from layermanager.leases import LayerMount, Lease, OverlayBond, ProcessBond
from layermanager.model import DesiredLayer, Digest, Footprint, ImageInfo, LayerInfo
from layermanager.protocols import AgeStore, HoldsLeases, LayerStorage, RemembersImages
from layermanager.steps import Step
from layermanager.storage import (
    SqliteLayerStorage,
    read_ages,
    read_footprints,
    read_images,
    read_layers_info,
    read_leases,
    read_mounts,
    read_sources,
)
from layermanager.testing.clock import FakeClock
from layermanager.testing.storage import MemoryLayerStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

START = datetime(2026, 11, 24, 0, 49, 32, 586646, UTC)
HOUR = timedelta(hours=1)
LATER_TABLES = (
    "ociImages",
    "ociImageLayers",
    "layerLeases",
    "layerMounts",
    "layerFootprints",
    "storeTime",
    "agePeriods",
)


class Storage(LayerStorage, RemembersImages, HoldsLeases, AgeStore, Protocol):
    """What both implementations offer."""

    def transaction(self) -> AbstractContextManager[None]: ...

    def note_sources(self, layers: Iterable[DesiredLayer]) -> None: ...

    def get_sources(self) -> Mapping[Digest, DesiredLayer]: ...


def digest_of(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def layer(number: int, *, cached: bool = False, timestamp: datetime = START) -> LayerInfo:
    digest = digest_of(number)
    return LayerInfo(
        digest=digest,
        layer_id=f"layer-{number}",
        version=f"1.{number}",
        path=Path("/layers/sha256") / digest.encoded,
        os_version="",
        timestamp=timestamp,
        cached=cached,
        size=number,
    )


def source(number: int) -> DesiredLayer:
    return DesiredLayer(
        digest=digest_of(number),
        url=f"http://publisher/{number}",
        layer_id=f"layer-{number}",
        version=f"1.{number}",
        sha256=bytes([number]) * 32,
        size=number,
        mirrors=(f"file:///media/{number}",),
        diff_id=digest_of(number + 1000),
    )


def image(reference: str, *layers: int) -> ImageInfo:
    """An image whose digest says which layers it has."""
    return ImageInfo(
        reference=reference,
        digest=digest_of(1000 + sum(2**number for number in layers)),
        platform="linux/amd64",
        layers=tuple(map(digest_of, layers)),
        diff_ids=tuple(digest_of(100 + number) for number in layers),
        config_digest=digest_of(999),
        config=b'{"os": "linux"}',
        timestamp=START,
        cached=False,
    )


def add_layers(storage: Storage, *numbers: int) -> None:
    for number in numbers:
        storage.add_layer(layer(number))


def lease(number: int, *layers: int) -> Lease:
    return Lease(
        lease_id=f"{number:08x}",
        owner="mount 'a' ü",
        layers=tuple(map(digest_of, layers)),
        created=START + number * HOUR,
    )


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(START + HOUR)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "servicemanager.db"


@pytest.fixture(params=["sqlite", "memory"])
def storage(request: pytest.FixtureRequest, database: Path, clock: FakeClock) -> Iterator[Storage]:
    if request.param == "memory":
        yield MemoryLayerStorage(clock)
        return
    with SqliteLayerStorage(database, clock) as storage:
        yield storage


class TestEveryStorage:
    def test_a_new_one_is_empty(self, storage: Storage) -> None:
        assert list(storage.get_layers_info()) == []

    def test_what_was_added_is_there(self, storage: Storage) -> None:
        first, second = layer(1), replace(layer(2, cached=True), os_version="12 'a' \"b\" ü")
        storage.add_layer(first)
        storage.add_layer(second)
        assert list(storage.get_layers_info()) == [first, second]
        assert storage.get_layer_info_by_digest(first.digest) == first
        assert storage.get_layer_info_by_digest(second.digest) == second

    def test_layers_are_ordered_by_digest(self, storage: Storage) -> None:
        for number in (3, 1, 2):
            storage.add_layer(layer(number))
        assert [info.size for info in storage.get_layers_info()] == [1, 2, 3]

    def test_adding_again_replaces(self, storage: Storage) -> None:
        storage.add_layer(layer(1))
        other = replace(layer(1, cached=True), layer_id="other", version="", size=77)
        storage.add_layer(other)
        assert list(storage.get_layers_info()) == [other]

    def test_a_path_is_made_absolute(self, storage: Storage) -> None:
        storage.add_layer(replace(layer(1), path=Path("somewhere/1")))
        assert storage.get_layer_info_by_digest(digest_of(1)).path == Path.cwd() / "somewhere/1"

    def test_a_timestamp_of_another_zone_is_the_same_moment(self, storage: Storage) -> None:
        moment = datetime.fromisoformat("2026-11-24T02:00:00+02:00")
        storage.add_layer(layer(1, timestamp=moment))
        assert storage.get_layer_info_by_digest(digest_of(1)).timestamp == moment

    def test_deleting_forgets_that_layer_only(self, storage: Storage) -> None:
        storage.add_layer(layer(1))
        storage.add_layer(layer(2))
        storage.delete_layer_by_digest(digest_of(1))
        assert list(storage.get_layers_info()) == [layer(2)]

    def test_deleting_may_be_repeated(self, storage: Storage) -> None:
        storage.delete_layer_by_digest(digest_of(1))

    def test_a_layer_that_is_not_there_is_named(self, storage: Storage) -> None:
        with pytest.raises(LayerNotExistError, match=digest_of(1)) as caught:
            storage.get_layer_info_by_digest(digest_of(1))
        assert caught.value.digest == digest_of(1)
        with pytest.raises(LayerNotExistError, match=digest_of(1)) as caught:
            storage.set_layer_cached(digest_of(1), True)
        assert caught.value.digest == digest_of(1)

    @pytest.mark.parametrize("cached", [True, False])
    def test_becoming_cached_or_desired_starts_the_time_anew(
        self, storage: Storage, clock: FakeClock, cached: bool
    ) -> None:
        storage.add_layer(layer(1, cached=not cached))
        storage.add_layer(layer(2, cached=not cached))
        storage.set_layer_cached(digest_of(1), cached)
        assert list(storage.get_layers_info()) == [
            layer(1, cached=cached, timestamp=clock.now()),
            layer(2, cached=not cached),
        ]

    @pytest.mark.parametrize("cached", [True, False])
    def test_saying_it_again_does_not_start_the_time_anew(
        self, storage: Storage, clock: FakeClock, cached: bool
    ) -> None:
        storage.add_layer(layer(1, cached=cached))
        clock.advance(HOUR)
        storage.set_layer_cached(digest_of(1), cached)
        assert list(storage.get_layers_info()) == [layer(1, cached=cached)]

    def test_a_digest_is_never_taken_for_a_statement(self, storage: Storage) -> None:
        storage.add_layer(layer(1))
        evil = cast(Digest, "x' OR '1'='1'; DROP TABLE layers; --")
        storage.delete_layer_by_digest(evil)
        with pytest.raises(LayerNotExistError):
            storage.get_layer_info_by_digest(evil)
        with pytest.raises(LayerNotExistError):
            storage.set_layer_cached(evil, True)
        assert list(storage.get_layers_info()) == [layer(1)]

    def test_a_transaction_keeps_all_its_changes(self, storage: Storage) -> None:
        storage.add_layer(layer(1))
        with storage.transaction():
            storage.add_layer(layer(2))
            storage.delete_layer_by_digest(digest_of(1))
            assert list(storage.get_layers_info()) == [layer(2)]
        assert list(storage.get_layers_info()) == [layer(2)]

    @pytest.mark.parametrize("exception", [OSError, KeyboardInterrupt])
    def test_an_exception_takes_a_whole_transaction_back_and_goes_on(
        self, storage: Storage, exception: type[BaseException]
    ) -> None:
        storage.add_layer(layer(1))
        error = exception("of the caller")

        def fail_later() -> None:
            with storage.transaction():
                storage.delete_layer_by_digest(digest_of(1))
                with storage.transaction():
                    storage.add_layer(layer(2))
                raise error

        with pytest.raises(exception) as caught:
            fail_later()
        assert caught.value is error
        assert list(storage.get_layers_info()) == [layer(1)]
        storage.add_layer(layer(3))
        assert list(storage.get_layers_info()) == [layer(1), layer(3)]

    def test_an_inner_transaction_can_fail_alone(self, storage: Storage) -> None:
        def fail_later() -> None:
            with storage.transaction():
                storage.add_layer(layer(2))
                raise ZeroDivisionError

        with storage.transaction():
            storage.add_layer(layer(1))
            with pytest.raises(ZeroDivisionError):
                fail_later()
            with storage.transaction():
                storage.add_layer(layer(3))
        assert list(storage.get_layers_info()) == [layer(1), layer(3)]

    def test_an_error_that_is_handled_within_a_transaction_does_not_end_it(
        self, storage: Storage
    ) -> None:
        with storage.transaction():
            storage.add_layer(layer(1))
            with pytest.raises(LayerNotExistError):
                storage.set_layer_cached(digest_of(2), True)
        assert list(storage.get_layers_info()) == [layer(1)]

    def test_many_threads_may_change_it(self, storage: Storage) -> None:
        def work(first: int) -> None:
            for number in range(first, first + 20):
                with storage.transaction():
                    storage.add_layer(layer(number))
                    storage.set_layer_cached(digest_of(number), number % 2 == 0)
                storage.get_layers_info()

        threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(storage.get_layers_info()) == 80

    @given(
        text=st.text(st.characters(exclude_categories=["Cs"])),
        size=st.integers(0, 2**63 - 1),
        timestamp=st.datetimes(timezones=st.just(UTC)),
        cached=st.booleans(),
        name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    )
    @settings(
        max_examples=50,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        deadline=None,
    )
    def test_whatever_a_layer_holds_is_kept(
        self, storage: Storage, text: str, size: int, timestamp: datetime, cached: bool, name: str
    ) -> None:
        info = LayerInfo(
            digest=digest_of(1),
            layer_id=text,
            version=text[::-1],
            path=Path("/") / name.lstrip("/"),
            os_version=text,
            timestamp=timestamp,
            cached=cached,
            size=size,
        )
        storage.add_layer(info)
        assert list(storage.get_layers_info()) == [info]


class TestSources:
    """Where each layer comes from, in both implementations."""

    def test_what_was_noted_last_is_known(self, storage: Storage) -> None:
        storage.note_sources([source(1), source(2)])
        newer = replace(source(1), url="file:///newer", size=None)
        storage.note_sources([newer])
        assert storage.get_sources() == {digest_of(1): newer, digest_of(2): source(2)}

    def test_credentials_are_not_kept(self, storage: Storage) -> None:
        url, mirror = "https://user:secret@host/layer", "https://user:secret@mirror/layer"
        storage.note_sources([replace(source(1), url=url, mirrors=(mirror,))])
        noted = storage.get_sources()[digest_of(1)]
        assert noted.addresses == ("https://host/layer", "https://mirror/layer")

    def test_they_go_with_the_layer(self, storage: Storage) -> None:
        storage.add_layer(layer(1))
        storage.note_sources([source(1), source(2)])
        storage.delete_layer_by_digest(digest_of(1))
        assert list(storage.get_sources()) == [digest_of(2)]

    def test_a_transaction_takes_them_back(self, storage: Storage) -> None:
        def fail() -> None:
            with storage.transaction():
                storage.note_sources([source(1)])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert storage.get_sources() == {}

    def test_what_is_known_already_is_not_written(self, database: Path, clock: FakeClock) -> None:
        steps: list[Step] = []
        with SqliteLayerStorage(database, clock, on_step=steps.append) as storage:
            storage.note_sources([source(1)])
            steps.clear()
            storage.note_sources([source(1)])
            assert steps == []
            storage.note_sources([source(1), source(2)])
            assert steps == [Step.WRITE_ROW, Step.COMMIT_ROWS]

    def test_they_outlive_the_process(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.note_sources([source(1)])
        assert read_sources(database) == {digest_of(1): source(1)}
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_sources() == {digest_of(1): source(1)}

    def test_what_a_layer_takes_is_known_when_it_is_removed(
        self, database: Path, clock: FakeClock
    ) -> None:
        footprint = Footprint(Amount(8192, 5), 4096)
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
            storage.note_footprint(digest_of(1), footprint)
            storage.delete_layer_by_digest(digest_of(1))
            assert storage.get_footprints() == {digest_of(1): footprint}
        assert read_footprints(database) == {digest_of(1): footprint}

    def test_footprints_of_removed_layers_do_not_pile_up(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock, durable=False) as storage:
            storage.add_layer(layer(1))
            with storage.transaction():
                for number in range(1, 1103):
                    storage.note_footprint(digest_of(number), Footprint(Amount(1, 1), 4096))
            kept = storage.get_footprints()
        assert len(kept) == 1001
        assert {digest_of(1), digest_of(1102)} <= kept.keys()

    def test_an_older_database_knows_less(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.note_sources([source(1)])
        for table in LATER_TABLES:
            execute(database, f"DROP TABLE {table}")
        execute(database, "ALTER TABLE layerSources DROP COLUMN mirrors")
        execute(database, "ALTER TABLE layerSources DROP COLUMN diffId")
        execute(database, "PRAGMA user_version = 2")
        known = {digest_of(1): replace(source(1), mirrors=(), diff_id=None)}
        assert read_sources(database) == known
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_sources() == known
            storage.note_sources([source(1)])
            assert storage.get_sources() == {digest_of(1): source(1)}

    def test_a_database_of_aos_knows_none(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        assert read_sources(database) == {}
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_sources() == {}


class TestImages:
    """Which layers are images, in both implementations."""

    def test_what_was_added_is_there(self, storage: Storage) -> None:
        add_layers(storage, 1, 2)
        images = [image("b:1", 2, 1, 2), replace(image("a:1", 1), cached=True), image("a:1", 2)]
        for one in images:
            storage.add_image(one)
        assert list(storage.get_images_info()) == sorted(
            images, key=lambda one: (one.reference, one.digest)
        )

    def test_the_layer_of_directories_need_not_be_there(self, storage: Storage) -> None:
        add_layers(storage, 1, 2, 3)
        one = replace(image("a:1", 1, 2), directories=digest_of(3))
        storage.add_image(one)
        storage.delete_layer_by_digest(digest_of(3))
        assert list(storage.get_images_info()) == [one]

    @pytest.mark.parametrize("directories", [None, digest_of(3)])
    def test_it_is_kept_that_directories_are_not_known(
        self, storage: Storage, directories: Digest | None
    ) -> None:
        add_layers(storage, 1)
        one = replace(image("a:1", 1), directories=directories, are_directories_known=False)
        storage.add_image(one)
        assert list(storage.get_images_info()) == [one]

    def test_adding_again_replaces(self, storage: Storage) -> None:
        add_layers(storage, 1, 2)
        storage.add_image(image("a:1", 1, 2))
        other = replace(
            image("a:1", 1, 2), layers=(digest_of(2),), diff_ids=(digest_of(9),), cached=True
        )
        storage.add_image(other)
        assert list(storage.get_images_info()) == [other]

    def test_an_image_goes_with_any_of_its_layers(self, storage: Storage) -> None:
        add_layers(storage, 1, 2, 3)
        storage.add_image(image("a:1", 1, 2, 1))
        storage.add_image(image("b:1", 2, 3))
        storage.add_image(image("c:1", 3))
        storage.delete_layer_by_digest(digest_of(2))
        assert list(storage.get_images_info()) == [image("c:1", 3)]
        add_layers(storage, 2)
        assert list(storage.get_images_info()) == [image("c:1", 3)]

    def test_a_layer_that_is_replaced_takes_no_image_away(self, storage: Storage) -> None:
        add_layers(storage, 1)
        storage.add_image(image("a:1", 1))
        storage.add_layer(layer(1, cached=True))
        assert list(storage.get_images_info()) == [image("a:1", 1)]

    def test_deleting_forgets_that_image_only(self, storage: Storage) -> None:
        add_layers(storage, 1)
        storage.add_image(image("a:1", 1))
        storage.add_image(image("b:1", 1))
        for _ in range(2):
            storage.delete_image("a:1", image("a:1", 1).digest)
        assert list(storage.get_images_info()) == [image("b:1", 1)]
        assert len(storage.get_layers_info()) == 1

    def test_a_change_of_its_state_is_dated(self, storage: Storage, clock: FakeClock) -> None:
        add_layers(storage, 1)
        storage.add_image(image("a:1", 1))
        digest = image("a:1", 1).digest
        storage.set_image_cached("a:1", digest, cached=False)
        assert list(storage.get_images_info()) == [image("a:1", 1)]
        storage.set_image_cached("a:1", digest, cached=True)
        since = replace(image("a:1", 1), cached=True, timestamp=clock.now())
        assert list(storage.get_images_info()) == [since]
        clock.advance(HOUR)
        storage.set_image_cached("a:1", digest, cached=True)
        assert list(storage.get_images_info()) == [since]
        storage.set_image_cached("b:1", digest, cached=True)

    def test_a_transaction_takes_them_back(self, storage: Storage) -> None:
        add_layers(storage, 1)

        def fail() -> None:
            with storage.transaction():
                storage.add_image(image("a:1", 1))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert list(storage.get_images_info()) == []

    def test_they_outlive_the_process(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            add_layers(storage, 1)
            storage.add_image(image("a:1", 1))
        assert read_images(database) == (image("a:1", 1),)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_images_info() == (image("a:1", 1),)

    def test_a_layer_that_aos_removed_takes_its_images_along(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            add_layers(storage, 1, 2)
            storage.add_image(image("a:1", 1))
            storage.add_image(image("b:1", 2))
        execute(database, "DELETE FROM layers WHERE layerId = 'layer-1'")
        assert read_images(database) == (image("b:1", 2),)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_images_info() == (image("b:1", 2),)
            storage.add_image(image("b:1", 2))
            add_layers(storage, 1)
            assert storage.get_images_info() == (image("b:1", 2),)
        assert rows_of(database, "SELECT reference, layer FROM ociImageLayers") == [
            ("b:1", digest_of(2))
        ]

    def test_images_of_the_version_before_layers_of_directories(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            add_layers(storage, 1)
            storage.add_image(image("a:1", 1))
        execute(database, "ALTER TABLE ociImages DROP COLUMN directories")
        execute(database, "ALTER TABLE ociImages DROP COLUMN directoriesKnown")
        for table in ("layerFootprints", "storeTime", "agePeriods"):
            execute(database, f"DROP TABLE {table}")
        execute(database, "PRAGMA user_version = 8")
        unknown = replace(image("a:1", 1), are_directories_known=False)
        assert read_images(database) == (unknown,)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_images_info() == (unknown,)
            storage.add_image(replace(image("a:1", 1), directories=digest_of(2)))
        assert read_images(database)[0].directories == digest_of(2)
        assert read_images(database)[0].are_directories_known

    def test_images_of_the_version_before_it_was_noted_that_directories_are_known(
        self, database: Path, clock: FakeClock
    ) -> None:
        before = replace(image("a:1", 1), directories=digest_of(2))
        with SqliteLayerStorage(database, clock) as storage:
            add_layers(storage, 1)
            storage.add_image(before)
        execute(database, "ALTER TABLE ociImages DROP COLUMN directoriesKnown")
        execute(database, "PRAGMA user_version = 12")
        unknown = replace(before, are_directories_known=False)
        assert read_images(database) == (unknown,)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_images_info() == (unknown,)

    def test_a_database_of_others_has_none(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        assert read_images(database) == ()
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_images_info() == ()


class TestAges:
    """How much time has passed for a store, in both implementations."""

    def record(self, clock: FakeClock, *numbers: int) -> AgeRecord:
        ages = Ages.at(AgeRecord(), clock.reading())
        return ages.noting([layer(number, cached=True) for number in numbers], are_all=True)

    def test_what_was_put_is_there(self, storage: Storage, clock: FakeClock) -> None:
        assert storage.get_ages() == AgeRecord()
        for numbers in ((1, 2), (2, 3), ()):
            storage.put_ages(self.record(clock, *numbers))
            assert storage.get_ages() == self.record(clock, *numbers)
            clock.advance(HOUR)
        clock.set_date(START - HOUR)
        storage.put_ages(self.record(clock, 1))
        assert storage.get_ages() == self.record(clock, 1)
        assert self.record(clock, 1).time != self.record(FakeClock(START), 1).time

    def test_a_transaction_takes_it_back(self, storage: Storage, clock: FakeClock) -> None:
        storage.put_ages(self.record(clock, 1))

        def fail() -> None:
            with storage.transaction():
                storage.put_ages(self.record(clock, 2))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert storage.get_ages() == self.record(clock, 1)

    def test_it_outlives_the_process(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.put_ages(self.record(clock, 1))
        assert read_ages(database) == self.record(clock, 1)

    def test_only_changes_are_written(self, database: Path, clock: FakeClock) -> None:
        steps: list[Step] = []
        with SqliteLayerStorage(database, clock, on_step=steps.append) as storage:
            storage.put_ages(self.record(clock, 1, 2))
            steps.clear()
            storage.put_ages(self.record(clock, 1, 2))
            assert Step.WRITE_ROW not in steps
            storage.put_ages(self.record(clock, 2, 3))
            assert steps.count(Step.WRITE_ROW) == 2

    def test_a_database_of_others_has_none(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        assert read_ages(database) == AgeRecord()
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_ages() == AgeRecord()


class TestLeases:
    """Who uses layers, in both implementations."""

    def test_what_was_added_is_there_oldest_first(self, storage: Storage) -> None:
        leases = [
            lease(1, 1, 2),
            replace(lease(2, 1), bond=ProcessBond("b-o-o-t", 4026531836, 1, 1 << 40)),
            replace(lease(3, 3), expires=START, bond=OverlayBond("b-o-o-t", "0:42")),
        ]
        for one in (leases[2], leases[0], leases[1]):
            storage.add_lease(one)
        assert list(storage.get_leases()) == leases

    def test_adding_again_replaces(self, storage: Storage) -> None:
        storage.add_lease(lease(1, 1))
        storage.add_lease(replace(lease(1, 1), bond=OverlayBond("boot", "0:42")))
        assert [one.bond for one in storage.get_leases()] == [OverlayBond("boot", "0:42")]

    def test_deleting_may_be_repeated(self, storage: Storage) -> None:
        storage.add_lease(lease(1, 1))
        storage.add_lease(lease(2, 1))
        for _ in range(2):
            storage.delete_lease(lease(1).lease_id)
        assert list(storage.get_leases()) == [lease(2, 1)]

    def test_mounts_are_ordered_by_name_and_have_the_layers_of_their_lease(
        self, storage: Storage
    ) -> None:
        storage.add_lease(lease(1, 2, 1))
        mounts = [
            LayerMount("a", lease(1).lease_id, Path(os.fsdecode(b"/\xff")), lease(1, 2, 1).layers),
            LayerMount("b", "gone", Path("/b"), (), upper=Path(os.fsdecode(b"/\xfe"))),
        ]
        for mount in reversed(mounts):
            storage.add_mount(mount)
        assert list(storage.get_mounts()) == mounts
        storage.add_mount(replace(mounts[0], target=Path("/c")))
        for _ in range(2):
            storage.delete_mount("b")
        assert list(storage.get_mounts()) == [replace(mounts[0], target=Path("/c"))]

    def test_a_transaction_takes_them_back(self, storage: Storage) -> None:
        def fail() -> None:
            with storage.transaction():
                storage.add_lease(lease(1, 1))
                storage.add_mount(LayerMount("a", lease(1).lease_id, Path("/a"), ()))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert list(storage.get_leases()) == []
        assert list(storage.get_mounts()) == []

    def test_they_outlive_the_process(self, database: Path, clock: FakeClock) -> None:
        mount = LayerMount("a", lease(1).lease_id, Path("/a"), lease(1, 1).layers)
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_lease(lease(1, 1))
            storage.add_mount(mount)
        assert read_leases(database) == (lease(1, 1),)
        assert read_mounts(database) == (mount,)

    def test_a_database_of_aos_knows_none(self, database: Path) -> None:
        make_go_database(database)
        assert read_leases(database) == ()
        assert read_mounts(database) == ()


class TestDurability:
    @pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 0)])
    def test_each_change_is_synced_or_none(
        self, database: Path, clock: FakeClock, durable: bool, synchronous: int
    ) -> None:
        with SqliteLayerStorage(database, clock, durable=durable) as storage:
            found = storage._connection.execute("PRAGMA synchronous").fetchone()
        assert found == (synchronous,)


class TestTheFile:
    def test_it_is_made_as_aos_makes_it(self, database: Path, clock: FakeClock) -> None:
        before = os.umask(0o077)
        try:
            SqliteLayerStorage(database, clock).close()
        finally:
            os.umask(before)
        assert stat.S_IMODE(database.stat().st_mode) == 0o644
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # no log
            assert connection.execute("PRAGMA user_version").fetchone() == (13,)
            columns = connection.execute("PRAGMA table_info(layers)").fetchall()
        assert columns == [
            (0, "digest", "TEXT", 1, None, 1),
            (1, "layerId", "TEXT", 0, None, 0),
            (2, "path", "TEXT", 0, None, 0),
            (3, "osVersion", "TEXT", 0, None, 0),
            (4, "version", "TEXT", 0, None, 0),
            (5, "timestamp", "TIMESTAMP", 0, None, 0),
            (6, "cached", "INTEGER", 0, None, 0),
            (7, "size", "INTEGER", 0, None, 0),
        ]

    def test_a_row_is_written_as_aos_writes_it(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1, cached=True))
            storage.add_layer(layer(2))
        digest = digest_of(1)
        rows = rows_of(database, "SELECT * FROM layers ORDER BY digest")
        assert rows[0] == (
            digest,
            "layer-1",
            f"/layers/sha256/{digest.encoded}",
            "",
            "1.1",
            "2026-11-24 00:49:32.586646+00:00",
            1,
            1,
        )
        assert rows[1][6] == 0

    def test_a_row_outlives_the_storage(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layers_info() == (layer(1),)

    def test_changes_are_synced(self, database: Path, clock: FakeClock) -> None:
        """What ``synchronous`` is cannot be asked from outside of the connection."""
        with SqliteLayerStorage(database, clock) as storage:
            assert storage._connection.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_the_tables_of_aos_stay_as_they_are(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        insert(database, timestamp="2026-11-24 00:49:32.586646591+00:00")
        others = """
            SELECT type, name, sql FROM sqlite_master
            WHERE tbl_name NOT IN
                ('layerSources', 'ociImages', 'ociImageLayers', 'layerLeases', 'layerMounts',
                 'layerFootprints', 'storeTime', 'agePeriods')
        """
        before = [
            rows_of(database, statement) for statement in (others, *map(select_all, AOS_TABLES))
        ]
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layers_info() == (replace(layer(1), os_version="x", cached=True),)
            storage.add_layer(layer(2))
            storage.delete_layer_by_digest(digest_of(1))
        after = [
            rows_of(database, statement) for statement in (others, *map(select_all, AOS_TABLES))
        ]
        assert after == before

    def test_one_made_by_a_newer_version_is_refused_and_left_alone(
        self, database: Path, clock: FakeClock
    ) -> None:
        make_go_database(database)
        execute(database, "PRAGMA user_version = 99")
        before = database.read_bytes()
        with pytest.raises(StorageError, match=r"newer layermanager.*99") as caught:
            SqliteLayerStorage(database, clock)
        assert str(database) in str(caught.value)
        with pytest.raises(StorageError, match="newer layermanager"):
            read_layers_info(database, clock)
        assert database.read_bytes() == before

    def test_a_table_with_other_columns_is_refused_and_left_alone(
        self, database: Path, clock: FakeClock
    ) -> None:
        execute(database, "CREATE TABLE layers (digest TEXT PRIMARY KEY, flavour TEXT)")
        before = database.read_bytes()
        with pytest.raises(StorageError, match="has the columns digest, flavour; expected digest,"):
            SqliteLayerStorage(database, clock)
        with pytest.raises(StorageError, match="has the columns digest, flavour; expected digest,"):
            read_layers_info(database, clock)
        assert database.read_bytes() == before

    def test_a_missing_directory_is_not_made(self, tmp_path: Path, clock: FakeClock) -> None:
        database = tmp_path / "missing" / "servicemanager.db"
        with pytest.raises(StorageError, match="No such file or directory") as caught:
            SqliteLayerStorage(database, clock)
        assert str(database) in str(caught.value)
        assert not database.parent.exists()

    def test_a_directory_in_its_place_is_an_error(self, tmp_path: Path, clock: FakeClock) -> None:
        with pytest.raises(StorageError) as caught:
            SqliteLayerStorage(tmp_path, clock)
        assert str(tmp_path) in str(caught.value)

    def test_a_name_with_a_meaning_in_addresses_is_only_a_name(
        self, tmp_path: Path, clock: FakeClock
    ) -> None:
        database = tmp_path / "a?mode=memory#%41 ü.db"
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {database.name, f"{database.name}-journal", f"{database.name}-reserve"}
        assert read_layers_info(database, clock) == (layer(1),)

    def test_what_is_no_database_is_an_error(self, database: Path, clock: FakeClock) -> None:
        database.write_bytes(b"certainly no database " * 1000)
        with pytest.raises(StorageError, match="not a database") as caught:
            SqliteLayerStorage(database, clock)
        assert str(database) in str(caught.value)
        with pytest.raises(StorageError, match="not a database"):
            read_layers_info(database, clock)

    def test_a_damaged_database_is_an_error(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage, storage.transaction():
            for number in range(500):
                storage.add_layer(layer(number))
        content = database.read_bytes()
        database.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
        with SqliteLayerStorage(database, clock) as storage:
            with pytest.raises(StorageError, match="malformed") as caught:
                storage.get_layers_info()
            assert str(database) in str(caught.value)
            with pytest.raises(StorageError, match="malformed"):
                storage.add_layer(layer(1))
            with pytest.raises(StorageError, match="malformed"), storage.transaction():
                storage.set_layer_cached(digest_of(499), True)

    def test_a_text_that_cannot_be_written_is_an_error(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            with pytest.raises(StorageError, match="surrogates") as caught:
                storage.add_layer(replace(layer(1), layer_id="half a pair: \ud800"))
            assert str(database) in str(caught.value)
            assert storage.get_layers_info() == ()

    def test_a_full_database_takes_the_transaction_back(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
            storage._connection.execute("PRAGMA max_page_count = 3")

            def add_many() -> None:
                with storage.transaction():
                    for number in range(2, 100):
                        storage.add_layer(layer(number))

            with pytest.raises(StorageError, match="full"):
                add_many()
            assert storage.get_layers_info() == (layer(1),)

    def test_closing_may_be_repeated_and_ends_it(self, database: Path, clock: FakeClock) -> None:
        storage = SqliteLayerStorage(database, clock)
        storage.close()
        storage.close()
        with pytest.raises(StorageError, match="closed"):
            storage.get_layers_info()
        with pytest.raises(StorageError, match="closed"):
            storage.add_layer(layer(1))
        with pytest.raises(StorageError, match="closed"), storage.transaction():
            pass


class TestRowsOfOthers:
    @pytest.mark.parametrize(
        ("spelling", "moment"),
        [
            ("2026-11-24 00:49:32.586646591+00:00", START),
            ("2026-11-24 00:49:05.5+00:00", datetime(2026, 11, 24, 0, 49, 5, 500000, UTC)),
            ("2026-11-24T02:49:05+02:00", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
            ("2026-11-24T00:49:05Z", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
            ("2026-11-24 00:49:05", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
            ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
            (1795481345, datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
            ("1795481345", datetime(2026, 11, 24, 0, 49, 5, 0, UTC)),
            (1795481345586, datetime(2026, 11, 24, 0, 49, 5, 586000, UTC)),
        ],
    )
    def test_every_spelling_of_a_timestamp_is_read(
        self, database: Path, clock: FakeClock, spelling: object, moment: datetime
    ) -> None:
        make_go_database(database)
        insert(database, timestamp=spelling)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layer_info_by_digest(digest_of(1)).timestamp == moment

    @pytest.mark.parametrize("spelling", [None, "", "soon", b"2026", 1.5e300, 2**62])
    def test_the_time_of_an_unreadable_timestamp_starts_when_it_is_met(
        self,
        database: Path,
        clock: FakeClock,
        caplog: pytest.LogCaptureFixture,
        spelling: object,
    ) -> None:
        make_go_database(database)
        insert(database, timestamp=spelling)
        met = clock.now()
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layer_info_by_digest(digest_of(1)).timestamp == met
            clock.advance(HOUR)
            assert storage.get_layers_info()[0].timestamp == met
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert digest_of(1) in record.getMessage()
        assert str(database) in record.getMessage()

    @pytest.mark.parametrize(
        ("value", "cached"), [(0, False), (1, True), (2, True), (-1, True), (None, False)]
    )
    def test_all_but_zero_is_cached(
        self, database: Path, clock: FakeClock, value: int | None, cached: bool
    ) -> None:
        make_go_database(database)
        insert(database, cached=value)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layers_info()[0].cached is cached
            storage.set_layer_cached(digest_of(1), cached)
            assert storage.get_layers_info()[0].timestamp == START
        assert rows_of(database, "SELECT cached FROM layers") == [(int(cached),)]

    def test_null_texts_read_as_empty(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        insert(database, layer_id=None, os_version=None, version=None)
        with SqliteLayerStorage(database, clock) as storage:
            [info] = storage.get_layers_info()
        assert (info.layer_id, info.os_version, info.version) == ("", "", "")

    def test_bytes_that_are_no_text_harm_no_row(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        insert(database, layer_id=b"name", path=b"/layers/\xff", version=b"\xfe")
        execute(database, "UPDATE layers SET path = CAST(path AS TEXT)")
        with SqliteLayerStorage(database, clock) as storage:
            [info] = storage.get_layers_info()
        assert info.layer_id == "name"
        assert os.fsencode(info.path) == b"/layers/\xff"

    @pytest.mark.parametrize("size", [None, -1, "much", 1.5])
    def test_a_size_that_is_none_counts_as_nothing(
        self, database: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture, size: object
    ) -> None:
        make_go_database(database)
        insert(database, size=size)
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layers_info()[0].size == 0
            assert storage.get_layers_info()[0].size == 0
        [record] = caplog.records
        assert digest_of(1) in record.getMessage()

    @pytest.mark.parametrize(
        "columns",
        [
            {"digest": ""},
            {"digest": "sha256:../../etc"},
            {"digest": b"\x00\xff"},
            {"path": None},
            {"path": ""},
            {"path": "layers/1"},
        ],
    )
    def test_a_row_that_says_nothing_is_passed_over_and_the_others_are_read(
        self,
        database: Path,
        clock: FakeClock,
        caplog: pytest.LogCaptureFixture,
        columns: dict[str, object],
    ) -> None:
        make_go_database(database)
        insert(database, **columns)
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(2))
            assert storage.get_layers_info() == (layer(2),)
            assert storage.get_layers_info() == (layer(2),)
            with pytest.raises(LayerNotExistError):
                storage.get_layer_info_by_digest(digest_of(1))
        [record] = caplog.records
        assert record.levelno == logging.WARNING
        assert "passed over" in record.getMessage()


class TestSeveralProcesses:
    def test_all_may_make_and_change_the_database_at_once(
        self, database: Path, clock: FakeClock
    ) -> None:
        script = """
            import sys
            from datetime import UTC, datetime
            from pathlib import Path
            from layermanager.clock import SystemClock
            from layermanager.model import DesiredLayer, Digest, LayerInfo
            from layermanager.storage import SqliteLayerStorage

            first = int(sys.argv[2])
            print("ready", flush=True)
            sys.stdin.readline()
            with SqliteLayerStorage(Path(sys.argv[1]), SystemClock()) as storage:
                for number in range(first, first + 25):
                    storage.add_layer(LayerInfo(
                        Digest(f"sha256:{number:064x}"), "", "", Path("/x"), "",
                        datetime.now(UTC), False, 0,
                    ))
        """
        processes = [start([script], str(database), str(100 * n)) for n in range(4)]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            _, errors = process.communicate()
            assert (process.returncode, errors) == (0, "")
        assert len(read_layers_info(database, clock)) == 100

    def test_taking_a_database_over_waits_for_its_writer(
        self, database: Path, clock: FakeClock
    ) -> None:
        make_go_database(database)
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            opening = threading.Thread(target=lambda: SqliteLayerStorage(database, clock).close())
            opening.start()
            opening.join(timeout=0.1)
            assert opening.is_alive()
            other.execute("COMMIT")
            opening.join()
        with SqliteLayerStorage(database, clock) as storage:
            assert storage.get_layers_info() == ()

    def test_a_reader_does_not_wait_for_an_open_transaction(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as writer:
            writer.add_layer(layer(1))
            with writer.transaction():
                writer.add_layer(layer(2))
                with SqliteLayerStorage(database, clock) as reader:
                    assert reader.get_layers_info() == (layer(1),)
                assert read_layers_info(database, clock) == (layer(1),)
            assert read_layers_info(database, clock) == (layer(1), layer(2))

    def test_a_second_writer_waits(self, database: Path, clock: FakeClock) -> None:
        with (
            SqliteLayerStorage(database, clock) as first,
            SqliteLayerStorage(database, clock) as second,
        ):
            waiting = threading.Thread(target=second.add_layer, args=(layer(2),))
            with first.transaction():
                waiting.start()
                first.add_layer(layer(1))
                assert waiting.is_alive()
            waiting.join()
            assert first.get_layers_info() == (layer(1), layer(2))

    def test_what_was_committed_outlives_a_kill(self, database: Path, clock: FakeClock) -> None:
        script = """
            import os, signal, sys
            from datetime import UTC, datetime
            from pathlib import Path
            from layermanager.clock import SystemClock
            from layermanager.model import DesiredLayer, Digest, LayerInfo
            from layermanager.storage import SqliteLayerStorage

            def layer(number):
                return LayerInfo(Digest(f"sha256:{number:064x}"), "", "", Path("/x"), "",
                                 datetime.now(UTC), False, number)

            storage = SqliteLayerStorage(Path(sys.argv[1]), SystemClock())
            with storage.transaction():
                storage.add_layer(layer(1))
                storage.add_layer(layer(2))
            with storage.transaction():
                storage.add_layer(layer(3))
                os.kill(os.getpid(), signal.SIGKILL)
        """
        with start([script], str(database)) as process:
            _, errors = process.communicate()
        assert (process.returncode, errors) == (-9, "")
        with SqliteLayerStorage(database, clock) as storage:
            assert [info.size for info in storage.get_layers_info()] == [1, 2]


class TestReadingOnly:
    """In a child without the right to write, also when these tests run as root."""

    def test_a_database_that_nobody_uses(self, database: Path, clock: FakeClock) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
        assert read_without_permission(database) == [digest_of(1)]

    def test_a_database_that_another_process_changes(
        self, database: Path, clock: FakeClock
    ) -> None:
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
            with storage.transaction():
                storage.add_layer(layer(2))
                assert read_without_permission(database) == [digest_of(1)]

    def test_a_database_whose_writer_was_killed(
        self, tmp_path: Path, database: Path, clock: FakeClock
    ) -> None:
        copy = tmp_path / "copy"
        copy.mkdir()
        with SqliteLayerStorage(database, clock) as storage:
            storage.add_layer(layer(1))
            storage._connection.execute("PRAGMA cache_spill = 1")
            storage._connection.execute("PRAGMA cache_size = 10")
            with storage.transaction():
                for number in range(1000):  # more than it is to keep in memory
                    storage.add_layer(layer(number))
                for path in tmp_path.glob(f"{database.name}*"):
                    shutil.copy(path, copy)
        assert (copy / database.name).stat().st_size > 100_000
        assert "journal cannot be read" in str(read_without_permission(copy / database.name))
        assert read_layers_info(copy / database.name, clock) == (layer(1),)
        assert read_without_permission(copy / database.name) == [digest_of(1)]

    def test_a_log_whose_writer_was_killed(self, tmp_path: Path, database: Path) -> None:
        copy = tmp_path / "copy"
        copy.mkdir()
        make_go_database(database)
        with closing(sqlite3.connect(database, isolation_level=None)) as aos:
            aos.execute("PRAGMA journal_mode = WAL")
            aos.execute("UPDATE layers SET version = '2'")
            insert(database)
            for path in tmp_path.glob(f"{database.name}*"):
                shutil.copy(path, copy)
        assert read_without_permission(copy / database.name) == [digest_of(1)]
        (copy / f"{database.name}-shm").unlink()
        assert "its log or journal cannot be read" in str(
            read_without_permission(copy / database.name)
        )

    def test_a_database_of_aos_with_no_log(self, database: Path, clock: FakeClock) -> None:
        make_go_database(database)
        insert(database)
        before = database.read_bytes()
        assert [info.digest for info in read_layers_info(database, clock)] == [digest_of(1)]
        assert read_without_permission(database) == [digest_of(1)]
        assert database.read_bytes() == before

    def test_a_database_without_a_table_of_layers_has_none(
        self, database: Path, clock: FakeClock
    ) -> None:
        database.touch()
        assert read_layers_info(database, clock) == ()

    def test_a_database_that_is_missing_is_an_error(self, database: Path, clock: FakeClock) -> None:
        with pytest.raises(StorageError, match="No such file or directory") as caught:
            read_layers_info(database, clock)
        assert str(database) in str(caught.value)
        assert not database.exists()

    def test_no_change_is_ever_seen_by_half(self, database: Path, clock: FakeClock) -> None:
        """The writer opens, changes and closes the database while it is read again and again.

        Only root can forbid itself, in the reader, what the writer may.
        """
        with SqliteLayerStorage(database, clock) as storage, storage.transaction():
            for number in range(2000):
                storage.add_layer(replace(layer(number), size=0))
        if os.geteuid() == 0:
            database.chmod(0o444)
            database.parent.chmod(0o555)
        script = """
            from layermanager.storage import read_layers_info
            for _ in range(80):
                sizes = {layer.size for layer in read_layers_info(database, SystemClock())}
                print(*sizes)
        """
        with start([WITHOUT_PERMISSION, script], str(database)) as reader:
            while reader.poll() is None:
                execute(database, "UPDATE layers SET size = size + 1")
            output, errors = reader.communicate()
        assert (reader.returncode, errors) == (0, "")
        sizes = [int(line) for line in output.splitlines()]
        assert len(sizes) == 80
        assert sizes == sorted(sizes)

    def test_writing_is_an_error(self, database: Path, clock: FakeClock) -> None:
        SqliteLayerStorage(database, clock).close()
        script = """
            from layermanager.errors import StorageError
            from layermanager.storage import SqliteLayerStorage
            try:
                with SqliteLayerStorage(database, SystemClock()) as storage:
                    storage.delete_layer_by_digest("sha256:")
            except StorageError as error:
                print(json.dumps(str(error)))
        """
        assert str(database) in str(run_without_permission(database, script))


WITHOUT_PERMISSION = """
    import ctypes, json, os, sys
    from pathlib import Path
    from layermanager.clock import SystemClock

    if os.geteuid() == 0:  # give up all capabilities, so that the modes of files count for root too
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None).capset(header, none) != 0:
            sys.exit("cannot give up the capabilities of root")
    database = Path(sys.argv[1])
"""

READER = """
    from layermanager.errors import StorageError
    from layermanager.storage import read_layers_info

    try:
        found = [layer.digest for layer in read_layers_info(database, SystemClock())]
    except StorageError as error:
        found = str(error)
    print(json.dumps(found))
"""


def start(script: Sequence[str], *arguments: str) -> subprocess.Popen[str]:
    """Run a Python *script*, given in parts."""
    return subprocess.Popen(
        [sys.executable, "-c", "".join(map(textwrap.dedent, script)), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_without_permission(database: Path) -> object:
    return run_without_permission(database, READER)


def run_without_permission(database: Path, script: str) -> object:
    """Run *script* where neither the database nor its directory may be written."""
    files = [path for path in database.parent.iterdir() if path.is_file()]
    for path in files:
        path.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        with start([WITHOUT_PERMISSION, script], str(database)) as process:
            output, errors = process.communicate()
    finally:
        database.parent.chmod(0o755)
        for path in files:
            path.chmod(0o644)
    assert (process.returncode, errors) == (0, "")
    return json.loads(output)


def make_go_database(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        make_tables_of_aos(connection)


def insert(database: Path, **columns: object) -> None:
    """Insert the row of ``layer(1)`` but for *columns*."""
    row = {
        "digest": str(digest_of(1)),
        "layer_id": "layer-1",
        "path": str(layer(1).path),
        "os_version": "x",
        "version": "1.1",
        "timestamp": "2026-11-24 00:49:32.586646+00:00",
        "cached": 1,
        "size": 1,
    }
    assert columns.keys() <= row.keys()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO layers VALUES"
            " (:digest, :layer_id, :path, :os_version, :version, :timestamp, :cached, :size)",
            row | columns,
        )


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def rows_of(database: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(statement).fetchall()


def select_all(table: str) -> str:
    return f"SELECT rowid, * FROM {table}"  # noqa: S608 - the names are in this file
