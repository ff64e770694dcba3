"""Removing directory trees: of any depth, whatever modes they have, never through a symlink."""

from __future__ import annotations

import os
import stat
from typing import Final

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(name: bytes | str, *, dir_fd: int) -> None:
    """Remove the file or directory *name* of the directory *dir_fd*, with all below it.

    It may be repeated: what is gone already is no error, so that an interrupted removal can be
    taken up again. ``shutil.rmtree`` recurses, and so fails on trees that are deeper than the
    interpreter's stack; it also stops at directories that their owner may not write.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        _remove_directory(os.fsencode(name), dir_fd)


def _remove_directory(name: bytes, dir_fd: int) -> None:
    # Upwards by "..", not by a stack of descriptors: these are few, and the depth may be great.
    current = _open_writable(name, dir_fd)
    try:
        pending = [_remove_files(current)]
        below: list[bytes] = []
        while pending:
            if pending[-1]:
                subdirectory = pending[-1].pop()
                current = _replace(current, _open_writable(subdirectory, current))
                pending.append(_remove_files(current))
                below.append(subdirectory)
                continue
            pending.pop()
            if below:
                current = _replace(current, os.open("..", _OPEN_DIRECTORY, dir_fd=current))
                os.rmdir(below.pop(), dir_fd=current)
    finally:
        os.close(current)
    os.rmdir(name, dir_fd=dir_fd)


def _remove_files(directory: int) -> list[bytes]:
    """Remove what is no directory; return the names of the directories."""
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
    return [os.fsencode(name) for name, is_directory in found if is_directory]


def _open_writable(name: bytes, dir_fd: int) -> int:
    try:
        descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, stat.S_IRWXU, dir_fd=dir_fd)  # no symlink: it was a directory before
        descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=dir_fd)
    mode = os.fstat(descriptor).st_mode
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(descriptor, stat.S_IRWXU)
    return descriptor


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new
