"""Layers whose transfer was cut short, by an error or the end of the process, arrive after all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest

from layermanager.desired import desired_to_json
from layermanager.errors import CancelledError, LayersFailedError, SourceError, StoreError
from layermanager.model import Repair
from layermanager.space import DiskUsage, Partitions
from layermanager.steps import Step
from layermanager.testing.fault_server import BUFFER_BYTES, FaultServer
from layermanager.testing.faults import Drip, Stall, Status, Truncate
from layermanager.testing.layers import build_package, desired
from layermanager.transfer.spool import MARK_BYTES
from manager_fixtures import IMPATIENT, MIB, Node, layer_tar, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import DesiredLayer, LayerProgress

SPOOLED: Final = replace(IMPATIENT, spool_bytes=1 * MIB)
NOT_FOUND: Final = Status(404)
LARGE: Final = 2 * MARK_BYTES + 5 * MIB
MEDIUM: Final = 2 * MIB
LONG: Final = 20  # seconds after which something that should happen at once counts as hanging
AT_ONCE: Final = timedelta(0)
OK: Final = Drip(MIB, AT_ONCE)  # as good as no fault

INSTALLER: Final = """
    import sys
    from pathlib import Path
    from layermanager import LayerManager
    from layermanager.config import load_config
    from layermanager.desired import read_desired
    def tell(progress):
        print(progress.transferred, flush=True)
    with LayerManager(load_config(Path(sys.argv[1])), on_progress=tell) as manager:
        manager.process_desired_layers(read_desired(sys.argv[2].encode(), "argument"))
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, network=SPOOLED)


def publish(server: FaultServer, name: str, size: int = MEDIUM) -> DesiredLayer:
    blob = layer_tar(name, size)
    package = build_package(blob)
    return desired(blob, server.add(f"/{name}", package), package=package, layer_id=name)


def size_of(layer: DesiredLayer) -> int:
    assert layer.size is not None
    return layer.size


def spools(node: Node) -> set[str]:
    """The digests of the layers of which something is spooled."""
    if not node.config.download_dir.exists():
        return set()
    return {path.stem.replace("-", ":") for path in node.config.download_dir.iterdir()}


def interrupt(node: Node, layer: DesiredLayer) -> None:
    """Begin to install a layer whose server breaks off, and then has it no more."""
    with node.manager() as manager, pytest.raises(LayersFailedError) as caught:
        manager.process_desired_layers([layer])
    (error,) = caught.value.exceptions
    assert isinstance(error, SourceError)
    assert spools(node) == {layer.digest}


def install(node: Node, *layers: DesiredLayer) -> list[str]:
    with node.manager() as manager:
        return names_in(manager.process_desired_layers(layers).installed)


# --- the end of the process ---------------------------------------------------------------------


def kill_when_it_has(node: Node, layer: DesiredLayer, transferred: int) -> None:
    """Have a process install *layer*, and kill it when so many bytes have arrived there."""
    settings = {"workingDir": str(node.config.working_dir)}
    network = {"spoolBytes": SPOOLED.spool_bytes}
    config = node.published / "config.json"
    config.write_text(json.dumps({**settings, "layerManager": {"network": network}}))
    document = json.dumps([desired_to_json(layer)])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INSTALLER), str(config), document],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= transferred:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL


