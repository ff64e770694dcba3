"""Which processes have to do with a lock, as far as ``/proc`` tells (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PROC: Final = Path("/proc")
_LOCK: Final = b"lock:"
_STOPPED: Final = (b"T", b"t")


def holder_of(descriptor: int) -> int | None:
    """Return the living process that holds a flock(2) of the file of *descriptor* now.

    The table of locks names the process that took the lock, which may have ended while a child
    keeps the file open. So the process must also have the lock among its open files. Only what the
    kernel knows of these is read: looking at the files themselves could wait for a file system of
    another user.

    Returns:
        The process; None if there is none, or it cannot be seen from here.
    """
    file = os.fstat(descriptor)
    for process in _lockers(_lines(_PROC / "locks"), file):
        if process in _lockers(_open_locks(process), file):
            return process
    return None


def real_user(process: int) -> int | None:
    """Return the real user of *process*; None if it has ended."""
    for line in _lines(_PROC / str(process) / "status"):
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def is_stopped(process: int) -> bool:
    """Return whether *process* is stopped, by a signal or a debugger, and so takes no turn."""
    # The name of its program, in parentheses, may hold anything.
    _, _, status = b"\n".join(_lines(_PROC / str(process) / "stat")).rpartition(b")")
    return status.split()[:1] in ([state] for state in _STOPPED)


def described(process: int) -> str:
    """Return the number of *process* and the name of its program, for people."""
    name = b"\n".join(_lines(_PROC / str(process) / "comm")).rstrip(b"\n").decode(errors="replace")
    if not name:
        return f"process {process}"
    printable = "".join(one if one.isprintable() else "?" for one in name)
    return f"process {process} ({printable})"


def _lockers(locks: Sequence[bytes], file: os.stat_result) -> Iterator[int]:
    """Return the processes that took a flock(2) of *file*, by lines of the table of locks."""
    for line in locks:
        match line.split():
            case [_, b"FLOCK", _, _, process, locked, *_] if _is_named(locked, file):
                yield int(process)


def _is_named(locked: bytes, file: os.stat_result) -> bool:
    """Return whether the table of locks means *file* by *locked*: device and inode number.

    Of a file system without a device of its own, such as btrfs, stat(2) tells another number than
    the table; there only the inode is compared.
    """
    device, _, inode = locked.rpartition(b":")
    if inode != b"%d" % file.st_ino:
        return False
    major = os.major(file.st_dev)
    return major == 0 or device == b"%02x:%02x" % (major, os.minor(file.st_dev))


def _open_locks(process: int) -> list[bytes]:
    """Return the lines of the table of locks that are about the open files of *process*."""
    try:
        files = list((_PROC / str(process) / "fdinfo").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [
        line.removeprefix(_LOCK)
        for file in files
        for line in _lines(file)
        if line.startswith(_LOCK)
    ]


def _lines(path: Path) -> list[bytes]:
    """Return the lines of a file of ``/proc``; none if it is gone, or not for this user."""
    try:
        return path.read_bytes().split(b"\n")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
