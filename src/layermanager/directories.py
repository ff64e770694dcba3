"""Walker of trees that other users may change while they are read or removed.

A layer contains directories that belong to users, such as ``/home/user``, and directories in which
all users may write, such as ``/tmp``. A user can rename such a directory out of the layer, or put
a symlink in its place, between any two system calls. All code that goes through a layer therefore
uses this module.

Invariant: each directory is opened by one name in a directory that was opened the same way, up to
the root that the caller gave. No symlink is followed and no mount point is entered, so each
directory was inside the tree when it was opened.

The way back up uses the descriptors of the way down. ``..`` is never opened: it leads to the
present parent of a directory, which is foreign if the directory was moved. Descriptors are few and
trees may be deep, so a long way down keeps some of its descriptors only. The others are opened
again by their names, from the nearest directory that is still open, and must have the device and
inode that they had before. A directory that is not found again counts as removed.

Files are opened by two steps: first as a mere place (``O_PATH``), and for reading only once that
place is known to be a regular file. Opening a device, a FIFO or a socket has side effects.

Users also choose how deep a tree is. A walk keeps names, not paths, of what is still to come, and
goes no farther than a path of ``MAX_PATH_BYTES``. Its memory and time are thus linear in the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from layermanager import linux

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    OnEnter: TypeAlias = Callable[[bytes], None]
    OnError: TypeAlias = Callable[[bytes, OSError], None]

MAX_PATH_BYTES: Final = 4096
"""The longest path of a file that a walk yields: as of an entry of a package, by default."""

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NO_OPENAT2: Final = (errno.ENOSYS, errno.EPERM)  # an old kernel, or a container's filter
_MOUNT_ID: Final = "mnt_id:"
_NO_NAMES: Final = frozenset((b"", b".", b".."))
_NEAR: Final = 16
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def kind_of(state: os.stat_result) -> str:
    """Return what a file is, in the words of mtree: ``file``, ``dir``, ``link``, ``char``, …."""
    return _KINDS.get(stat.S_IFMT(state.st_mode), "socket")


def is_plain(path: bytes) -> bool:
    """Return whether *path* names something inside a tree.

    It does if it is ``.``, the root, or names joined by ``/`` of which none is empty, ``.`` or
    ``..``.
    """
    return path == b"." or (_NO_NAMES.isdisjoint(path.split(b"/")) and b"\0" not in path)


class NotRegularError(OSError):
    """A file is not opened for reading since it is not a regular file."""

    def __init__(self, kind: str) -> None:
        super().__init__(errno.EINVAL, f"not a regular file but of type `{kind}`")

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(place: int, flags: int = 0) -> int:
    """Open the file at *place* for reading, and return a new descriptor.

    Args:
        place: an ``O_PATH`` descriptor; it stays open.
        flags: further flags of open(2).

    Raises:
        NotRegularError: it is not a regular file. It was not opened.
        OSError: it cannot be opened.
    """
    state = os.fstat(place)
    if not stat.S_ISREG(state.st_mode):
        raise NotRegularError(kind_of(state))
    return os.open(f"/proc/self/fd/{place}", _OPEN_FILE | flags)


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
        """Return what is there; None for nothing."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def link(self) -> bytes:
        """Return the target of a symlink."""
        return os.readlink(self.name, dir_fd=self.directory)

    def xattrs(self) -> dict[bytes, bytes]:
        """Return all extended attributes."""
        path = self.path()
        return {
            os.fsencode(name): os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }

    def path(self) -> bytes:
        """Return a path to it for calls that take no directory; they must follow no symlink.

        Those for extended attributes do so since Linux 6.13 only.
        """
        return b"/proc/self/fd/%d/%b" % (self.directory, self.name)

    def open(self) -> int:
        """Open the regular file that is there for reading.

        Raises:
            NotRegularError: something else is there. It was not opened.
        """
        place = os.open(self.name, _OPEN_PLACE, dir_fd=self.directory)
        try:
            return open_regular(place, os.O_NOATIME)
        except PermissionError:  # only a file's owner may read it without a trace
            return open_regular(place)
        finally:
            os.close(place)


@dataclass(frozen=True, slots=True)
class File:
    """A file that a walk has come to.

    Attributes:
        path: relative to the root, which is ``.``.
        place: where it is.
        state: what it was then.
    """

    path: bytes
    place: Place
    state: os.stat_result


