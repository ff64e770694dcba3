"""What an observer is told, by real installations and removals."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import LayersFailedError
from layermanager.model import Limits
from layermanager.observer import Removal
from layermanager.testing.layers import LayerBuilder, build_package, compress
from layermanager.testing.observer import RecordingObserver
from layermanager.testing.web import Answer, LayerServer
from manager_fixtures import MIB, Node, names_in

if TYPE_CHECKING:
    from pathlib import Path

    from layermanager.model import LayerInfo


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def told(observer: RecordingObserver) -> list[tuple[str, Removal]]:
    return [(layer.layer_id, why) for layer, why in observer.removals]


def test_what_is_fetched_and_written_is_added_up(node: Node) -> None:
    layers = [node.publish(name, MIB) for name in ("one", "two")]
    observer = RecordingObserver()
    with node.manager(observer=observer) as manager:
        installed: tuple[LayerInfo, ...] = manager.process_desired_layers(layers).installed
        again = manager.process_desired_layers(layers)
    assert names_in(again.kept) == ["one", "two"]
    assert observer.fetched_bytes == sum(layer.size or 0 for layer in layers)
    assert observer.written_bytes == sum(layer.size for layer in installed)
    assert observer.retries == 0


def test_what_was_in_vain_counts_too(tmp_path: Path) -> None:
    node = Node(tmp_path, limits=Limits(unpacked_bytes=40 * MIB))
    builder = LayerBuilder()
    for number in range(8):
        builder.file(str(number), b"\1" * 8 * MIB)
    blob = compress(builder.tar(), "gzip")
    layer = node.publish_bytes("too large", blob, build_package(blob))
    observer = RecordingObserver()
    with node.manager(observer=observer) as manager, pytest.raises(LayersFailedError):
        manager.process_desired_layers([layer])
    assert observer.fetched_bytes == layer.size
    assert 0 < observer.written_bytes <= 41 * MIB


def test_each_further_try_counts(node: Node) -> None:
    layer = node.publish("one")
    data = (node.published / "one").read_bytes()
    observer = RecordingObserver()
    with LayerServer() as server, node.manager(observer=observer) as manager:
        url = server.answer("/one", Answer(status=503), Answer(data))
        manager.process_desired_layers([type(layer)(layer.digest, url, sha256=layer.sha256)])
    assert observer.retries == 1
    assert observer.fetched_bytes == len(data)


def test_removals_say_why(node: Node) -> None:
    layers = [node.publish(name) for name in ("kept", "expired", "requested")]
    observer = RecordingObserver()
    with node.manager(observer=observer) as manager:
        manager.process_desired_layers(layers[:2])
        manager.process_desired_layers(layers[:1])
        manager.remove_expired_layers(timedelta(0))
        manager.process_desired_layers([layers[0], layers[2]])
        manager.process_desired_layers(layers[:1])
        manager.remove_cached_layers(1)
    assert told(observer) == [("expired", Removal.EXPIRED), ("requested", Removal.REQUESTED)]


def test_evictions_are_told(tmp_path: Path, small_file_system: Path) -> None:
    node = Node(tmp_path, working_dir=small_file_system / "work")
    first, second = (node.publish(name, 4 * MIB) for name in ("first", "second"))
    observer = RecordingObserver()
    with node.manager(observer=observer) as manager:
        manager.process_desired_layers([first])
        manager.process_desired_layers([])
        manager.process_desired_layers([second])
    assert told(observer) == [("first", Removal.EVICTED)]
