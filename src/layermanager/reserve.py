"""Room on a full disk: a file that is given up when the database needs its space.

A disk that is full to the last block can be emptied only by removing layers, and removing one is
a change of the database. That needs blocks itself where the file system does not overwrite in
place (btrfs), where the database was made by another program, and where it grows.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.errors import StorageError
from layermanager.presence import exists
from layermanager.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from layermanager.steps import OnStep

RESERVE_BYTES: Final = 256 * 1024
"""What the database needs to remove a layer, on the most demanding file system (XFS)."""

_SIZES: Final = (RESERVE_BYTES, RESERVE_BYTES // 2)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FULL_BYTES: Final = 64 * 1024
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_MODE: Final = 0o600


def is_full(directory: Path) -> bool:
    """Return whether the disk of *directory* has no blocks, or no inodes, for small changes.

    Raises:
        OSError: the directory cannot be reached.
    """
    usage = os.statvfs(directory)
    has_no_inodes = usage.f_files > 0 and usage.f_favail == 0
    return has_no_inodes or usage.f_bavail * usage.f_frsize < _FULL_BYTES


def allocated_bytes(path: Path) -> int:
    """Return the bytes of the blocks that the regular file *path* has; 0 if there is none.

    Raises:
        OSError: it cannot be reached.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0


def allocate(path: Path, size: int, *, like: Path | None = None) -> bool:
    """Give the file *path* its first *size* bytes, unless the disk is full; return whether.

    Args:
        path: the file; it is made where it is missing.
        size: in bytes.
        like: a file whose owner and mode it gets; by default only its owner can read it.

    Raises:
        OSError: the disk failed, or something else is at *path*.
    """
    try:
        descriptor = os.open(path, _CREATE, _FILE_MODE)
        try:
            if like is not None:
                _own_like(descriptor, like)
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return False
    return True


def _own_like(descriptor: int, path: Path) -> None:
    own, other = os.fstat(descriptor), path.stat()
    if (own.st_uid, own.st_gid) != (other.st_uid, other.st_gid) and os.geteuid() == 0:
        os.fchown(descriptor, other.st_uid, other.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(other.st_mode))


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
        self._is_within = False

    @contextmanager
    def room(self) -> Iterator[None]:
        """Make room for a small change of the database, which is made in the context.

        On a full disk the reserve is given up, and made again of what is left. Without a reserve
        the change is tried all the same: it may need no room. A context within a context of the
        same thread is a part of it; one thread at a time may use this object.

        Raises:
            StorageError: the disk failed.
        """
        if self._is_within:
            yield
            return
        with self._errors_named():
            is_spent = self._give_up_if_needed()
        self._is_within = True
        try:
            yield
        finally:
            self._is_within = False
        # After a failure that is left to the next change: the failure is what is to be told.
        if is_spent:
            with self._errors_named():
                self._make_largest()

    def _give_up_if_needed(self) -> bool:
        usage = os.statvfs(self._path.parent)
        if usage.f_bavail * usage.f_frsize >= 2 * RESERVE_BYTES and not is_full(self._path.parent):
            self._make_sure(RESERVE_BYTES)
            return False
        # What is free for whom, only the file system knows: it is asked by taking it.
        if not self._make_largest() and not exists(self._path):
            return False
        self._spend()
        return True

    def _make_largest(self) -> bool:
        return any(self._make_sure(size) for size in _SIZES)

    def _make_sure(self, size: int) -> bool:
        """Make the reserve if it has less than *size* bytes; return whether it has them now."""
        if allocated_bytes(self._path) >= size:
            return True
        self._on_step(Step.MAKE_RESERVE)
        return allocate(self._path, size)

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