class TestKilled:
    def test_what_arrived_is_not_fetched_again(self, node: Node) -> None:
        arrived = 2 * MARK_BYTES + 2 * MIB
        with FaultServer([Stall(after=arrived)]) as server:
            layer = publish(server, "large", LARGE)
            kill_when_it_has(node, layer, arrived)
            assert spools(node) == {layer.digest}
            assert install(node, layer) == ["large"]
            first, second = server.exchanges
        assert first.sent == arrived
        assert second.range is not None
        assert second.range.first >= 2 * MARK_BYTES
        assert second.request.headers["if-range"]
        assert server.sent <= size_of(layer) + MARK_BYTES + BUFFER_BYTES
        node.assert_has([layer])
        assert (next(iter(node.rows())).path / "data").stat().st_size == LARGE
        assert spools(node) == set()

    def test_however_often(self, node: Node) -> None:
        times = [3 * MIB, MARK_BYTES + 3 * MIB, 2 * MARK_BYTES + 1, 2 * MARK_BYTES + 4 * MIB]
        with FaultServer() as server:
            layer = publish(server, "large", LARGE)
            for transferred in times:
                kill_when_it_has(node, layer, transferred)
            assert install(node, layer) == ["large"]
        assert server.sent <= size_of(layer) + len(times) * (MARK_BYTES + BUFFER_BYTES)
        node.assert_has([layer])
        assert spools(node) == set()

    def test_a_manager_that_is_closed_loses_nothing(self, node: Node) -> None:
        has_arrived = threading.Event()

        def look(progress: LayerProgress) -> None:
            if progress.transferred == MIB:
                has_arrived.set()

        with FaultServer([Stall(after=MIB)]) as server, ThreadPoolExecutor(1) as thread:
            layer = publish(server, "medium")
            manager = node.manager(on_progress=look)
            installing = thread.submit(manager.process_desired_layers, [layer])
            assert has_arrived.wait(LONG)
            manager.close()
            assert isinstance(installing.exception(LONG), CancelledError)
            assert install(node, layer) == ["medium"]
        assert [exchange.sent for exchange in server.exchanges] == [MIB, size_of(layer) - MIB]
        node.assert_has([layer])

    def test_a_repair_goes_on_as_well(self, node: Node) -> None:
        with FaultServer([OK, Truncate(MIB), NOT_FOUND]) as server:
            layer = publish(server, "medium")
            install(node, layer)
            with node.manager() as manager:
                repair = Repair(manager.get_layer_info_by_digest(layer.digest), layer)
                with pytest.raises(LayersFailedError):
                    manager.repair_layers([repair])
            assert spools(node) == {layer.digest}
            with node.manager() as manager:
                assert names_in(manager.repair_layers([repair])) == ["medium"]
        assert server.exchanges[-1].sent == size_of(layer) - MIB
        assert spools(node) == set()
        node.assert_has([layer])


# --- the end of a spool -------------------------------------------------------------------------


class TestEnd:
    def test_it_comes_after_the_commit(self, node: Node) -> None:
        steps: list[Step] = []
        with FaultServer() as server:
            layer = publish(server, "one")
            with node.manager(on_step=steps.append) as manager:
                manager.process_desired_layers([layer])
        assert Step.COMMIT_ROWS not in steps[steps.index(Step.REMOVE_SPOOL) :]
        assert spools(node) == set()

    @pytest.mark.parametrize("step", [Step.SYNC_LAYERS, Step.PLACE_LAYER])
    def test_without_a_commit_it_stays(self, node: Node, step: Step) -> None:
        """Next time nothing need be fetched."""

        def fail(current: Step) -> None:
            if current is step:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        with FaultServer() as server:
            layer = publish(server, "one")
            with node.manager(on_step=fail) as manager, pytest.raises(LayersFailedError) as caught:
                manager.process_desired_layers([layer])
            assert isinstance(caught.value.exceptions[0], StoreError)
            assert install(node, layer) == ["one"]
        assert server.sent == size_of(layer)
        assert len(server.exchanges) == 1
        node.assert_has([layer])

    def test_nobody_desires_it_any_more(self, node: Node) -> None:
        with FaultServer([Truncate(MIB), NOT_FOUND]) as server:
            interrupt(node, publish(server, "one"))
            install(node)
        assert spools(node) == set()

    def test_its_layer_is_there(self, node: Node) -> None:
        """As after a crash between the commit and the removal of the spool."""
        with FaultServer() as server:
            layer = publish(server, "one")
            install(node, layer)
            spool = node.config.download_dir / f"{layer.digest.replace(':', '-')}.part"
            spool.write_bytes(bytes(MIB))
            with node.manager() as manager:
                assert names_in(manager.process_desired_layers([layer]).kept) == ["one"]
        assert spools(node) == set()

    def test_nothing_else_ends_it(self, node: Node) -> None:
        with FaultServer([Truncate(MIB), NOT_FOUND]) as server:
            layer = publish(server, "one")
            interrupt(node, layer)
            leftover = node.config.layers_dir / ".staging" / "left.over"
            leftover.mkdir()
            with node.manager() as manager:
                manager.remove_cached_layers(1 << 40)
                manager.remove_expired_layers(AT_ONCE)
            assert node.leftovers() == []
            assert spools(node) == {layer.digest}
            assert install(node, layer) == ["one"]
        assert server.exchanges[-1].sent == size_of(layer) - MIB

    def test_files_of_others_stay(self, node: Node) -> None:
        """Those of an Aos node, for example, that is taken over."""
        others = node.config.download_dir / "service.tar.gz", node.config.download_dir / "part.part"
        node.config.download_dir.mkdir(parents=True)
        for path in others:
            path.write_text(path.name)
        with FaultServer([Truncate(MIB), NOT_FOUND]) as server:
            layer = publish(server, "one")
            with node.manager() as manager, pytest.raises(LayersFailedError):
                manager.process_desired_layers([layer])
            install(node, layer)
            install(node)
        assert {path: path.read_text() for path in node.config.download_dir.iterdir()} == {
            path: path.name for path in others
        }


