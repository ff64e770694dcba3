from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from layermanager.errors import CancelledError, StoreBusyError, StoreError
from layermanager.lock import LOCK_NAME, StoreLock
from layermanager.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NONE = timedelta(0)
HOLDER = """
    import sys, threading
    from datetime import timedelta
    from pathlib import Path
    from layermanager.clock import SystemClock
    from layermanager.lock import StoreLock
    with StoreLock(Path(sys.argv[1]), SystemClock()).held(timedelta(0), threading.Event()):
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def lock(tmp_path: Path, clock: FakeClock) -> StoreLock:
    return StoreLock(tmp_path, clock)


@contextmanager
def other_process(working_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), working_dir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.communicate()


def may_enter(lock: StoreLock) -> bool:
    try:
        with lock.held(NONE, threading.Event()):
            return True
    except StoreBusyError:
        return False


def test_another_process_is_kept_out_and_told_by_whom(tmp_path: Path, lock: StoreLock) -> None:
    with (
        other_process(tmp_path) as holder,
        pytest.raises(StoreBusyError, match=rf"{tmp_path}/{LOCK_NAME}: .*process {holder.pid}$"),
        lock.held(NONE, threading.Event()),
    ):
        pytest.fail("entered")
    assert may_enter(lock)


def test_two_locks_of_one_process_keep_each_other_out(
    tmp_path: Path, lock: StoreLock, clock: FakeClock
) -> None:
    """As two managers of one store in one process are two."""
    with lock.held(NONE, threading.Event()):
        assert not may_enter(StoreLock(tmp_path, clock))
    assert may_enter(StoreLock(tmp_path, clock))


def test_it_is_free_again_when_its_last_holder_leaves(
    tmp_path: Path, lock: StoreLock, clock: FakeClock
) -> None:
    other = StoreLock(tmp_path, clock)
    with ExitStack() as holders:
        with lock.held(NONE, threading.Event()):
            holders.enter_context(lock.held(NONE, threading.Event()))
        assert not may_enter(other)
    assert may_enter(other)


def test_it_is_free_again_when_its_holder_fails(
    tmp_path: Path, lock: StoreLock, clock: FakeClock
) -> None:
    with pytest.raises(ZeroDivisionError), lock.held(NONE, threading.Event()):
        raise ZeroDivisionError
    assert may_enter(StoreLock(tmp_path, clock))


def test_it_is_free_again_when_its_holder_is_killed(tmp_path: Path, lock: StoreLock) -> None:
    with other_process(tmp_path) as holder:
        holder.kill()
        holder.wait()
        assert may_enter(lock)


def test_the_pid_is_the_present_holders(tmp_path: Path, lock: StoreLock) -> None:
    (tmp_path / LOCK_NAME).write_text("12345678901234567890\n")
    with lock.held(NONE, threading.Event()):
        assert (tmp_path / LOCK_NAME).read_text().split() == [str(os.getpid())]


def test_waiting_for_another_process(tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
    entered = threading.Event()

    def enter() -> None:
        with lock.held(timedelta(hours=1), threading.Event()):
            entered.set()

    with other_process(tmp_path) as holder:
        thread = threading.Thread(target=enter)
        thread.start()
        clock.wait_for_waiters(1)
        clock.advance(timedelta(seconds=1))
        clock.wait_for_waiters(1)
        assert not entered.is_set()
        holder.communicate()
        clock.advance(timedelta(seconds=1))
        thread.join()
    assert entered.is_set()


def test_patience_ends(tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
    refused: list[StoreBusyError] = []

    def enter() -> None:
        try:
            with lock.held(timedelta(seconds=0.1), threading.Event()):
                pytest.fail("entered")
        except StoreBusyError as error:
            refused.append(error)

    with other_process(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        for _ in range(2):
            clock.wait_for_waiters(1)
            assert refused == []
            clock.advance(timedelta(seconds=0.05))
        thread.join()
    assert len(refused) == 1


def test_waiting_can_be_cancelled(tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
    cancelled = threading.Event()
    errors: list[CancelledError] = []

    def enter() -> None:
        try:
            with lock.held(timedelta(hours=1), cancelled):
                pytest.fail("entered")
        except CancelledError as error:
            errors.append(error)

    with other_process(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        clock.wait_for_waiters(1)
        cancelled.set()
        thread.join()
    assert len(errors) == 1


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with (
        pytest.raises(StoreError, match=LOCK_NAME),
        StoreLock(tmp_path, clock).held(NONE, threading.Event()),
    ):
        pytest.fail("entered")


def fill(path: Path) -> None:
    """Write to *path* until the disk is full."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_does_not_keep_anybody_out(small_file_system: Path, clock: FakeClock) -> None:
    """Removing layers is what helps on a full disk, and takes the lock."""
    lock = StoreLock(small_file_system, clock)
    assert may_enter(lock)
    with pytest.raises(OSError, match="No space left"):
        fill(small_file_system / "fill")
    assert may_enter(lock)


def test_a_lock_that_cannot_be_written_is_named_and_not_held(
    tmp_path: Path, lock: StoreLock, clock: FakeClock
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with (
            pytest.raises(StoreError, match=r"write to the store's lock: .*File too large"),
            lock.held(NONE, threading.Event()),
        ):
            pytest.fail("entered")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert may_enter(StoreLock(tmp_path, clock))


def test_nothing_is_inherited_by_children(
    lock: StoreLock, tmp_path: Path, clock: FakeClock
) -> None:
    with lock.held(NONE, threading.Event()):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        assert may_enter(StoreLock(tmp_path, clock))
    finally:
        child.kill()
        child.wait()
