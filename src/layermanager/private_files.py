"""Files and directories with exactly the modes that they should have, whatever the umask.

What other users may reach is the program's decision, not that of the shell that started it. The
modes are listed in docs/operations.md.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from layermanager.presence import is_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRIVATE_DIRECTORY: Final = 0o700
PRIVATE_FILE: Final = 0o600
PUBLIC_DIRECTORY: Final = 0o755

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RANDOM_BYTES: Final = 8


def make_directory(path: Path, mode: int) -> None:
    """Make the directory *path* with *mode*; one that is there keeps its own.

    Raises:
        OSError: it cannot be made.
    """
    try:
        path.mkdir(mode)
    except FileExistsError:
        if not is_directory(path):
            raise
        return
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def make_directories(path: Path, mode: int) -> None:
    """Make the directory *path* with *mode*, and those missing above it open to all.

    Raises:
        OSError: one cannot be made.
    """
    if is_directory(path):
        return
    make_directories(path.parent, PUBLIC_DIRECTORY)
    make_directory(path, mode)


def replace_file(path: Path, content: bytes) -> None:
    """Replace *path*, or make it, by a file that only its owner can read; durably.

    It is the old one or the new one at every moment, also where several processes do this at once;
    the last one wins. What a killed process left of this is removed.

    Raises:
        OSError: it cannot be written; the old one is still there.
    """
    remove_leftovers(path)
    with _new_file(path) as (descriptor, new):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        new.replace(path)
    directory = os.open(path.parent, _OPEN_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_leftovers(path: Path) -> None:
    """Remove new files for *path* whose processes have ended.

    Raises:
        OSError: the directory cannot be changed.
    """
    name = re.compile(re.escape(_prefix(path)) + rf"[0-9a-f]{{{2 * _RANDOM_BYTES}}}")
    for found in path.parent.iterdir():
        if name.fullmatch(found.name):
            with suppress(FileNotFoundError):
                _remove_if_left(found)


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, _OPEN)
    try:
        if _lock(descriptor):  # a living process holds the lock of its new file
            path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[int, Path]]:
    """Make a file beside *path*, and remove it at the end unless it was renamed."""
    while True:
        new = path.with_name(_prefix(path) + secrets.token_hex(_RANDOM_BYTES))
        with ExitStack() as stack:
            descriptor = os.open(new, _CREATE, PRIVATE_FILE)
            stack.callback(os.close, descriptor)
            stack.callback(new.unlink, missing_ok=True)
            # Another process may have taken it for a leftover before it was locked.
            if _lock(descriptor) and os.fstat(descriptor).st_nlink == 1:
                yield descriptor, new
                return


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prefix(path: Path) -> str:
    return f".{path.name}."
