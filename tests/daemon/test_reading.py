"""Reading often what seldom changes."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from layermanager.daemon.reading import CurrentLayers, Recent
from layermanager.inventory import Inventory
from layermanager.testing.clock import FakeClock
from manager_fixtures import Node, names_in

NOW = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def current(node: Node) -> CurrentLayers:
    return CurrentLayers(Inventory(node.config), node.config)


def date(node: Node, seconds: float) -> None:
    """Make the store look as if it had been changed last at this time, in seconds since 1970."""
    database = node.config.database
    for path in (
        *(database, database.with_name(f"{database.name}-wal")),
        *(node.config.layers_dir / "sha256", node.config.index_dir / "sha256"),
    ):
        if path.exists():
            os.utime(path, (seconds, seconds))


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread sleeps until it is woken."""
    stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def test_without_a_store_there_are_no_layers(node: Node) -> None:
    assert current(node).get() == ()


def test_what_did_not_change_is_not_read_again(node: Node) -> None:
    layers = current(node)
    with node.manager() as manager:
        manager.process_desired_layers([node.publish("one")])
        date(node, 1_700_000_000)
        first = layers.get()
        assert layers.get() is first
        manager.process_desired_layers([])
        assert [layer.cached for layer in layers.get()] == [True]


def test_a_layer_that_is_gone_before_its_row_is_noticed(node: Node) -> None:
    layers = current(node)
    with node.manager() as manager:
        (layer,) = manager.process_desired_layers([node.publish("one")]).installed
        manager.process_desired_layers([])
        date(node, 1_700_000_000)
        assert names_in(layers.get()) == ["one"]
        layer.path.rename(node.published / "elsewhere")
        assert layers.get() == ()


def test_what_changed_just_now_is_read_again(node: Node) -> None:
    layers = current(node)
    with node.manager() as manager:
        for count in range(1, 20):
            manager.process_desired_layers([node.publish(f"{count:02}")])
            assert len(names_in(layers.get())) == count


def test_those_who_wait_share_what_was_read_meanwhile(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that began after somebody asked is as good as one of its own."""
    reads: list[int] = []
    begun, may_end = threading.Event(), threading.Event()

    def layers(_: Inventory) -> tuple[()]:
        reads.append(len(reads))
        begun.set()
        assert may_end.wait(30)
        return ()

    monkeypatch.setattr(Inventory, "layers", layers)
    asked = current(node)
    with node.manager() as manager:
        manager.process_desired_layers([])
        date(node, time.time() + 3600)  # it was changed just now, however long the threads take
        threads = [threading.Thread(target=asked.get) for _ in range(20)]
        threads[0].start()
        assert begun.wait(30)
        for thread in threads[1:]:
            thread.start()
        while not all(is_waiting(thread) for thread in threads[1:]):
            pass
        may_end.set()
        for thread in threads:
            thread.join()
    # The first, and one for all who waited; one may have slept before it asked.
    assert 2 <= len(reads) < len(threads) / 2


@dataclass
class Counting:
    reads: list[int] = field(default_factory=list)

    def __call__(self) -> int:
        self.reads.append(len(self.reads))
        return len(self.reads)


def test_what_is_dear_is_found_out_once_a_second() -> None:
    clock = FakeClock(NOW)
    recent = Recent(Counting(), clock)
    assert [recent.get(), recent.get()] == [1, 1]
    clock.advance(timedelta(seconds=0.9))
    assert recent.get() == 1
    clock.advance(timedelta(seconds=0.2))
    assert [recent.get(), recent.get()] == [2, 2]


def test_while_one_finds_it_out_the_others_have_what_was() -> None:
    clock = FakeClock(NOW)
    begun, may_end = threading.Event(), threading.Event()
    values = iter([1, 2])

    def read() -> int:
        value = next(values)
        if value == 2:
            begun.set()
            assert may_end.wait(30)
        return value

    recent = Recent(read, clock)
    assert recent.get() == 1
    clock.advance(timedelta(seconds=2))
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(recent.get()))
    thread.start()
    assert begun.wait(30)
    assert recent.get() == 1
    may_end.set()
    thread.join()
    assert [*found, recent.get()] == [2, 2]


def test_a_value_that_is_too_old_is_waited_for() -> None:
    clock = FakeClock(NOW)
    begun, may_end = threading.Event(), threading.Event()
    values = iter([1, 2, 3])

    def read() -> int:
        value = next(values)
        if value == 2:
            begun.set()
            assert may_end.wait(30)
        return value

    recent = Recent(read, clock)
    assert recent.get() == 1
    clock.advance(timedelta(seconds=9))
    found: list[int] = []
    reading = threading.Thread(target=lambda: found.append(recent.get()))
    reading.start()
    assert begun.wait(30)
    assert recent.get() == 1
    clock.advance(timedelta(seconds=2))
    waiting = threading.Thread(target=lambda: found.append(recent.get()))
    waiting.start()
    while not is_waiting(waiting):
        pass
    may_end.set()
    reading.join()
    waiting.join()
    assert found == [2, 3]  # never the one that is eleven seconds old
