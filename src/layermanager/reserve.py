"""Room on a full disk: a file that is given up when the database needs its space.

A disk that is full to the last block can be emptied only by removing layers, and removing one is
a change of the database, which needs blocks itself. SQLite needs them without being able to refuse:
it writes to the index of its log through a mapping, and where a block for that cannot be had, the
kernel ends the process (SIGBUS).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.errors import StorageError
from layermanager.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.steps import OnStep

RESERVE_BYTES: Final = 256 * 1024
"""What the database needs to remove a layer, on the most demanding file system (XFS)."""

# Half of it makes a new database: 4 KiB of it, 40 of its log, 32 of the log's index, and then 32
# more where the log is taken over. With a quarter SQLite is ended on the way.
_SIZES: Final = (RESERVE_BYTES, RESERVE_BYTES // 2)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Reserve:
    """A file of ``RESERVE_BYTES``, or of half of that where the disk has no more room.

    Several processes may share it.

    Args:
        path: the file; its directory exists.
        on_step: is told of each change of the disk before it is made.
    """

    def __init__(self, path: Path, on_step: OnStep) -> None:
        self._path = path
        self._on_step = on_step

    @contextmanager
    def room(self) -> Iterator[None]:
        """See to it that a small change of the database, made in the context, finds room.

        Where the disk is full the reserve is given up for that, and made again of what is left.

        Raises:
            StorageError: the disk is full and there is no reserve; or the disk failed.
        """
        with self._errors_named():
            is_spent = self._give_up_if_needed()
        yield
        # After a failure that is left to the next change: the failure is what is to be told.
        if is_spent:
            with self._errors_named():
                self._make_largest()

    def _give_up_if_needed(self) -> bool:
        usage = os.statvfs(self._path.parent)
        if usage.f_bavail * usage.f_frsize >= 2 * RESERVE_BYTES:
            self._make_sure(RESERVE_BYTES)
            return False
        # What is free for whom, only the file system knows: it is asked by taking it.
        if not self._make_largest():
            raise OSError(errno.ENOSPC, "the disk is full: remove something else from it first")
        self._spend()
        return True

    def _make_largest(self) -> bool:
        return any(self._make_sure(size) for size in _SIZES)

    def _make_sure(self, size: int) -> bool:
        """Make the reserve if it has less than *size* bytes; return whether it has them now."""
        if self._allocated_bytes() >= size:
            return True
        self._on_step(Step.MAKE_RESERVE)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return False
        return True

    def _allocated_bytes(self) -> int:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return 0
        return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0

    def _spend(self) -> None:
        self._on_step(Step.SPEND_RESERVE)
        self._path.unlink(missing_ok=True)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            linux.sync_file_system(directory)  # XFS and btrfs free in the background
        finally:
            os.close(directory)

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot make room for {self._path}: {error.strerror}") from error