class _Level:
    """A directory on the way down; ``descriptor`` is -1 while it is closed."""

    __slots__ = ("descriptor", "identity", "name")

    def __init__(self, name: bytes, identity: tuple[int, int], descriptor: int) -> None:
        self.name = name
        self.identity = identity
        self.descriptor = descriptor


class Trail:
    """The way from a root down to one directory, whatever others do to the tree meanwhile.

    At most some ten descriptors per doubling of the depth are open: those of the last
    directories, and of ever fewer the farther up they are. N directories of any depth are
    entered and left with about N log N calls.

    Args:
        root: a descriptor of the directory where the way begins; it stays open.
        crosses_mounts: whether mount points are entered.
        on_enter: is given the name of each directory that was entered; a fault point for tests.
    """

    def __init__(
        self,
        root: int,
        *,
        crosses_mounts: bool = False,
        on_enter: OnEnter = lambda _: None,
    ) -> None:
        self._root = root
        self._open = _open_directory if crosses_mounts else _open_on_mount
        self._on_enter = on_enter
        self._levels: list[_Level] = []

    @property
    def depth(self) -> int:
        """How many directories below the root the current one is."""
        return len(self._levels)

    @property
    def descriptor(self) -> int:
        """A descriptor of the current directory, good until it is left."""
        return self._levels[-1].descriptor if self._levels else self._root

    @property
    def path(self) -> bytes:
        """The path of the current directory, relative to the root; empty for the root."""
        return b"/".join([level.name for level in self._levels])

    def enter(self, name: bytes) -> os.stat_result:
        """Go to the subdirectory *name*; return what it is.

        Raises:
            FileNotFoundError: there is nothing of that name.
            NotADirectoryError: it is something else, such as a symlink.
            OSError: with ``EXDEV``: a file system is mounted on it; or it cannot be opened.
            ValueError: *name* is not a single name.
        """
        if name in _NO_NAMES or b"/" in name or b"\0" in name:
            raise ValueError(f"not the name of a file: {name!r}")
        descriptor = self._open(name, self.descriptor)
        state = os.fstat(descriptor)
        levels = self._levels
        levels.append(_Level(name, _identity(state), descriptor))
        if len(levels) > _NEAR:
            self._close_distant(len(levels))
        self._on_enter(name)
        return state

    def leave(self) -> bytes:
        """Go back up, and return the name in the new directory of what was left.

        The new directory is the parent, or, if that is not found where it was, the nearest
        directory above that is.

        Raises:
            OSError: a directory cannot be opened.
        """
        left = self._levels.pop()
        if left.descriptor >= 0:
            os.close(left.descriptor)
        number = len(self._levels)
        while number and self._levels[number - 1].descriptor < 0:
            number -= 1
        while number < len(self._levels):
            level = self._levels[number]
            try:
                level.descriptor = self._find(level, number)
            finally:
                if level.descriptor < 0:
                    del self._levels[number:]
            if level.descriptor < 0:
                return level.name
            number += 1
            self._close_distant(number)
        return left.name

    def close(self) -> None:
        """Close all that was opened."""
        for level in self._levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)
        self._levels.clear()

    def _find(self, level: _Level, number: int) -> int:
        """Open the directory of *level* again; -1 if it is not where it was."""
        above = self._levels[number - 1].descriptor if number else self._root
        try:
            descriptor = self._open(level.name, above)
        except (FileNotFoundError, NotADirectoryError):
            return -1
        if _identity(os.fstat(descriptor)) == level.identity:
            return descriptor
        os.close(descriptor)
        return -1

    def _close_distant(self, depth: int) -> None:
        """Close the directory that has become too far away, now that *depth* are entered.

        Number N is kept up to a distance of ``_NEAR`` times the largest power of two that divides
        N. Each step down takes one number beyond that at most.
        """
        last = depth - 1
        number = last - _NEAR * (last & -last)
        if number < 1:
            return
        level = self._levels[number - 1]
        if level.descriptor >= 0:
            os.close(level.descriptor)
            level.descriptor = -1


