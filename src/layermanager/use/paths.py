"""Where paths lead, symlinks followed by hand.

The paths are those of other processes: a symlink leads somewhere below *their* root directory, and
the last part of a path need not exist any more. The kernel does not resolve such a path.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    ReadLink: TypeAlias = Callable[[bytes], bytes | None]

PROCESSES: Final = b"/proc/"

_MAX_LINKS: Final = 40  # MAXSYMLINKS of the kernel
_MAX_PATH_BYTES: Final = 4096  # PATH_MAX of the kernel
_REMEMBERED_LINKS: Final = 1024


def resolve(path: bytes, read_link: ReadLink) -> bytes:
    """Return where the absolute *path* leads, without ``.``, ``..`` and symlinks.

    Where the kernel would give up, because of too many symlinks or too long a path, the rest stays
    as it is written. So does what is below ``/proc``: it differs for each process that looks.

    Args:
        path: the path.
        read_link: returns the target of a symlink, given by a path without symlinks on the way;
            None if there is no symlink.
    """
    pending = path.split(b"/")[::-1]
    above: list[bytes] = []  # the resolved paths of all directories on the way
    links = 0
    while pending:
        name = pending.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if above:
                above.pop()
            continue
        current = (above[-1] if above else b"") + b"/" + name
        if len(current) > _MAX_PATH_BYTES:
            return b"/".join((current, *pending[::-1]))
        target = None if current.startswith(PROCESSES) else read_link(current)
        if target is None or links == _MAX_LINKS:
            above.append(current)
            continue
        links += 1
        if target.startswith(b"/"):
            above.clear()
        pending += target.split(b"/")[::-1]
    return above[-1] if above else b"/"


class ForeignPaths:
    """The paths of processes whose root directory is *root*, by a path of ours.

    All that is asked may wait for file systems of other users, for ever.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._read_link = lru_cache(_REMEMBERED_LINKS)(self._link_target)

    def resolve(self, path: bytes) -> bytes:
        """Return where *path* leads, as far as anything is there."""
        return resolve(path, self._read_link)

    def identity(self, path: bytes) -> tuple[int, int] | None:
        """Return the device and inode of what is at the resolved *path*; None if nothing is."""
        try:
            status = os.lstat(self._root + path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def is_empty(self, path: bytes) -> bool:
        """Return whether the resolved *path* is a directory with nothing in it."""
        try:
            with os.scandir(self._root + path) as entries:
                return next(entries, None) is None
        except OSError:
            return False

    def _link_target(self, path: bytes) -> bytes | None:
        try:
            return os.readlink(self._root + path)  # noqa: PTH115 - bytes
        except OSError:
            return None  # no symlink, or nothing, or another's secret
