from __future__ import annotations

import gzip
import hashlib
import itertools
import logging
import threading
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import pytest

from layermanager.errors import (
    CancelledError,
    ConfigError,
    DesiredStateError,
    InvalidDigestError,
    LayerNotExistError,
    LayersFailedError,
    StorageError,
    StoreError,
    UnexpectedSourceError,
)
from layermanager.model import ApplyResult, DesiredLayer, Digest
from layermanager.space import Partitions
from layermanager.steps import Step
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import (
    LayerBuilder,
    build_package,
    compress,
    descriptor,
    desired,
    digest_of,
)
from layermanager.testing.sources import MemorySource, MemoryStream
from layermanager.testing.storage import MemoryLayerStorage
from layermanager.testing.web import LayerServer
from manager_fixtures import (
    Node,
    Progress,
    RecordingAllocators,
    descendants,
    layer_tar,
    name_on_disk,
    names_in,
)

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import LayerInfo

HOUR = timedelta(hours=1)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class TestApply:
    def test_missing_layers_are_installed_in_the_order_of_the_list(self, node: Node) -> None:
        layers = [node.publish(name) for name in "dacb"]
        with node.manager() as manager:
            result = manager.process_desired_layers(layers)
            assert names_in(result.installed) == ["d", "a", "c", "b"]
            assert [name_on_disk(layer) for layer in result.installed] == ["d", "a", "c", "b"]
            assert manager.get_layers_info() == node.rows()
        node.assert_has(layers)

    def test_what_is_recorded_is_what_was_desired_and_found(
        self, node: Node, clock: FakeClock
    ) -> None:
        wanted = replace(node.publish("one", 50_000), version="1.2.3")
        with node.manager(clock=clock) as manager:
            (info,) = manager.process_desired_layers([wanted]).installed
            assert manager.get_layer_info_by_digest(wanted.digest) == info
        assert (info.digest, info.layer_id, info.version) == (wanted.digest, "one", "1.2.3")
        assert info.path == node.config.layers_dir / "sha256" / wanted.digest.encoded
        assert info.timestamp == clock.now()
        assert not info.cached
        on_disk = sum(path.lstat().st_blocks * 512 for path in (info.path, *info.path.rglob("*")))
        assert info.size > 50_000
        assert info.size == pytest.approx(on_disk, abs=5 * 4096)

    def test_a_layer_passes_through_its_life(self, node: Node, clock: FakeClock) -> None:
        one, two, three = (node.publish(name) for name in ("one", "two", "three"))
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one, two])
            installed_at = clock.now()
            clock.advance(HOUR)

            second = manager.process_desired_layers([three, two])
            assert (names_in(second.kept), names_in(second.cached)) == (["two"], ["one"])
            assert (names_in(second.installed), names_in(second.restored)) == (["three"], [])
            cached = manager.get_layer_info_by_digest(one.digest)
            assert second.cached == (cached,)
            assert (cached.cached, cached.timestamp) == (True, installed_at + HOUR)
            clock.advance(HOUR)

            third = manager.process_desired_layers([one, two, three])
            assert (names_in(third.kept), names_in(third.restored)) == (["two", "three"], ["one"])
            assert (third.installed, third.cached, third.failed) == ((), (), ())
            assert third.restored == (manager.get_layer_info_by_digest(one.digest),)
            assert third.restored[0].timestamp == installed_at + 2 * HOUR
            assert not third.restored[0].cached

            last = manager.process_desired_layers([])
            assert sorted(names_in(last.cached)) == ["one", "three", "two"]
        node.assert_has([one, two, three])

    def test_an_installed_layer_is_not_fetched_again(self, node: Node) -> None:
        blob = compress(layer_tar("one"), "gzip")
        with LayerServer() as server, node.manager() as manager:
            wanted = desired(blob, server.add("/one", blob))
            manager.process_desired_layers([wanted])
            manager.process_desired_layers([])
            manager.process_desired_layers([wanted])
            assert len(server.requests) == 1

    def test_nothing_desired_and_nothing_there_is_nothing_done(self, node: Node) -> None:
        with node.manager() as manager:
            assert manager.process_desired_layers([]) == ApplyResult()
        assert descendants() == set()

    def test_a_layer_that_is_desired_twice_is_installed_once(self, node: Node) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager() as manager:
            result = manager.process_desired_layers([one, two, replace(one)])
        assert names_in(result.installed) == ["one", "two"]
        node.assert_has([one, two])

    @pytest.mark.parametrize("kind", ["sqlite", "memory", "seed"])
    def test_installed_layers_take_over_the_names_of_the_list(
        self, node: Node, clock: FakeClock, kind: str
    ) -> None:
        kept, restored = node.publish("kept"), node.publish("restored")
        storages = {"memory": MemoryLayerStorage(clock), "seed": SeedStorage(clock)}
        storage = storages.get(kind)
        with node.manager(layer_storage=storage, clock=clock) as manager:
            manager.process_desired_layers([kept, restored])
            manager.process_desired_layers([kept])
            before = manager.get_layer_info_by_digest(kept.digest)
            clock.advance(HOUR)
            wanted = [replace(kept, version="2"), replace(restored, layer_id="other")]
            result = manager.process_desired_layers(wanted)
            assert result.kept == (replace(before, version="2"),)
            assert names_in(result.restored) == ["other"]
            assert {*manager.get_layers_info()} == {*result.kept, *result.restored}
            assert manager.process_desired_layers(wanted).kept == (*result.kept, *result.restored)

    def test_a_second_apply_of_new_names_writes_nothing(self, node: Node, clock: FakeClock) -> None:
        one = node.publish("one")
        steps: list[Step] = []
        with node.manager(clock=clock, on_step=steps.append) as manager:
            manager.process_desired_layers([one])
            steps.clear()
            manager.process_desired_layers([replace(one, version="2")])
            assert Step.WRITE_ROW in steps
            steps.clear()
            manager.process_desired_layers([replace(one, version="2")])
            assert Step.WRITE_ROW not in steps

    def test_a_layer_of_another_name_can_be_leased_by_it(self, node: Node) -> None:
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([replace(one, layer_id="")])
            manager.process_desired_layers([one])
            with manager.lease("one", owner="a test") as held:
                assert held.lease.layers == (one.digest,)

    def test_when_desired_layers_contradict_nothing_is_done(self, node: Node) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager() as manager:
            manager.process_desired_layers([one])
            before = node.rows()
            with pytest.raises(DesiredStateError, match=f"{two.digest} is desired twice.*version"):
                manager.process_desired_layers([two, replace(two, version="other")])
        assert node.rows() == before
        node.assert_has([one])

    def test_the_callers_list_is_left_as_it_is(self, node: Node) -> None:
        one = node.publish("one")
        wanted = [one, one]
        with node.manager() as manager:
            manager.process_desired_layers(wanted)
        assert wanted == [one, one]
        assert wanted[0] is one

    def test_any_iterable_will_do(self, node: Node) -> None:
        with node.manager() as manager:
            result = manager.process_desired_layers(node.publish(name) for name in "ab")
        assert names_in(result.installed) == ["a", "b"]

    def test_a_manager_finds_what_another_one_left(self, node: Node) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager() as manager:
            manager.process_desired_layers([one, two])
            manager.process_desired_layers([two])
        with node.manager() as manager:
            result = manager.process_desired_layers([one, two])
        assert (names_in(result.kept), names_in(result.restored)) == (["two"], ["one"])

    def test_many_layers_at_once(self, tmp_path: Path) -> None:
        node = Node(tmp_path, parallel_installs=3)
        layers = [node.publish(f"layer-{number}") for number in range(20)]
        with node.manager() as manager:
            result = manager.process_desired_layers(layers)
            assert [layer.digest for layer in result.installed] == [one.digest for one in layers]
            for layer in result.installed:
                assert name_on_disk(layer) == layer.layer_id
        node.assert_has(layers)


