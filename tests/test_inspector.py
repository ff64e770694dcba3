"""The helper process that looks at foreign mounts is replaceable, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_mounts import IN_A_MOUNT_NAMESPACE, silent_file_system
from layermanager.errors import StoreError
from layermanager.use.inspection import OverlayView
from layermanager.use.inspector import Inspector, stuck_helpers
from manager_fixtures import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator

GONE = OverlayView("0:0", "/gone", "/proc/0", ("/gone",))


@pytest.fixture
def inspector(tmp_path: Path) -> Inspector:
    return Inspector(tmp_path, patience=60, foreign_seconds=600, idle_seconds=60)


def helpers(layers_dir: Path) -> set[int]:
    """The helpers that look for the layers of *layers_dir*."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(layers_dir) in words and b"-c" in words:
            found.add(int(process.name))
    return found


@contextmanager
def watched(process: int) -> Iterator[int]:
    descriptor = os.pidfd_open(process)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def wait_for_end(descriptor: int) -> None:
    select.select([descriptor], [], [])


def test_one_helper_answers_many_questions(inspector: Inspector, tmp_path: Path) -> None:
    for _ in range(3):
        examined = inspector.examine(GONE, is_foreign=True)
        assert examined is not None
        assert examined.layers == ()
        assert len(helpers(tmp_path)) == 1


def test_it_is_no_child_of_ours(inspector: Inspector, tmp_path: Path) -> None:
    """So no process of ours waits for its end."""
    inspector.identify("/proc/self/cwd", is_foreign=False)
    assert not helpers(tmp_path) & descendants()


def test_one_that_was_killed_is_replaced(inspector: Inspector, tmp_path: Path) -> None:
    inspector.examine(GONE, is_foreign=True)
    (helper,) = helpers(tmp_path)
    with watched(helper) as descriptor:
        os.kill(helper, signal.SIGKILL)
        wait_for_end(descriptor)
    assert inspector.examine(GONE, is_foreign=True) is not None
    assert helpers(tmp_path) - {helper}


