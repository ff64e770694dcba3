"""Many at once on one store, and ends in each phase of an installation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from durability.children import Children
from durability.scenarios import RETURNED
from durability.site import Site, assert_whole
from durability.users import NAMES, publish, take_turns
from layermanager.desired import desired_to_json
from layermanager.errors import CancelledError
from layermanager.inventory import Inventory
from layermanager.testing.trees import snapshot
from manager_fixtures import descendants

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from durability.site import State
    from layermanager.config import Config
    from layermanager.model import LayerInfo
    from layermanager.steps import Step
    from layermanager.testing.trees import FileState

CLOSING_SECONDS = 5.0
"""Enough for a busy machine, and far less than the time-outs of the network."""

WRITERS = 3
TURNS = 4


def read(config: Config, intact: State, done: threading.Event) -> int:
    """Look at every layer that is installed, over and over; return how many that were."""
    inventory = Inventory(config)
    count = 0
    while not done.is_set():
        for row in inventory.layers():
            count += 1
            if tree_of(row) == intact.trees[row.digest]:
                continue
            # It may be gone by now; but then its row went before.
            assert row not in inventory.layers(), f"{row.layer_id} is incomplete"
    return count


def tree_of(row: LayerInfo) -> Mapping[bytes, FileState] | None:
    try:
        return snapshot(row.path)
    except FileNotFoundError:
        return None


def test_readers_see_complete_layers_while_processes_take_turns(fast_path: Path) -> None:
    site = Site(fast_path)
    publish(site)
    site.apply(["earlier", *NAMES])
    intact = site.state()
    done = threading.Event()
    with ThreadPoolExecutor(WRITERS + 2) as threads:
        readers = [threads.submit(read, site.config, intact, done) for _ in range(2)]
        writers = [threads.submit(write, fast_path, seed) for seed in range(WRITERS)]
        try:
            assert [writer.result() for writer in writers] == [RETURNED] * WRITERS
        finally:
            done.set()
        for reader in readers:
            assert reader.result() > len(NAMES)
    assert_whole(site.state(), intact)
    earlier = site.layer("earlier").digest
    assert site.state().rows[earlier] == intact.rows[earlier]


def write(base: Path, seed: int) -> int:
    with Children() as children:
        ended = children.run(take_turns, str(base), seed, TURNS)
    assert ended.lines == []
    return ended.status


class ClosingManager:
    """Has the manager closed, by another thread, at one of the steps that it takes.

    Attributes:
        steps: those that it took.
        seconds: how long closing took.
    """

    def __init__(self, site: Site, at: int | None) -> None:
        self.steps: list[Step] = []
        self.seconds = 0.0
        self._at = at
        self._closing: threading.Thread | None = None
        self._is_watching = False
        self._lock = threading.Lock()
        self._manager = site.manager(on_step=self._on_step)

    def apply(self, site: Site) -> None:
        """Install, until it is closed."""
        with ExitStack() as stack:
            stack.callback(self._end)
            self._is_watching = True
            self._manager.process_desired_layers(site.layers(["earlier", "one", "two"]))
            self._is_watching = False

    def _end(self) -> None:
        if self._closing is not None:
            self._closing.join()
        self._manager.close()

    def _on_step(self, step: Step) -> None:
        with self._lock:
            if not self._is_watching:
                return
            self.steps.append(step)
            if len(self.steps) - 1 != self._at:
                return
        self._closing = threading.Thread(target=self._close)
        self._closing.start()
        self._manager._cancellation.requested.wait()

    def _close(self) -> None:
        began = time.monotonic()
        self._manager.close()
        self.seconds = time.monotonic() - began


def test_closing_at_each_step_of_an_installation(
    fast_path: Path, subtests: pytest.Subtests
) -> None:
    site = Site(fast_path, parallel_installs=1)
    publish(site)
    site.apply(["earlier"])
    site.keep()
    before = site.state()
    undisturbed = ClosingManager(site, None)
    undisturbed.apply(site)
    after = site.state()
    processes = descendants()
    for number, step in enumerate(undisturbed.steps):
        with subtests.test(f"{number}: {step}"):
            site.go_back()
            manager = ClosingManager(site, number)
            with pytest.raises(CancelledError):
                manager.apply(site)
            assert manager.seconds < CLOSING_SECONDS
            assert descendants() == processes
            assert_whole(site.state(), before, after)
            earlier = site.layer("earlier").digest
            assert site.state().rows[earlier] == before.rows[earlier]


@pytest.mark.usefixtures("needs_strace")
@pytest.mark.parametrize(("signal_name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("call", ["mkdir", "syncfs", "rename"])
def test_a_signal_to_the_command_in_any_phase(
    fast_path: Path, call: str, signal_name: str, status: int
) -> None:
    """The signal comes at a system call that only one of the command's threads makes.

    A second one would end the process at once, which is what it is for.
    """
    site = Site(fast_path)
    publish(site)
    site.apply(["earlier"])
    before = site.state()
    desired = fast_path / "desired.json"
    layers = site.layers(["earlier", "one"])
    desired.write_text(json.dumps([desired_to_json(layer) for layer in layers]))
    ended = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace=?{call}"),
            *("-e", f"inject={call}:signal={signal_name}:when=1"),
            *(sys.executable, "-m", "layermanager", "--work-dir", site.config.working_dir),
            *("apply", desired),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr
    after = site.state()
    assert after.leftovers == []
    assert after.rows.items() >= before.rows.items()
    site.apply(["earlier", "one"])
    assert_whole(after, before, site.state())
    shutil.rmtree(site.config.working_dir)
