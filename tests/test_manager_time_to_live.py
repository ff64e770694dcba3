from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import CancelledError, LayerNotExistError, StorageError
from layermanager.testing.clock import FakeClock
from layermanager.testing.layers import compress, desired
from layermanager.testing.storage import MemoryLayerStorage
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import Node, layer_tar, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.model import LayerInfo

DAY = timedelta(days=1)
PERIOD = timedelta(hours=6)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path, layer_ttl_days=10, remove_cached_layers_period=PERIOD)


def pass_time(clock: FakeClock, duration: timedelta) -> None:
    """Let *duration* pass, and return when the timer has done what was due."""
    clock.wait_for_waiters(1)
    clock.advance(duration)
    clock.wait_for_waiters(1)


class TestTimer:
    def test_it_removes_what_is_past_its_time(self, node: Node, clock: FakeClock) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one, two])
            manager.process_desired_layers([two])
            pass_time(clock, 10 * DAY)
            assert names_in(manager.get_layers_info()) == ["two"]
        node.assert_has([two])

    def test_it_runs_as_often_as_configured(self, node: Node, clock: FakeClock) -> None:
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([node.publish("one")])
            manager.process_desired_layers([])
            pass_time(clock, 10 * DAY - PERIOD / 2)
            assert names_in(manager.get_layers_info()) == ["one"]
            # Past its time to live now, but the timer's period is not over.
            pass_time(clock, PERIOD / 2)
            assert names_in(manager.get_layers_info()) == ["one"]
            pass_time(clock, PERIOD / 2)
            assert manager.get_layers_info() == ()

    def test_time_counts_from_when_a_layer_stopped_being_desired(
        self, node: Node, clock: FakeClock
    ) -> None:
        one = node.publish("one")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one])
            pass_time(clock, 100 * DAY)
            manager.process_desired_layers([])
            pass_time(clock, 9 * DAY)
            assert names_in(manager.get_layers_info()) == ["one"]
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            pass_time(clock, 9 * DAY)
            assert names_in(manager.get_layers_info()) == ["one"]
            pass_time(clock, DAY)
            assert manager.get_layers_info() == ()

    def test_repeating_that_a_layer_is_not_desired_does_not_prolong_its_time(
        self, node: Node, clock: FakeClock
    ) -> None:
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([node.publish("one")])
            for _ in range(10):
                manager.process_desired_layers([])
                pass_time(clock, DAY)
            assert manager.get_layers_info() == ()

    def test_what_fails_is_logged_and_tried_again(
        self, node: Node, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Sometimes(MemoryLayerStorage):
            fails = False

            def get_layers_info(self) -> tuple[LayerInfo, ...]:
                if self.fails:
                    raise StorageError("out of order")
                return super().get_layers_info()

        storage = Sometimes(clock)
        with node.manager(clock=clock, layer_storage=storage) as manager:
            manager.process_desired_layers([node.publish("one")])
            manager.process_desired_layers([])
            storage.fails = True
            pass_time(clock, 10 * DAY)
            assert "cannot remove expired layers: out of order" in caplog.messages
            storage.fails = False
            pass_time(clock, PERIOD)
            assert manager.get_layers_info() == ()

    def test_closing_while_it_waits_for_its_turn_is_no_error_of_it(
        self, node: Node, caplog: pytest.LogCaptureFixture
    ) -> None:
        class TellingClock(FakeClock):
            """Tells when a period is over for who waited for it."""

            def __init__(self) -> None:
                super().__init__()
                self.is_due = threading.Event()

            def wait(self, event: threading.Event, seconds: float) -> bool:
                is_set = super().wait(event, seconds)
                if not is_set:
                    self.is_due.set()
                return is_set

        clock = TellingClock()
        blob = compress(layer_tar("one", 100_000), "gzip")
        stall = Stall(threading.Event(), after=1000)
        with LayerServer() as server:
            wanted = desired(blob, server.answer("/one", Answer(blob, stall=stall)))
            manager = node.manager(clock=clock)
            clock.wait_for_waiters(1)

            def install() -> None:
                with pytest.raises(CancelledError):
                    manager.process_desired_layers([wanted])

            installing = threading.Thread(target=install)
            installing.start()
            stall.reached.wait()
            clock.advance(PERIOD)
            clock.is_due.wait()
            manager.close()
            installing.join()
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


class TestAtStart:
    def test_what_is_past_its_time_goes(self, node: Node, clock: FakeClock) -> None:
        one, two = node.publish("one"), node.publish("two")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one, two])
            manager.process_desired_layers([two])
        clock.advance(10 * DAY)
        with node.manager(clock=clock) as manager:
            assert names_in(manager.get_layers_info()) == ["two"]
        node.assert_has([two])

    @pytest.mark.parametrize("days", [10**9, 10**18])
    def test_a_huge_time_to_live_means_for_ever(
        self, tmp_path: Path, clock: FakeClock, days: int
    ) -> None:
        node = Node(tmp_path, layer_ttl_days=days)
        one = node.publish("one")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            clock.advance(1000 * 365 * DAY)
        with node.manager(clock=clock):
            pass
        node.assert_has([one])

    def test_no_time_to_live_keeps_nothing(self, tmp_path: Path, clock: FakeClock) -> None:
        node = Node(tmp_path, layer_ttl_days=0)
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([node.publish("one")])
            manager.process_desired_layers([])
            assert names_in(manager.get_layers_info()) == ["one"]
        with node.manager(clock=clock):
            pass
        node.assert_has([])


class TestByHand:
    @pytest.fixture
    def aged(self, node: Node, clock: FakeClock) -> Iterator[tuple[Node, FakeClock]]:
        """Layers that stopped being desired one day after the other: first b, then c, then a."""
        layers = {name: node.publish(name) for name in "abcd"}
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers(layers.values())
            for name in "bca":
                clock.advance(DAY)
                del layers[name]
                manager.process_desired_layers(layers.values())
        yield node, clock
        node.assert_has(row.digest for row in node.rows())

    def test_a_time_to_live_of_the_callers(self, aged: tuple[Node, FakeClock]) -> None:
        node, clock = aged
        with node.manager(clock=clock) as manager:
            assert names_in(manager.remove_expired_layers(DAY)) == ["b", "c"]
            assert sorted(names_in(manager.get_layers_info())) == ["a", "d"]
            assert names_in(manager.remove_expired_layers()) == []
            assert names_in(manager.remove_expired_layers(timedelta(0))) == ["a"]
            assert names_in(manager.remove_expired_layers(timedelta(0))) == []

    def test_an_amount_of_space(self, aged: tuple[Node, FakeClock]) -> None:
        node, clock = aged
        with node.manager(clock=clock) as manager:
            assert manager.remove_cached_layers(0) == ()
            size = manager.get_layers_info()[0].size
            assert names_in(manager.remove_cached_layers(size + 1)) == ["b", "c"]
            assert names_in(manager.remove_cached_layers(10**12)) == ["a"]
            assert names_in(manager.get_layers_info()) == ["d"]

    def test_a_removed_layer_can_be_had_again(self, node: Node, clock: FakeClock) -> None:
        one = node.publish("one")
        with node.manager(clock=clock) as manager:
            manager.process_desired_layers([one])
            manager.process_desired_layers([])
            manager.remove_cached_layers(1)
            with pytest.raises(LayerNotExistError):
                manager.get_layer_info_by_digest(one.digest)
            assert names_in(manager.process_desired_layers([one]).installed) == ["one"]
