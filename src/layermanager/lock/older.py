"""The lock of versions of this program that are older than ``lock/store``.

While a node is updated, a daemon of such a version may still run: it must not change the store at
the same time. Its lock is a file that other users can read, so any of them can hold it. Here it
counts only where the process that holds it belongs to the file's owner.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from layermanager.lock.processes import holder_of, real_user

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OLDER_NAME: Final = "layermanager.lock"

_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OlderLock:
    """The lock of older versions in *working_dir*: held where its file exists, and never made.

    All methods raise ``OSError`` where the file cannot be read.
    """

    def __init__(self, working_dir: Path) -> None:
        self._path = working_dir / OLDER_NAME
        self._descriptor: int | None = None

    def try_lock(self) -> bool:
        """Return whether no older version holds it; it is held from now on, if it exists."""
        self.close()
        with suppress(FileNotFoundError), _opened(self._path) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _older_version(descriptor) is None
            self._descriptor = os.dup(descriptor)  # the lock goes with the last descriptor
        return True

    def hand_over(self) -> int | None:
        """Return the descriptor that holds it, if one does; the caller closes that."""
        descriptor, self._descriptor = self._descriptor, None
        return descriptor

    def holder(self) -> int | None:
        """Return the process of an older version that holds it now, if there is one."""
        with suppress(FileNotFoundError), _opened(self._path) as descriptor:
            return _older_version(descriptor)
        return None

    def close(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _older_version(descriptor: int) -> int | None:
    """Return the process that holds the lock, if that is the file owner's."""
    process = holder_of(descriptor)
    if process is None or real_user(process) != os.fstat(descriptor).st_uid:
        return None
    return process


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, _OPEN)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