def test_one_that_is_killed_while_it_starts_is_replaced(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    once = tmp_path / "once"
    program.write_text(
        f'#!/bin/sh\n[ -e {once} ] || {{ touch {once}; kill -9 $$; }}\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert inspector.examine(GONE, is_foreign=True) is not None
    assert once.exists()


def test_it_ends_when_the_inspector_rests(inspector: Inspector, tmp_path: Path) -> None:
    inspector.rest()  # there is none
    inspector.examine(GONE, is_foreign=True)
    (helper,) = helpers(tmp_path)
    with watched(helper) as descriptor:
        inspector.rest()
        wait_for_end(descriptor)
    assert inspector.examine(GONE, is_foreign=True) is not None, "another one is started"


def test_it_ends_with_the_inspector(tmp_path: Path) -> None:
    inspector = Inspector(tmp_path, patience=60, foreign_seconds=600, idle_seconds=60)
    inspector.examine(GONE, is_foreign=True)
    (helper,) = helpers(tmp_path)
    with watched(helper) as descriptor:
        del inspector
        wait_for_end(descriptor)


def test_it_ends_by_itself_when_it_is_asked_nothing(tmp_path: Path) -> None:
    inspector = Inspector(tmp_path, patience=60, foreign_seconds=600, idle_seconds=0)
    inspector.examine(GONE, is_foreign=True)
    for helper in helpers(tmp_path):
        with suppress(ProcessLookupError), watched(helper) as descriptor:
            wait_for_end(descriptor)
    assert helpers(tmp_path) == set()
    assert inspector.examine(GONE, is_foreign=True) is not None


@pytest.mark.alone
def test_one_that_is_stuck_is_given_up_and_the_next_one_answers(
    needs_fuse: None,  # noqa: ARG001 - fixtures are asked for by argument
    tmp_path: Path,
) -> None:
    fuse, layers_dir = tmp_path / "fuse", tmp_path / "layers"
    fuse.mkdir()
    inspector = Inspector(layers_dir, patience=10, foreign_seconds=600, idle_seconds=60)
    with silent_file_system(fuse, "", prefix=IN_A_MOUNT_NAMESPACE) as process:
        path = f"/proc/{process.pid}/root{fuse}/file"
        assert inspector.identify(path, is_foreign=True) is None
        stuck = helpers(layers_dir)
        assert inspector.examine(GONE, is_foreign=True) is not None
        assert len(helpers(layers_dir) - stuck) == 1
    for helper in stuck:
        with closing(os.fdopen(os.pidfd_open(helper))) as file:
            wait_for_end(file.fileno())


@pytest.mark.alone
def test_stuck_ones_do_not_pile_up(
    needs_fuse: None,  # noqa: ARG001 - fixtures are asked for by argument
    tmp_path: Path,
) -> None:
    fuse, layers_dir = tmp_path / "fuse", tmp_path / "layers"
    fuse.mkdir()
    owner = os.getpid()  # of no other test's helpers

    def new_inspector(patience: float = 60) -> Inspector:
        """Return one as a later look has it."""
        return Inspector(layers_dir, patience=patience, idle_seconds=0, max_stuck=2)

    with silent_file_system(fuse, "", prefix=IN_A_MOUNT_NAMESPACE) as process:
        path = f"/proc/{process.pid}/root{fuse}/file"
        for count in (1, 2, 2, 2):
            assert new_inspector(10).identify(path, is_foreign=True, owner=owner) is None
            assert stuck_helpers(f"lm-{owner}") == count
        assert new_inspector().examine(GONE, is_foreign=True, owner=owner) is None
        assert new_inspector().examine(GONE, is_foreign=True, owner=owner + 1) is not None
        assert new_inspector().examine(GONE, is_foreign=False) is not None


def test_seconds_for_other_users_run_out(tmp_path: Path) -> None:
    inspector = Inspector(tmp_path, patience=60, foreign_seconds=0)
    assert inspector.examine(GONE, is_foreign=True) is None
    assert inspector.examine(GONE, is_foreign=False) is not None
    with pytest.raises(TimeoutError):
        inspector.table_inside("/proc/self/ns/mnt")


@pytest.mark.alone
def test_seconds_of_one_user_are_not_those_of_another(needs_fuse: None, tmp_path: Path) -> None:  # noqa: ARG001
    fuse = tmp_path / "fuse"
    fuse.mkdir()
    inspector = Inspector(tmp_path, patience=60, foreign_seconds=5)
    with silent_file_system(fuse, "", prefix=IN_A_MOUNT_NAMESPACE) as process:
        path = f"/proc/{process.pid}/root{fuse}/file"
        assert inspector.identify(path, is_foreign=True, owner=1) is None
    assert inspector.examine(GONE, is_foreign=True, owner=1) is None
    assert inspector.examine(GONE, is_foreign=True, owner=2) is not None


def test_a_table_that_cannot_be_read(inspector: Inspector) -> None:
    with pytest.raises(FileNotFoundError):
        inspector.table_inside("/gone")
    with pytest.raises(OSError, match="Invalid argument"):
        inspector.table_inside("/etc/passwd")


def test_no_program_to_start(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/gone")
    with pytest.raises(StoreError, match=r"cannot start the helper: .*No such file"):
        inspector.examine(GONE, is_foreign=True)


def test_a_program_that_is_no_helper(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StoreError, match="the helper ends as soon as it starts"):
        inspector.examine(GONE, is_foreign=True)


def test_no_descriptors_left(inspector: Inspector) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot start the helper: .*Too many open files"):
            inspector.examine(GONE, is_foreign=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
    assert inspector.examine(GONE, is_foreign=True) is not None


def test_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    """What a failing disk says is no proof that nothing is in use."""
    layers_dir = tmp_path / "layers"
    layers_dir.symlink_to(layers_dir)
    with pytest.raises(StoreError, match=r"in use: .*symbolic links"):
        Inspector(layers_dir).examine(GONE, is_foreign=True)


def test_an_interrupt_of_the_terminal_does_not_concern_it(tmp_path: Path) -> None:
    program = f"""
import os, signal
from pathlib import Path
from layermanager.use.inspection import OverlayView
from layermanager.use.inspector import Inspector, stuck_helpers
signal.signal(signal.SIGINT, lambda *_: None)
inspector = Inspector(Path({str(tmp_path)!r}), patience=60, foreign_seconds=600, idle_seconds=60)
view = OverlayView("0:0", "/gone", "/proc/0", ())
assert inspector.examine(view, is_foreign=True)
helper = inspector._helper
os.killpg(0, signal.SIGINT)
assert inspector.examine(view, is_foreign=True)
assert inspector._helper is helper
"""
    subprocess.run([sys.executable, "-c", program], check=True, start_new_session=True)
