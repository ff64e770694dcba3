from __future__ import annotations

import errno
import fcntl
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest

from layermanager.clock import SystemClock
from layermanager.errors import CancelledError, StoreBusyError, StoreError
from layermanager.lock import LOCK_NAME, StoreLock
from layermanager.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from layermanager.steps import Step

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


@dataclass(frozen=True)
class Waiter:
    """What came of waiting for a lock in another thread.

    Attributes:
        outcome: what came of it: nothing, that it was entered, or the name of an error.
        settled: set when something came of it.
    """

    outcome: list[str] = field(default_factory=list)
    settled: threading.Event = field(default_factory=threading.Event)


@contextmanager
def waiting(
    lock: StoreLock, clock: FakeClock, waiters: int = 1, patience: timedelta = timedelta.max
) -> Iterator[Waiter]:
    """A thread that waits for *lock*, and is cancelled at the end."""
    waiter = Waiter()
    end = threading.Event()

    def enter() -> None:
        try:
            with lock.held(patience, end):
                waiter.outcome.append("entered")
                waiter.settled.set()
                end.wait()
        except (CancelledError, StoreError) as error:
            waiter.outcome.append(type(error).__name__)
            waiter.settled.set()

    thread = threading.Thread(target=enter)
    thread.start()
    try:
        clock.wait_for_waiters(waiters)
        yield waiter
    finally:
        end.set()
        thread.join()


def named(process: int) -> str:
    """How a message names a process, as a regular expression."""
    return rf"process {process} \([^()]+\)"


def refusal(lock: StoreLock) -> str:
    """Why *lock* cannot be had at once."""
    with pytest.raises(StoreBusyError) as caught, lock.held(NONE, threading.Event()):
        pytest.fail("entered")
    return str(caught.value)


def may_enter(lock: StoreLock) -> bool:
    try:
        with lock.held(NONE, threading.Event()):
            return True
    except StoreBusyError:
        return False


