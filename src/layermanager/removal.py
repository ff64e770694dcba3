"""Removal of directory trees of any depth, while other users may be changing them.

``directories.Trail`` keeps the removal inside the tree. In addition each directory is sealed before
it is read: it becomes this user's own, with mode 0700. From then on no other user can add to it or
move anything out of it, so the removal ends however fast others add files. An operation that began
before the seal may still complete; so what is not empty is read again, a bounded number of times.

What a single file refuses (it is a mount point, it is immutable) keeps that file and the
directories above it. The rest of the tree is removed, and then the first refusal is raised.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from layermanager import linux
from layermanager.directories import Trail

if TYPE_CHECKING:
    from layermanager.directories import OnEnter

_OPEN_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MOST_CHANGES: Final = 1000
_MOST_SHOWN: Final = 300

_CHANGED: Final = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EEXIST)
_MOUNTED: Final = "a file system is mounted on it; unmount it"
_REFUSALS: Final = {
    errno.EXDEV: _MOUNTED,
    errno.EBUSY: _MOUNTED,
    errno.EPERM: "it may not be removed; clear its attributes with `chattr -i -a`",
    errno.EROFS: "it is read-only; make the file system or subvolume writable",
    errno.ENOTEMPTY: "other processes keep changing it; stop them",
}


class RemovalRefusedError(OSError):
    """A part of a tree cannot be removed; the rest of it is gone.

    Attributes:
        path: the first part that refused, relative to the tree's parent.
    """

    def __init__(self, number: int, path: bytes) -> None:
        super().__init__(number, _REFUSALS[number])
        self.path = path

    def __str__(self) -> str:
        shown = os.fsdecode(self.path)
        if len(shown) > _MOST_SHOWN:
            shown = f"{shown[: _MOST_SHOWN // 2]}…{shown[-_MOST_SHOWN // 2 :]}"
        return f"{shown}: {self.strerror}"


def reason_of(error: OSError) -> str:
    """Return why something cannot be removed or moved, and where it is known, what to do."""
    if isinstance(error, RemovalRefusedError):
        return str(error)
    return _REFUSALS.get(error.errno or 0) or error.strerror or str(error)


def remove_tree(
    name: bytes | str,
    *,
    dir_fd: int,
    is_private: bool = False,
    on_enter: OnEnter = lambda _: None,
) -> None:
    """Remove the file or directory *name* of the directory *dir_fd*, with all below it.

    A removal is idempotent: what is gone already is no error, so an interrupted one can be
    repeated. Mount points are not entered.

    Args:
        name: a single name.
        dir_fd: a descriptor of the directory that has it.
        is_private: whether no other process can reach the tree, as in a jail. Then nothing is
            sealed, and mounts are not looked for.
        on_enter: is given the name of each directory that was entered; a fault point for tests.

    Raises:
        RemovalRefusedError: a part cannot be removed; the rest is gone.
        OSError: the disk fails, or this user has no right to remove the tree.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        with closing(Trail(dir_fd, crosses_mounts=is_private, on_enter=on_enter)) as trail:
            _Removal(trail, is_private=is_private).run(os.fsencode(name))


@dataclass(slots=True)
class _Level:
    """What is left to do in a directory on the way down.

    Attributes:
        pending: the names in it that are to be removed by ``_Removal``.
        is_kept: whether something in it refused to be removed.
    """

    pending: list[bytes] = field(default_factory=list)
    is_kept: bool = False


class _Removal:
    """The removal of one tree below the root of *trail*."""

    def __init__(self, trail: Trail, *, is_private: bool) -> None:
        self._trail = trail
        self._is_private = is_private
        self._user = os.geteuid()
        self._levels: list[_Level] = []
        self._changes = 0
        self._refusal: RemovalRefusedError | None = None

    def run(self, name: bytes) -> None:
        """Remove the directory *name*."""
        self._levels.append(_Level([name]))
        while self._levels[0].pending or len(self._levels) > 1:
            if self._levels[-1].pending:
                self._remove(self._levels[-1].pending.pop())
            else:
                self._leave()
        if self._refusal is not None:
            raise self._refusal

    def _remove(self, name: bytes) -> None:
        """Begin with a directory, or remove what has come into its place."""
        try:
            state = self._enter(name)
        except NotADirectoryError:
            self._unlink(name)
        except OSError as error:
            self._refuse(name, error)
        else:
            self._levels.append(_Level())
            self._seal(state)
            self._remove_files()

    def _enter(self, name: bytes) -> os.stat_result:
        try:
            return self._trail.enter(name)
        except PermissionError:
            _make_accessible(name, self._trail.descriptor)
            return self._trail.enter(name)

    def _remove_files(self) -> None:
        """Remove what is no directory; the directories are left to ``_remove``."""
        directory = self._trail.descriptor
        files: list[str] = []
        directories: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                found = directories if entry.is_dir(follow_symlinks=False) else files
                found.append(entry.name)
        self._levels[-1].pending += map(os.fsencode, directories)
        for name in files:
            try:
                os.unlink(name, dir_fd=directory)
            except OSError as error:
                self._refuse(os.fsencode(name), error)

    def _leave(self) -> None:
        """Go back up, and remove the directory that was left."""
        name = self._trail.leave()
        is_kept = False
        while len(self._levels) > self._trail.depth + 1:
            is_kept |= self._levels.pop().is_kept
        if is_kept:
            self._levels[-1].is_kept = True
            return
        try:
            os.rmdir(name, dir_fd=self._trail.descriptor)
        except OSError as error:
            self._refuse(name, error)

    def _unlink(self, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=self._trail.descriptor)
        except OSError as error:
            self._refuse(name, error)

    def _refuse(self, name: bytes, error: OSError) -> None:
        """Go on after *name* could not be removed, or raise *error* if that is no use."""
        number = error.errno or 0
        if number == errno.ENOENT:
            return
        if number in _CHANGED:
            self._changes += 1
            if self._changes <= _MOST_CHANGES:
                self._levels[-1].pending.append(name)
                return
            number = errno.ENOTEMPTY
        if number not in _REFUSALS:
            raise error
        self._levels[-1].is_kept = True
        if self._refusal is None:
            above = self._trail.path
            self._refusal = RemovalRefusedError(number, above + b"/" + name if above else name)

    def _seal(self, state: os.stat_result) -> None:
        """Close the current directory to other users, and open it to this one."""
        descriptor = self._trail.descriptor
        is_foreign = not self._is_private and state.st_uid != self._user
        is_open = not self._is_private and state.st_mode & _OTHERS_WRITE
        # A full disk may refuse this, while it still lets files be removed.
        with suppress(OSError):
            if is_foreign:
                os.fchown(descriptor, self._user, -1)
            if is_foreign or is_open or state.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                os.fchmod(descriptor, stat.S_IRWXU)


def _make_accessible(name: bytes, dir_fd: int) -> None:
    """Give this user all rights to a directory of its own, which it may not even read."""
    try:
        place = linux.open_on_mount(dir_fd, name, _OPEN_PLACE)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        place = os.open(name, _OPEN_PLACE, dir_fd=dir_fd)
    try:
        # Through the descriptor: there may be a symlink of that name by now.
        Path(f"/proc/self/fd/{place}").chmod(stat.S_IRWXU)
    finally:
        os.close(place)
