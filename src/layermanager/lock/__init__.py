"""One change at a time: the lock of a store, across threads and processes.

Readers never take it: the database and the directories are consistent at every moment.

::

    <workingDir>/lock/           0700: no other user can open what is in it
        store                    0600, empty: the lock, and the queue of those that wait for it
    <workingDir>/layermanager.lock   the lock of older versions; only held where it exists

The lock is a flock(2) of the file, which the kernel drops when its holder ends. The queue are
locks of single bytes of it (see ``queue``), so that processes get the lock in the order in which
they began to wait. Nothing is written: layers can be removed on a full disk, too.
"""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from layermanager.errors import CancelledError, StoreBusyError, StoreError
from layermanager.lock.older import OlderLock
from layermanager.lock.processes import described, holder_of, is_stopped
from layermanager.lock.queue import Queue
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

    from layermanager.protocols import Clock
    from layermanager.steps import OnStep

LOCK_NAME: Final = "lock/store"
"""The file of the lock, relative to the working directory."""

_RETRY_SECONDS: Final = 0.05
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_ATTEMPTS: Final = 10


class StoreLock:
    """The lock of the store in *working_dir*.

    Within one process it counts: while one thread holds it, others of the process may enter too.
    Processes get it in the order in which they came. One that does not wait is refused as long as
    others do.
    """

    def __init__(self, working_dir: Path, clock: Clock, on_step: OnStep = unannounced) -> None:
        self._working_dir = working_dir
        self._clock = clock
        self._on_step = on_step
        self._mutex = threading.Lock()
        self._holders = 0
        self._held: _Held | None = None

    @contextmanager
    def held(self, patience: timedelta, cancelled: threading.Event) -> Iterator[None]:
        """Hold the lock.

        Args:
            patience: how long to wait for other processes; zero means not at all.
            cancelled: ends the waiting early.

        Raises:
            StoreBusyError: another process holds it, or has waited longer.
            CancelledError: *cancelled* was set.
            StoreError: the lock cannot be used.
        """
        self._acquire(patience, cancelled)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, patience: timedelta, cancelled: threading.Event) -> None:
        deadline = self._clock.monotonic() + patience.total_seconds()
        attempt = _Attempt(self._working_dir, self._on_step)
        with _errors_named(self._working_dir), closing(attempt):
            while not self._enter(attempt):
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    raise StoreBusyError(f"{self._working_dir / LOCK_NAME}: {attempt.obstacle()}")
                attempt.queue_up(self._clock.monotonic())
                if self._clock.wait(cancelled, min(left, _RETRY_SECONDS)):
                    raise CancelledError("cancelled while waiting for the store's lock")

    def _enter(self, attempt: _Attempt) -> bool:
        with self._mutex:
            if not self._holders:
                self._held = attempt.try_lock()
                if self._held is None:
                    return False
            self._holders += 1
            return True

    def _release(self) -> None:
        with self._mutex:
            self._holders -= 1
            if self._holders == 0 and self._held is not None:
                self._held.release()
                self._held = None


@dataclass(frozen=True, slots=True)
class _Held:
    """The descriptors whose locks are held.

    Attributes:
        descriptor: of the lock's file.
        older: of the lock's file of older versions; None where there is none to hold.
    """

    descriptor: int
    older: int | None

    def release(self) -> None:
        """Let others have the lock."""
        if self.older is not None:
            os.close(self.older)
        os.close(self.descriptor)


class _Attempt:
    """One caller's way to the lock: it tries again and again, in the queue from the second time.

    The file is opened at the first try, since who enters with another thread needs no descriptor.
    All methods raise ``OSError`` where the system refuses something.
    """

    def __init__(self, working_dir: Path, on_step: OnStep) -> None:
        self._path = working_dir / LOCK_NAME
        self._older = OlderLock(working_dir)
        self._on_step = on_step
        self._descriptor: int | None = None
        self._queue: Queue | None = None

    def try_lock(self) -> _Held | None:
        """Take the lock if it is free and no other process waits before this one."""
        descriptor = self._open()
        queue = self._queue or Queue(descriptor)
        if any(not is_stopped(process) for process in queue.processes_ahead()):
            return None
        if not _lock(descriptor):
            return None
        if not self._older.try_lock():
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            return None
        queue.leave()
        self._descriptor = self._queue = None
        return _Held(descriptor, self._older.hand_over())

    def queue_up(self, now: float) -> None:
        """Wait behind those that wait already; to be repeated before each wait.

        Args:
            now: the time of a clock that all processes share.
        """
        if self._queue is None:
            self._queue = Queue(self._open())
            self._queue.enter(now)

    def obstacle(self) -> str:
        """Return what keeps this attempt from the lock, for people."""
        descriptor = self._open()
        process = holder_of(descriptor) or self._older.holder()
        if process is not None:
            return f"the store is being changed by {described(process)}"
        for waiting in (self._queue or Queue(descriptor)).processes_ahead():
            if not is_stopped(waiting):
                return f"the store is next changed by {described(waiting)}, which has waited for it"
        return "the store is being changed by another process"

    def close(self) -> None:
        """Leave the queue; what was locked stays so."""
        self._older.close()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self._queue = None

    def _open(self) -> int:
        """Return a descriptor of the file that is at the lock's path now."""
        for _ in range(_OPEN_ATTEMPTS):
            if self._descriptor is None:
                self._on_step(Step.WRITE_LOCK)
                self._descriptor = _open_file(self._path)
            if _is_at(self._path, self._descriptor):
                return self._descriptor
            self._queue = None
            os.close(self._descriptor)
            self._descriptor = None
        raise StoreError(f"cannot lock the store: {self._path} is replaced again and again")


def _open_file(path: Path) -> int:
    """Open the lock's file; make it and its directory where they are missing.

    Other users never get a descriptor of it: with one they could hold the lock for ever. The modes
    are set again where an administrator changed them.
    """
    path.parent.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    directory = os.open(path.parent, _OPEN_DIRECTORY)
    try:
        _close_to_others(directory, _DIRECTORY_MODE)
        descriptor = os.open(path.name, _OPEN_FILE, _FILE_MODE, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        _close_to_others(descriptor, _FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _close_to_others(descriptor: int, mode: int) -> None:
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
        os.fchmod(descriptor, mode)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the file of *descriptor* is the one at *path*, and not one that was there."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _errors_named(working_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot lock the store in {working_dir}: {error}") from error