def test_another_process_is_kept_out_and_told_by_whom(tmp_path: Path, lock: StoreLock) -> None:
    with (
        other_process(tmp_path) as holder,
        pytest.raises(StoreBusyError, match=rf"{tmp_path}/{LOCK_NAME}: .* {named(holder.pid)}$"),
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
    (tmp_path / LOCK_NAME).mkdir(parents=True)
    with (
        pytest.raises(StoreError, match=r"cannot lock the store in .*Is a directory: 'store'"),
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


def test_nothing_is_written(tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
    """Not even by those that wait."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with lock.held(NONE, threading.Event()):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            with waiting(StoreLock(tmp_path, clock), clock):
                assert not may_enter(StoreLock(tmp_path, clock))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / LOCK_NAME).stat().st_size == 0


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


class TestTurns:
    """Who began to wait first gets it first."""

    @pytest.fixture
    def others(self, tmp_path: Path, clock: FakeClock) -> list[StoreLock]:
        return [StoreLock(tmp_path, clock) for _ in range(3)]

    def test_one_that_does_not_wait_does_not_overtake(
        self, lock: StoreLock, clock: FakeClock, others: list[StoreLock]
    ) -> None:
        with ExitStack() as held:
            held.enter_context(lock.held(NONE, threading.Event()))
            with waiting(others[0], clock) as waiter:
                held.close()
                assert f"process {os.getpid()}" in refusal(others[1])
                assert "which has waited for it" in refusal(others[1])
                assert waiter.outcome == []
        assert waiter.outcome == ["CancelledError"]
        assert may_enter(others[1])

    def test_those_that_wait_come_in_their_order(
        self, lock: StoreLock, clock: FakeClock, others: list[StoreLock]
    ) -> None:
        order: list[int] = []
        threads = []

        def enter(number: int) -> None:
            with others[number].held(timedelta.max, threading.Event()):
                order.append(number)

        with lock.held(NONE, threading.Event()):
            for number in (2, 0, 1):
                threads.append(threading.Thread(target=enter, args=(number,)))
                threads[-1].start()
                clock.wait_for_waiters(len(threads))
                clock.advance(timedelta(milliseconds=1))
        for thread in threads:  # each wakes one, and those that are behind it wait again
            while thread.is_alive():
                clock.advance(timedelta(seconds=1))
        assert order == [2, 0, 1]

    def test_two_that_come_in_the_same_millisecond(
        self, lock: StoreLock, clock: FakeClock, others: list[StoreLock]
    ) -> None:
        with (
            lock.held(NONE, threading.Event()),
            waiting(others[0], clock) as first,
            waiting(others[1], clock, 2) as second,
        ):
            assert first.outcome == second.outcome == []

    def test_one_that_stops_waiting_is_in_nobodys_way(
        self, lock: StoreLock, clock: FakeClock, others: list[StoreLock]
    ) -> None:
        descriptors = open_files()
        with lock.held(NONE, threading.Event()), waiting(others[0], clock):
            pass
        assert may_enter(others[1])
        assert open_files() == descriptors

    def test_competing_processes_do_not_starve_one(self, tmp_path: Path) -> None:
        """After it began to wait, each of the others has the lock once more, not for ever."""
        counted = tmp_path / "counted"
        counted.touch()
        seen: list[int] = []
        clock = NotedWaits(lambda: seen.append(counted.stat().st_size))
        with ExitStack() as processes:
            for _ in range(4):
                processes.enter_context(competitor(tmp_path, counted))
            lock = StoreLock(tmp_path, clock)
            for _ in range(5):
                seen.clear()
                entered = 0
                while not seen:
                    with lock.held(timedelta(minutes=1), threading.Event()):
                        entered = counted.stat().st_size
                # Twice where two of them came in one millisecond.
                assert entered - seen[0] <= 2 * 4

    def test_a_stopped_process_loses_its_turn(self, tmp_path: Path, lock: StoreLock) -> None:
        with ExitStack() as held:
            held.enter_context(lock.held(NONE, threading.Event()))
            with waiting_process(tmp_path) as process:
                held.close()
                assert re.search(f"{named(process.pid)}, which has waited", refusal(lock))
                process.send_signal(signal.SIGSTOP)
                os.waitpid(process.pid, os.WUNTRACED)
                assert may_enter(lock)


def test_the_time_is_a_clocks(tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
    """A machine that was busy, or suspended, has waited as long as its clock says."""
    with (
        other_process(tmp_path),
        waiting(lock, clock, patience=timedelta(hours=1)) as waiter,
    ):
        clock.advance(timedelta(hours=2))
        waiter.settled.wait()
        assert waiter.outcome == ["StoreBusyError"]


class TestHolder:
    """The process that a refusal names."""

    def test_it_is_the_present_one(self, tmp_path: Path, lock: StoreLock) -> None:
        with other_process(tmp_path) as first:
            first.kill()
            first.wait()
        with other_process(tmp_path) as second:
            assert re.search(named(second.pid), refusal(lock))

    def test_it_may_be_another_part_of_this_one(
        self, tmp_path: Path, lock: StoreLock, clock: FakeClock
    ) -> None:
        with StoreLock(tmp_path, clock).held(NONE, threading.Event()):
            assert re.search(named(os.getpid()), refusal(lock))

    def test_one_that_has_ended_is_not_named(self, tmp_path: Path, lock: StoreLock) -> None:
        """Its child keeps the lock, and cannot be found by its number."""
        assert may_enter(lock)
        descriptor = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
        subprocess.run(["flock", "--exclusive", str(descriptor)], pass_fds=[descriptor], check=True)
        try:
            assert refusal(lock).endswith("is being changed by another process")
        finally:
            os.close(descriptor)
        assert may_enter(lock)


class TestOthers:
    """Other users of the machine."""

    @pytest.fixture
    def directory(self, needs_root: None) -> Iterator[Path]:  # noqa: ARG002 - for its effect
        """A working directory that others may enter, as that of a store that was taken over."""
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o755)
            yield Path(name)

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    def test_they_cannot_open_it(self, directory: Path, clock: FakeClock, umask: int) -> None:
        before = os.umask(umask)
        try:
            assert may_enter(StoreLock(directory, clock))
        finally:
            os.umask(before)
        for path in (directory / LOCK_NAME, (directory / LOCK_NAME).parent):
            with process(TRY_TO_OPEN, path, says="refused"):
                pass

    def test_modes_that_were_changed_are_mended(self, directory: Path, clock: FakeClock) -> None:
        assert may_enter(StoreLock(directory, clock))
        path = directory / LOCK_NAME
        path.chmod(0o666)
        path.parent.chmod(0o777)
        assert may_enter(StoreLock(directory, clock))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize("kind", ["LOCK_EX", "LOCK_SH"])
    def test_they_may_hold_the_older_lock(
        self, directory: Path, clock: FakeClock, kind: str
    ) -> None:
        older(directory).write_text(f"{os.getpid():<20}\n")
        older(directory).chmod(0o644)
        with process(HOLD, older(directory), kind):
            assert may_enter(StoreLock(directory, clock))

    def test_a_process_that_has_ended_may_have_taken_the_older_lock(
        self, directory: Path, clock: FakeClock
    ) -> None:
        older(directory).touch()
        older(directory).chmod(0o644)
        with process(HOLD_BY_CHILD, older(directory)):
            assert may_enter(StoreLock(directory, clock))


class TestOlderVersions:
    """A process of a version that locks ``layermanager.lock`` and nothing else."""

    def test_it_keeps_this_one_out(self, tmp_path: Path, lock: StoreLock, clock: FakeClock) -> None:
        with older(tmp_path).open("w") as file, waiting_after(file, lock, clock) as waiter:
            assert re.search(named(os.getpid()), refusal(StoreLock(tmp_path, clock)))
            fcntl.flock(file, fcntl.LOCK_UN)
            while not waiter.settled.is_set():
                clock.advance(timedelta(seconds=1))
            assert waiter.outcome == ["entered"]

    def test_this_one_keeps_it_out(self, tmp_path: Path, lock: StoreLock) -> None:
        older(tmp_path).touch()
        with older(tmp_path).open() as file:
            with lock.held(NONE, threading.Event()), pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_its_file_is_not_made(self, tmp_path: Path, lock: StoreLock) -> None:
        assert may_enter(lock)
        assert not older(tmp_path).exists()


@pytest.mark.parametrize("free", range(2))
def test_no_descriptors_are_left(
    tmp_path: Path, lock: StoreLock, clock: FakeClock, free: int
) -> None:
    """It fails by name at each of the files that it opens, and holds none of them then."""
    older(tmp_path).touch()
    assert may_enter(lock)
    before = open_files()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as taken:
        lowest = [os.open("/dev/null", os.O_RDONLY) for _ in range(free)]
        highest = os.open("/dev/null", os.O_RDONLY)
        taken.callback(os.close, highest)
        for descriptor in lowest:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
        try:
            with (
                pytest.raises(StoreError, match=r"cannot lock the store in .*Too many open files"),
                lock.held(NONE, threading.Event()),
            ):
                pytest.fail("entered")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files() == before
    assert may_enter(StoreLock(tmp_path, clock))


def test_no_locks_are_left(tmp_path: Path, clock: FakeClock) -> None:
    def refuse(_: Step) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with (
        pytest.raises(StoreError, match=r"cannot lock the store in .*No locks available"),
        StoreLock(tmp_path, clock, refuse).held(NONE, threading.Event()),
    ):
        pytest.fail("entered")


def test_one_that_was_removed_is_made_again(
    tmp_path: Path, lock: StoreLock, clock: FakeClock
) -> None:
    """What waits for the removed file would never learn that another was made."""
    other = StoreLock(tmp_path, clock)
    with lock.held(NONE, threading.Event()), waiting(other, clock) as waiter:
        shutil.rmtree((tmp_path / LOCK_NAME).parent)
        while not waiter.settled.is_set():
            clock.advance(timedelta(seconds=1))
        assert waiter.outcome == ["entered"]
        assert not may_enter(StoreLock(tmp_path, clock))


# What the tests above need


COMPETITOR = """
    import sys, threading
    from datetime import timedelta
    from pathlib import Path
    from layermanager.clock import SystemClock
    from layermanager.lock import StoreLock
    print("ready", flush=True)
    while True:
        lock = StoreLock(Path(sys.argv[1]), SystemClock())
        with lock.held(timedelta.max, threading.Event()), open(sys.argv[2], "ab") as file:
            file.write(b".")
"""
WAITING = """
    import sys, threading
    from datetime import timedelta
    from pathlib import Path
    from layermanager.clock import SystemClock
    from layermanager.lock import StoreLock

    class Clock(SystemClock):
        def wait(self, event, seconds):
            print("waits", flush=True)
            return super().wait(event, 3600)

    with StoreLock(Path(sys.argv[1]), Clock()).held(timedelta.max, threading.Event()):
        pass
"""
# The interpreter may be in a directory of root's, so the attackers begin as root.
BECOME_NOBODY = """
    import fcntl, os, sys
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
"""
TRY_TO_OPEN = (
    BECOME_NOBODY
    + """
    try:
        os.open(sys.argv[1], os.O_RDONLY)
    except PermissionError:
        print("refused", flush=True)
    else:
        print("opened", flush=True)
"""
)
HOLD = (
    BECOME_NOBODY
    + """
    file = open(sys.argv[1])
    fcntl.flock(file, getattr(fcntl, sys.argv[2]))
    print("held", flush=True)
    sys.stdin.read()
"""
)
HOLD_BY_CHILD = (
    BECOME_NOBODY
    + """
    file = open(sys.argv[1])
    if os.fork() == 0:
        fcntl.flock(file, fcntl.LOCK_EX)
        os._exit(0)
    os.wait()
    print("held", flush=True)
    sys.stdin.read()
"""
)


class NotedWaits(SystemClock):
    """The machine's time; *on_wait* is called before each wait."""

    def __init__(self, on_wait: Callable[[], None]) -> None:
        self._on_wait = on_wait

    def wait(self, event: threading.Event, seconds: float) -> bool:
        self._on_wait()
        return super().wait(event, seconds)


def older(working_dir: Path) -> Path:
    """The lock of older versions."""
    return working_dir / "layermanager.lock"


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@contextmanager
def process(code: str, *arguments: str | Path, says: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process of Python that has said its first word; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith(says or ("held", "ready", "waits"))
        try:
            yield running
        finally:
            running.kill()


def competitor(working_dir: Path, counted: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return process(COMPETITOR, working_dir, counted)


def waiting_process(working_dir: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return process(WAITING, working_dir)


@contextmanager
def waiting_after(file: IO[str], lock: StoreLock, clock: FakeClock) -> Iterator[Waiter]:
    """A thread that waits for *lock* while this process has the older one, *file*."""
    fcntl.flock(file, fcntl.LOCK_EX)
    with waiting(lock, clock) as waiter:
        yield waiter
