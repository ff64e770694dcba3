"""A process that uses a store is killed at random moments, over and over."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from durability.site import Site, assert_whole
from durability.users import NAMES, publish, use
from manager_fixtures import descendants

if TYPE_CHECKING:
    from pathlib import Path

    from durability.children import Child, Children, Ended

FIRST_LIFE_SECONDS = 0.4
LONGEST_LIFE_SECONDS = 10.0


def kill_process(child: Child, _: random.Random, __: float) -> None:
    """Only the manager's process: its children have to end by themselves."""
    os.kill(child.process, signal.SIGKILL)


def kill_group(child: Child, _: random.Random, __: float) -> None:
    """All at once, as at the end of a container."""
    try:
        os.killpg(child.process, signal.SIGKILL)
    except ProcessLookupError:  # it is so young that it has no group of its own yet
        os.kill(child.process, signal.SIGKILL)


def kill_unpacker(child: Child, choice: random.Random, life: float) -> None:
    """The unpack server or a worker, if there is one; then, some time later, the process."""
    processes = sorted(descendants(child.process))
    for process in choice.sample(processes, min(1, len(processes))):
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(process, signal.SIGKILL)
    time.sleep(choice.uniform(0, life / 2))
    os.kill(child.process, signal.SIGKILL)


VICTIMS = (kill_process, kill_group, kill_unpacker)


@pytest.mark.parametrize("kills", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_random_kills(kills: int, fast_path: Path, children: Children) -> None:
    seed = int(os.environ.get("LAYERMANAGER_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"LAYERMANAGER_SEED={seed}")  # noqa: T201 - shown where the test fails
    choice = random.Random(seed)  # noqa: S311 - a test's choice is no secret
    site = Site(fast_path)
    publish(site)
    site.apply(["earlier", *NAMES])
    intact = site.state()
    unfinished, life = 0, FIRST_LIFE_SECONDS
    for number in range(kills):
        victim = choice.choice(VICTIMS)
        child = children.start(use, str(fast_path), choice.randrange(1 << 32))
        # The moment is what is random here: nothing is waited for.
        time.sleep(choice.uniform(0, life))
        victim(child, choice, life)
        ended = child.wait()
        is_interrupted = bool(site.leftovers())
        unfinished += is_interrupted
        # A busy machine gets less done: the lives are as long as it takes to interrupt something.
        life = life / 1.1 if is_interrupted else min(life * 1.1, LONGEST_LIFE_SECONDS)
        context = f"kill {number}, {victim.__name__}: {ended.lines}"
        assert ended.was_killed, context
        with site.manager():
            pass
        state = site.state()
        assert_whole(state, intact)
        assert site.damaged() == set(), context
        earlier = site.layer("earlier").digest
        assert state.rows[earlier] == intact.rows[earlier], context
        assert installed_last(ended) <= state.rows.keys(), context
    assert unfinished > 0  # else nothing was interrupted, and nothing shown
    site.apply(["earlier", *NAMES])
    assert site.state().layers == intact.layers


def installed_last(ended: Ended) -> set[str]:
    """What was reported as installed after anything was removed for the last time."""
    installed: set[str] = set()
    for line in ended.lines:
        match line.split():
            case ["removing"]:
                installed.clear()
            case ["installed", digest]:
                installed.add(digest)
    return installed