class TestAsking:
    def test_a_layer_that_is_not_there(self, node: Node) -> None:
        digest = digest_of(b"nothing")
        with node.manager() as manager, pytest.raises(LayerNotExistError, match=digest):
            manager.get_layer_info_by_digest(digest)

    @pytest.mark.parametrize("text", ["", "sha256:../../etc", "sha256:" + "A" * 64])
    def test_what_is_no_digest(self, node: Node, text: str) -> None:
        with node.manager() as manager, pytest.raises(InvalidDigestError):
            manager.get_layer_info_by_digest(text)


Compression = Literal["gzip", "zstd", "none"]


def package_of(
    blob: bytes, *, outer: str, descriptor_first: bool, prefix: str, dot_entry: bool
) -> bytes:
    members = [("layer.json", descriptor(blob)), (digest_of(blob).encoded, blob)]
    builder = LayerBuilder()
    if dot_entry:
        builder.directory("./")
    for name, content in members if descriptor_first else reversed(members):
        builder.file(prefix + name, content)
    package = builder.tar()
    return gzip.compress(package, mtime=0) if outer == "gzip" else package


class TestFormats:
    @pytest.mark.parametrize("transport", ["file", "http"])
    def test_every_form_of_a_package(self, node: Node, transport: str) -> None:
        compressions: tuple[Compression, ...] = ("gzip", "zstd", "none")
        forms = itertools.product(("gzip", "none"), compressions, (True, False), ("", "./"))
        with ExitStack() as stack:
            server = stack.enter_context(LayerServer())
            layers = []
            for outer, compression, descriptor_first, prefix in forms:
                name = f"{outer}-{compression}-{descriptor_first}-{len(prefix)}"
                blob = compress(layer_tar(name, 10_000), compression)
                package = package_of(
                    blob,
                    outer=outer,
                    descriptor_first=descriptor_first,
                    prefix=prefix,
                    dot_entry=bool(prefix),
                )
                layer = replace(node.publish_bytes(name, blob, package), version=name)
                if transport == "http":
                    layer = replace(layer, url=server.add(f"/{name}", package))
                layers.append(layer)
            manager = stack.enter_context(node.manager())
            result = manager.process_desired_layers(layers)
            assert [name_on_disk(layer) for layer in result.installed] == [
                layer.version for layer in layers
            ]
        node.assert_has(layers)

    @pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
    @pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
    def test_a_bare_blob(self, node: Node, algorithm: str, compression: Compression) -> None:
        blob = compress(layer_tar("bare"), compression)
        digest = Digest(f"{algorithm}:{hashlib.new(algorithm, blob).hexdigest()}")
        url = (node.published / "bare").as_uri()
        node.publish_bytes("bare", blob)
        with node.manager() as manager:
            (info,) = manager.process_desired_layers([DesiredLayer(digest, url)]).installed
        assert info.path == node.config.layers_dir / algorithm / digest.encoded
        assert name_on_disk(info) == "bare"
        assert (info.layer_id, info.version, info.os_version) == ("", "", "")
        node.assert_has([digest])

    @pytest.mark.parametrize("algorithm", ["sha3_256", "sha256"])
    def test_either_checksum(self, node: Node, algorithm: str) -> None:
        blob = compress(layer_tar("one"), "gzip")
        package = build_package(blob)
        layer = node.publish_bytes("one", blob, package)
        checksum = hashlib.new(algorithm, package).digest()
        with node.manager() as manager:
            manager.process_desired_layers([replace(layer, sha256=checksum)])
        node.assert_has([layer])

    def test_a_size_that_is_not_known(self, node: Node) -> None:
        layer = node.publish("one", 100_000)
        with node.manager() as manager:
            manager.process_desired_layers([replace(layer, size=None)])
        node.assert_has([layer])

    def test_the_os_version_of_the_descriptor(self, node: Node) -> None:
        blob = compress(layer_tar("one"), "gzip")
        package = build_package(blob, {"platform": {"os.version": "4.2 é"}})
        with node.manager() as manager:
            (info,) = manager.process_desired_layers(
                [node.publish_bytes("one", blob, package)]
            ).installed
        assert info.os_version == "4.2 é"
        assert node.rows()[0].os_version == "4.2 é"

    def test_what_a_layer_could_not_have_is_logged(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        attribute = {"trusted.overlay.redirect": b"/etc"}
        blob = LayerBuilder().directory("dir", xattrs=attribute).file("dir/one", b"1").tar()
        layer = node.publish_bytes("one", blob)
        with node.manager() as manager, caplog.at_level(logging.WARNING, "layermanager.manager"):
            manager.process_desired_layers([layer])
        assert len(caplog.messages) == 1
        assert layer.digest in caplog.text


class TestArguments:
    def test_the_storage_that_is_given_is_the_record(self, node: Node, clock: FakeClock) -> None:
        storage = MemoryLayerStorage(clock)
        one = node.publish("one")
        with node.manager(layer_storage=storage, clock=clock) as manager:
            manager.process_desired_layers([one])
            (info,) = storage.get_layers_info()
            assert info.digest == one.digest
            assert manager.get_layer_info_by_digest(one.digest) == info
            manager.process_desired_layers([])
            assert storage.get_layer_info_by_digest(one.digest).cached
        assert not node.config.database.exists()
        with node.manager(layer_storage=storage, clock=clock) as manager:
            assert names_in(manager.process_desired_layers([one]).restored) == ["one"]

    def test_a_storage_with_only_the_seeds_methods_will_do(
        self, node: Node, clock: FakeClock
    ) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(layer_storage=SeedStorage(clock), clock=clock) as manager:
            manager.process_desired_layers([one])
            result = manager.process_desired_layers([two])
            assert (names_in(result.cached), names_in(result.installed)) == (["one"], ["two"])

    def test_a_row_comes_after_its_directory_and_goes_before_it(
        self, node: Node, clock: FakeClock
    ) -> None:
        class Watchful(SeedStorage):
            def add_layer(self, layer: LayerInfo) -> None:
                assert name_on_disk(layer) == layer.layer_id
                super().add_layer(layer)

            def delete_layer_by_digest(self, digest: Digest) -> None:
                assert (node.config.layers_dir / "sha256" / digest.encoded).is_dir()
                super().delete_layer_by_digest(digest)

        layers = [node.publish(name) for name in "abc"]
        with node.manager(layer_storage=Watchful(clock), clock=clock) as manager:
            assert len(manager.process_desired_layers(layers).installed) == 3
            manager.process_desired_layers([])
            assert len(manager.remove_cached_layers(10**9)) == 3
        assert node.files() == {}

    def test_when_rows_cannot_be_written_the_layers_are_not_there(
        self, node: Node, clock: FakeClock
    ) -> None:
        class Broken(SeedStorage):
            def add_layer(self, layer: LayerInfo) -> None:
                if layer.layer_id != "first":
                    raise StorageError("the database is broken")
                super().add_layer(layer)

        allocators = RecordingAllocators()
        first, second = node.publish("first"), node.publish("second")
        with node.manager(layer_storage=Broken(clock), new_space_allocator=allocators) as manager:
            manager.process_desired_layers([first])
            with pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([first, second])
            assert allocators.held == 0
        assert isinstance(caught.value.exceptions[0], StorageError)
        assert names_in(caught.value.result.kept) == ["first"]
        assert list(node.files()) == [first.digest]
        assert node.leftovers() == []

    def test_the_allocator_can_be_replaced(self, tmp_path: Path) -> None:
        node = Node(tmp_path, layers_part_limit=50)
        allocators = RecordingAllocators()
        one, two = node.publish("one", 40_000), node.publish("two")
        with node.manager(new_space_allocator=allocators) as manager:
            assert allocators.made == [(node.config.layers_dir, 50)]
            manager.process_desired_layers([one])
            assert "allocate" in allocators.calls
            manager.process_desired_layers([two])
            assert allocators.used == sum(
                row.size for row in node.rows() if row.digest == one.digest
            )
            assert allocators.calls.count("outdated") == 1
            manager.process_desired_layers([one, two])
            assert allocators.calls[-1] == "restore"
            manager.process_desired_layers([])
            manager.remove_cached_layers(1)
            assert allocators.calls[-1] == "free"
            assert allocators.held == 0
        assert allocators.calls[-1] == "close"

    def test_limits_that_sum_up_to_too_much_are_refused(self, tmp_path: Path) -> None:
        partitions = Partitions()
        partitions.new_allocator(tmp_path, 60, lambda _: None)
        node = Node(tmp_path, layers_part_limit=50)
        before = threading.enumerate()
        with pytest.raises(ConfigError, match=r"60 \+ 50"):
            node.manager(new_space_allocator=partitions.new_allocator)
        assert threading.enumerate() == before
        assert descendants() == set()

    def test_sources_by_scheme(self, node: Node) -> None:
        blob = compress(layer_tar("one"), "gzip")
        source = MemorySource({"memory:one": blob})
        with node.manager(sources={"memory": source}) as manager:
            result = manager.process_desired_layers([desired(blob, "memory:one")])
            assert len(result.installed) == 1
        assert source.closed == 1

    def test_a_source_for_several_schemes_is_closed_once(self, node: Node) -> None:
        source = MemorySource({})
        node.manager(sources={"a": source, "b": source}).close()
        assert source.closed == 1

    def test_progress(self, node: Node) -> None:
        progress = Progress()
        one, two = node.publish("one", 2_000_000), node.publish("two")
        missing = replace(node.publish("gone"), url=(node.published / "nowhere").as_uri())
        with node.manager(on_progress=progress) as manager:
            with pytest.raises(LayersFailedError):
                manager.process_desired_layers([one, two, missing])
            told = len(progress.told)
            manager.process_desired_layers([one, two])
        assert len(progress.told) == told
        installing = [moment for moment in progress.told if moment.desired == one]
        assert progress.phases_of(one) == ["pending", "installing", "committing", "installed"]
        assert progress.phases_of(two) == progress.phases_of(one)
        assert progress.phases_of(missing) == ["pending", "failed"]
        transferred = [moment.transferred for moment in installing if moment.size is not None]
        assert transferred == sorted(transferred)
        assert transferred[-1] == one.size
        failure = next(moment for moment in progress.told if moment.phase.value == "failed")
        assert "nowhere" in str(failure.error)

    def test_a_source_that_breaks_its_contract_leaves_nothing(self, node: Node) -> None:
        class BrokenSource:
            def open(self, url: str, *_: object, **__: object) -> MemoryStream:
                raise ZeroDivisionError(url)

            def close(self) -> None:
                pass

        allocators = RecordingAllocators()
        good = [compress(layer_tar(name), "gzip") for name in "abcdef"]
        sources = {
            "memory": MemorySource({f"memory:{index}": blob for index, blob in enumerate(good)}),
            "broken": BrokenSource(),
        }
        layers = [desired(blob, f"memory:{index}") for index, blob in enumerate(good)]
        layers.append(desired(b"other", "broken:one"))
        with node.manager(sources=sources, new_space_allocator=allocators) as manager:
            with pytest.raises(LayersFailedError) as raised:
                manager.process_desired_layers(layers)
            (failed,) = raised.value.exceptions
            assert isinstance(failed, UnexpectedSourceError)
            assert isinstance(failed.__cause__, ZeroDivisionError)
            assert allocators.held == 0
            node.assert_has(layers[:-1])


class TestClose:
    def test_it_ends_every_thread_and_process(self, node: Node) -> None:
        threads = threading.enumerate()
        manager = node.manager()
        manager.process_desired_layers([node.publish("one")])
        assert descendants() != set()
        assert len(threading.enumerate()) == len(threads) + 1
        manager.close()
        assert descendants() == set()
        assert threading.enumerate() == threads
        manager.close()

    def test_what_comes_after_it_is_refused(self, node: Node) -> None:
        one = node.publish("one")
        with node.manager() as manager:
            manager.process_desired_layers([])
        for operation in (
            lambda: manager.process_desired_layers([one]),
            manager.remove_expired_layers,
            lambda: manager.remove_cached_layers(1),
        ):
            with pytest.raises(CancelledError, match="closed"):
                operation()
        assert descendants() == set()
        node.assert_has([])

    def test_the_callers_storage_stays_open(self, node: Node, clock: FakeClock) -> None:
        class Closable(MemoryLayerStorage):
            def close(self) -> None:
                raise AssertionError

        node.manager(layer_storage=Closable(clock)).close()

    def test_a_manager_that_cannot_begin_leaves_nothing_behind(self, tmp_path: Path) -> None:
        node = Node(tmp_path, layers_dir=tmp_path / "file")
        (tmp_path / "file").write_text("in the way")
        threads = threading.enumerate()
        with pytest.raises(StoreError, match=str(tmp_path / "file")):
            node.manager()
        assert threading.enumerate() == threads
        assert descendants() == set()


class SeedStorage:
    """A ``LayerStorage`` without transactions."""

    def __init__(self, clock: FakeClock) -> None:
        self._storage = MemoryLayerStorage(clock)

    def add_layer(self, layer: LayerInfo) -> None:
        self._storage.add_layer(layer)

    def delete_layer_by_digest(self, digest: Digest) -> None:
        self._storage.delete_layer_by_digest(digest)

    def get_layers_info(self) -> tuple[LayerInfo, ...]:
        return self._storage.get_layers_info()

    def get_layer_info_by_digest(self, digest: Digest) -> LayerInfo:
        return self._storage.get_layer_info_by_digest(digest)

    def set_layer_cached(self, digest: Digest, cached: bool) -> None:
        self._storage.set_layer_cached(digest, cached)