# --- a directory that is no good, a disk that is full -------------------------------------------


class TestNoSpool:
    def test_a_small_layer_has_none(self, node: Node) -> None:
        with (
            FaultServer([Truncate(1000), NOT_FOUND]) as server,
            node.manager() as manager,
            pytest.raises(LayersFailedError),
        ):
            manager.process_desired_layers([publish(server, "small", 100_000)])
        assert not node.config.download_dir.exists()

    def test_where_there_can_be_no_directory_layers_arrive_all_the_same(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        node.config.working_dir.mkdir()
        node.config.download_dir.write_text("a file")
        with FaultServer([Truncate(MIB)]) as server:
            layer = publish(server, "one")
            assert install(node, layer) == ["one"]
        assert server.sent == size_of(layer)
        assert f"layer {layer.digest} is not spooled" in caplog.text
        node.assert_has([layer])

    @pytest.mark.parametrize("step", [Step.WRITE_SPOOL, Step.SYNC_SPOOL, Step.REMOVE_SPOOL])
    def test_a_disk_that_refuses_it_does_not_refuse_the_layer(self, node: Node, step: Step) -> None:
        def fail(current: Step) -> None:
            if current is step:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with FaultServer([Truncate(MIB)]) as server:
            layer = publish(server, "one")
            with node.manager(on_step=fail) as manager:
                assert names_in(manager.process_desired_layers([layer]).installed) == ["one"]
        node.assert_has([layer])

    def test_it_makes_room_before_any_cached_layer(self, node: Node) -> None:
        node.config = replace(node.config, parallel_installs=1)
        with FaultServer([OK, Truncate(5 * MIB), NOT_FOUND, NOT_FOUND]) as server:
            cached = publish(server, "cached", 4 * MIB)
            install(node, cached)
            missing = publish(server, "missing", 6 * MIB)
            interrupt(node, missing)
            new = publish(server, "new", 8 * MIB)
            allocators = Partitions(lambda _: usage(node, 16 * MIB)).new_allocator
            with (
                node.manager(new_space_allocator=allocators) as manager,
                pytest.raises(LayersFailedError) as caught,
            ):
                manager.process_desired_layers([missing, new])
        assert names_in(caught.value.result.installed) == ["new"]
        node.assert_has([cached, new])
        assert spools(node) == set()

    def test_also_what_an_earlier_process_left_and_whatever_is_done(self, node: Node) -> None:
        with FaultServer([OK, Truncate(5 * MIB), NOT_FOUND]) as server:
            layer = publish(server, "layer", 4 * MIB)
            install(node, layer)
            interrupt(node, publish(server, "missing", 6 * MIB))
            allocators = Partitions(lambda _: usage(node, 12 * MIB)).new_allocator
            with node.manager(new_space_allocator=allocators) as manager:
                info = manager.get_layer_info_by_digest(layer.digest)
                assert names_in(manager.repair_layers([Repair(info, layer)])) == ["layer"]
        assert spools(node) == set()


def usage(node: Node, total: int) -> DiskUsage:
    """A partition of *total* bytes with nothing on it but layers and spools."""
    directories = (node.config.layers_dir, node.config.download_dir)
    found = subprocess.run(
        ["du", "--summarize", "--total", "--block-size=1", *directories],
        check=False,  # files come and go meanwhile
        capture_output=True,
        text=True,
    )
    taken = int(found.stdout.splitlines()[-1].split()[0])
    return DiskUsage(1, total, total - taken)
