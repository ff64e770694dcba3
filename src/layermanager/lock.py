"""One change at a time: the lock of a store, across threads and processes.

Readers never take it: the database and the directories are consistent at every moment.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager.errors import CancelledError, StoreBusyError, StoreError
from layermanager.steps import Step, unannounced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

    from layermanager.protocols import Clock
    from layermanager.steps import OnStep

LOCK_NAME: Final = "layermanager.lock"
_RETRY_SECONDS: Final = 0.05
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_PID_CHARACTERS: Final = 20


class StoreLock:
    """The lock of the store in *working_dir*.

    It is a flock(2), which the kernel drops when its holder ends, however it ends. Within one
    process it counts: while one thread holds it, others of the process may enter too.
    """

    def __init__(self, working_dir: Path, clock: Clock, on_step: OnStep = unannounced) -> None:
        self._path = working_dir / LOCK_NAME
        self._clock = clock
        self._on_step = on_step
        self._mutex = threading.Lock()
        self._holders = 0
        self._descriptor: int | None = None

    @contextmanager
    def held(self, patience: timedelta, cancelled: threading.Event) -> Iterator[None]:
        """Hold the lock.

        Args:
            patience: how long to wait for another process; zero means not at all.
            cancelled: ends the waiting early.

        Raises:
            StoreBusyError: another process still holds it.
            CancelledError: *cancelled* was set.
            StoreError: the lock file cannot be used.
        """
        self._acquire(patience, cancelled)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, patience: timedelta, cancelled: threading.Event) -> None:
        waited = 0.0
        while True:
            with self._mutex:
                if self._holders or self._try_lock():
                    self._holders += 1
                    return
            if waited >= patience.total_seconds():
                raise StoreBusyError(
                    f"{self._path}: the store is being changed by {self._holder()}"
                )
            if self._clock.wait(cancelled, _RETRY_SECONDS):
                raise CancelledError("cancelled while waiting for the store's lock")
            waited += _RETRY_SECONDS

    def _try_lock(self) -> bool:
        try:
            self._on_step(Step.WRITE_LOCK)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open the store's lock: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        try:
            self._on_step(Step.WRITE_LOCK)
            # Always as long, so that writing over the last one needs no space: on a full disk,
            # too, layers must be removed.
            os.pwrite(descriptor, f"{os.getpid():<{_PID_CHARACTERS}}\n".encode(), 0)
        except OSError as error:
            # Who holds it is only for people; btrfs needs space even to write that over.
            if error.errno in _FULL:
                self._descriptor = descriptor
                return True
            os.close(descriptor)
            raise StoreError(f"cannot write to the store's lock: {error}") from error
        self._descriptor = descriptor
        return True

    def _release(self) -> None:
        with self._mutex:
            self._holders -= 1
            if self._holders == 0 and self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _holder(self) -> str:
        process = self._path.read_text(encoding="ascii", errors="replace").strip()
        return f"process {process}" if process else "another process"
