"""A stranger's tree of files, looked at without ever leaving it.

It may be damaged besides: it is walked by directory descriptors, no symlink is followed, no fifo
and no device is opened.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}
# The kernel gives every file a label where SELinux is in force; no layer brought it.
_OF_THE_SYSTEM: Final = frozenset({"security.selinux"})


def kind_of(state: os.stat_result) -> str:
    """What a file is, in the words of mtree: ``file``, ``dir``, ``link``, ``char`` and so on."""
    return _KINDS.get(stat.S_IFMT(state.st_mode), "socket")


@dataclass(frozen=True, slots=True)
class Place:
    """A name in an open directory, which may be anything or nothing.

    All methods raise ``OSError`` where the disk cannot be read.

    Attributes:
        directory: a descriptor of the directory, open for as long as ``Directories`` says.
        name: the name in it.
    """

    directory: int
    name: bytes

    def state(self) -> os.stat_result | None:
        """What is there; None for nothing."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def link(self) -> bytes:
        """The target of a symlink."""
        return os.readlink(self.name, dir_fd=self.directory)

    def xattrs(self) -> dict[str, bytes]:
        """The extended attributes, but for those that the system gives every file."""
        # There are no calls for these with a directory's descriptor before Linux 6.13.
        path = b"/proc/self/fd/%d/%b" % (self.directory, self.name)
        return {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
            if name not in _OF_THE_SYSTEM
        }

    def open(self) -> int:
        """A descriptor of the file that is there, to be read and closed."""
        try:
            return os.open(self.name, _OPEN_FILE | os.O_NOATIME, dir_fd=self.directory)
        except PermissionError:  # only a file's owner may read it without a trace
            return os.open(self.name, _OPEN_FILE, dir_fd=self.directory)


class Directories:
    """The directories of a tree by their paths; those on the way to the last one stay open."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: list[tuple[bytes, int]] = []

    def place_of(self, path: bytes) -> Place | None:
        """Where *path* is, or would be; None if there is no such directory."""
        if path == b".":
            return Place(self._root, b".")
        parent, _, name = path.rpartition(b"/")
        directory = self.open(parent)
        return None if directory is None else Place(directory, name)

    def open(self, path: bytes) -> int | None:
        """A descriptor of a directory, good until the next call; None if it is none."""
        while self._open and not (path + b"/").startswith(self._open[-1][0] + b"/"):
            os.close(self._open.pop()[1])
        at, descriptor = self._open[-1] if self._open else (b"", self._root)
        for name in path[len(at) :].split(b"/"):
            if not name:
                continue
            try:
                descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=descriptor)
            except (FileNotFoundError, NotADirectoryError):
                return None
            at = at + b"/" + name if at else name
            self._open.append((at, descriptor))
        return descriptor

    def names(self, path: bytes) -> list[bytes] | None:
        """What is in a directory, sorted; None if it is none."""
        descriptor = self.open(path)
        if descriptor is None:
            return None
        with os.scandir(descriptor) as entries:
            return sorted(os.fsencode(entry.name) for entry in entries)

    def close(self) -> None:
        """Close what is open, but for the root."""
        while self._open:
            os.close(self._open.pop()[1])