def _raise_unless_gone(_: bytes, error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


class Directories:
    """The directories of a tree by their paths.

    Args:
        root: a descriptor of the tree's root; it stays open.
        crosses_mounts: whether mount points are entered.
        on_enter: as for ``Trail``.
    """

    def __init__(
        self,
        root: int,
        *,
        crosses_mounts: bool = False,
        on_enter: OnEnter = lambda _: None,
    ) -> None:
        self._root = root
        self._trail = Trail(root, crosses_mounts=crosses_mounts, on_enter=on_enter)
        self._at = b""  # where the trail is, each name after a slash
        self._ends = [0]  # where the path of each directory on the way ends

    def place_of(self, path: bytes) -> Place | None:
        """Return where *path* is, or would be; None if there is no such directory.

        The place is good until the next call.

        Raises:
            OSError: a directory cannot be opened, or a file system is mounted on it (``EXDEV``).
            ValueError: *path* is not plain.
        """
        if not is_plain(path):
            raise ValueError(f"not a path in a tree: {path!r}")
        return self._place_of(path)

    def _place_of(self, path: bytes) -> Place | None:
        if path == b".":
            return Place(self._root, b".")
        parent, _, name = path.rpartition(b"/")
        directory = self.open(parent)
        return None if directory is None else Place(directory, name)

    def open(self, path: bytes) -> int | None:
        """Return a descriptor of a directory, good until the next call; None if it is none.

        The root is the empty path. Errors are those of ``place_of``.
        """
        wanted = b"/" + path if path else b""
        while self._at and not (wanted + b"/").startswith(self._at + b"/"):
            try:
                self._trail.leave()
            finally:
                del self._ends[self._trail.depth + 1 :]
                self._at = self._at[: self._ends[-1]]
        for name in wanted[len(self._at) :].split(b"/")[1:]:
            try:
                self._trail.enter(name)
            except (FileNotFoundError, NotADirectoryError):
                return None
            self._at += b"/" + name
            self._ends.append(len(self._at))
        return self._trail.descriptor

    def names(self, path: bytes) -> list[bytes] | None:
        """Return what is in a directory, sorted; None if it is none."""
        descriptor = self.open(path)
        if descriptor is None:
            return None
        with os.scandir(descriptor) as entries:
            return sorted(os.fsencode(entry.name) for entry in entries)

    def files(self, on_error: OnError = _raise_unless_gone) -> Iterator[File]:
        """Yield all files, each directory before what is in it, in the order of their names.

        A file's place is good until the next one.

        Args:
            on_error: is given the path of what cannot be read, and why; if it raises nothing, the
                walk goes on. ``FileNotFoundError`` means that others removed it meanwhile, the
                error ``ENAMETOOLONG`` that the path exceeds ``MAX_PATH_BYTES``. By default all
                errors but ``FileNotFoundError`` are raised.
        """
        above = b""  # the directory of the last list of names
        pending = [[b"."]]  # of each directory on the way, the names to come, the next one last
        while pending:
            if not pending[-1]:
                pending.pop()
                above = above.rpartition(b"/")[0]
                continue
            name = pending[-1].pop()
            path = above + b"/" + name if above else name
            try:
                file = self._file(path)
                yield file
                if stat.S_ISDIR(file.state.st_mode):
                    directory = b"" if path == b"." else path
                    pending.append(self._below(directory))
                    above = directory
            except OSError as error:
                on_error(path, error)

    def _file(self, path: bytes) -> File:
        if len(path) > MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        place = self._place_of(path)
        state = place.state() if place else None
        if place is None or state is None:
            raise _gone(path)
        return File(path, place, state)

    def _below(self, directory: bytes) -> list[bytes]:
        """Return what is in a directory in the reverse order of names."""
        names = self.names(directory)
        if names is None:
            raise _gone(directory)
        names.reverse()
        return names

    def close(self) -> None:
        """Close what is open, except the root."""
        self._trail.close()
        self._at, self._ends = b"", [0]


def _gone(path: bytes) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _open_directory(name: bytes, directory: int) -> int:
    return os.open(name, _OPEN_DIRECTORY, dir_fd=directory)


def _open_on_mount(name: bytes, directory: int) -> int:
    """Open a subdirectory unless a file system is mounted on it."""
    try:
        return linux.open_on_mount(directory, name, _OPEN_DIRECTORY)
    except OSError as error:
        if error.errno not in _NO_OPENAT2:
            raise
    descriptor = os.open(name, _OPEN_DIRECTORY, dir_fd=directory)
    try:
        is_on_mount = _mount_of(descriptor) == _mount_of(directory)
    except OSError:
        os.close(descriptor)
        raise
    if is_on_mount:
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)


def _mount_of(descriptor: int) -> str:
    """Return what tells mounts apart: their number (proc(5), Linux 3.15), or else the device."""
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    device = str(os.fstat(descriptor).st_dev)
    return next((line for line in lines if line.startswith(_MOUNT_ID)), device)


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino
