"""Threads, processes and readers at once, and closing in the middle."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.cancellation import Cancellation
from layermanager.clock import SystemClock
from layermanager.config import Network
from layermanager.errors import CancelledError, LayersFailedError, SourceError, StoreBusyError
from layermanager.inventory import Inventory
from layermanager.lock import StoreLock
from layermanager.model import LayerProgress, Phase
from layermanager.space import Partitions
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import build_package, compress, desired
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import Node, RecordingAllocators, descendants, layer_tar, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.manager import LayerManager
    from layermanager.model import DesiredLayer

CLOSING_SECONDS = 5.0
"""Enough for a busy machine, and far less than the time-outs of the network."""

INSTALLER = """
    import sys
    from layermanager import Config, DesiredLayer, LayerManager
    working_dir, digest, url = sys.argv[1:]
    with LayerManager(Config(working_dir)) as manager:
        print("ready", flush=True)
        sys.stdin.readline()
        manager.process_desired_layers([DesiredLayer(digest, url)])
        print("installed", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def server() -> Iterator[LayerServer]:
    with LayerServer() as server:
        yield server


def stalled(server: LayerServer, name: str) -> tuple[DesiredLayer, Stall]:
    """A layer that stops arriving in its middle, until the stall ends."""
    blob = compress(layer_tar(name, 300_000), "gzip")
    package = build_package(blob)
    stall = Stall(threading.Event(), after=200_000)
    url = server.answer(f"/{name}", Answer(package, stall=stall))
    return desired(blob, url, package=package, layer_id=name), stall


@contextmanager
def installing(
    manager: LayerManager, layers: list[DesiredLayer], cancellation: Cancellation | None = None
) -> Iterator[list[Exception]]:
    """Have a thread install *layers* for the time of the context; yields what it raised."""
    raised: list[Exception] = []

    def install() -> None:
        try:
            manager.process_desired_layers(layers, cancellation=cancellation)
        except (CancelledError, LayersFailedError, StoreBusyError) as error:
            raised.append(error)

    thread = threading.Thread(target=install)
    thread.start()
    try:
        yield raised
    finally:
        thread.join()


class TestThreads:
    def test_many_lists_at_once_end_as_one_of_them(self, tmp_path: Path) -> None:
        node = Node(tmp_path, parallel_installs=2)
        layers = [node.publish(str(number)) for number in range(8)]
        choice = random.Random(2)  # noqa: S311 - a test's choice is no secret
        lists = [choice.sample(layers, choice.randint(0, 8)) for _ in range(16)]
        with node.manager() as manager, ThreadPoolExecutor(8) as threads:
            results = list(threads.map(manager.process_desired_layers, lists))
            for wanted, result in zip(lists, results, strict=True):
                there = (*result.kept, *result.restored, *result.installed)
                assert {layer.digest for layer in there} == {layer.digest for layer in wanted}
        in_use = {row.digest for row in node.rows() if not row.cached}
        assert in_use in [{layer.digest for layer in wanted} for wanted in lists]
        node.assert_has({layer.digest: layer for wanted in lists for layer in wanted})

    def test_every_operation_at_once(self, node: Node) -> None:
        layers = [node.publish(str(number)) for number in range(4)]
        allocators = RecordingAllocators()
        with (
            node.manager(new_space_allocator=allocators) as manager,
            ThreadPoolExecutor(6) as threads,
        ):
            operations: list[Future[object]] = []
            for number in range(12):
                operations += (
                    threads.submit(manager.process_desired_layers, layers[number % 4 :]),
                    threads.submit(manager.remove_cached_layers, 1),
                    threads.submit(manager.remove_expired_layers, timedelta(0)),
                    threads.submit(manager.get_layers_info),
                )
            for operation in operations:
                operation.result()
            manager.process_desired_layers(layers)
            assert allocators.held == 0
        node.assert_has(layers)

    def test_readers_are_not_kept_waiting(self, node: Node, server: LayerServer) -> None:
        there = node.publish("there")
        hanging, stall = stalled(server, "hanging")
        with node.manager() as manager:
            manager.process_desired_layers([there])
            with installing(manager, [there, hanging]) as raised:
                stall.reached.wait()
                inventory = Inventory(node.config)
                assert names_in(inventory.layers()) == ["there"]
                assert inventory.layer(there.digest).digest == there.digest
                assert inventory.plan([there, hanging]).install == (hanging,)
                assert inventory.usage().desired > 0
                assert names_in(manager.get_layers_info()) == ["there"]
                assert manager.get_layer_info_by_digest(there.digest).layer_id == "there"
                stall.until.set()
            assert raised == []
            assert sorted(names_in(manager.get_layers_info())) == ["hanging", "there"]

    def test_a_layer_that_is_ready_does_not_wait_for_one_that_hangs(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        installed = threading.Event()

        def on_progress(progress: LayerProgress) -> None:
            if progress.phase is Phase.INSTALLED:
                installed.set()

        node = Node(tmp_path, parallel_installs=2)
        ready = node.publish("ready")
        hanging, stall = stalled(server, "hanging")
        with (
            node.manager(on_progress=on_progress) as manager,
            installing(manager, [hanging, ready]) as raised,
        ):
            stall.reached.wait()
            installed.wait()
            assert names_in(manager.get_layers_info()) == ["ready"]
            stall.until.set()
        assert raised == []
        node.assert_has([ready, hanging])


class TestCancelling:
    def test_one_operation_ends_and_leaves_nothing_and_the_next_one_is_done(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        node = Node(tmp_path, parallel_installs=2)
        done = node.publish("done")
        hanging, stall = stalled(server, "hanging")
        cancellation = Cancellation()
        with node.manager() as manager:
            manager.process_desired_layers([done])
            with installing(manager, [done, hanging], cancellation) as raised:
                stall.reached.wait()
                cancellation.cancel()
            assert [type(error) for error in raised] == [CancelledError]
            stall.until.set()
            node.assert_has([done])
            assert names_in(manager.process_desired_layers([done]).kept) == ["done"]

    def test_what_was_cancelled_before_it_began_does_nothing(self, node: Node) -> None:
        cancellation = Cancellation()
        cancellation.cancel()
        one = node.publish("one")
        with node.manager() as manager:
            with pytest.raises(CancelledError, match="not wanted any more"):
                manager.process_desired_layers([one], cancellation=cancellation)
            with pytest.raises(CancelledError, match="not wanted any more"):
                manager.repair_layers([], cancellation=cancellation)
        node.assert_has([])

    def test_waiting_for_another_process_ends(self, node: Node) -> None:
        cancellation = Cancellation()
        another_process = StoreLock(node.config.working_dir, SystemClock())
        with (
            node.manager(patience=timedelta.max) as manager,
            another_process.held(timedelta(0), threading.Event()),
            installing(manager, [], cancellation) as raised,
        ):
            cancellation.cancel()
        assert [type(error) for error in raised] == [CancelledError]


class TestClosing:
    def test_an_installation_is_cancelled_and_leaves_nothing(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        node = Node(tmp_path, parallel_installs=2)
        threads = set(threading.enumerate())
        done = node.publish("done")
        hanging = [stalled(server, name) for name in ("one", "two")]
        allocators = RecordingAllocators()
        manager = node.manager(new_space_allocator=allocators)
        manager.process_desired_layers([done])
        with installing(manager, [done, *(layer for layer, _ in hanging)]) as raised:
            for _, stall in hanging:
                stall.reached.wait()
            began = time.monotonic()
            manager.close()
            assert time.monotonic() - began < CLOSING_SECONDS
        assert [type(error) for error in raised] == [CancelledError]
        for _, stall in hanging:
            stall.until.set()
        assert allocators.held == 0
        assert descendants() == set()
        left = set(threading.enumerate()) - threads
        assert {
            thread.name for thread in left if thread.name.startswith(("install", "layer"))
        } == set()
        node.assert_has([done])

    def test_a_server_that_does_not_answer_at_all_keeps_nobody_waiting(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        network = Network(read_timeout=timedelta(seconds=2 * CLOSING_SECONDS))
        node = Node(tmp_path, network=network)
        stall = Stall(threading.Event(), after=None)
        silent = desired(b"silent", server.answer("/silent", Answer(stall=stall)))
        manager = node.manager()
        with installing(manager, [silent]) as raised:
            stall.reached.wait()
            began = time.monotonic()
            manager.close()
            took = time.monotonic() - began
        assert [type(error) for error in raised] == [CancelledError]
        assert took < CLOSING_SECONDS

    def test_a_read_that_waits_for_bytes_is_aborted(self, node: Node) -> None:
        source = HangingSource()
        manager = node.manager(sources={"hanging": source})
        with installing(manager, [desired(b"one", "hanging:one")]) as raised:
            source.is_read.wait()
            manager.close()
        assert [type(error) for error in raised] == [CancelledError]
        assert source.was_aborted.is_set()
        assert source.is_closed

    def test_layers_that_wait_for_their_turn_are_not_begun(
        self, tmp_path: Path, server: LayerServer
    ) -> None:
        node = Node(tmp_path, parallel_installs=1)
        hanging, stall = stalled(server, "hanging")
        waiting = [
            replace(node.publish(f"waiting-{number}"), url=server.add(f"/waiting-{number}", b""))
            for number in range(5)
        ]
        manager = node.manager()
        with installing(manager, [hanging, *waiting]) as raised:
            stall.reached.wait()
            manager.close()
        assert [type(error) for error in raised] == [CancelledError]
        assert [request.target for request in server.requests] == ["/hanging"]

    def test_what_waits_for_its_turn_ends_too(self, node: Node, server: LayerServer) -> None:
        hanging, stall = stalled(server, "hanging")
        manager = node.manager()
        with installing(manager, [hanging]) as first:
            stall.reached.wait()
            with installing(manager, []) as second, installing(manager, [hanging]) as third:
                manager.close()
        assert [type(error) for error in first + second + third] == [CancelledError] * 3
        node.assert_has([])

    def test_from_many_threads(self, node: Node, server: LayerServer) -> None:
        hanging, stall = stalled(server, "hanging")
        manager = node.manager()
        with installing(manager, [hanging]) as raised:
            stall.reached.wait()
            with ThreadPoolExecutor(4) as threads:
                for closing in [threads.submit(manager.close) for _ in range(4)]:
                    closing.result()
        assert [type(error) for error in raised] == [CancelledError]
        assert descendants() == set()

    def test_another_manager_goes_on(self, node: Node, server: LayerServer) -> None:
        hanging, stall = stalled(server, "hanging")
        manager = node.manager()
        with installing(manager, [hanging]):
            stall.reached.wait()
            manager.close()
        stall.until.set()
        with node.manager() as manager:
            server.answer("/hanging", Answer(_package("hanging")))
            assert names_in(manager.process_desired_layers([hanging]).installed) == ["hanging"]
        node.assert_has([hanging])


class HangingSource:
    """A ``Source``, and the one stream of it, from which nothing ever comes."""

    is_local = False
    size: int | None = None
    offset = 0
    validator = ""

    def __init__(self) -> None:
        self.is_read = threading.Event()
        self.was_aborted = threading.Event()
        self.is_closed = False

    def open(self, url: str, *_: object, **__: object) -> HangingSource:
        assert url == "hanging:one"
        return self

    def read(self, size: int) -> bytes:
        self.is_read.set()
        assert size > 0
        self.was_aborted.wait(CLOSING_SECONDS)
        raise SourceError("aborted", url="hanging:one")

    def abort(self) -> None:
        self.was_aborted.set()

    def close(self) -> None:
        self.is_closed = True


def _package(name: str) -> bytes:
    return build_package(compress(layer_tar(name, 300_000), "gzip"))


@contextmanager
def other_process(node: Node, layer: DesiredLayer) -> Iterator[subprocess.Popen[str]]:
    """Another process with a manager of the same store that installs a bare blob when told to."""
    script = [sys.executable, "-c", textwrap.dedent(INSTALLER), str(node.config.working_dir)]
    with subprocess.Popen(
        [*script, layer.digest, layer.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def wait_until_installed(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "installed\n"


def bare_and_stalled(server: LayerServer) -> tuple[DesiredLayer, Stall]:
    blob = compress(layer_tar("bare", 300_000), "gzip")
    stall = Stall(threading.Event(), after=200_000)
    return desired(blob, server.answer("/bare", Answer(blob, stall=stall))), stall


class TestProcesses:
    def test_a_second_one_is_refused_and_told_by_whom(
        self, node: Node, server: LayerServer
    ) -> None:
        layer, stall = bare_and_stalled(server)
        one = node.publish("one")
        with node.manager() as manager, other_process(node, layer) as other:
            manager.process_desired_layers([one])
            begin(other)
            stall.reached.wait()
            with pytest.raises(StoreBusyError, match=f"process {other.pid}"):
                manager.process_desired_layers([])
            with pytest.raises(StoreBusyError, match=f"process {other.pid}"):
                node.manager()
            # Readers are not refused.
            assert names_in(manager.get_layers_info()) == ["one"]
            assert names_in(Inventory(node.config).layers()) == ["one"]
            stall.until.set()
            wait_until_installed(other)
            assert len(manager.process_desired_layers([one, layer]).restored) == 1
        node.assert_has([one, layer])

    def test_with_patience_it_waits(self, node: Node, server: LayerServer) -> None:
        layer, stall = bare_and_stalled(server)
        clock = FakeClock()
        results: list[list[str]] = []

        def wait_and_apply() -> None:
            with node.manager(clock=clock, patience=timedelta(hours=1)) as manager:
                results.append([row.digest for row in manager.process_desired_layers([layer]).kept])

        with other_process(node, layer) as other:
            begin(other)
            stall.reached.wait()
            waiting = threading.Thread(target=wait_and_apply)
            waiting.start()
            clock.wait_for_waiters(1)
            assert results == []
            stall.until.set()
            wait_until_installed(other)
            clock.advance(timedelta(seconds=1))
            waiting.join()
        assert results == [[layer.digest]]

    def test_closing_ends_the_patience(self, node: Node, server: LayerServer) -> None:
        layer, stall = bare_and_stalled(server)
        clock = FakeClock()
        with node.manager(clock=clock, patience=timedelta(hours=1)) as manager:
            clock.wait_for_waiters(1)  # the timer
            with other_process(node, layer) as other:
                begin(other)
                stall.reached.wait()
                with installing(manager, []) as raised:
                    clock.wait_for_waiters(2)
                    manager.close()
                assert [type(error) for error in raised] == [CancelledError]
                stall.until.set()

    def test_what_another_process_did_is_seen(self, node: Node, server: LayerServer) -> None:
        layer, stall = bare_and_stalled(server)
        stall.until.set()
        one = node.publish("one")
        allocators = RecordingAllocators()
        with (
            node.manager(new_space_allocator=allocators) as manager,
            other_process(node, layer) as other,
        ):
            manager.process_desired_layers([one])
            begin(other)
            wait_until_installed(other)
            assert manager.get_layer_info_by_digest(one.digest).cached
            result = manager.process_desired_layers([one])
            assert names_in(result.restored) == ["one"]
            assert [row.digest for row in result.cached] == [layer.digest]
            manager.process_desired_layers([one])
            assert allocators.used == sum(row.size for row in node.rows())

    def test_two_managers_of_one_process_take_turns(self, node: Node, server: LayerServer) -> None:
        hanging, stall = stalled(server, "hanging")
        partitions = Partitions()
        with (
            node.manager(new_space_allocator=partitions.new_allocator) as first,
            node.manager(new_space_allocator=partitions.new_allocator) as second,
        ):
            with installing(first, [hanging]) as raised:
                stall.reached.wait()
                with pytest.raises(StoreBusyError):
                    second.process_desired_layers([])
                stall.until.set()
            assert raised == []
            assert names_in(second.process_desired_layers([]).cached) == ["hanging"]
