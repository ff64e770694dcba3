"""Unexpected exceptions of callbacks and foreign implementations fail as little as possible."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from layermanager.boundary import Boundary, Guard
from layermanager.clock import SystemClock
from layermanager.errors import (
    ExhaustedError,
    LayerManagerError,
    LayersFailedError,
    NotEnoughSpaceError,
    SourceError,
    StoreError,
    UnexpectedError,
    UnexpectedSourceError,
)
from layermanager.living import LivingThreads
from layermanager.model import DesiredImage
from layermanager.space import DiskUsage, Partitions
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import compress, desired
from layermanager.testing.observer import RecordingObserver
from layermanager.testing.sources import MemorySource, MemoryStream
from layermanager.testing.storage import MemoryLayerStorage
from manager_fixtures import Node, descendants, layer_tar
from surprises import EXHAUSTED, SURPRISES, made

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from pathlib import Path

    from layermanager import Allocator, DesiredLayer, LayerInfo, LayerProgress, Space
    from layermanager.cancellation import Cancellation
    from layermanager.model import ApplyResult, Digest
    from layermanager.observer import Removal
    from layermanager.oci.manifest import ImageIndex
    from layermanager.protocols import Clock, Remover
    from layermanager.steps import Step

NAMES = ("bad", "good", "other")
BLOBS: Mapping[str, bytes] = {
    name: compress(layer_tar(name, 1000 * number), "gzip") for number, name in enumerate(NAMES)
}
LAYERS: Mapping[str, DesiredLayer] = {
    name: desired(blob, f"memory:{name}") for name, blob in BLOBS.items()
}
FILES: Mapping[str, bytes] = {f"memory:{name}": blob for name, blob in BLOBS.items()}

pytestmark = pytest.mark.parametrize("surprise", SURPRISES)


@dataclass(slots=True)
class CountingObserver(RecordingObserver):
    """Counts unexpected errors, too."""

    boundaries: list[Boundary] = field(default_factory=list)

    def unexpected(self, boundary: Boundary) -> None:
        self.boundaries.append(boundary)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, parallel_installs=len(NAMES))


class Outcome:
    """What came of applying all ``LAYERS``, and how that was told."""

    def __init__(self, node: Node, **arguments: Any) -> None:
        self.observer = CountingObserver()
        self.failed: Mapping[str, LayerManagerError] = {}
        arguments = {"sources": {"memory": MemorySource(FILES)}, **arguments}
        before = descendants()
        with node.manager(observer=self.observer, **arguments) as manager:
            self.result = self._apply(lambda: manager.process_desired_layers(LAYERS.values()))
        assert descendants() == before
        assert node.leftovers() == []
        self.installed = sorted(
            name for name in NAMES if LAYERS[name].digest in {*map(str, node.files())}
        )

    def _apply(self, apply: Callable[[], ApplyResult]) -> ApplyResult:
        try:
            return apply()
        except LayersFailedError as error:
            digests = {layer.digest: name for name, layer in LAYERS.items()}
            self.failed = {digests[one.desired.digest]: one.error for one in error.result.failed}
            return error.result

    def assert_all_installed(self) -> None:
        assert self.failed == {}
        assert len(self.result.installed) == len(NAMES)
        assert self.installed == sorted(NAMES)

    def assert_only_bad_failed(self) -> LayerManagerError:
        assert set(self.failed) == {"bad"}
        assert self.installed == ["good", "other"]
        return self.failed["bad"]


def assert_means(error: LayerManagerError, surprise: str, what: str) -> None:
    """*error* says what failed, and what to do."""
    assert isinstance(error, ExhaustedError if surprise in EXHAUSTED else UnexpectedError)
    assert what in str(error)
    assert isinstance(error.__cause__, type(made(surprise)))
    if surprise not in EXHAUSTED:
        assert type(error.__cause__).__name__ in str(error)
        assert "report it" in str(error.hint)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [logging.Formatter().format(one) for one in caplog.records if one.exc_info]


class BrokenStream(MemoryStream):
    """Raises where it was told to."""

    broken: str = ""
    make: Callable[[], Exception]

    def read(self, size: int) -> bytes:
        if self.broken == "read":
            raise self.make()
        return super().read(size)

    def close(self) -> None:
        super().close()
        if self.broken == "close":
            raise self.make()


class BrokenSource(MemorySource):
    """Raises for the layer "bad"."""

    def __init__(self, broken: str, make: Callable[[], Exception]) -> None:
        super().__init__(FILES, is_local=False)
        self._broken = broken
        self._make = make

    def open(
        self, url: str, cancellation: Cancellation, *, offset: int = 0, validator: str = ""
    ) -> MemoryStream:
        if url == "memory:bad" and self._broken == "open":
            raise self._make()
        stream = super().open(url, cancellation, offset=offset, validator=validator)
        broken = BrokenStream.__new__(BrokenStream)
        broken.__dict__.update(stream.__dict__)
        broken.broken = self._broken if url == "memory:bad" else ""
        broken.make = self._make
        return broken

    def close(self) -> None:
        super().close()
        if self._broken == "source":
            raise self._make()


@pytest.mark.parametrize("broken", ["open", "read"])
class TestSource:
    def test_the_layer_fails_and_no_other(
        self, node: Node, broken: str, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        outcome = Outcome(node, sources={"memory": BrokenSource(broken, SURPRISES[surprise])})
        error = outcome.assert_only_bad_failed()
        assert isinstance(error, SourceError)
        attempts = error.attempts or [error]
        assert {*outcome.observer.boundaries} == {Boundary.SOURCE}
        assert len(tracebacks(caplog)) == len(outcome.observer.boundaries) == len(attempts)
        if surprise in EXHAUSTED:
            assert "out of" in str(error)
            assert len(attempts) == node.config.network.attempts  # it may be had again later
        else:
            assert isinstance(error, UnexpectedSourceError)
            assert "report it" in str(error.hint)
            assert type(made(surprise)).__name__ in str(error)

    def test_a_mirror_stands_in(self, node: Node, broken: str, surprise: str) -> None:
        sources = {
            "memory": BrokenSource(broken, SURPRISES[surprise]),
            "mirror": MemorySource({"mirror:bad": BLOBS["bad"]}),
        }
        bad = replace(LAYERS["bad"], mirrors=("mirror:bad",))
        with node.manager(sources=sources) as manager:
            assert len(manager.process_desired_layers([bad, LAYERS["good"]]).installed) == 2


@pytest.mark.parametrize("broken", ["close", "source"])
def test_closing_a_source_fails_nothing(node: Node, broken: str, surprise: str) -> None:
    outcome = Outcome(node, sources={"memory": BrokenSource(broken, SURPRISES[surprise])})
    outcome.assert_all_installed()
    assert outcome.observer.boundaries == [Boundary.SOURCE]


class BrokenImageSource(MemorySource):
    def __init__(self, make: Callable[[], Exception]) -> None:
        super().__init__({})
        self._make = make

    def find_image(self, *_: object) -> ImageIndex:
        raise self._make()

    def read_document(self, *_: object) -> bytes:
        raise self._make()


def test_an_image_fails_and_no_layer(node: Node, surprise: str) -> None:
    observer = CountingObserver()
    sources = {
        "memory": MemorySource(FILES),
        "docker": BrokenImageSource(SURPRISES[surprise]),
    }
    wanted: list[DesiredLayer | DesiredImage] = [DesiredImage("registry:5000/app:1")]
    wanted += LAYERS.values()
    with (
        node.manager(sources=sources, observer=observer) as manager,
        pytest.raises(LayersFailedError) as raised,
    ):
        manager.process_desired_layers(wanted)
    assert len(raised.value.result.installed) == len(NAMES)
    (failed,) = raised.value.result.images.failed
    assert_means(failed.error, surprise, "image registry:5000/app:1")
    assert observer.boundaries == [Boundary.IMAGE]


class BrokenStorage(MemoryLayerStorage):
    """Raises where it was told to, as often as it was told to."""

    def __init__(
        self, broken: str, make: Callable[[], Exception], clock: Clock | None = None
    ) -> None:
        super().__init__(clock or SystemClock())
        self.broken = broken
        self._make = make

    def add_layer(self, layer: LayerInfo) -> None:
        if self.broken == "add" and layer.digest == LAYERS["bad"].digest:
            raise self._make()
        super().add_layer(layer)

    def get_layers_info(self) -> tuple[LayerInfo, ...]:
        if self.broken == "list":
            raise self._make()
        return super().get_layers_info()

    def set_layer_cached(self, digest: Digest, cached: bool) -> None:
        if self.broken == "cache":
            raise self._make()
        super().set_layer_cached(digest, cached)


class TestStorage:
    def test_a_layer_that_it_refuses_stops_no_other(
        self, node: Node, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        storage = BrokenStorage("add", SURPRISES[surprise])
        outcome = Outcome(node, layer_storage=storage)
        error = outcome.assert_only_bad_failed()
        assert_means(error, surprise, f"layer {LAYERS['bad'].digest}")
        assert {one.digest for one in storage.get_layers_info()} == {
            LAYERS["good"].digest,
            LAYERS["other"].digest,
        }
        assert {*outcome.observer.boundaries} == {Boundary.LAYER}
        assert len(tracebacks(caplog)) == len(outcome.observer.boundaries)
        storage.broken = ""
        Outcome(node, layer_storage=storage)
        assert len(storage.get_layers_info()) == len(NAMES)

    @pytest.mark.parametrize("broken", ["list", "cache"])
    def test_an_operation_fails_by_name(
        self, node: Node, broken: str, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        observer = CountingObserver()
        storage = BrokenStorage("", SURPRISES[surprise])
        sources = {"memory": MemorySource(FILES)}
        with node.manager(layer_storage=storage, observer=observer, sources=sources) as manager:
            manager.process_desired_layers(LAYERS.values())
            storage.broken = broken
            with pytest.raises(LayerManagerError) as raised:
                manager.process_desired_layers([])
            assert_means(raised.value, surprise, "applying the desired layers")
            assert observer.boundaries == [Boundary.OPERATION]
            assert len(tracebacks(caplog)) == 1
            storage.broken = ""
            assert len(manager.process_desired_layers([]).cached) == len(NAMES)


class BrokenSpace:
    def __init__(self, space: Space, broken: str, make: Callable[[], Exception]) -> None:
        self._space = space
        self._broken = broken
        self._make = make

    def __getattr__(self, name: str) -> Any:
        if name == self._broken:
            raise self._make()
        return getattr(self._space, name)

    def __enter__(self) -> BrokenSpace:
        return self

    def __exit__(self, *exc: object) -> None:
        self._space.release()
        if self._broken == "exit":
            raise self._make()


class BrokenAllocator:
    """Raises where it was told to, for the layer of that size."""

    def __init__(self, allocator: Allocator, broken: str, make: Callable[[], Exception]) -> None:
        self._allocator = allocator
        self._broken = broken
        self._make = make

    def allocate_space(self, size: int) -> Any:
        if self._broken == "allocate" and size == LAYERS["bad"].size:
            raise self._make()
        return BrokenSpace(self._allocator.allocate_space(size), self._broken, self._make)

    def note_used_space(self, size: int) -> None:
        self._allocator.note_used_space(size)

    def free_space(self, size: int) -> None:
        self._allocator.free_space(size)

    def add_outdated_item(self, item_id: str, size: int, timestamp: datetime) -> None:
        self._allocator.add_outdated_item(item_id, size, timestamp)

    def restore_outdated_item(self, item_id: str) -> None:
        self._allocator.restore_outdated_item(item_id)

    def close(self) -> None:
        self._allocator.close()
        if self._broken == "close":
            raise self._make()


def broken_allocators(broken: str, surprise: str) -> Callable[..., BrokenAllocator]:
    partitions = Partitions()

    def new(path: Path, part_limit: int, remover: Remover) -> BrokenAllocator:
        allocator = partitions.new_allocator(path, part_limit, remover)
        return BrokenAllocator(allocator, broken, SURPRISES[surprise])

    return new


class TestAllocator:
    def test_a_layer_fails_and_no_other(
        self, node: Node, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        new = broken_allocators("allocate", surprise)
        outcome = Outcome(node, new_space_allocator=new)
        assert_means(outcome.assert_only_bad_failed(), surprise, f"layer {LAYERS['bad'].digest}")
        assert outcome.observer.boundaries == [Boundary.LAYER]
        assert len(tracebacks(caplog)) == 1

    @pytest.mark.parametrize("broken", ["accept", "exit", "close"])
    def test_an_installed_layer_stays_installed(
        self, node: Node, broken: str, surprise: str
    ) -> None:
        outcome = Outcome(node, new_space_allocator=broken_allocators(broken, surprise))
        outcome.assert_all_installed()
        assert {*outcome.observer.boundaries} == {Boundary.ACCOUNTING}


def test_a_neighbour_that_raises_frees_nothing(node: Node, surprise: str) -> None:
    class Neighbour:
        def allocate_layers_space(self, _: int) -> int:
            raise made(surprise)

    partitions = Partitions(lambda _: DiskUsage(device=1, total=1 << 30, free=1 << 10))
    outcome = Outcome(
        node, new_space_allocator=partitions.new_allocator, space_allocator=Neighbour()
    )
    assert {*map(type, outcome.failed.values())} == {NotEnoughSpaceError}
    assert {*outcome.observer.boundaries} == {Boundary.SPACE_PROVIDER}


class TestCallbacks:
    def test_progress(self, node: Node, surprise: str, caplog: pytest.LogCaptureFixture) -> None:
        def on_progress(_: LayerProgress) -> None:
            raise made(surprise)

        outcome = Outcome(node, on_progress=on_progress)
        outcome.assert_all_installed()
        assert len(outcome.observer.boundaries) > len(NAMES)
        assert {*outcome.observer.boundaries} == {Boundary.PROGRESS}
        assert len(tracebacks(caplog)) == 1

    def test_steps(self, node: Node, surprise: str, caplog: pytest.LogCaptureFixture) -> None:
        def on_step(_: Step) -> None:
            raise made(surprise)

        if isinstance(made(surprise), OSError):
            with pytest.raises(LayerManagerError):  # the disk fails, by contract
                Outcome(node, on_step=on_step)
            return
        outcome = Outcome(node, on_step=on_step)
        outcome.assert_all_installed()
        assert {*outcome.observer.boundaries} == {Boundary.STEP}
        assert len(tracebacks(caplog)) == 1

    @pytest.mark.parametrize("method", ["written", "retried", "removed"])
    def test_observers(
        self, node: Node, method: str, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(CountingObserver):
            def __getattribute__(self, name: str) -> Any:
                if name == method:
                    raise made(surprise)
                return super().__getattribute__(name)

        observer = Broken()
        source = BrokenSource("read", ConnectionError) if method == "retried" else None
        sources = {"memory": source or MemorySource(FILES)}
        with node.manager(sources=sources, observer=observer) as manager:
            if source is not None:
                source._make = lambda: SourceError("broken", url="u", is_transient=True)
                with pytest.raises(LayersFailedError):
                    manager.process_desired_layers(LAYERS.values())
            else:
                manager.process_desired_layers(LAYERS.values())
            manager.process_desired_layers([])
            removed = manager.remove_cached_layers(1 << 40)
        assert len(removed) == len(NAMES) - (source is not None)
        assert {*observer.boundaries} == {Boundary.OBSERVER}
        assert len(tracebacks(caplog)) == 1

    def test_what_counts_may_fail_as_well(
        self, node: Node, surprise: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(RecordingObserver):
            def unexpected(self, _: Boundary) -> None:
                raise made(surprise)

            def removed(self, _layer: LayerInfo, _why: Removal) -> None:
                raise made(surprise)

        with node.manager(sources={"memory": MemorySource(FILES)}, observer=Broken()) as manager:
            manager.process_desired_layers(LAYERS.values())
            manager.process_desired_layers([])
            assert len(manager.remove_cached_layers(1 << 40)) == len(NAMES)
        assert len(tracebacks(caplog)) == 1 + len(NAMES)


def test_the_timer_goes_on(node: Node, surprise: str, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    node.config = replace(node.config, remove_cached_layers_period=timedelta(hours=1))
    observer = CountingObserver()
    threads = LivingThreads(Guard(observer.unexpected), clock)
    storage = BrokenStorage("", SURPRISES[surprise], clock)
    with node.manager(
        layer_storage=storage,
        clock=clock,
        observer=observer,
        threads=threads,
        sources={"memory": MemorySource(FILES)},
    ) as manager:
        manager.process_desired_layers(LAYERS.values())
        manager.process_desired_layers([])
        clock.wait_for_waiters(1)
        storage.broken = "list"
        clock.advance(timedelta(days=100))
        clock.wait_for_waiters(1)
        assert observer.boundaries == [Boundary.OPERATION]
        assert len(tracebacks(caplog)) == 1
        assert threads.troubles() == ()
        storage.broken = ""
        clock.advance(timedelta(hours=1))
        clock.wait_for_waiters(1)
        assert manager.get_layers_info() == ()


class TestGuard:
    def test_what_is_foreseen_passes(self, surprise: str) -> None:
        counted: list[Boundary] = []
        guard = Guard(counted.append)
        for expected in (StoreError("x"), KeyboardInterrupt(), SystemExit()):
            with (
                pytest.raises(type(expected)) as raised,
                guard.failing(Boundary.LAYER, "it"),
            ):
                raise expected
            assert raised.value is expected
        assert counted == []
        with (
            pytest.raises(LayerManagerError) as failed,
            guard.failing(Boundary.LAYER, "it"),
            guard.failing(Boundary.LAYER, "a part of it"),
        ):
            raise made(surprise)
        assert_means(failed.value, surprise, "a part of it")
        assert counted == [Boundary.LAYER]

    def test_the_end_of_the_process_is_not_contained(self, surprise: str) -> None:
        guard = Guard()
        with pytest.raises(KeyboardInterrupt), guard.containing(Boundary.LAYER, "it"):
            raise KeyboardInterrupt
        with guard.containing(Boundary.LAYER, "it"):
            raise made(surprise)

    def test_a_text_with_secrets_is_in_no_message(self, surprise: str) -> None:
        error = RuntimeError("https://host/?token=secret")
        told = Guard().note(Boundary.LAYER, surprise, error)
        assert "secret" not in str(told)


@pytest.mark.parametrize(
    ("error", "of"),
    [
        (OSError(errno.ENFILE, "x"), "file descriptors of this machine"),
        (OSError(errno.ENOMEM, "x"), "memory"),
        (OSError(errno.ENOLCK, "x"), "file locks"),
        (RuntimeError("can't start new thread"), "threads"),
    ],
)
def test_what_ran_out_is_named(error: Exception, of: str, surprise: str) -> None:
    told = Guard().note(Boundary.LAYER, surprise, error)
    assert isinstance(told, ExhaustedError)
    assert str(told) == f"{surprise}: out of {of}"
