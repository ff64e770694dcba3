"""Signals that come while a layer is fetched."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from cli_fixtures import CommandLine, Finished, write_desired

from layermanager.testing.layers import desired
from layermanager.testing.web import Answer, LayerServer, Stall
from manager_fixtures import Node, layer_tar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Send = Callable[[signal.Signals], None]
    Apply = Callable[[signal.Signals, Send], Finished]

PATIENCE_SECONDS = 30


@pytest.fixture
def hangup() -> Iterator[None]:
    """What is done about SIGHUP is as it was before, at the end."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def apply(node: Node, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Apply]:
    """Applies a list with one layer, and sends a signal when half of it was sent."""
    blob = layer_tar("app", 100_000)
    half_way = Stall(threading.Event(), after=len(blob) // 2)
    layermanager = CommandLine(node.config.working_dir, capfd)
    with LayerServer() as server:
        url = server.answer("/app", Answer(blob, stall=half_way))
        path = write_desired(tmp_path / "desired.json", [desired(blob, url)])

        def apply(number: signal.Signals, send: Send) -> Finished:
            def interrupt() -> None:
                half_way.reached.wait(PATIENCE_SECONDS)
                send(number)
                if signal.getsignal(number) is signal.SIG_IGN:
                    half_way.until.set()

            thread = threading.Thread(target=interrupt)
            thread.start()
            try:
                return layermanager("apply", path)
            finally:
                thread.join()

        yield apply


def to_the_process(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def to_another_thread(number: signal.Signals) -> None:
    """Nothing interrupts what the main thread waits for then."""
    signal.pthread_kill(threading.get_ident(), number)


@pytest.mark.parametrize("send", [to_the_process, to_another_thread])
def test_a_terminal_that_is_closed_ends_the_command(node: Node, apply: Apply, send: Send) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    finished = apply(signal.SIGHUP, send)

    assert finished.status == 128 + signal.SIGHUP
    assert finished.err.splitlines()[-1] == "hung up"
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    node.assert_has([])


@pytest.mark.usefixtures("hangup")
def test_nohup_is_heard(node: Node, apply: Apply) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    finished = apply(signal.SIGHUP, to_the_process)

    assert finished.status == 0
    assert len(node.rows()) == 1
